/** What `make bench-dataplane` runs in: the pods of one node, and a mesh of services and routes around them. */
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeMesh } from '../../pilot/bench/mesh.js';

export interface DataplaneSize {
  services: number;
  /** Of the services elsewhere. */
  endpoints: number;
  /** VirtualServices, each with a DestinationRule and two subsets. */
  routes: number;
}

export interface NodeSize {
  pods: number;
  /** Kinds of pods on the node: each has a namespace, a service account and labels of its own, and so a stream to the control plane. */
  classes: number;
}

export const CLIENT = 'ns-0/client';
export const WEB = 'web.ns-0';
/** Where the servers echo, by TCP. */
export const TCP_PORT = 9_100;
export const VERSIONS = ['v1', 'v2'] as const;
/** The client, and one server of each version. */
export const LEAST_PODS = 1 + VERSIONS.length;

const NODE = 'node-1';

const pod = (namespace: string, name: string, account: string, labels: string, image: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {${labels}}}
spec: {nodeName: ${NODE}, serviceAccountName: ${account}, containers: [{name: main, image: ${image}, ports: [{name: http, containerPort: 8080}]}]}
`;

/** The lab's own part. */
export function worldYaml({ pods, classes }: NodeSize): string {
  const parts = Array.from({ length: classes }, (_, index) => `apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-${index}, labels: {underpass.io/mode: node}}\n`);
  parts.push(
    pod('ns-0', 'client', 'client', 'app: client', 'curl'),
    ...VERSIONS.map((version) => pod('ns-0', `web-${version}`, 'web', `app: web, version: ${version}`, 'echo')),
    // Beside the addresses that the mesh's services have.
    `apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: ns-0}\nspec: {clusterIP: 10.100.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: ${TCP_PORT}}]}\n`,
  );
  for (let index = 0; index < pods - LEAST_PODS; index++) {
    const of = index % classes;
    parts.push(pod(`ns-${of}`, `app-${of}-${index}`, `app-${of}`, `app: app-${of}`, 'sleep'));
  }
  return parts.join('---\n');
}

/** How many of the services lead to the node's own pods, by TCP: those are the kernel's to decide. */
const ownServices = (services: number): number => Math.floor(services / 10);

/** Writes the mesh into `folder`, for the control plane alone. */
export function writeServices(folder: string, size: DataplaneSize, { classes }: NodeSize): void {
  const own = ownServices(size.services);
  writeMesh(folder, { services: Math.max(1, size.services - own - 1), endpoints: size.endpoints, virtualServices: size.routes - 1, proxies: 0, namespaces: 100 });
  const parts = Array.from({ length: own }, (_, index) => {
    const of = index % classes;
    return `apiVersion: v1\nkind: Service\nmetadata: {name: own-${index}, namespace: ns-${of}}\nspec: {clusterIP: 10.99.${index >> 8}.${index & 255}, selector: {app: app-${of}}, ports: [{name: tcp, port: 5432, targetPort: 7000}]}\n`;
  });
  if (parts.length > 0) writeFileSync(join(folder, 'own.yaml'), parts.join('---\n'));
}

/** One of the routes: leads all requests to one version of the servers. Takes effect as one change of a file. */
export function writeRoute(folder: string, version: string): void {
  mkdirSync(folder, { recursive: true });
  const text = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: ns-0}
spec: {host: web, subsets: [${VERSIONS.map((each) => `{name: ${each}, labels: {version: ${each}}}`).join(', ')}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: ns-0}
spec: {hosts: [web], http: [{route: [{destination: {host: web, subset: ${version}}}]}]}
`;
  writeFileSync(join(folder, '.route.part'), text);
  renameSync(join(folder, '.route.part'), join(folder, 'route.yaml'));
}
