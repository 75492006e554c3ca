/**
 * A real ztunnel as the other node's proxy: `node-1` has this product's agent, the pods of `node-2` a ztunnel that gets
 * everything from this control plane. What is promised holds in both directions.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { waitFor } from '../../common/retry.js';
import { MeshWorld } from '../mesh/world.js';
import { type Access, ZtunnelNode, ztunnelYaml } from './node.js';

const BULK_BYTES = 48 * 1024 * 1024;
/** A stream that both ends can make; what was sent is told by its hash. */
const STREAM = `
const { createCipheriv, createHash } = require('node:crypto');
const stream = (seed) => { const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, seed), Buffer.alloc(16)); const zeros = Buffer.alloc(65536); return require('node:stream').Readable.from((function* () { for (let sent = 0; sent < ${BULK_BYTES}; sent += zeros.length) yield cipher.update(zeros); })()); };
const hashed = (readable, onEnd, onData = () => {}) => { const hash = createHash('sha256'); readable.on('data', (d) => { hash.update(d); onData(d); }).on('end', () => onEnd(hash.digest('hex'))); };`;
/** 7000: when the other side has ended, the hash of what it sent, and a stream of its own. 7001: one byte at once, and open for good. */
const LATE = `${STREAM} const net = require('node:net');
net.createServer({ allowHalfOpen: true }, (s) => { s.on('error', () => {}); hashed(s, (digest) => { s.write(digest); stream(2).pipe(s); }); }).listen(7000, '::');
net.createServer((s) => { s.on('error', () => {}); s.write(s.remoteAddress + '\\n'); }).listen(7001, '::');`;

const pod = (namespace: string, name: string, rest: string, container: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: ${name}}${rest}}
spec: {nodeName: ${namespace === 'ambient' ? 'node-2' : 'node-1'}, serviceAccountName: ${name}, containers: [{${container}}]}
---`;
const service = (namespace: string, name: string, ports: string, labels = '', app = name): string => `
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: ${namespace}, labels: {${labels}}}
spec: {selector: {app: ${app}}, ports: [${ports}]}
---`;
const CURL = 'name: curl, image: curl';
const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]';
const ECHO_PORTS = '{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}';
const LATE_PORTS = '{name: tcp-late, port: 7000}, {name: tcp-open, port: 7001}';
const WAYPOINT = 'istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: outside';
/** Its pods' callers find ztunnel: Istio's CNI agent says so on each of them. */
const CAPTURED = ', annotations: {ambient.istio.io/redirection: enabled}';
const clients = { node: ['alice', 'bob'], ambient: ['carol', 'dave'] } as const;
type Side = keyof typeof clients;
const SIDES = ['node', 'ambient'] as const;
const other = (side: Side): Side => (side === 'node' ? 'ambient' : 'node');

const world = new MeshWorld('ztunnel', {
  nodes: 2,
  bare: true,
  agentNodes: ['node-1'],
  outside: [
    ztunnelYaml('node-2'),
    'apiVersion: v1\nkind: Namespace\nmetadata: {name: ambient, labels: {istio.io/dataplane-mode: ambient}}\n---',
    ...SIDES.flatMap((side) => [
      ...clients[side].map((name) => pod(side, name, side === 'ambient' ? CAPTURED : '', CURL)),
      pod(side, 'echo', side === 'ambient' ? CAPTURED : '', ECHO),
      pod(side, 'late', side === 'ambient' ? CAPTURED : '', `name: app, image: node, command: [node, -e, ${JSON.stringify(LATE)}]`),
      service(side, 'echo', ECHO_PORTS),
      service(side, 'six', '{name: tcp-echo, port: 9000}', '', 'echo').replace('spec: {', 'spec: {ipFamilyPolicy: SingleStack, ipFamilies: [IPv6], '),
      service(side, 'late', LATE_PORTS),
      service(side, 'heads', '{name: tcp-echo, port: 9000}', '', 'echo').replace('spec: {', 'spec: {clusterIP: None, '),
      service(side, 'routed', ECHO_PORTS, WAYPOINT, 'echo'),
    ]),
    pod('outside', 'stranger', '', CURL),
    'apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp, namespace: outside, labels: {istio.io/waypoint-for: service}}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]}\n---',
    service('outside', 'wp', '{name: mesh, port: 15008, appProtocol: hbone}'),
    pod('outside', 'wp', '', 'name: istio-proxy, image: auto, args: [proxy, waypoint]').replace('{app: wp}', '{app: wp, gateway.networking.k8s.io/gateway-name: wp}'),
  ].join('\n'),
});
const ztunnel = new ZtunnelNode(world, 'node-2');
before(async () => {
  ZtunnelNode.binary();
  await world.up();
  await ztunnel.start();
  await ztunnel.enrol('ambient/carol', 'ambient/dave', 'ambient/echo', 'ambient/late');
  await waitFor('HBONE to be announced', () => ['echo', 'late'].every((name) => world.lab.pod('node', name).annotations['ambient.istio.io/redirection'] === 'enabled'), { timeoutMs: 120_000 });
  await world.settled();
});
after(async () => {
  await ztunnel.stop();
  await world.down();
});

const spiffe = (side: Side, name: string): string => `spiffe://cluster.local/ns/${side}/sa/${name}`;
const ip = (side: string, name: string): string => world.lab.pod(side, name).ips[0]!;
const tunnelsInto = async (name: string): Promise<number> => Number((await world.nodeProxyAdmin(`/stats?filter=${encodeURIComponent(`^http.pod_${world.lab.pod('node', name).uid}_hbone.downstream_rq_total$`)}`)).split(': ')[1] ?? assert.fail('no such listener'));

