/** HBONE of pods that share their node's Envoy: where tunnels start, towards an independent server, another node and a waypoint. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { encodeAddress } from '../agent/dataplane/kernel-codec.js';
import { projectRoot } from '../common/paths.js';
import { waitFor } from '../common/retry.js';
import { tcpSockets } from '../native/index.js';
import type { Input, Outcome } from './hbone-client.js';
import type { Keys, Seen } from './hbone-server.js';
import { MeshWorld } from './mesh/world.js';

const pod = (namespace: string, name: string, node: string, rest: string, container = 'name: curl, image: curl'): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, ${rest}}
spec: {nodeName: ${node}, serviceAccountName: ${name}, containers: [{${container}}]}
---`;
const service = (namespace: string, name: string, ports: string, labels = '', app = name): string => `
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: ${namespace}, labels: {${labels}}}
spec: {selector: {app: ${app}}, ports: [${ports}]}
---`;
const headless = (yaml: string): string => yaml.replace('spec: {', 'spec: {clusterIP: None, ');
const uses = (waypoint: string): string => `istio.io/use-waypoint: ${waypoint}, istio.io/use-waypoint-namespace: outside`;
/** A waypoint that anybody runs: a Gateway, and a Service in front of a program that takes HBONE. */
const waypoint = (name: string): string => `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ${name}, namespace: outside, labels: {istio.io/waypoint-for: all}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}
---${service('outside', name, '{name: mesh, port: 15008, appProtocol: hbone}')}`;
const LATE = "require('node:net').createServer({ allowHalfOpen: true }, (s) => { let all = ''; s.on('data', (d) => (all += d)).on('end', () => s.end(all.toUpperCase())); }).listen(7000, '::');";
const world = new MeshWorld('hbone-out', {
  nodes: 2,
  bare: true,
  outside: [
    pod('node', 'alice', 'node-1', 'labels: {app: alice, version: v7, topology.istio.io/network: home}'),
    pod('node', 'bob', 'node-1', 'labels: {app: bob}'),
    pod('node', 'carol', 'node-2', 'labels: {app: carol}'),
    pod('node', 'near', 'node-1', 'labels: {app: near}', 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]'),
    pod('node', 'far', 'node-2', 'labels: {app: far}', 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]'),
    pod('node', 'late', 'node-2', 'labels: {app: late}', `name: app, image: node, command: [node, -e, ${JSON.stringify(LATE)}]`),
    ...['near', 'far'].map((name) => service('node', name, '{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}')),
    service('node', 'late', '{name: tcp-late, port: 7000}'),
    // Not this product's: whoever reads the annotation takes it for a pod in ambient mode.
    pod('outside', 'server', 'node-2', 'labels: {app: server}, annotations: {ambient.istio.io/redirection: enabled}', 'name: app, image: sleep'),
    service('outside', 'server', '{name: tcp-echo, port: 9000}, {name: tcp-refused, port: 9001}'),
    headless(service('outside', 'heads', '{name: tcp-echo, port: 9000}', '', 'server')),
    headless(service('node', 'near-heads', '{name: tcp-echo, port: 9000}', '', 'near')),
    ...['wp', 'forged'].map((name) => pod('outside', name, 'node-2', `labels: {app: ${name}}`, 'name: app, image: sleep')),
    ...['wp', 'forged', 'absent', 'real'].map(waypoint),
    pod('outside', 'real', 'node-2', 'labels: {app: real, gateway.networking.k8s.io/gateway-name: real}', 'name: istio-proxy, image: auto, args: [proxy, waypoint]'),
    service('node', 'routed', '{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}, {name: sniffed, port: 81, targetPort: 8080}', uses('real'), 'far'),
    service('node', 'shop', '{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}', uses('wp'), 'far'),
    service('node', 'stolen', '{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}', uses('forged'), 'far'),
    service('node', 'closed', '{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}', uses('absent'), 'far'),
    ...[1, 2].map((node) => pod('node', `owner-${node}`, `node-${node}`, `labels: {app: owner-${node}, ${uses('wp')}}`, 'name: echo, image: echo, ports: [{name: tcp-echo, containerPort: 9000}]')),
    service('node', 'owner-1', '{name: tcp-echo, port: 9000}'),
  ].join(''),
});

