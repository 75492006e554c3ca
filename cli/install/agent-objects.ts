/** The node agent in a cluster: a DaemonSet of two containers, so that Envoy outlives the agent. */
import { AGENT, AGENT_NAMESPACE, LABELS, account, agentRbac, namespace, podTokensRbac } from './rbac.js';
import { Merged, Spread, all, comment, optional, text, value, when, type Mapping, type Template } from './template.js';

export const image = when(value('image.digest'), text`${value('image.repository')}@${value('image.digest')}`, text`${value('image.repository')}:${value('image.tag')}`);

const PRODUCT = '/opt/underpass';
/** Shared by both containers of one pod: the launcher's socket, and what the probes look at. */
const POD_DIR = '/run/underpass-pod';
const READY_FILE = `${POD_DIR}/ready`;
const ALIVE_FILE = `${POD_DIR}/alive`;
const RUN_DIR = '/run/underpass';
const ROOTS = '/var/run/secrets/istio';
const TOKENS = '/var/run/secrets/tokens';
const HOST_CNI_CONF = '/host/etc/cni/net.d';
const HOST_CNI_BIN = '/host/opt/cni/bin';

/** Where the clean-up of a node that has no agent any more reads and writes. */
export const CLEANUP_ARGS: readonly string[] = ['agent', '--cleanup', '--run-dir', RUN_DIR, '--cni-conf-dir', HOST_CNI_CONF, '--cni-bin-dir', HOST_CNI_BIN];

/** What a container of the agent has of the node. */
export const AGENT_MOUNTS: readonly Template[] = [
  { name: 'pod', mountPath: POD_DIR },
  { name: 'tmp', mountPath: '/tmp' },
  comment("The agent binds pods' network namespaces to names here, which Envoy's container and the agent's successor have to see.", { name: 'run', mountPath: RUN_DIR, mountPropagation: 'Bidirectional' }),
  comment('Pinned links and maps: they outlive the agent. Where the node has mounted no bpffs there, the agent does.', { name: 'bpffs', mountPath: '/sys/fs/bpf', mountPropagation: 'Bidirectional' }),
  comment("The node's own tree, pods' directories in it. A container's has v1 alone on nodes that have both.", { name: 'cgroup', mountPath: '/sys/fs/cgroup' }),
  comment('Namespaces that the runtime makes later appear here too.', { name: 'netns', mountPath: '/run/netns', mountPropagation: 'HostToContainer' }),
  { name: 'cni-conf', mountPath: HOST_CNI_CONF },
  { name: 'cni-bin', mountPath: HOST_CNI_BIN },
  comment('A hundred bytes that Envoys of hot restarts share, which the agent puts right when one has died, and takes away.', { name: 'shm', mountPath: '/dev/shm' }),
];

const hostPath = (name: string, path: Template, type = 'DirectoryOrCreate'): Mapping => ({ name, hostPath: { path, type } });

export const AGENT_VOLUMES: readonly Template[] = [
  { name: 'pod', emptyDir: {} },
  { name: 'tmp', emptyDir: {} },
  hostPath('run', RUN_DIR),
  hostPath('bpffs', '/sys/fs/bpf'),
  hostPath('cgroup', '/sys/fs/cgroup', 'Directory'),
  hostPath('netns', value('agent.runtimeNetnsDir')),
  hostPath('cni-conf', value('agent.cniConfDir')),
  hostPath('cni-bin', value('agent.cniBinDir')),
  hostPath('shm', '/dev/shm', 'Directory'),
];

export interface Capability {
  name: string;
  why: string;
}

/** What the agent uses of root's rights; a test runs it with these alone. */
export const AGENT_CAPABILITIES: readonly Capability[] = [
  { name: 'SYS_ADMIN', why: "enters pods' network namespaces, binds them to names, loads BPF programs (it includes BPF and PERFMON, which kernels before 5.8 do not know)" },
  { name: 'NET_ADMIN', why: "attaches programs to cgroups and namespaces, writes iptables in pods' namespaces, ends sockets" },
  { name: 'NET_RAW', why: 'iptables of the older kind (iptables-legacy) opens a raw socket' },
  { name: 'SYS_PTRACE', why: "reads to which namespace and program a pod's process belongs, whoever's it is; reaches Envoy's sockets (pidfd_getfd)" },
  { name: 'DAC_OVERRIDE', why: 'makes a cgroup for Envoy in the root of the tree, which not even root may write to by its mode' },
  { name: 'NET_BIND_SERVICE', why: 'the self-test listens on port 80 of a namespace of its own' },
];

