// Two networks that meet at an east-west gateway alone: HBONE within HBONE from one to workloads of the other, ended by stock Envoys.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CertificateAuthority } from '../common/identity/ca.js';
import { logger } from '../common/log.js';
import { projectRoot } from '../common/paths.js';
import { waitFor } from '../common/retry.js';
import { Lab } from '../lab/index.js';
import { labTraces, NO_TRACES } from '../lab/traces.js';
import { TYPE } from '../pilot/generate/resource.js';
import { Pilot } from '../pilot/index.js';
import { TestClient } from '../pilot/testing/client.js';
import { Address, type Workload } from '../proto/generated/istio/workload/workload.js';
import type { Input, Outcome } from './hbone-client.js';

const NAMES = { near: `up-lab-hbone-near-${process.pid}`, far: `up-lab-hbone-far-${process.pid}` };
const WEB = 'web.shop.svc.cluster.local:80';
const CALLER = 'spiffe://cluster.local/ns/plain/sa/caller';
const SERVER = 'URI:spiffe://cluster.local/ns/shop/sa/server';
const GATEWAY = 'URI:spiffe://cluster.local/ns/istio-system/sa/eastwest';

const client = (namespace: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: ${namespace}}
spec: {serviceAccountName: caller, containers: [{name: curl, image: curl}]}
`;
const TAKES = `proxy.istio.io/config: "proxyMetadata: {ISTIO_META_ENABLE_HBONE: 'true'}"`;
const web = (replicas: number, name = 'web', annotations = TAKES, labels = 'app: web'): string => `
apiVersion: apps/v1
kind: Deployment
metadata: {name: ${name}, namespace: shop}
spec:
  replicas: ${replicas}
  selector: {matchLabels: {name: ${name}}}
  template:
    metadata:
      labels: {name: ${name}, ${labels}}
      annotations: {${annotations}}
    spec: {serviceAccountName: server, containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]}]}
`;
const service = (name: string, labels: string, ports: string): string => `
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: shop, labels: {${labels}}}
spec: {selector: {app: ${name === 'hidden' ? 'web' : name}}, ports: [${ports}]}
`;
const PORTS = '{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}';
const FAR = [
  'apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {underpass.io/mode: sidecar}}\n',
  web(2),
  service('web', 'istio.io/global: "true"', PORTS),
  service('hidden', '', PORTS),
  // Takes HBONE and no mutual TLS, as in ambient mode.
  web(1, 'ambient', TAKES, 'app: ambient, security.istio.io/tlsMode: disabled'),
  service('ambient', '', PORTS),
  client('shop'),
  // Global, but its workload takes no HBONE.
  service('plain', 'istio.io/global: "true"', PORTS),
  'apiVersion: v1\nkind: Pod\nmetadata: {name: plain, namespace: shop, labels: {app: plain}}\nspec: {containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}]}]}\n',
].join('---\n');
/** Brings its proxy up, in the cluster whose lab reads what is provisioned. */
const CONFIGURATION = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: eastwest, namespace: istio-system, labels: {topology.istio.io/network: away}}
spec:
  gatewayClassName: istio-east-west
  listeners: [{name: mesh, port: 15008, protocol: HBONE, tls: {mode: Terminate, options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}}]
---
# A pod that has gone is silent: another endpoint is tried after that long.
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "connectTimeout: 1s"}
`;

let directory: string;
let configuration: string;
let discovery: string;
let pilot: Pilot;
let near: Lab;
let far: Lab;
let ca: CertificateAuthority;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-hbone-'));
  discovery = `unix:${join(directory, 'xds.sock')}`;
  const write = (name: string, text: string): string => {
    writeFileSync(join(directory, name), text);
    return join(directory, name);
  };
  ca = await CertificateAuthority.create();
  const provisionDir = join(directory, 'provisioned');
  mkdirSync(provisionDir);
  const common = { nodes: 1, discovery, ca, sidecarConcurrency: 1 };
  near = await Lab.up({ ...common, name: NAMES.near, sources: [write('near.yaml', client('plain'))], clusterId: 'near', watch: false });
  far = await Lab.up({ ...common, name: NAMES.far, sources: [write('far.yaml', FAR), provisionDir], clusterId: 'far', peers: [near], isolated: true });
  configuration = write('configuration.yaml', CONFIGURATION);
  pilot = new Pilot({
    sources: [`cluster=near,network=home:${near.objectsDir}`, `cluster=far,network=away:${far.objectsDir}`, configuration],
    listen: [discovery],
    provisionDir,
    logger: logger('pilot'),
  });
  await pilot.start();
  await waitFor('the proxy of the Gateway', () => far.pods().some(({ isGateway }) => isGateway), { timeoutMs: 60_000 });
  await far.whenReady({ sidecars: true, timeoutMs: 60_000 });
  // That pods are ready has yet to come back to the gateway.
  await until('the service', through(WEB), ({ http }) => http === 200);
});

