/** The templates that come along, in the shape of Istio's: names, ports, arguments, variables and volumes are what others read. */
const PROXY_ENV = `
        - {name: PILOT_CERT_PROVIDER, value: istiod}
        - {name: CA_ADDR, value: "\${values.caAddress}"}
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: INSTANCE_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: SERVICE_ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
        - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
        - {name: ISTIO_CPU_LIMIT, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: "0"}}}
        - {name: GOMEMLIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: "0"}}}
        - {name: GOMAXPROCS, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: "0"}}}
        - {name: PROXY_CONFIG, value: "\${proxy.config}"}
        - {name: ISTIO_META_POD_PORTS, value: "\${app.ports}"}
        - {name: ISTIO_META_APP_CONTAINERS, value: "\${app.containers|\\"\\"}"}
        - {name: ISTIO_META_CLUSTER_ID, value: "\${values.clusterId}"}
        - {name: ISTIO_META_NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: ISTIO_META_INTERCEPTION_MODE, value: "\${proxy.interceptionMode}"}
        - {$when: "\${network}", name: ISTIO_META_NETWORK, value: "\${network}"}
        - {$when: "\${workload.name}", name: ISTIO_META_WORKLOAD_NAME, value: "\${workload.name}"}
        - {$when: "\${workload.owner}", name: ISTIO_META_OWNER, value: "\${workload.owner}"}
        - {name: ISTIO_META_MESH_ID, value: "\${values.meshId}"}
        - {name: TRUST_DOMAIN, value: "\${values.trustDomain}"}
        - "\${proxy.environment}"`;

const PROXY_MOUNTS = `
        - {name: workload-socket, mountPath: /var/run/secrets/workload-spiffe-uds}
        - {name: credential-socket, mountPath: /var/run/secrets/credential-uds}
        - {name: workload-certs, mountPath: /var/run/secrets/workload-spiffe-credentials}
        - {name: istiod-ca-cert, mountPath: /var/run/secrets/istio}
        - {name: istio-data, mountPath: /var/lib/istio/data}
        - {name: istio-envoy, mountPath: /etc/istio/proxy}
        - {name: istio-token, mountPath: /var/run/secrets/tokens}
        - {name: istio-podinfo, mountPath: /etc/istio/pod}
        - "\${proxy.userMounts}"`;

const VOLUMES = `
    - {name: workload-socket, emptyDir: {}}
    - {name: credential-socket, emptyDir: {}}
    - {name: workload-certs, emptyDir: {}}
    - {name: istio-envoy, emptyDir: {medium: Memory}}
    - {name: istio-data, emptyDir: {}}
    - name: istio-podinfo
      downwardAPI:
        items:
          - {path: labels, fieldRef: {fieldPath: metadata.labels}}
          - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
    - name: istio-token
      projected:
        sources:
          - serviceAccountToken: {path: istio-token, expirationSeconds: 43200, audience: "\${values.tokenAudience}"}
    - {name: istiod-ca-cert, configMap: {name: istio-ca-root-cert}}
    - "\${proxy.userVolumes}"`;

const SECURITY = `
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
        privileged: false
        readOnlyRootFilesystem: true
        runAsGroup: 1337
        runAsNonRoot: true
        runAsUser: 1337`;

const proxyArguments = (role: string): string => `[proxy, ${role}, --domain, "$(POD_NAMESPACE).svc.\${values.clusterDomain}", "--proxyLogLevel=\${proxy.logLevel}", "--proxyComponentLogLevel=\${proxy.componentLogLevel}", "--log_output_level=\${proxy.agentLogLevel}"]`;

const SIDECAR = `
metadata:
  labels:
    security.istio.io/tlsMode: \${labels["security.istio.io/tlsMode"]|"istio"}
    networking.istio.io/tunnel: \${proxy.tunnel}
    service.istio.io/canonical-name: \${canonical.name}
    service.istio.io/canonical-revision: \${canonical.revision}
  annotations:
    istio.io/rev: \${revision}
    kubectl.kubernetes.io/default-logs-container: \${annotations["kubectl.kubernetes.io/default-logs-container"]|app.first}
    kubectl.kubernetes.io/default-container: \${annotations["kubectl.kubernetes.io/default-container"]|app.first}
spec:
  initContainers:
    - $when: \${capture.arguments}
      name: istio-init
      image: \${values.initImage}
      args: ["\${capture.arguments}"]
      resources: \${proxy.resources}
      securityContext:
        allowPrivilegeEscalation: false
        capabilities: {add: [NET_ADMIN, NET_RAW], drop: [ALL]}
        privileged: false
        readOnlyRootFilesystem: false
        runAsGroup: 0
        runAsNonRoot: false
        runAsUser: 0
  containers:
    - name: istio-proxy
      image: \${proxy.image}
      ports: [{containerPort: 15090, protocol: TCP, name: http-envoy-prom}]
      args: ${proxyArguments('sidecar')}
      env:${PROXY_ENV}
      resources: \${proxy.resources}
      startupProbe: \${proxy.startupProbe}
      readinessProbe: \${proxy.readinessProbe}
      lifecycle: \${proxy.lifecycle}
      securityContext:${SECURITY}
      volumeMounts:${PROXY_MOUNTS}
  volumes:${VOLUMES}
`;

const GATEWAY = `
metadata:
  labels:
    service.istio.io/canonical-name: \${canonical.name}
    service.istio.io/canonical-revision: \${canonical.revision}
  annotations:
    istio.io/rev: \${revision}
spec:
  securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "0"}]}
  containers:
    - name: istio-proxy
      image: \${proxy.image}
      ports: [{containerPort: 15090, protocol: TCP, name: http-envoy-prom}]
      args: ${proxyArguments('router')}
      env:${PROXY_ENV}
      readinessProbe: \${proxy.readinessProbe}
      securityContext:${SECURITY}
      volumeMounts:${PROXY_MOUNTS}
  volumes:${VOLUMES}
`;

export const BUILTIN_TEMPLATES: Readonly<Record<string, string>> = { sidecar: SIDECAR, gateway: GATEWAY };