/** An independent HBONE server in a pod. @param serviceAccount whose certificate it shows */
async function serve(name: string, seen: Seen[], serviceAccount = name, forward: Keys['forward'] = {}): Promise<void> {
  const server = world.lab.spawnIn(`outside/${name}`, [process.execPath, join(projectRoot, 'dist', 'test', 'hbone-server.js')], { stdio: ['pipe', 'pipe', 'inherit'] });
  const { chainPem: cert, privateKeyPem: key } = await world.ca.issue({ namespace: 'outside', serviceAccount });
  server.stdin!.end(JSON.stringify({ cert, key, ca: world.ca.rootPem, forward } satisfies Keys));
  const lines = createInterface({ input: server.stdout! });
  await once(lines, 'line');
  lines.on('line', (line) => seen.push(JSON.parse(line) as Seen));
}

const seen: Seen[] = [];
/** By the waypoint, and by one with a certificate of another account. */
const passed: Seen[] = [];
const stolen: Seen[] = [];
const ip = (name: string): string => world.lab.pod('node', name).ips[0]!;
const vip = (name: string): string => (world.pilot.object(`/Service/node/${name}`) as unknown as { spec: { clusterIP: string } }).spec.clusterIP;
before(async () => {
  await world.up();
  await serve('server', seen);
  const onward = Object.fromEntries([[`${vip('shop')}:80`, `${ip('far')}:8080`], [`${vip('shop')}:9000`, `${ip('far')}:9000`], ...[1, 2].map((node) => [`${ip(`owner-${node}`)}:9000`, `${ip(`owner-${node}`)}:9000`])]) as Record<string, string>;
  await serve('wp', passed, 'wp', onward);
  await serve('forged', stolen, 'server', onward);
  await waitFor('HBONE to be announced', () => ['near', 'far', 'late', 'owner-1', 'owner-2'].every((name) => world.lab.pod('node', name).annotations['ambient.istio.io/redirection'] === 'enabled'), { timeoutMs: 60_000 });
  await world.enrolled();
  await world.settled();
});
after(() => world.down());

/** Opens connections at once, sends a line on each, and ends all when each has its answer: the answers, as text or error. */
async function lines(from: string, host: string, port: number, count: number): Promise<string[]> {
  const script = `
const net = require('node:net');
const one = (index) => new Promise((resolve) => { const s = net.connect(${port}, '${host}', () => s.write('line ' + index + '\\n')); let all = ''; s.setTimeout(15000, () => s.destroy(new Error('silent'))); s.on('data', (d) => { all += d; if (all.endsWith('\\n')) resolve([s, all.trim()]); }); s.on('error', (e) => resolve([s, e.code ?? e.message])); s.on('close', () => resolve([s, 'closed'])); });
Promise.all(Array.from({ length: ${count} }, (_, index) => one(index))).then((all) => { for (const [s] of all) s.destroy(); console.log(JSON.stringify(all.map(([, text]) => text))); process.exit(0); });`;
  const { stdout, stderr } = await world.lab.exec(from, [process.execPath, '-e', script], { timeoutMs: 60_000 });
  assert.ok(stdout, stderr);
  return JSON.parse(stdout) as string[];
}
const expected = (count: number): string[] => Array.from({ length: count }, (_, index) => `line ${index}`);
const accountOf = (peer: string): string => peer.replace('URI:spiffe://cluster.local/ns/node/sa/', '');
const podOf = ({ headers }: Seen): string => /k8s\.pod\.name=([^,]*)/.exec(headers['baggage'] ?? '')?.[1] ?? '';

test('pods of one node call one server at once: each connection of theirs is a tunnel with its own account\'s certificate, pooled by account, from its own address', async () => {
  const count = 40;
  // Of connections to an address that Envoy has not met yet, those of one moment do not know of each other.
  for (const from of ['node/alice', 'node/bob']) assert.deepEqual(await lines(from, 'server.outside', 9000, 1), expected(1));
  for (let round = 0; round < 3; round++) {
    assert.deepEqual(await Promise.all(['node/alice', 'node/bob'].map((from) => lines(from, 'server.outside', 9000, count))), [expected(count), expected(count)]);
  }
  assert.equal(seen.length, 2 + 6 * count);
  assert.deepEqual(seen.filter((item) => accountOf(item.peer) !== podOf(item)), [], 'a pod is never taken for another');
  const bySession = new Map(seen.map(({ session, peer }) => [session, accountOf(peer)]));
  assert.deepEqual([...new Set(bySession.values())].sort(), ['alice', 'bob']);
  assert.equal(bySession.size, 2, `${bySession.size} connections for ${seen.length} tunnels`);
  for (const name of ['alice', 'bob']) {
    const addresses = new Set(seen.filter(({ peer }) => accountOf(peer) === name).map(({ address }) => address.replace('::ffff:', '')));
    assert.deepEqual([...addresses], [world.lab.pod('node', name).ips[0]]);
  }
});

