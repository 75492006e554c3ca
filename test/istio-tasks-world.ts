/**
 * The mesh in which the tasks of Istio's documentation run (examples/istio-tasks): its samples in the namespaces that the tasks
 * name, all of one mode, ingress and egress gateways, and a site outside of the cluster.
 */
import { createSign, generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseAllDocuments } from 'yaml';
import { projectRoot } from '../common/paths.js';
import { ServerCertificates } from '../lab/server-certificates.js';
import { MeshWorld, type Mode } from './mesh/world.js';

/** Of a task's files, as written: `kubectl apply -n NAMESPACE -f FILE…`. */
export function task(namespace: string, ...files: string[]): string {
  const objects = files.flatMap((file) => parseAllDocuments(readFileSync(join(projectRoot, 'examples', 'istio-tasks', `${file}.yaml`), 'utf8')));
  for (const object of objects) if (!object.hasIn(['metadata', 'namespace'])) object.setIn(['metadata', 'namespace'], namespace);
  return objects.map((object) => object.toString()).join('---\n');
}

const namespace = (name: string, labels: string): string => `apiVersion: v1\nkind: Namespace\nmetadata: {name: ${name}, labels: {${labels}}}\n`;
const JOINED: Record<Mode, string> = { sidecar: 'istio-injection: enabled', node: 'underpass.io/mode: node' };

const gateway = (name: string, ports: string): string => `
apiVersion: v1
kind: Pod
metadata:
  name: istio-${name}
  namespace: istio-system
  labels: {app: istio-${name}, istio: ${name}, sidecar.istio.io/inject: "true"}
  annotations: {inject.istio.io/templates: gateway}
spec: {serviceAccountName: istio-${name}-service-account, containers: [{name: istio-proxy, image: auto}]}
---
apiVersion: v1
kind: Service
metadata: {name: istio-${name}, namespace: istio-system}
spec: {selector: {istio: ${name}}, ports: [${ports}]}
`;

/** What the tasks on egress go to; its certificate is of an authority that `default/trusting`'s proxy knows as its system's. */
const site = (certificate: string, key: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: site, namespace: internet, annotations: {lab.underpass.io/hostnames: "httpbin.org,www.google.com,edition.cnn.com"}}
spec:
  containers:
    - {name: http, image: docker.io/kennethreitz/httpbin, ports: [{containerPort: 80}]}
    - {name: https, image: tls-echo, ports: [{containerPort: 443}], env: [{name: TLS_CERT, value: ${JSON.stringify(certificate)}}, {name: TLS_KEY, value: ${JSON.stringify(key)}}]}
`;
const trusting = (authority: string): string => `
apiVersion: v1
kind: ConfigMap
metadata: {name: authorities, namespace: default}
data: {ca-certificates.crt: ${JSON.stringify(authority)}}
---
apiVersion: v1
kind: Pod
metadata:
  name: trusting
  namespace: default
  annotations:
    sidecar.istio.io/userVolume: '{"authorities": {"configMap": {"name": "authorities"}}}'
    sidecar.istio.io/userVolumeMount: '{"authorities": {"mountPath": "/etc/ssl/certs"}}'
