/** YAML of small meshes for tests. */

export interface PodSpec {
  name: string;
  ip: string;
  labels: Record<string, string>;
  ready?: boolean;
  port?: number;
}

export const podYaml = (namespace: string, { name, ip, labels, ready = true, port = 80 }: PodSpec): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: ${JSON.stringify(labels)}}
spec: {nodeName: node-1, containers: [{name: app, ports: [{name: http, containerPort: ${port}}]}]}
status: {phase: Running, podIP: ${ip}, podIPs: [{ip: "${ip}"}], conditions: [{type: Ready, status: "${ready ? 'True' : 'False'}"}]}
---`;

export const serviceYaml = (namespace: string, name: string, vip: string, pods: readonly PodSpec[], port = 'name: http, port: 80, targetPort: 80'): string => `
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: ${namespace}}
spec: {clusterIP: "${vip}", clusterIPs: ["${vip}"], selector: {app: ${name}}, ports: [{${port}}]}
---${sliceYaml(namespace, name, pods, port)}`;

export const sliceYaml = (namespace: string, name: string, pods: readonly PodSpec[], port = 'name: http, port: 80'): string => `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ${name}-1, namespace: ${namespace}, labels: {kubernetes.io/service-name: ${name}}}
addressType: IPv4
endpoints: [${pods.map((pod) => `{addresses: [${pod.ip}], conditions: {ready: ${pod.ready ?? true}}, nodeName: node-1, targetRef: {kind: Pod, name: ${pod.name}, namespace: ${namespace}}}`).join(', ')}]
ports: [{name: ${/name: ([\w-]+)/.exec(port)?.[1] ?? '""'}, port: ${/targetPort: (\d+)/.exec(port)?.[1] ?? 80}}]
---`;

export const nodeYaml = `
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}}
---`;