async function curl(from: string, url: string, ...args: string[]): Promise<{ status: string; text: string }> {
  const { stdout } = await world.lab.exec(from, ['curl', '-sS', '--max-time', '10', '-w', '\\n%{http_code}', ...args, url]);
  const lines = stdout.trimEnd().split('\n');
  return { status: lines.pop() ?? '', text: lines.join('\n') };
}

async function node<T>(from: string, script: string): Promise<T> {
  const { stdout, stderr } = await world.lab.exec(from, [process.execPath, '-e', script], { timeoutMs: 120_000 });
  assert.ok(stdout, stderr);
  return JSON.parse(stdout) as T;
}

/** Opens connections at once, sends a line on each, and ends all when each has its answer: the answers, or what happened. */
const lines = (from: string, host: string, port: number, count: number): Promise<string[]> =>
  node(from, `
const net = require('node:net');
const one = (index) => new Promise((resolve) => { const s = net.connect(${port}, '${host}', () => s.write('line ' + index + '\\n')); let all = ''; s.setTimeout(20000, () => s.destroy(new Error('silent'))); s.on('data', (d) => { all += d; if (all.endsWith('\\n')) resolve([s, all.trim()]); }); s.on('error', (e) => resolve([s, e.code ?? e.message])); s.on('close', () => resolve([s, 'closed'])); });
Promise.all(Array.from({ length: ${count} }, (_, index) => one(index))).then((all) => { for (const [s] of all) s.destroy(); console.log(JSON.stringify(all.map(([, text]) => text))); process.exit(0); });`);
const expected = (count: number): string[] => Array.from({ length: count }, (_, index) => `line ${index}`);