spec: {containers: [{name: curl, image: curl}]}
`;

export interface Credential {
  certificate: string;
  key: string;
  /** PEM of its authority. */
  ca: string;
}

export interface TasksWorld {
  mesh: MeshWorld;
  /** A directory for files that curl reads. */
  folder: string;
  /** `kubectl create -n istio-system secret tls|generic NAME`. */
  secret(name: string, credential: Credential, withCa?: boolean): string;
  /** A certificate for a name, and its files `<file>.crt`, `<file>.key` and `ca.crt` in `folder`. */
  credential(file: string, dnsName: string): Promise<Credential>;
  /** A token as the tasks' demo.jwt and groups-scope.jwt, signed by the key that their jwksUri leads to. */
  token(claims?: object): string;
  down(): Promise<void>;
}

/** Keys are asked for at the documentation's own address, which a test must not need. */
function issuer(): { token: (claims?: object) => string; restore: () => void } {
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2_048 });
  const keys = JSON.stringify({ keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'demo', alg: 'RS256', use: 'sig' }] });
  const original = globalThis.fetch;
  globalThis.fetch = (input, init) => (String(input).endsWith('/security/tools/jwt/samples/jwks.json') ? Promise.resolve(new Response(keys)) : original(input, init));
  const part = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  const token = (claims: object = {}): string => {
    const now = Math.floor(Date.now() / 1_000);
    const head = `${part({ alg: 'RS256', kid: 'demo', typ: 'JWT' })}.${part({ iss: 'testing@secure.istio.io', sub: 'testing@secure.istio.io', iat: now, exp: now + 3_600, ...claims })}`;
    return `${head}.${createSign('sha256').update(head).sign(privateKey).toString('base64url')}`;
  };
  return { token, restore: () => void (globalThis.fetch = original) };
}

export async function tasksWorld(mode: Mode): Promise<TasksWorld> {
  const folder = mkdtempSync(join(tmpdir(), 'up-tasks-'));
  const authority = await ServerCertificates.create({ commonName: 'example Inc.' });
  const web = await authority.issue({ dnsNames: ['edition.cnn.com', 'www.google.com'] });
  writeFileSync(join(folder, 'ca.crt'), authority.rootPem);
  const outside = [
    ...['default', 'foo', 'bar', 'mirroring', 'istio-io-tcp-traffic-shifting'].map((name) => namespace(name, JOINED[mode])),
    ...['legacy', 'istio-system', 'internet'].map((name) => namespace(name, 'name: none')),
    task('default', 'samples/bookinfo/bookinfo', 'samples/httpbin/httpbin', 'samples/curl/curl', 'circuit-breaking/fortio-deploy', 'secure-ingress/helloworld', 'ingress-sni-passthrough/nginx'),
    ...['foo', 'bar', 'legacy'].map((name) => task(name, 'samples/httpbin/httpbin', 'samples/curl/curl')),
    task('foo', 'samples/tcp-echo/tcp-echo', 'ext-authz/ext-authz', 'ext-authz/mesh-config'),
    task('mirroring', 'mirroring/workloads', 'samples/curl/curl'),
    task('istio-io-tcp-traffic-shifting', 'tcp-traffic-shifting/tcp-echo-services'),
    gateway('ingressgateway', '{name: status-port, port: 15021}, {name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}, {name: tcp, port: 31400}'),
    gateway('egressgateway', '{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}'),
    site(web.certificatePem, web.privateKeyPem),
    trusting(authority.rootPem),
  ].join('---\n');
  // The shared Envoy has the node's trust store, not the pod's.
  const mesh = new MeshWorld(`tasks-${mode}`, { bare: true, outside, sidecarsOnly: mode === 'sidecar', agentEnv: { SSL_CERT_FILE: join(folder, 'ca.crt') } });
  const { token, restore } = issuer();
  // What was begun would keep this process, and so the whole run, from ending.
  await mesh.up().catch(async (error: unknown) => {
    await mesh.down();
    throw error;
  });
  return {
    mesh,
    folder,
    token,
    credential: async (file, dnsName) => {
      const { certificatePem: certificate, privateKeyPem: key } = await authority.issue({ dnsNames: [dnsName] });
      writeFileSync(join(folder, `${file}.crt`), certificate);
      writeFileSync(join(folder, `${file}.key`), key, { mode: 0o600 });
      return { certificate, key, ca: authority.rootPem };
    },
    secret: (name, { certificate, key, ca }, withCa = false) =>
      `${JSON.stringify({ apiVersion: 'v1', kind: 'Secret', metadata: { name, namespace: 'istio-system' }, stringData: { 'tls.crt': certificate, 'tls.key': key, ...(withCa ? { 'ca.crt': ca } : {}) } })}\n`,
    down: async () => {
      await mesh.down();
      restore();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