test('a tunnel looks like a ztunnel\'s: TLS 1.3, ALPN h2, the endpoint as authority, baggage, and the network of a pod that has one', async () => {
  const [target] = world.lab.pod('outside', 'server').ips;
  const of = (name: string): Seen => seen.find((item) => podOf(item) === name)!;
  for (const name of ['alice', 'bob']) assert.deepEqual([of(name).tls, of(name).authority], ['TLSv1.3 h2', `${target}:9000`]);
  const { clusterId } = world.lab.info();
  assert.equal(of('alice').headers['baggage'], `k8s.cluster.name=${clusterId},k8s.namespace.name=node,k8s.pod.name=alice,service.name=alice,service.version=v7`);
  assert.equal(of('bob').headers['baggage'], `k8s.cluster.name=${clusterId},k8s.namespace.name=node,k8s.pod.name=bob,service.name=bob,service.version=latest`);
  assert.deepEqual([of('alice').headers['x-forwarded-network'], 'x-forwarded-network' in of('bob').headers], ['home', false]);
});

test('a headless service\'s pods are reached by HBONE, too, each as its own authority; those of this node directly', async () => {
  const before = seen.length;
  const [target] = world.lab.pod('outside', 'server').ips;
  for (const from of ['alice', 'bob']) assert.deepEqual(await lines(`node/${from}`, 'heads.outside', 9000, 3), expected(3));
  assert.deepEqual(seen.slice(before).map((item) => `${accountAndAddress(item)} ${item.authority} ${podOf(item)}`), ['alice', 'bob'].flatMap((name) => Array.from({ length: 3 }, () => `${name} ${ip(name)} ${target}:9000 ${name}`)));
  const tunnels = await ended('near', 'node-1');
  assert.deepEqual(await lines('node/alice', 'near-heads.node', 9000, 3), expected(3));
  assert.equal(await ended('near', 'node-1'), tunnels);
  assert.deepEqual(await world.nacks(), []);
});

test('a tunnel that is refused ends its connection, and no other', async () => {
  const before = seen.length;
  assert.deepEqual(await lines('node/alice', 'server.outside', 9001, 3), ['closed', 'closed', 'closed']);
  assert.deepEqual(await lines('node/alice', 'server.outside', 9000, 3), expected(3));
  assert.equal(seen.length, before + 3);
});

const stat = async (node: string, name: string): Promise<number> => Number((await world.nodeProxyAdmin(`/stats?filter=${encodeURIComponent(`^${name}$`)}`, node)).split(': ')[1] ?? assert.fail(`Envoy has no ${name}`));
const ended = (name: string, node = 'node-2'): Promise<number> => stat(node, `http.pod_${world.lab.pod('node', name).uid}_hbone.downstream_rq_total`);

test('from node to node everything goes by HBONE, HTTP and TCP, over one connection a pod and back; a half-closed connection has its answer', async () => {
  const before = await ended('far');
  const ask = async (from: string): Promise<string> => (await world.lab.exec(from, ['curl', '-sS', '--max-time', '10', 'http://far.node/'])).stdout;
  for (const from of ['node/alice', 'node/bob']) {
    for (let round = 0; round < 5; round++) assert.match(await ask(from), /"pod":"far"/);
    assert.deepEqual(await lines(from, 'far.node', 9000, 10), expected(10));
  }
  assert.ok((await ended('far')) >= before + 22, 'two of HTTP, which pools, and twenty of TCP');
  for (const name of ['alice', 'bob']) {
    const connections = await stat('node-1', `cluster.hbone/spiffe_cluster.local/ns/node/sa/${name}.upstream_cx_total`);
    // To the server of the tests above, and to this pod.
    assert.ok(connections >= 2 && connections <= 4, `${name}: ${connections} connections`);
  }
  const half = "const s = require('node:net').connect({ port: 7000, host: 'late.node', allowHalfOpen: true }, () => s.end('the answer comes after the end')); let all = ''; s.on('data', (d) => (all += d)).on('end', () => console.log(all));";
  assert.equal((await world.lab.exec('node/alice', [process.execPath, '-e', half])).stdout.trim(), 'THE ANSWER COMES AFTER THE END');
  assert.match((await world.lab.exec('node/carol', ['curl', '-sS', '--max-time', '10', 'http://near.node/'])).stdout, /"pod":"near"/);
  assert.deepEqual(await world.nacks(), []);
});