/** A connection that stays: what it is sent, and whether it has ended. */
async function keep(from: string, host: string): Promise<{ first: string; ended: () => boolean }> {
  const child = world.lab.spawnIn(from, [process.execPath, '-e', `const s = require('node:net').connect(7001, '${host}'); s.on('data', (d) => process.stdout.write(d)); s.on('error', () => {}); s.on('close', () => process.exit(0));`], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [first] = (await Promise.race([once(createInterface({ input: child.stdout! }), 'line'), once(child, 'exit').then(() => ['refused'])])) as [string];
  return { first, ended: () => child.exitCode !== null };
}

/** Who dialled: from ztunnel's log what came in at, or went out of, its node. */
const inbound = (access: Access): boolean => access.direction === 'inbound';
const outbound = (access: Access): boolean => access.direction === 'outbound';

test('ztunnel takes this control plane\'s workloads, services and certificates: it knows both nodes\' pods, and has a certificate of each account of its own', async () => {
  const dump = JSON.parse(await ztunnel.admin('15000/config_dump')) as { workloads: { name: string; namespace: string; protocol: string; node: string }[]; certificates: { identity: string; state: string }[] };
  const known = (namespace: Side): string[] => dump.workloads.filter((item) => item.namespace === namespace).map(({ name, protocol, node }) => `${name} ${protocol} ${node}`).sort();
  assert.deepEqual(known('node'), ['alice', 'bob', 'echo', 'late'].map((name) => `${name} HBONE node-1`));
  assert.deepEqual(known('ambient'), ['carol', 'dave', 'echo', 'late'].map((name) => `${name} HBONE node-2`));
  await waitFor('certificates', async () => {
    const { certificates } = JSON.parse(await ztunnel.admin('15000/config_dump')) as typeof dump;
    return ['carol', 'dave', 'echo', 'late'].every((name) => certificates.some(({ identity, state }) => identity === spiffe('ambient', name) && state === 'Available'));
  }, { timeoutMs: 120_000 });
});

test('HTTP and TCP from this product\'s pods to services of ztunnel\'s go by HBONE with the caller\'s certificate and address', async () => {
  const target = ip('ambient', 'echo');
  for (const from of clients.node) {
    const since = ztunnel.accesses.length;
    const { status, text } = await curl(`node/${from}`, 'http://echo.ambient/');
    assert.equal(status, '200', text);
    assert.equal((JSON.parse(text) as { pod: string }).pod, 'echo');
    for (const host of ['echo.ambient', 'heads.ambient']) assert.deepEqual(await lines(`node/${from}`, host, 9000, 5), expected(5));
    // HTTP's is pooled, and logged when it ends.
    const logged = await ztunnel.logged(since, 10, (access) => inbound(access) && access['dst.hbone_addr'] === `${target}:9000`);
    assert.deepEqual([...new Set(logged.map((access) => access['src.identity']))], [spiffe('node', from)]);
    assert.deepEqual([...new Set(logged.map((access) => access['src.addr']!.split(':')[0]))], [ip('node', from)]);
    assert.deepEqual(logged.filter(({ error }) => error !== undefined), []);
  }
});

test('and from ztunnel\'s pods to this product\'s', async () => {
  const target = ip('node', 'echo');
  for (const from of clients.ambient) {
    const [since, before] = [ztunnel.accesses.length, await tunnelsInto('echo')];
    for (const url of ['http://echo.node/', `http://${target}:8080/`]) {
      const { status, text } = await curl(`ambient/${from}`, url);
      assert.equal(status, '200', text);
      assert.equal((JSON.parse(text) as { pod: string }).pod, 'echo');
    }
    for (const host of ['echo.node', 'heads.node', target]) assert.deepEqual(await lines(`ambient/${from}`, host, 9000, 5), expected(5));
    assert.equal(await tunnelsInto('echo'), before + 17);
    const logged = await ztunnel.logged(since, 17, outbound);
    assert.deepEqual([...new Set(logged.map((access) => `${access['src.identity']} ${access['dst.addr']} ${access['dst.identity']}`))], [`${spiffe('ambient', from)} ${target}:15008 ${spiffe('node', 'echo')}`]);
    assert.deepEqual(logged.filter(({ error }) => error !== undefined), []);
  }
});

for (const side of SIDES) {
  const [one, two] = clients[side];
  const there = side === 'node' ? "this product's pods to ztunnel's" : "ztunnel's pods to this product's";
  const [from, name, target] = [`${side}/${one}`, `late.${other(side)}`, `echo.${other(side)}`];

  test(`400 connections of two pods at once each have their answer: ${there}`, async () => {
    const before = await tunnelsInto('echo');
    assert.deepEqual(await Promise.all([one, two].map((caller) => lines(`${side}/${caller}`, target, 9000, 200))), [expected(200), expected(200)]);
    if (side === 'ambient') assert.equal(await tunnelsInto('echo'), before + 400);
  });

  test(`by IPv6: ${there}`, async () => {
    const address = world.lab.pod(other(side), 'echo').ips.find((each) => each.includes(':'))!;
    const since = ztunnel.accesses.length;
    const before = await tunnelsInto('echo');
    const vip = (world.pilot.object(`/Service/${other(side)}/six`) as unknown as { spec: { clusterIP: string } }).spec.clusterIP;
    assert.match(vip, /:/);
    assert.deepEqual(await lines(from, vip, 9000, 3), expected(3));
    const logged = await ztunnel.logged(since, 3, (access) => (side === 'node' ? inbound : outbound)(access) && access['dst.hbone_addr']?.startsWith('[') === true);
    assert.deepEqual([...new Set(logged.map((access) => `${access['src.identity']} ${access['dst.addr']} ${access['dst.hbone_addr']} ${access.error ?? 'ok'}`))], [`${spiffe(side, one)} [${address}]:15008 [${address}]:9000 ok`]);
    if (side === 'ambient') assert.equal(await tunnelsInto('echo'), before + 3);
  });

  test(`48 MiB there, and 48 MiB back on the half-closed connection, arrive as they were sent: ${there}`, async () => {
    const [sent, arrived, back, own] = await node<string[]>(from, `${STREAM}
const s = require('node:net').connect({ port: 7000, host: '${name}', allowHalfOpen: true });
let sent; hashed(stream(1), (digest) => (sent = digest)); stream(1).pipe(s);
let head = Buffer.alloc(0); const rest = new (require('node:stream').PassThrough)();
s.on('data', (d) => { if (head.length < 64) { const all = Buffer.concat([head, d]); head = all.subarray(0, 64); rest.write(all.subarray(64)); } else rest.write(d); }).on('end', () => rest.end());
hashed(rest, (back) => hashed(stream(2), (own) => console.log(JSON.stringify([sent, head.toString(), back, own]))));`);
    assert.equal(arrived, sent);
    assert.equal(back, own);
  });

  test(`a policy by principal decides at the other node, also of connections that exist: ${there}`, async () => {
    const policy = (action: string, callers: readonly string[], rest = ''): Promise<void> =>
      world.apply('mesh', `apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: one, namespace: ${other(side)}}\nspec: {action: ${action}, rules: [{from: [{source: {principals: ${JSON.stringify(callers.map((caller) => `cluster.local/ns/${side}/sa/${caller}`))}}}]${rest}}]}`);
    await policy('ALLOW', [one, two]);
    const kept = await Promise.all([one, two].map((caller) => keep(`${side}/${caller}`, name)));
    assert.ok(kept.every(({ first }) => first !== 'refused'));
    await policy('ALLOW', [one]);
    await waitFor('the end of what is forbidden', () => kept[1]!.ended(), { timeoutMs: 120_000 });
    // Where Envoy judges, an allowed tunnel may end, too, with the chain that it came by.
    if (side === 'node') assert.equal(kept[0]!.ended(), false);
    assert.deepEqual(await lines(from, target, 9000, 3), expected(3));
    for (const answer of await lines(`${side}/${two}`, target, 9000, 3)) assert.match(answer, /closed|ECONNRESET/);
    assert.equal((await curl(from, `http://${target}/`)).status, '200');
    assert.notEqual((await curl(`${side}/${two}`, `http://${target}/`)).status, '200');
    await policy('DENY', [one], ', to: [{operation: {ports: ["9000"]}}]');
    await waitFor('the other rule', async () => (await lines(`${side}/${two}`, target, 9000, 1))[0] === 'line 0', { timeoutMs: 120_000 });
    for (const answer of await lines(from, target, 9000, 3)) assert.match(answer, /closed|ECONNRESET/);
    assert.equal((await curl(from, `http://${target}/`)).status, '200');
    await world.clear('mesh');
    await waitFor('no policy', async () => (await lines(from, target, 9000, 1))[0] === 'line 0', { timeoutMs: 120_000 });
  });

  test(`through a waypoint of this control plane, with its route: ${there}`, async () => {
    await world.apply('mesh', `apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: routed, namespace: ${other(side)}}\nspec: {hosts: [routed], http: [{headers: {request: {add: {x-routed: once}}}, route: [{destination: {host: routed}}]}]}
---
apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: routed, namespace: ${other(side)}}\nspec: {targetRefs: [{kind: Service, group: "", name: routed}], action: ALLOW, rules: [{from: [{source: {principals: ["cluster.local/ns/${side}/sa/${one}"]}}]}]}`);
    const url = `http://routed.${other(side)}/`;
    await waitFor('the policy', async () => (await curl(`${side}/${two}`, url)).status === '403', { timeoutMs: 120_000 });
    const { status, text } = await curl(from, url);
    assert.equal(status, '200', text);
    const { pod: answering, headers } = JSON.parse(text) as { pod: string; headers: Record<string, string> };
    assert.deepEqual([answering, headers['x-routed']], ['echo', 'once']);
    assert.deepEqual(await lines(from, `routed.${other(side)}`, 9000, 3), expected(3));
    await world.clear('mesh');
    assert.deepEqual(await world.nacks(), []);
  });
}

test('STRICT on both nodes: what comes by HBONE passes, plaintext from outside of the mesh does not', async () => {
  for (const side of SIDES) assert.equal((await curl('outside/stranger', `http://${ip(side, 'echo')}:8080/`)).status, '200');
  await world.apply('mesh', SIDES.map((side) => `apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: ${side}}\nspec: {mtls: {mode: STRICT}}`).join('\n---\n'));
  for (const side of SIDES) {
    await waitFor(`STRICT of ${side}`, async () => (await curl('outside/stranger', `http://${ip(side, 'echo')}:8080/`)).status === '000', { timeoutMs: 120_000 });
    assert.equal((await curl(`${other(side)}/${clients[other(side)][0]}`, `http://echo.${side}/`)).status, '200');
  }
  await world.clear('mesh');
});
