// Pilot reads a real API server: objects made by its API arrive at xDS clients, and go on arriving whatever happens to the server.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { issueServerCertificate } from '../../common/identity/server-certificate.js';
import { projectRoot } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import type { KubeObject } from '../../common/kube/types.js';
import { TYPE } from '../../pilot/generate/resource.js';
import { TestClient } from '../../pilot/testing/client.js';
import { base64, kubeconfigText, KubeCluster } from './cluster.js';
import { pilotKubeconfig, PILOT_USER, startPilot, type KubePilot } from './pilot.js';
import { Relay } from './relay.js';
import { MeshView, WEB } from './view.js';

const WAIT = { everyMs: 20 };

let folder: string;
let cluster: KubeCluster;
let relay: Relay;
let kube: KubePilot;
let view: MeshView;

const slice = (addresses: string[], service = 'web', namespace = 'shop'): string => `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ${service}-1, namespace: ${namespace}, labels: {kubernetes.io/service-name: ${service}}}
addressType: IPv4
endpoints: ${JSON.stringify(addresses.map((address) => ({ addresses: [address], conditions: { ready: true } })))}
ports: [{name: http, port: 8080, protocol: TCP}]
---`;
const service = (name = 'web', namespace = 'shop'): string => `
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: ${namespace}}
spec: {selector: {app: ${name}}, ports: [{name: http, port: 80, targetPort: 8080}]}
---`;
const virtualService = (http: string, name = 'web', version = 'v1'): string => `
apiVersion: networking.istio.io/${version}
kind: VirtualService
metadata: {name: ${name}, namespace: shop}
spec: {hosts: [${name}], http: [${http}]}
---`;
const path = (prefix: string): string => `{match: [{uri: {prefix: ${prefix}}}], route: [{destination: {host: web}}]}`;
const meshConfig = (mesh: string): string => `{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {mesh: ${JSON.stringify(mesh)}}}`;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-kube-source-'));
  cluster = await KubeCluster.start();
  const kubeconfig = await pilotKubeconfig(cluster);
  await cluster.namespace('shop');
  await cluster.apply(service() + slice(['10.9.0.1']) + virtualService(path('/one')));
  relay = new Relay();
  const port = await relay.listen(cluster.ports.api);
  kube = await startPilot(kubeconfig.replace(cluster.url, `https://127.0.0.1:${port}`), { listen: ['127.0.0.1:0', `unix:${join(folder, 'xds.sock')}`] });
  view = new MeshView(kube.pilot.addresses[0]!);
  await waitFor('the first state', () => view.routes() !== '' && view.endpoints().length > 0, WAIT);
});
after(async () => {
  view?.close();
  await kube?.pilot.stop();
  relay?.close();
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

test('Service, EndpointSlice and VirtualService made by the API are served; pilot needs no right beyond its manifest', () => {
  assert.ok(view.clusters().includes(WEB));
  assert.deepEqual(view.endpoints(), ['10.9.0.1']);
  assert.match(view.routes(), /"\/one"/);
  assert.deepEqual(cluster.requests().filter(({ user, code }) => user === PILOT_USER && code === 403), []);
});

test('changes are pushed live: endpoints, routes in an older version of the API, what comes and what goes', async () => {
  await cluster.apply(slice(['10.9.0.1', '10.9.0.2']));
  await waitFor('the second endpoint', () => view.endpoints().length === 2, WAIT);
  await cluster.apply(virtualService(path('/two'), 'web', 'v1alpha3'));
  await waitFor('the other route', () => view.routes().includes('"/two"') && !view.routes().includes('"/one"'), WAIT);
  await cluster.apply(service('later') + slice(['10.9.0.3'], 'later'));
  await waitFor('the new service', () => view.clusters().includes('outbound|80||later.shop.svc.cluster.local'), WAIT);
  await cluster.delete('v1', 'Service', { namespace: 'shop', name: 'later' });
  await waitFor('its end', () => !view.clusters().includes('outbound|80||later.shop.svc.cluster.local'), WAIT);
});

test("an endpoint's Pod gives its identity and health, its Node its locality: created, given an address and made ready by the API", async () => {
  await cluster.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web-9, namespace: shop, labels: {app: web, version: v9}}
spec: {nodeName: node-1, containers: [{name: app, image: web}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: v9, labels: {version: v9}}]}
`);
  const subset = 'outbound|80|v9|web.shop.svc.cluster.local';
  view.client.subscribe(TYPE.endpoint, [subset]);
  await cluster.setStatus('v1', 'Pod', { namespace: 'shop', name: 'web-9' }, { phase: 'Running', podIP: '10.9.0.9', podIPs: [{ ip: '10.9.0.9' }], conditions: [{ type: 'Ready', status: 'True' }] });
  await cluster.apply(slice(['10.9.0.1', '10.9.0.2', '10.9.0.9']));
  await waitFor('the subset', () => view.endpoints(subset).join() === '10.9.0.9', WAIT);
  // Its Node comes late, and moves.
  const node = (zone: string): string => `{apiVersion: v1, kind: Node, metadata: {name: node-1, labels: {topology.kubernetes.io/region: east, topology.kubernetes.io/zone: ${zone}}}}`;
  await cluster.apply(node('east-1'));
  await waitFor('its locality', () => view.localities(subset).join() === 'east/east-1', WAIT);
  await cluster.apply(node('east-2'));
  await waitFor('the other zone', () => view.localities(subset).join() === 'east/east-2', WAIT);
});

test('an object that the CRD lets pass and pilot does not is refused by name and field; its last good version and all else stay', async () => {
  await cluster.apply(virtualService('{match: [{uri: {regex: "("}}], route: [{destination: {host: web}}]}'));
  await waitFor('the refusal', () => kube.pilot.status().problems.some(({ file, field, severity }) => severity === 'error' && file.endsWith('VirtualService/shop/web') && field.includes('regex')), WAIT);
  await cluster.apply(slice(['10.9.0.7']));
  await waitFor('the endpoints', () => view.endpoints().join() === '10.9.0.7', WAIT);
  assert.match(view.routes(), /"\/two"/);
  await cluster.apply(virtualService(path('/three')));
  await waitFor('the good one', () => view.routes().includes('"/three"'), WAIT);
  assert.deepEqual(kube.pilot.status().problems.filter(({ severity }) => severity === 'error'), []);
});

test('the ConfigMap istio counts live, discoverySelectors too', async () => {
  await cluster.apply(meshConfig('outboundTrafficPolicy: {mode: REGISTRY_ONLY}'));
  await waitFor('block_all', () => view.routes().includes('block_all'), WAIT);
  await cluster.namespace('apart');
  await cluster.apply(service('far', 'apart') + slice(['10.9.0.5'], 'far', 'apart'));
  const far = 'outbound|80||far.apart.svc.cluster.local';
  await waitFor('a service of another namespace', () => view.clusters().includes(far), WAIT);
  await cluster.apply(`{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {mesh: "yes"}}}\n---\n${meshConfig('discoverySelectors: [{matchLabels: {mesh: "yes"}}]')}`);
  await waitFor('its end', () => !view.clusters().includes(far) && !view.routes().includes('block_all'), WAIT);
  await cluster.apply('{apiVersion: v1, kind: Namespace, metadata: {name: apart, labels: {mesh: "yes"}}}');
  await waitFor('its return by its label', () => view.clusters().includes(far), WAIT);
  assert.ok(view.clusters().includes(WEB));
  await cluster.apply(meshConfig(''));
});

test("a gateway's Secret is served to its gateway and follows the API", async () => {
  const ca = await CertificateAuthority.create();
  const secret = async (): Promise<string> => {
    const { certificatePem, privateKeyPem } = await issueServerCertificate(ca, { dnsNames: ['shop.test'] });
    await cluster.apply(JSON.stringify({ apiVersion: 'v1', kind: 'Secret', type: 'kubernetes.io/tls', metadata: { name: 'shop-cert', namespace: 'shop' }, data: { 'tls.crt': base64(certificatePem), 'tls.key': base64(privateKeyPem) } }));
    return certificatePem;
  };
  const first = await secret();
  await waitFor('the Secret', () => kube.pilot.object('/Secret/shop/shop-cert'), WAIT);
  const gateway = new TestClient(`unix:${join(folder, 'xds.sock')}`, 'router~10.9.0.8~gateway.shop~shop.svc.cluster.local', { NAMESPACE: 'shop', LABELS: { istio: 'ingressgateway' } });
  try {
    const serves = (pem: string, count: number) => waitFor('the certificate', async () => Buffer.from((await gateway.nth(TYPE.secret, count)).resources[0]?.resource?.value ?? []).includes(pem.split('\n')[1]!), WAIT);
    gateway.subscribe(TYPE.secret, ['kubernetes://shop-cert']);
    await serves(first, 1);
    await serves(await secret(), 2);
    assert.ok(!kube.log.join().includes('PRIVATE KEY'));
  } finally {
    gateway.close();
  }
});

const listsOf = (resource: string): number => cluster.requests().filter((request) => request.user === PILOT_USER && request.verb === 'list' && request.resource === resource).length;

test('while the API server is away what was read keeps being served; after its restart changes arrive again', async () => {
  await cluster.stopApi();
  const second = new MeshView(kube.pilot.addresses[0]!);
  try {
    await waitFor('the state for a new client', () => second.endpoints().join() === '10.9.0.7' && second.routes().includes('"/three"'), WAIT);
  } finally {
    second.close();
  }
  await cluster.startApi();
  await cluster.apply(slice(['10.9.0.21']));
  await waitFor('the change', () => view.endpoints().join() === '10.9.0.21', WAIT);
});

test('versions that the server has forgotten (410): everything is listed anew, what went meanwhile goes, what came comes', async () => {
  const before = listsOf('virtualservices');
  await cluster.apply(service('brief') + slice(['10.9.0.31'], 'brief') + virtualService('{route: [{destination: {host: web}}]}', 'brief'));
  await waitFor('the service', () => view.clusters().includes('outbound|80||brief.shop.svc.cluster.local'), WAIT);
  relay.cut(true);
  await cluster.delete('v1', 'Service', { namespace: 'shop', name: 'brief' });
  await cluster.delete('networking.istio.io/v1', 'VirtualService', { namespace: 'shop', name: 'brief' });
  await cluster.apply(slice(['10.9.0.22']) + virtualService(path('/four')));
  // Its watch cache holds the latest versions too: with a new one, and etcd compacted, they are gone.
  await cluster.stopApi();
  await cluster.compact();
  await cluster.startApi();
  relay.cut(false);
  await waitFor('the change', () => view.endpoints().join() === '10.9.0.22' && view.routes().includes('"/four"'), WAIT);
  await waitFor('the end', () => !view.clusters().includes('outbound|80||brief.shop.svc.cluster.local'), WAIT);
  assert.equal(kube.pilot.object('networking.istio.io/VirtualService/shop/brief'), undefined);
  assert.ok(listsOf('virtualservices') > before, 'a new list');
});

test('a status or a version that changes alone is pushed to nobody', async () => {
  const pushes = (): number => kube.log.filter((line) => line.includes('pushing changes')).length;
  await waitFor('quiet', () => kube.pilot.status().settled, WAIT);
  await cluster.apply('apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: shop}\nspec: {parentRefs: [{group: "", kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}\n');
  await waitFor('the route', () => kube.pilot.object('gateway.networking.k8s.io/HTTPRoute/shop/web'), WAIT);
  await waitFor('quiet', () => kube.pilot.status().settled, WAIT);
  const before = pushes();
  await cluster.setStatus('gateway.networking.k8s.io/v1', 'HTTPRoute', { namespace: 'shop', name: 'web' }, { parents: [{ parentRef: { name: 'web' }, controllerName: 'example.com/other', conditions: [{ type: 'Accepted', status: 'True', reason: 'Accepted', message: '', lastTransitionTime: '2026-01-01T00:00:00Z' }] }] });
  await cluster.merge('v1', 'Pod', { namespace: 'shop', name: 'web-9', subresource: 'status' }, { status: { conditions: [{ type: 'Ready', status: 'True', lastProbeTime: '2026-01-02T00:00:00Z' }, { type: 'ContainersReady', status: 'True' }], containerStatuses: [{ name: 'app', image: 'web', imageID: 'x', ready: true, restartCount: 3 }] } });
  // What comes later by the same watch shows that the status was read.
  await cluster.apply('apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: later, namespace: shop}\nspec: {parentRefs: [{group: "", kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}\n');
  await waitFor('the later one', () => kube.pilot.object('gateway.networking.k8s.io/HTTPRoute/shop/later'), WAIT);
  await waitFor('quiet', () => kube.pilot.status().settled, WAIT);
  assert.equal(pushes() - before, 1);
});

test('a version of the API that the server has not, or has no more, is read in another one', async () => {
  const crd = { name: 'virtualservices.networking.istio.io' };
  const definition = (await cluster.get<KubeObject & { spec: { versions: { name: string; served: boolean }[] } }>('apiextensions.k8s.io/v1', 'CustomResourceDefinition', crd))!;
  const serve = (...names: string[]): Promise<void> => cluster.merge('apiextensions.k8s.io/v1', 'CustomResourceDefinition', crd, { spec: { versions: definition.spec.versions.map((version) => ({ ...version, served: names.includes(version.name) })) } });
  await serve('v1beta1');
  await waitFor('the other version', () => kube.pilot.object('networking.istio.io/VirtualService/shop/web')?.apiVersion === 'networking.istio.io/v1beta1', WAIT);
  await cluster.apply(virtualService(path('/five'), 'web', 'v1beta1'));
  await waitFor('the change', () => view.routes().includes('"/five"'), WAIT);
  await serve('v1', 'v1beta1', 'v1alpha3');
  // The server takes a moment to serve it.
  await waitFor('the newer version', () => cluster.apply(virtualService(path('/six'))).then(() => true, () => false), WAIT);
  await waitFor('the change', () => view.routes().includes('"/six"'), WAIT);
});

test('the command line reads the API server of a kubeconfig; with no options, that of the cluster that it is a pod of', async () => {
  const account = join(folder, 'account');
  const token = await cluster.token('istio-system', 'istiod');
  const kubeconfig = join(folder, 'kubeconfig');
  mkdirSync(account);
  for (const [file, text] of [[join(account, 'ca.crt'), cluster.ca.rootPem], [join(account, 'token'), token], [kubeconfig, kubeconfigText(cluster.url, cluster.ca.rootPem, { token })]] as const) writeFileSync(file, text);
  const pilot = [join(projectRoot, 'bin', 'underpass'), 'pilot', '--read-only', '--monitoring-listen', 'none', '--listen', '127.0.0.1:0'];
  // As in a pod: the account's files where Kubernetes mounts them, seen by this process alone.
  const pod = ['unshare', '-m', 'sh', '-ec', 'mount -t tmpfs tmpfs /run; mkdir -p /run/secrets/kubernetes.io; cp -r "$0" /run/secrets/kubernetes.io/serviceaccount; exec "$@"', account];
  for (const [[command, ...args], environment] of [[[...pilot, '--kubeconfig', kubeconfig], {}], [[...pod, ...pilot], { KUBERNETES_SERVICE_HOST: '127.0.0.1', KUBERNETES_SERVICE_PORT: String(cluster.ports.api) }]] as const) {
    const child = spawn(command!, args, { env: { ...process.env, ...environment }, stdio: ['ignore', 'pipe', 'inherit'] });
    let log = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (log += text));
    try {
      const address = await waitFor('pilot', () => /"addresses":\["([^"]+)"/.exec(log)?.[1], WAIT);
      const own = new MeshView(address);
      await waitFor('the endpoints', () => own.endpoints().join() === view.endpoints().join(), WAIT).finally(() => own.close());
      assert.ok(!log.includes(token));
    } finally {
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      await ended;
    }
  }
});

test('a remote cluster joins by a Secret with a kubeconfig, and leaves with it; its kinds are Kubernetes\' own alone', async () => {
  const remote = await KubeCluster.start({ crds: false });
  try {
    await remote.namespace('istio-system');
    await remote.apply(readFileSync(join(projectRoot, 'deploy', 'remote-rbac.yaml'), 'utf8'));
    const kubeconfig = await remote.kubeconfigOf('istio-system', 'istio-reader');
    await remote.namespace('shop');
    await remote.apply(service() + slice(['10.8.0.1']));
    await cluster.apply(JSON.stringify({ apiVersion: 'v1', kind: 'Secret', metadata: { name: 'remote', namespace: 'istio-system', labels: { 'istio/multiCluster': 'true' } }, data: { far: base64(kubeconfig) } }));
    await waitFor('endpoints of both', () => view.endpoints().join() === '10.8.0.1,10.9.0.22', WAIT);
    assert.deepEqual(remote.requests().filter(({ user, code }) => user === 'system:serviceaccount:istio-system:istio-reader' && code === 403), [], 'the rights of its manifest are enough');
    const alone = await startPilot(await pilotKubeconfig(remote), { readOnly: true });
    assert.ok(alone.pilot.object('/Service/shop/web'), 'a pilot of a cluster without the kinds of Istio and the Gateway API');
    await alone.pilot.stop();
    await cluster.delete('v1', 'Secret', { namespace: 'istio-system', name: 'remote' });
    await waitFor('its end', () => view.endpoints().join() === '10.9.0.22', WAIT);
  } finally {
    await remote.close();
  }
});