after(async () => {
  await pilot?.stop();
  await far?.down();
  await near?.down();
  rmSync(directory, { recursive: true, force: true });
  for (const name of Object.values(NAMES)) assert.deepEqual(labTraces(name), NO_TRACES);
});

type Tunnel = Input['tunnels'][number];

interface Caller {
  cert: string;
  key: string;
}
async function caller(trustDomain = 'cluster.local', from = ca): Promise<Caller> {
  const { chainPem, privateKeyPem } = await from.issue({ namespace: 'plain', serviceAccount: 'caller', ...{ trustDomain } });
  return { cert: chainPem, key: privateKeyPem };
}

/** In the pod of the other network; certificate and key go there by a pipe. */
async function call(tunnels: Tunnel[], as: Caller | undefined = undefined, isKnown = true): Promise<Outcome[]> {
  const shown = isKnown ? (as ?? (await caller())) : {};
  const input: Input = { ca: ca.rootPem, address: far.externalIp('istio-system', 'eastwest'), port: 15_008, tunnels, ...shown };
  const { stdout, stderr } = await near.exec('plain/client', [process.execPath, join(projectRoot, 'dist', 'test', 'hbone-client.js')], { input: JSON.stringify(input), timeoutMs: 60_000 });
  const outcomes = stdout.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Outcome);
  assert.equal(outcomes.length, tunnels.length, stderr);
  return outcomes;
}
const through = (authority: string, more: Partial<Tunnel> = {}): Tunnel => ({ authorities: [authority, authority], path: '/', ...more });
const outer = (authority: string): Tunnel => ({ authorities: [authority] });
/** Ends at the gateway's way to the service, and asks a workload of it for something else. */
const inner = (authority: string): Tunnel => ({ authorities: [WEB, authority] });
const bodyOf = ({ body = '' }: Outcome): { pod: string; headers: Record<string, string>; bodyBytes: number } => JSON.parse(body) as ReturnType<typeof bodyOf>;
const gatewayPod = (): { name: string; ips: string[] } => far.pods().find(({ isGateway }) => isGateway)!;
const webPods = (): string[] => far.pods().filter(({ name }) => name.startsWith('web')).map(({ name }) => name).sort();
const answering = (outcomes: readonly Outcome[]): string[] => [...new Set(outcomes.map((outcome) => (outcome.http === 200 ? bodyOf(outcome).pod : JSON.stringify(outcome))))].sort();
const repeated = <T>(count: number, item: T): T[] => Array.from({ length: count }, () => item);

/** Of all workloads that a tunnel may lead to: they learn of changes one by one. */
async function until(what: string, tunnel: Tunnel, holds: (outcome: Outcome) => boolean): Promise<void> {
  let last: Outcome[] = [];
  await waitFor(what, async () => (last = await call(repeated(6, tunnel))).every(holds), { timeoutMs: 60_000 }).catch((error: unknown) => {
    throw new Error(`${String(error)}: last ${JSON.stringify(last)}`);
  });
}

/** Connections that the gateway has opened to anything but its control plane and agent. */
async function opened(): Promise<number> {
  const stats = await far.proxyAdmin(`istio-system/${gatewayPod().name}`, '/stats?filter=upstream_cx_total');
  return [...stats.matchAll(/^cluster\.(?!xds-grpc|sds-grpc|admin)\S*upstream_cx_total: (\d+)$/gm)].reduce((sum, [, count]) => sum + Number(count), 0);
}

test('the networks meet at the gateway alone', async () => {
  const [ip] = far.pods().find(({ name }) => name.startsWith('web'))!.ips;
  const { code } = await near.exec('plain/client', ['curl', '-sS', '--max-time', '1', `http://${ip}:8080/`]);
  assert.notEqual(code, 0);
});