test("the end of a pod ends its callers' connections for tunnels", async () => {
  const { netns } = world.lab.pod('node', 'alice');
  const late = world.lab.pod('node', 'late').ips;
  const addresses = late.map((ip) => encodeAddress(ip));
  const connections = async (): Promise<number> => (await tcpSockets(netns)).filter(({ remote, remotePort }) => remotePort === 15_008 && addresses.some((address) => address.equals(remote))).length;
  assert.ok((await connections()) > 0, 'that of the test above, which is pooled');
  await world.lab.apply(pod('node', 'late', 'node-2', 'labels: {app: late}', `name: app, image: node, command: [node, -e, ${JSON.stringify(LATE + ' ')}]`));
  await waitFor('the end of the connections', async () => (await connections()) === 0, { timeoutMs: 120_000 });
});

test('pods of the same node need no tunnel', async () => {
  const name = `http.pod_${world.lab.pod('node', 'near').uid}_hbone.downstream_rq_total`;
  const before = await stat('node-1', name);
  assert.match((await world.lab.exec('node/alice', ['curl', '-sS', '--max-time', '10', 'http://near.node/'])).stdout, /"pod":"near"/);
  assert.equal(await stat('node-1', name), before);
});

const curl = async (from: string, url: string, ...args: string[]): Promise<{ status: string; text: string }> => {
  const { stdout } = await world.lab.exec(from, ['curl', '-sS', '--max-time', '10', '-w', '\\n%{http_code}', ...args, url]);
  const lines = stdout.trimEnd().split('\n');
  return { status: lines.pop() ?? '', text: lines.join('\n') };
};
const explained = async (from: string, target: string, port: number): Promise<string> => {
  const explanation = await world.explain(`node/${from}`, target, port);
  return explanation.addresses.map(({ way, reasons }) => `${way}: ${reasons.join('; ')}`).join('\n');
};

test('what is for a service with a waypoint goes to the waypoint as it is: with the caller\'s certificate and address, the service\'s address as authority, and on from there', async () => {
  for (const from of ['alice', 'bob']) {
    const before = passed.length;
    for (let round = 0; round < 3; round++) {
      const { status, text } = await curl(`node/${from}`, 'http://shop.node/');
      assert.equal(status, '200', text);
      const { pod: name, headers } = JSON.parse(text) as { pod: string; headers: Record<string, string> };
      // The pod hears of the waypoint alone, which is who opened the tunnel that it came by.
      assert.deepEqual([name, headers['x-forwarded-client-cert']], ['far', undefined]);
    }
    assert.deepEqual(await lines(`node/${from}`, 'shop.node', 9000, 5), expected(5));
    const own = passed.slice(before);
    assert.deepEqual([...new Set(own.map(({ authority }) => authority))], [`${vip('shop')}:80`, `${vip('shop')}:9000`]);
    assert.equal(own.length, 8, 'a tunnel for each of its connections');
    assert.deepEqual([...new Set(own.map(accountAndAddress))], [`${from} ${ip(from)}`]);
    assert.deepEqual([...new Set(own.map(podOf))], [from]);
  }
  const bySession = new Map(passed.map(({ session, peer }) => [session, accountOf(peer)]));
  assert.deepEqual([...new Set(bySession.values())].sort(), ['alice', 'bob'], 'accounts share no connection');
  assert.match(await explained('alice', 'shop', 80), /^waypoint: .*outside\/wp\.outside\.svc\.cluster\.local:15008; HBONE to one of [\d.]+:15008$/);
  assert.deepEqual(await world.nacks(), []);
});
const accountAndAddress = ({ peer, address }: Seen): string => `${accountOf(peer)} ${address.replace('::ffff:', '')}`;

test('nothing is routed on the way to a waypoint, which does that itself', async () => {
  await world.apply('mesh', 'apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: shop, namespace: node}\nspec: {hosts: [shop], http: [{fault: {abort: {percentage: {value: 100}, httpStatus: 418}}, route: [{destination: {host: far}}]}]}\n');
  const before = passed.length;
  assert.equal((await curl('node/alice', 'http://shop.node/')).status, '200');
  assert.equal(passed.length, before + 1);
  await world.clear('mesh');
});