/** What Envoy's container has. */
export const ENVOY_CAPABILITIES: readonly Capability[] = [
  { name: 'SYS_ADMIN', why: "enters pods' network namespaces, where its listeners and connections are" },
  { name: 'NET_ADMIN', why: 'marks its own connections, by which redirection leaves them alone' },
];

/** Why no list of capabilities: docs/install.md has the ones that are used. */
export const AGENT_SECURITY = comment(
  "Kubernetes allows Bidirectional mounts, which the names of pods' namespaces need, in privileged containers alone. docs/install.md has the capabilities that are used, and what for.",
  { privileged: true, runAsUser: 0, runAsGroup: 0, readOnlyRootFilesystem: true },
);

const env: Template[] = [
  { name: 'NODE_NAME', valueFrom: { fieldRef: { fieldPath: 'spec.nodeName' } } },
  when(value('agent.metricsPort'), { name: 'NODE_ADDRESS', valueFrom: { fieldRef: { fieldPath: 'status.hostIP' } } }),
  comment("Of iptables, which nobody else runs in pods' namespaces; the usual place can't be written.", { name: 'XTABLES_LOCKFILE', value: `${POD_DIR}/xtables.lock` }),
];
/** A file that the agent writes anew every second has to be this old at most, in seconds. */
const written = (file: string, seconds: number): Mapping => ({ exec: { command: [`${PRODUCT}/build/underpass-fresh`, file, `${seconds}`] }, timeoutSeconds: 5 });

const agentContainer: Mapping = {
  name: 'agent',
  image,
  imagePullPolicy: value('image.pullPolicy'),
  args: [
    'agent',
    '--run-dir', RUN_DIR,
    '--cni-conf-dir', HOST_CNI_CONF,
    '--cni-bin-dir', HOST_CNI_BIN,
    text`--cni-when-away=${value('agent.cniWhenAway')}`,
    '--envoy-launcher', `${POD_DIR}/launcher.sock`,
    '--daemonset', `${AGENT_NAMESPACE}/${AGENT}`,
    '--ready-file', READY_FILE,
    '--alive-file', ALIVE_FILE,
    text`--discovery=${value('discoveryAddress')}`,
    '--discovery-root', `${ROOTS}/root-cert.pem`,
    '--ca-token', `${TOKENS}/istio-token`,
    when(value('agent.podTokens'), '--ca-pod-tokens'),
    text`--cluster-id=${value('clusterId')}`,
    when(value('trustDomain'), text`--trust-domain=${value('trustDomain')}`),
    text`--acceleration=${value('agent.acceleration')}`,
    text`--redirection=${value('agent.redirection')}`,
    when(value('agent.ambientLabel'), '--ambient-label'),
    when(value('agent.metricsPort'), text`--metrics-address=$(NODE_ADDRESS):${value('agent.metricsPort')}`),
    when(value('agent.dashboardPort'), text`--dashboard-port=${value('agent.dashboardPort')}`),
    new Spread('agent.extraArgs'),
  ],
  env,
  securityContext: AGENT_SECURITY,
  resources: value('agent.resources'),
  startupProbe: { ...written(READY_FILE, 30), periodSeconds: 1, failureThreshold: 300 },
  readinessProbe: { ...written(READY_FILE, 30), periodSeconds: 5, failureThreshold: 3 },
  livenessProbe: comment('One that hangs is started again, which touches no traffic. It may be busy for a while, as when it loads its programs into the kernel.', { ...written(ALIVE_FILE, 120), periodSeconds: 30, failureThreshold: 2 }),
  volumeMounts: [...AGENT_MOUNTS, { name: 'istio-token', mountPath: TOKENS, readOnly: true }, { name: 'istio-ca', mountPath: ROOTS, readOnly: true }],
};

const envoyContainer: Mapping = {
  name: 'envoy',
  image,
  imagePullPolicy: value('image.pullPolicy'),
  command: [`${PRODUCT}/build/underpass-launcher`],
  args: ['--socket', `${POD_DIR}/launcher.sock`],
  securityContext: {
    runAsUser: 0,
    runAsGroup: 0,
    readOnlyRootFilesystem: true,
    capabilities: {
      drop: ['ALL'],
      add: ENVOY_CAPABILITIES.map(({ name, why }) => comment(`${why[0]!.toUpperCase()}${why.slice(1)}.`, name)),
    },
    seccompProfile: { type: 'RuntimeDefault' },
  },
  resources: value('agent.envoyResources'),
  volumeMounts: [
    { name: 'pod', mountPath: POD_DIR },
    comment("Its configuration, and the names of pods' namespaces as the agent makes them.", { name: 'run', mountPath: RUN_DIR, mountPropagation: 'HostToContainer' }),
    comment('It runs in a cgroup of its own, by which the kernel side knows its sockets.', { name: 'cgroup', mountPath: '/sys/fs/cgroup' }),
    comment("What two Envoys share while one hands over to the next, which is another pod's.", { name: 'shm', mountPath: '/dev/shm' }),
  ],
};