test('a service of the other network is reached by its host name: each end shows who it is, the application hears who called', async () => {
  const [outcome] = await call([through(WEB, { headers: { 'x-forwarded-client-cert': 'URI=spiffe://cluster.local/ns/forged/sa/forged' } })]);
  assert.deepEqual({ ...outcome, body: '' }, { statuses: [200, 200], peers: [GATEWAY, SERVER], http: 200, body: '' });
  assert.equal(bodyOf(outcome!).headers['x-forwarded-client-cert'], `URI=${CALLER}`);
});

test('bytes arrive whole: a body of 2 MiB, and what is not HTTP', async () => {
  const [large, raw] = await call([through(WEB, { bytes: 2 << 20 }), { authorities: ['web.shop.svc.cluster.local:9000', 'web.shop.svc.cluster.local:9000'], raw: 'server first or not' }]);
  assert.deepEqual([large!.http, bodyOf(large!).bodyBytes], [200, 2 << 20]);
  assert.equal(raw!.body, 'server first or not');
});

test('the gateway chooses an endpoint for each tunnel', async () => {
  assert.deepEqual(answering(await call(repeated(24, through(WEB)))), webPods());
});

test('the gateway is no relay: whatever is not a global service of the mesh is refused with 404, and no connection is opened for it', async () => {
  const [pod] = far.pods().find(({ name }) => name.startsWith('web'))!.ips;
  const [self] = gatewayPod().ips;
  const [vip, node] = [far.cluster.services.get('shop/web')!.address!.ipv4, /address: (\S+)/.exec(readFileSync(join(far.objectsDir, 'nodes.yaml'), 'utf8'))![1]!];
  const authorities = [
    'hidden.shop.svc.cluster.local:80', 'nobody.shop.svc.cluster.local:80', 'web.shop.svc.cluster.local:81', 'web.shop.svc.cluster.local', 'web.shop:80', 'example.com:443', '*',
    `${pod}:8080`, `${pod}:15008`, `${vip}:80`, `${self}:15008`, `${self}:15021`, `${node}:22`, '127.0.0.1:15021', '127.1:15021', '[::1]:15021', 'localhost:15021', '0.0.0.0:15021',
  ];
  const before = await opened();
  const outcomes = await call(authorities.map(outer));
  assert.deepEqual(outcomes.map(({ statuses }, index) => [authorities[index], statuses[0]]), authorities.map((authority) => [authority, 404]));
  assert.equal(await opened(), before);
});

test('a workload is no relay either: its own addresses and services alone, and not its proxy\'s ports', async () => {
  const [one, other] = far.pods().filter(({ name }) => name.startsWith('web')).map(({ ips }) => ips[0]!);
  const refused = ['127.0.0.1:8080', '[::1]:8080', 'localhost:8080', 'plain.shop.svc.cluster.local:80', 'example.com:80', '10.96.0.1:443', ...[15_001, 15_006, 15_008].flatMap((port) => [`${one}:${port}`, `${other}:${port}`])];
  for (const [index, { statuses }] of (await call(refused.map(inner))).entries()) assert.deepEqual(statuses, [200, 404], refused[index]);
  // Each of the two takes its own addresses, of either family.
  for (const address of far.pods().find(({ ips }) => ips[0] === one)!.ips) {
    const outcomes = await call(repeated(16, { ...inner(address.includes(':') ? `[${address}]:8080` : `${address}:8080`), path: '/' }));
    assert.deepEqual([...new Set(outcomes.map(({ statuses, http }) => `${statuses[1]} ${http}`))].sort(), ['200 200', '404 undefined'], address);
  }
});

test('a global service none of whose workloads takes HBONE is answered 503', async () => {
  assert.deepEqual((await call([outer('plain.shop.svc.cluster.local:80')]))[0]!.statuses, [503]);
});

test('without a certificate of the mesh nobody comes as far as a request', async () => {
  for (const outcome of [
    (await call([outer(WEB)], undefined, false))[0]!,
    (await call([outer(WEB)], await caller('elsewhere.example')))[0]!,
    (await call([outer(WEB)], await caller('cluster.local', await CertificateAuthority.create())))[0]!,
  ]) {
    assert.deepEqual(outcome.statuses, []);
    assert.match(outcome.error!, /alert|ECONNRESET|closed/i);
  }
});