test('what is led to a service with a waypoint by a Host header, or by the route of another service, goes through its waypoint all the same', async () => {
  const through = async (url: string, ...args: string[]): Promise<[string, string | undefined]> => {
    const before = passed.length;
    const { status } = await curl('node/bob', url, ...args);
    return [status, passed.slice(before).map((item) => `${accountAndAddress(item)} ${item.authority}`).join()];
  };
  const passes: [string, string] = ['200', `bob ${ip('bob')} ${vip('shop')}:80`];
  assert.deepEqual(await through('http://far.node/', '-H', 'Host: shop.node'), passes);
  assert.equal((await curl('node/bob', 'http://far.node/', '-H', 'Host: closed.node')).status, '503');
  assert.deepEqual(await through('http://near.node/'), ['200', '']);
  await world.apply('mesh', 'apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: near, namespace: node}\nspec: {hosts: [near], http: [{route: [{destination: {host: shop}}]}], tcp: [{match: [{port: 9000}], route: [{destination: {host: shop, port: {number: 9000}}}]}]}\n');
  // Of HTTP the connection that is there already serves again.
  assert.deepEqual(await through('http://near.node/'), ['200', '']);
  const before = passed.length;
  assert.deepEqual(await lines('node/bob', 'near.node', 9000, 2), expected(2));
  assert.deepEqual(passed.slice(before).map(({ authority }) => authority), [`${vip('shop')}:9000`, `${vip('shop')}:9000`]);
  await world.clear('mesh');
  assert.deepEqual(await world.nacks(), []);
});

test('a waypoint that shows another account\'s certificate, or has no endpoint, ends the connection: nothing goes around it', async () => {
  for (const name of ['stolen', 'closed']) {
    assert.deepEqual(await lines('node/alice', `${name}.node`, 9000, 2), ['closed', 'closed'], name);
    assert.equal((await curl('node/alice', `http://${name}.node/`)).status, '000', name);
  }
  assert.deepEqual(stolen, []);
  assert.match(await explained('alice', 'closed', 9000), /^waypoint: .*no endpoint: none of its workloads is healthy and has its HBONE port; connections are closed/);
});

test('a workload\'s waypoint is passed by those that dial the workload, on this node and on another, not by those that dial a service', async () => {
  const before = passed.length;
  for (const name of ['owner-1', 'owner-2']) assert.deepEqual(await lines('node/alice', ip(name), 9000, 2), expected(2), name);
  assert.deepEqual(passed.slice(before).map(({ authority, peer }) => `${accountOf(peer)} ${authority}`), ['owner-1', 'owner-1', 'owner-2', 'owner-2'].map((name) => `alice ${ip(name)}:9000`));
  assert.match(await explained('alice', ip('owner-1'), 9000), /^waypoint: the workload has a waypoint/);
  assert.deepEqual(await lines('node/alice', 'owner-1.node', 9000, 2), expected(2));
  assert.equal(passed.length, before + 4);
});

test('a pod with a waypoint is its own affair: other pods of its node are dialled past Envoy on ports that no listener asks for', async () => {
  const captured = async (): Promise<number> => Number(/^underpass_kernel_connections_captured_total (\d+)/m.exec(await world.agentMetrics('node-1'))![1]);
  const before = await captured();
  const direct = await world.lab.exec('node/alice', ['curl', '-sS', '-o', '/dev/null', '-w', '%{http_code}', `http://${ip('near')}:8080/`], { timeoutMs: 60_000 });
  assert.deepEqual([direct.stdout, await captured()], ['200', before]);
  assert.match(await explained('alice', ip('near'), 8080), /^pod: /);
});

