/** What tests of gateways have in common: a mesh with gateway pods in the namespace `edge`, certificates of sites, and a client outside of the mesh. */
import assert from 'node:assert/strict';
import { after, before } from 'node:test';
import type { RunResult } from '../common/process.js';
import { siteCertificates, type SiteCertificates } from './gateway-certificates.js';
import { MeshWorld, type Answer, type CurlOptions, type WorldOptions } from './mesh/world.js';

export interface GatewayPod {
  /** Of the pod, its service account and its Service. */
  name: string;
  /** Of the pod, which the Service selects by them. */
  labels: string;
  /** Of the Service, in YAML. */
  ports: string;
  /** What the proxy says of itself beside the usual metadata. */
  metadata?: object;
}

/** The pod of an Istio Gateway that selects `istio: NAME`. */
export const istioGateway = (name: string, ports: string): GatewayPod => ({ name, labels: `istio: ${name}`, ports });
/** The pod of the Gateway of the Gateway API that has this name. */
export const kubeGateway = (name: string, ports: string): GatewayPod => ({ name, labels: `gateway.networking.k8s.io/gateway-name: ${name}`, ports });

/** Its pod and its Service. */
export const gatewayPodYaml = ({ name, labels, ports, metadata = {} }: GatewayPod): string => `---
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: edge, labels: {${labels}, app: ${name}}}
spec: {serviceAccountName: ${name}, containers: [{name: istio-proxy, image: auto, args: [proxy, router], env: [{name: ISTIO_METAJSON_MORE, value: '${JSON.stringify(metadata)}'}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: edge}
spec: {type: LoadBalancer, selector: {${labels}}, ports: [${ports}]}
`;

export const hostOf = ({ name }: GatewayPod): string => `${name}.edge.svc.cluster.local`;

export class GatewayWorld {
  readonly mesh: MeshWorld;
  certificates!: SiteCertificates;

  /** Declares what is to be done before and after the tests of the file. */
  constructor(name: string, pods: readonly GatewayPod[], options: WorldOptions = {}) {
    const edge = 'apiVersion: v1\nkind: Namespace\nmetadata: {name: edge, labels: {team: edge}}\n';
    this.mesh = new MeshWorld(name, { ...options, outside: edge + pods.map(gatewayPodYaml).join('') + (options.outside ? `---\n${options.outside}` : '') });
    before(async () => {
      this.certificates = await siteCertificates();
      await this.mesh.up();
    });
    after(async () => {
      (this.certificates as SiteCertificates | undefined)?.remove();
      await this.mesh.down();
    });
  }

  /** A request from outside of the mesh to the gateway, whatever the URL's host is. */
  request(pod: GatewayPod, url: string, options: CurlOptions = {}): Promise<Answer> {
    return this.mesh.curl('outside', url, { ...options, args: [...connectTo(pod, url), ...(options.args ?? [])] });
  }

  /** The same for requests that may get no answer; curl's exit code. */
  async exitCode(pod: GatewayPod, url: string, args: readonly string[]): Promise<number> {
    return (await this.mesh.tryCurl('outside', url, { args: [...connectTo(pod, url), ...args] })).code;
  }

  /** Whose certificate a TLS client gets that asks for `name`; `refused` when the handshake fails. */
  async subject(pod: GatewayPod, port: number, name: string): Promise<string> {
    const { code, stdout } = await this.#run(`const s = require('node:tls').connect({ host: '${hostOf(pod)}', port: ${port}, servername: '${name}', rejectUnauthorized: false }, () => { console.log(s.getPeerCertificate().subject.CN); s.destroy(); });`);
    return code === 0 ? stdout.trim() : 'refused';
  }

  /** What comes back first for a line over TCP, or over TLS that asks for a name; `refused` when nothing does. */
  async line(pod: GatewayPod, port: number, text = 'hello', name = ''): Promise<string> {
    const connect = name ? `require('node:tls').connect({ servername: '${name}', rejectUnauthorized: false, ` : "require('node:net').connect({ ";
    const { code, stdout } = await this.#run(`const s = ${connect}port: ${port}, host: '${hostOf(pod)}' }, () => s.write('${text}\\n')); s.on('data', (d) => { console.log(String(d).trim()); s.destroy(); }).on('end', () => process.exit(1));`);
    return code === 0 ? stdout.trim() : 'refused';
  }

  #run(script: string): Promise<RunResult> {
    return this.mesh.lab.exec('outside/client', [process.execPath, '-e', `${script} s.setTimeout(8000, () => process.exit(1)); s.on('error', () => process.exit(1));`]);
  }

  async noNacks(): Promise<void> {
    assert.deepEqual(await this.mesh.nacks(), []);
  }
}

/** For curl: the gateway in the place of the URL's host. */
export function connectTo(pod: GatewayPod, url: string): string[] {
  const { hostname, port, protocol } = new URL(url);
  const number = port || (protocol === 'https:' ? '443' : '80');
  return ['--connect-to', `${hostname}:${number}:${hostOf(pod)}:${number}`];
}

export const secret = (name: string, data: Record<string, string>): string => `apiVersion: v1\nkind: Secret\nmetadata: {name: ${name}, namespace: edge}\nstringData: ${JSON.stringify(data)}\n---\n`;

/** Servers that say by their certificate who they are, `a.example.com` and `b.example.com`, behind Services `tls-a` and `tls-b`. */
export const tlsServers = (namespace: string): string =>
  ['a', 'b'].map((name) => `apiVersion: v1
kind: Pod
metadata: {name: tls-${name}, namespace: ${namespace}, labels: {app: tls-${name}, version: ${name}}}
spec: {containers: [{name: tls, image: tls-echo, env: [{name: TLS_HOSTS, value: "${name}.example.com"}], ports: [{name: tls, containerPort: 8443}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: tls-${name}, namespace: ${namespace}}
spec: {selector: {app: tls-${name}}, ports: [{name: tls, port: 443, targetPort: 8443}]}
`).join('---\n');

const API = 'apiVersion: gateway.networking.k8s.io/v1';
/** What is allowed to every namespace. */
export const ALL = 'allowedRoutes: {namespaces: {from: All}}';

/** Of the Gateway API, in the namespace of the gateway pods. */
export const kubeGatewayYaml = (name: string, ...listeners: string[]): string => `${API}\nkind: Gateway\nmetadata: {name: ${name}, namespace: edge}\nspec:\n  gatewayClassName: underpass\n  listeners:\n${listeners.map((listener) => `    - ${listener}\n`).join('')}---\n`;

/** A route of the Gateway API. @param spec YAML of as many lines as it likes */
export const routeYaml = (name: string, namespace: string, spec: string, kind = 'HTTPRoute'): string =>
  `${kind === 'TCPRoute' || kind === 'TLSRoute' ? 'apiVersion: gateway.networking.k8s.io/v1alpha2' : API}\nkind: ${kind}\nmetadata: {name: ${name}, namespace: ${namespace}}\nspec:\n${spec.replace(/^/gm, '  ')}\n---\n`;

/** Of Istio's, for the gateway pod of that name. */
export const istioGatewayYaml = (pod: GatewayPod, name: string, ...servers: string[]): string => `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: ${name}, namespace: edge}
spec: {selector: {${pod.labels}}, servers: [${servers.join(', ')}]}
---
`;

export const server = (hosts: string, port = '{number: 80, name: http, protocol: HTTP}', tls = ''): string => `{hosts: [${hosts}], port: ${port}${tls === '' ? '' : `, tls: ${tls}`}}`;