test('policies hold on both ends: the gateway\'s and the workload\'s, by who called and from where', async () => {
  const policy = (namespace: string, selector: string, rest: string): string => `---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: tried, namespace: ${namespace}}\nspec: {selector: {matchLabels: {${selector}}}, ${rest}}\n`;
  const ofWeb = (rest: string): string => policy('shop', 'app: web', rest);
  const ofGateway = (rest: string): string => policy('istio-system', 'gateway.networking.k8s.io/gateway-name: eastwest', rest);
  const from = (source: string): string => `rules: [{from: [{source: {${source}}}]}]`;
  const [gateway] = gatewayPod().ips;
  const tried: [string, 'gone through' | 'refused by the workload' | 'refused by the gateway'][] = [
    [ofWeb(`action: ALLOW, ${from('principals: ["cluster.local/ns/shop/sa/other"]')}`), 'refused by the workload'],
    [ofWeb(`action: ALLOW, ${from('principals: ["cluster.local/ns/plain/sa/caller"]')}`), 'gone through'],
    [ofWeb(`action: DENY, ${from('namespaces: [plain]')}`), 'refused by the workload'],
    [ofWeb(`action: DENY, ${from('ipBlocks: ["192.0.2.0/24"]')}`), 'gone through'],
    // The tunnel to the workload comes from the gateway.
    [ofWeb(`action: DENY, ${from(`ipBlocks: ["${gateway}"]`)}`), 'refused by the workload'],
    [ofWeb(`action: DENY, ${from('remoteIpBlocks: ["192.0.2.0/24"]')}`), 'gone through'],
    [ofWeb(`action: DENY, ${from(`remoteIpBlocks: ["${gateway}"]`)}`), 'refused by the workload'],
    [ofGateway(`action: DENY, ${from('principals: ["cluster.local/ns/plain/sa/caller"]')}`), 'refused by the gateway'],
    ['', 'gone through'],
  ];
  const ends: Record<(typeof tried)[number][1], (outcome: Outcome) => boolean> = {
    'gone through': ({ http }) => http === 200,
    'refused by the workload': ({ http }) => http === 403,
    'refused by the gateway': ({ statuses }) => statuses[0] === 403,
  };
  try {
    for (const [text, end] of tried) {
      writeFileSync(configuration, CONFIGURATION + text);
      await until(`what is ${end}: ${text}`, through(WEB), ends[end]);
      await until(`the same for TCP: ${text}`, { authorities: repeated(2, 'web.shop.svc.cluster.local:9000'), raw: 'x' }, ({ body }) => body === (end === 'gone through' ? 'x' : undefined));
    }
  } finally {
    writeFileSync(configuration, CONFIGURATION);
  }
});

test('a service is exported and taken back while callers go on', async () => {
  const hidden = (labels: string): Promise<string[]> => far.apply(service('hidden', labels, PORTS));
  const tunnel = through('hidden.shop.svc.cluster.local:80');
  await hidden('istio.io/global: "true"');
  await until('the service to be exported', tunnel, ({ http }) => http === 200);
  await hidden('');
  await until('the service to be taken back', tunnel, ({ statuses }) => statuses[0] === 404);
  assert.equal((await call([through(WEB)]))[0]!.http, 200);
});

test('a ztunnel of the other network is told by WDS where to go, whom it will meet and how many stand there, while that changes', async () => {
  const ztunnel = new TestClient(discovery, 'ztunnel~10.0.0.1~node.istio-system~istio-system.svc.cluster.local', { CLUSTER_ID: 'near' });
  const known = (): Map<string, Address['type']> => {
    const state = new Map<string, Address['type']>();
    for (const { resources, removed_resources } of ztunnel.of(TYPE.address)) {
      for (const { name, resource } of resources) state.set(name, Address.decode(resource!.value).type);
      for (const name of removed_resources) state.delete(name);
    }
    return state;
  };
  const behind = (): Workload | undefined => [...known()].flatMap(([name, type]) => (type?.$case === 'workload' && name.endsWith(`/shop/${WEB.slice(0, -3)}`) ? type.value : []))[0];
  try {
    ztunnel.subscribe(TYPE.address);
    await waitFor('what stands behind the gateway', () => behind()?.capacity === 2, { timeoutMs: 60_000 });
    const { network, network_gateway } = behind()!;
    assert.equal(network, 'away');
    const { destination, hbone_mtls_port } = network_gateway!;
    assert.ok(destination?.$case === 'address');
    assert.deepEqual([[...destination.value.address].join('.'), hbone_mtls_port], [far.externalIp('istio-system', 'eastwest'), 15_008]);
    // What both tunnels' ends will show.
    const service = known().get(`shop/${WEB.slice(0, -3)}`);
    assert.deepEqual(service?.$case === 'service' && service.value.subject_alt_names.map((name) => `URI:${name}`), [SERVER]);
    const gateway = [...known().values()].flatMap((type) => (type?.$case === 'workload' && type.value.uid.startsWith('NetworkGateway/') ? type.value : []))[0]!;
    assert.equal(`URI:spiffe://cluster.local/ns/${gateway.namespace}/sa/${gateway.service_account}`, GATEWAY);
    assert.deepEqual([...known().keys()].filter((name) => name.startsWith('far//Pod/')), [], 'no workload of the other network by itself');
    await far.apply(web(1));
    await waitFor('one to be left', () => behind()?.capacity === 1, { timeoutMs: 60_000 });
    await far.apply(web(0));
    await waitFor('none to be left', () => behind() === undefined, { timeoutMs: 60_000 });
    await far.apply(web(2));
    await waitFor('both to be back', () => behind()?.capacity === 2, { timeoutMs: 40_000 });
  } finally {
    ztunnel.close();
  }
});