test('Envoy as a waypoint of this control plane: its routes and policies count for what is for the service, which goes on by HBONE under the waypoint\'s name', async () => {
  const about = 'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n';
  const statusOf = async (from: string, ...args: string[]): Promise<string> => (await curl(`node/${from}`, 'http://routed.node/', ...args)).status;
  assert.equal(await statusOf('alice'), '200');
  assert.equal((await curl('node/alice', 'http://routed.node:81/')).status, '200');
  assert.deepEqual(await lines('node/alice', 'routed.node', 9000, 3), expected(3));
  await world.apply('mesh', `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: routed, namespace: node}
spec: {hosts: [routed], http: [{match: [{uri: {prefix: /near}}], route: [{destination: {host: near}}]}, {headers: {request: {add: {x-routed: "once"}}}, route: [{destination: {host: routed}}]}]}
---
${about}metadata: {name: routed, namespace: node}
spec: {targetRefs: [{kind: Service, group: "", name: routed}], action: ALLOW, rules: [{from: [{source: {principals: ["cluster.local/ns/node/sa/alice"]}}], to: [{operation: {methods: [GET]}}]}, {to: [{operation: {ports: ["9000"]}}]}]}
---
${about}metadata: {name: far, namespace: node}
spec: {selector: {matchLabels: {app: far}}, action: ALLOW, rules: [{from: [{source: {principals: ["cluster.local/ns/outside/sa/real"]}}]}]}`);
  const asked = async (path: string): Promise<[string, string | undefined, string | undefined]> => {
    const { status, text } = await curl('node/alice', `http://routed.node${path}`);
    assert.equal(status, '200', text);
    const { pod: name, headers } = JSON.parse(text) as { pod: string; headers: Record<string, string> };
    return [name, headers['x-routed'], headers['x-forwarded-client-cert']];
  };
  await waitFor('the policy of the pod', async () => (await curl('node/alice', 'http://far.node/')).status === '403', { timeoutMs: 120_000 });
  // What was under way past Envoy when the pod got its first policy has five seconds to end.
  await waitFor('the connections from before the policy to be gone', async () => (await asked('/'))[2] !== undefined, { everyMs: 200 });
  assert.deepEqual(await asked('/'), ['far', 'once', 'URI=spiffe://cluster.local/ns/outside/sa/real']);
  assert.deepEqual((await asked('/near')).slice(0, 2), ['near', undefined]);
  assert.deepEqual([await statusOf('alice', '-X', 'POST'), await statusOf('bob'), await statusOf('bob', '-H', 'x-forwarded-client-cert: URI=spiffe://cluster.local/ns/node/sa/alice')], ['403', '403', '403']);
  // A rule without HTTP in it holds for TCP, by the port that was dialled.
  assert.deepEqual(await lines('node/bob', 'routed.node', 9000, 2), expected(2));
  await world.clear('mesh');
  await waitFor('no policy', async () => (await statusOf('bob')) === '200', { timeoutMs: 120_000 });
  assert.deepEqual(await world.nacks(), []);
});

test('a waypoint is no relay: what is not for one of its services or workloads is answered 404, whoever asks', async () => {
  const { chainPem: cert, privateKeyPem: key } = await world.ca.issue({ namespace: 'node', serviceAccount: 'alice' });
  const authorities = [`${vip('routed')}:80`, `${vip('routed')}:82`, `${vip('far')}:80`, `${ip('far')}:8080`, `${ip('owner-2')}:9000`, '127.0.0.1:15000', `${world.lab.pod('outside', 'real').ips[0]}:15008`, 'routed.node.svc.cluster.local:80', 'example.com:80'];
  const input: Input = { cert, key, ca: world.ca.rootPem, address: world.lab.pod('outside', 'real').ips[0]!, port: 15_008, tunnels: authorities.map((authority) => ({ authorities: [authority], path: '/' })) };
  const { stdout, stderr } = await world.lab.exec('outside/server', [process.execPath, join(projectRoot, 'dist', 'test', 'hbone-client.js')], { input: JSON.stringify(input), timeoutMs: 60_000 });
  const statuses = stdout.trim().split('\n').map((line) => (JSON.parse(line) as Outcome).statuses[0]);
  assert.deepEqual(statuses, [200, ...authorities.slice(1).map(() => 404)], stderr);
});

test('labels decide at any time: a workload that ceases to have a waypoint is reached directly, and one that gets it back through it', async () => {
  const label = (value: string | null): Promise<void> => world.lab.label({ kind: 'Pod', namespace: 'node', name: 'owner-2', labels: { 'istio.io/use-waypoint': value } });
  const through = async (): Promise<boolean> => {
    const before = passed.length;
    assert.deepEqual(await lines('node/alice', ip('owner-2'), 9000, 1), expected(1));
    return passed.length > before;
  };
  await label(null);
  await waitFor('the way around the waypoint', async () => !(await through()), { timeoutMs: 120_000 });
  await label('wp');
  await waitFor('the way through it', through, { timeoutMs: 120_000 });
  await label('real');
  const tunnels = async (): Promise<number> => Number(/encap.*upstream_cx_total: (\d+)/.exec(await world.proxyAdmin('outside/real', '/stats?filter=encap'))?.[1] ?? 0);
  // It may be told of what it is to take after those who send it there.
  await waitFor('the way through another', async () => !(await through().catch(() => true)) && (await tunnels()) > 0, { timeoutMs: 120_000 });
  await label('wp');
  assert.deepEqual(await world.nacks(), []);
});