/** As most configurations of Prometheus look for. */
const SCRAPED = { 'prometheus.io/scrape': 'true', 'prometheus.io/port': text`${value('agent.metricsPort')}`, 'prometheus.io/path': '/metrics' };

/** Prometheus finds the pod's containers without a port, and puts this one to the pod's address. */
const podMonitor: Mapping = {
  apiVersion: 'monitoring.coreos.com/v1',
  kind: 'PodMonitor',
  metadata: { name: AGENT, namespace: AGENT_NAMESPACE, labels: new Merged('monitoring.labels', LABELS) },
  spec: {
    selector: { matchLabels: { app: AGENT } },
    podMetricsEndpoints: [{
      path: '/metrics',
      relabelings: [
        { action: 'keep', sourceLabels: ['__meta_kubernetes_pod_container_name'], regex: 'agent' },
        { action: 'replace', sourceLabels: ['__meta_kubernetes_pod_ip'], regex: '([0-9.]+)', replacement: text`$1:${value('agent.metricsPort')}`, targetLabel: '__address__' },
        { action: 'replace', sourceLabels: ['__meta_kubernetes_pod_ip'], regex: '(.*:.*)', replacement: text`[$1]:${value('agent.metricsPort')}`, targetLabel: '__address__' },
        { action: 'replace', sourceLabels: ['__meta_kubernetes_pod_node_name'], targetLabel: 'node' },
      ],
    }],
  },
};

export function agentObjects(): Template[] {
  const labels = { app: AGENT, ...LABELS, 'app.kubernetes.io/name': AGENT };
  return [
    namespace(AGENT_NAMESPACE, { 'pod-security.kubernetes.io/enforce': 'privileged' }),
    account(AGENT, AGENT_NAMESPACE),
    ...agentRbac(),
    ...podTokensRbac().map((object) => when(value('agent.podTokens'), object)),
    {
      apiVersion: 'apps/v1',
      kind: 'DaemonSet',
      metadata: { name: AGENT, namespace: AGENT_NAMESPACE, labels },
      spec: {
        selector: { matchLabels: { app: AGENT } },
        updateStrategy: comment('The new agent starts beside the old one, waits until that has ended, and takes over its pins and its Envoy.', { type: 'RollingUpdate', rollingUpdate: { maxSurge: 1, maxUnavailable: 0 } }),
        template: {
          metadata: { labels, annotations: when(value('agent.metricsPort'), new Merged('agent.podAnnotations', SCRAPED), optional('agent.podAnnotations')) },
          spec: {
            serviceAccountName: AGENT,
            hostNetwork: comment("Envoy's connections to other nodes are the node's. The port of the metrics is not named here: the scheduler would find no place for an agent beside the one that it replaces.", true),
            hostPID: comment("Pods' processes lead to their network namespaces, and Envoy's sockets are reached by its process.", true),
            dnsPolicy: 'ClusterFirstWithHostNet',
            priorityClassName: value('agent.priorityClassName'),
            nodeSelector: optional('agent.nodeSelector'),
            affinity: optional('agent.affinity'),
            tolerations: optional('agent.tolerations'),
            imagePullSecrets: optional('imagePullSecrets'),
            terminationGracePeriodSeconds: value('agent.terminationGracePeriodSeconds'),
            containers: [agentContainer, envoyContainer],
            volumes: [
              ...AGENT_VOLUMES,
              { name: 'istio-token', projected: { sources: [{ serviceAccountToken: { audience: 'istio-ca', expirationSeconds: 43200, path: 'istio-token' } }] } },
              comment('Written by the control plane into every namespace; until it has, the pod waits.', { name: 'istio-ca', configMap: { name: 'istio-ca-root-cert' } }),
            ],
          },
        },
      },
    },
    when(all(value('agent.metricsPort'), value('agent.podMonitor')), podMonitor),
  ];
}