test('sidecars reach by HBONE what takes no mutual TLS: HTTP and TCP, and the caller is known', async () => {
  const { name } = far.pods().find((pod) => pod.name.startsWith('ambient'))!;
  const ended = async (): Promise<number> => Number(/^http\.connect_terminate\.downstream_rq_total: (\d+)$/m.exec(await far.proxyAdmin(`shop/${name}`, '/stats?filter=connect_terminate'))?.[1] ?? 0);
  const before = await ended();
  const { stdout, stderr } = await far.exec('shop/client', ['curl', '-sS', '--max-time', '30', 'http://ambient/']);
  assert.ok(stdout, stderr);
  assert.deepEqual([bodyOf({ statuses: [], peers: [], body: stdout }).headers['x-forwarded-client-cert'], bodyOf({ statuses: [], peers: [], body: stdout }).pod], ['URI=spiffe://cluster.local/ns/shop/sa/caller', name]);
  const script = "const s = require('node:net').connect(9000, 'ambient', () => s.write('by hbone')); s.on('data', (d) => { console.log(String(d)); process.exit(0); }); setTimeout(() => process.exit(1), 5000);";
  assert.equal((await far.exec('shop/client', [process.execPath, '-e', script])).stdout.trim(), 'by hbone');
  assert.ok((await ended()) >= before + 2, 'both came by tunnels');
});

test('an endpoint that takes no connection is passed over', async () => {
  const tried = async (): Promise<boolean> => /^(inbound-vip\S+)::\S+::cx_connect_fail::[1-9]/m.test(await far.proxyAdmin(`istio-system/${gatewayPod().name}`, '/clusters'));
  const broken = (replicas: number): Promise<string[]> => far.apply(web(replicas, 'broken', '', 'app: web, networking.istio.io/tunnel: http'));
  await broken(1);
  await waitFor('the gateway to try it', async () => {
    assert.deepEqual(answering(await call(repeated(12, through(WEB)))).filter((pod) => !webPods().includes(pod)), []);
    return tried();
  }, { timeoutMs: 60_000 });
  await broken(0);
});

test('endpoints vanish and come: no tunnel that is opened meanwhile fails for one that has gone, and without any it is 503', async () => {
  const scaling = far.apply(web(1));
  const during = await call(repeated(40, through(WEB)));
  await scaling;
  assert.deepEqual(during.filter(({ statuses }) => statuses[0] !== 200), []);
  await waitFor('one endpoint to be left', async () => answering(await call(repeated(10, through(WEB)))).join() === webPods().join() && webPods().length === 1, { timeoutMs: 60_000 });
  await far.apply(web(0));
  await until('no endpoint to be left', outer(WEB), ({ statuses }) => statuses[0] === 503);
  await far.apply(web(2));
  await waitFor('both endpoints', async () => answering(await call(repeated(12, through(WEB)))).join() === webPods().join() && webPods().length === 2, { timeoutMs: 40_000 });
});

test('no Envoy has refused anything of it', () => {
  const { connections } = pilot.status().ads;
  assert.deepEqual(connections.flatMap(({ node, types }) => Object.entries(types).flatMap(([type, { nack }]) => (nack ? [`${node}: ${type}: ${nack.message}`] : []))), []);
});
