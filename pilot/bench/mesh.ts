/** A generated mesh as YAML files: services with endpoints, VirtualServices with subsets, and the pods of the clients. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface MeshSize {
  services: number;
  endpoints: number;
  virtualServices: number;
  proxies: number;
  namespaces: number;
}

export interface ProxyIdentity {
  id: string;
  metadata: Record<string, unknown>;
}

/** Ports as meshes have them: mostly HTTP on few ports, some gRPC, some TCP. */
const PORTS = [
  { share: 50, name: 'http', port: 80, target: 8080 },
  { share: 20, name: 'http', port: 8080, target: 8080 },
  { share: 10, name: 'http-web', port: 9090, target: 9090 },
  { share: 10, name: 'grpc', port: 50_051, target: 50_051 },
  { share: 10, name: 'tcp', port: 5_432, target: 5_432 },
];

const portOf = (index: number): (typeof PORTS)[number] => {
  let place = (index * 37) % 100;
  for (const port of PORTS) {
    if (place < port.share) return port;
    place -= port.share;
  }
  return PORTS[0]!;
};

const namespaceOf = (index: number, { namespaces }: MeshSize): string => `ns-${index % namespaces}`;
const endpointAddress = (index: number): string => `10.${64 + (index >> 16)}.${(index >> 8) & 255}.${index & 255}`;
const proxyAddress = (index: number): string => `10.${32 + (index >> 16)}.${(index >> 8) & 255}.${index & 255}`;

export const serviceFile = (folder: string, index: number): string => join(folder, `service-${String(index).padStart(6, '0')}.yaml`);
export const serviceHostOf = (index: number, size: MeshSize): string => `service-${index}.${namespaceOf(index, size)}.svc.cluster.local`;
export const clusterOf = (index: number, size: MeshSize): string => `outbound|${portOf(index).port}||${serviceHostOf(index, size)}`;

/** @param lastReady whether the service's last endpoint is ready: what the benchmark toggles */
export function serviceYaml(index: number, size: MeshSize, lastReady = true): string {
  const namespace = namespaceOf(index, size);
  const port = portOf(index);
  const each = Math.floor(size.endpoints / size.services);
  const endpoints = Array.from({ length: each }, (_, i) => `- {addresses: [${endpointAddress(index * each + i)}], conditions: {ready: ${i < each - 1 || lastReady}}, nodeName: node-${i % 50}}`);
  return `apiVersion: v1
kind: Service
metadata: {name: service-${index}, namespace: ${namespace}}
spec:
  clusterIP: 10.${96 + (index >> 16)}.${(index >> 8) & 255}.${index & 255}
  selector: {app: service-${index}}
  ports: [{name: ${port.name}, port: ${port.port}, targetPort: ${port.target}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: service-${index}-1, namespace: ${namespace}, labels: {kubernetes.io/service-name: service-${index}}}
addressType: IPv4
ports: [{name: ${port.name}, port: ${port.target}}]
endpoints:
${endpoints.join('\n')}
`;
}

function virtualServiceYaml(index: number, size: MeshSize): string {
  // Spread over the services that speak HTTP.
  let service = Math.floor((index * size.services) / size.virtualServices);
  while (portOf(service).name === 'tcp') service = (service + 1) % size.services;
  const namespace = namespaceOf(service, size);
  const host = `service-${service}`;
  return `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: rule-${index}, namespace: ${namespace}}
spec: {host: ${host}, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: route-${index}, namespace: ${namespace}}
spec:
  hosts: [${host}]
  http:
    - match: [{headers: {user: {exact: tester}}, uri: {prefix: /api/}}]
      route: [{destination: {host: ${host}, subset: v2}}]
    - route:
        - {destination: {host: ${host}, subset: v1}, weight: 75}
        - {destination: {host: ${host}, subset: v2}, weight: 25}
`;
}

/** Writes the mesh into `folder`. @returns its clients */
export function writeMesh(folder: string, size: MeshSize): ProxyIdentity[] {
  mkdirSync(folder, { recursive: true });
  for (let i = 0; i < size.services; i++) writeFileSync(serviceFile(folder, i), serviceYaml(i, size));
  for (let i = 0; i < size.virtualServices; i++) writeFileSync(join(folder, `route-${String(i).padStart(6, '0')}.yaml`), virtualServiceYaml(i, size));
  const proxies: ProxyIdentity[] = [];
  const pods: string[] = [];
  for (let i = 0; i < size.proxies; i++) {
    const namespace = namespaceOf(i, size);
    const [name, ip] = [`client-${i}`, proxyAddress(i)];
    proxies.push({ id: `sidecar~${ip}~${name}.${namespace}~${namespace}.svc.cluster.local`, metadata: { NAMESPACE: namespace, LABELS: { app: 'client' }, INSTANCE_IPS: ip, ISTIO_VERSION: '1.27.0' } });
    pods.push(`apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: client}}
spec: {nodeName: node-${i % 50}, containers: [{name: app}]}
status: {phase: Running, podIP: ${ip}, podIPs: [{ip: ${ip}}], conditions: [{type: Ready, status: "True"}]}
`);
  }
  for (let i = 0; i < pods.length; i += 50) writeFileSync(join(folder, `pods-${String(i).padStart(6, '0')}.yaml`), pods.slice(i, i + 50).join('---\n'));
  return proxies;
}
