/**
 * HBONE of pods that share their node's Envoy: where tunnels end, with an independent client, and with sidecars and policies
 * of the mesh around it.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readlinkSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CertificateAuthority } from '../common/identity/ca.js';
import { projectRoot } from '../common/paths.js';
import { waitFor } from '../common/retry.js';
import { TYPE } from '../pilot/generate/resource.js';
import { TestClient } from '../pilot/testing/client.js';
import { Address, TunnelProtocol } from '../proto/generated/istio/workload/workload.js';
import type { Input, Outcome } from './hbone-client.js';
import { MeshWorld } from './mesh/world.js';

const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]';
/** Answers what it was sent, in capitals, when the other side has ended; listens on loopback alone with another port, too. */
const LATE = "const net = require('node:net'); const late = (s) => { let all = ''; s.on('data', (d) => (all += d)).on('end', () => s.end(all.toUpperCase())); }; net.createServer({ allowHalfOpen: true }, late).listen(7000, '::'); net.createServer({ allowHalfOpen: true }, late).listen(9999, '127.0.0.1');";
const hasPorts = (...ports: number[]): string => `for (const port of ${JSON.stringify(ports)}) require('node:net').createServer((s) => s.end('own')).listen(port, '0.0.0.0');`;
const program = (name: string, source: string, namespace = 'node'): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: ${name}}}
spec: {nodeName: node-2, serviceAccountName: ${name}, containers: [{name: app, image: node, command: [node, -e, ${JSON.stringify(source)}]}]}
---
`;

const world = new MeshWorld('node-hbone', {
  nodes: 2,
  outside: `apiVersion: v1
kind: Pod
metadata: {name: far, namespace: node, labels: {app: far}}
spec: {nodeName: node-2, serviceAccountName: far, containers: [{${ECHO}}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: node}
spec: {selector: {app: far}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]}
---
${program('late', LATE)}${program('taken', hasPorts(15008))}${program('inbound-taken', hasPorts(15006, 7000), 'outside')}${program('outbound-taken', hasPorts(15001, 7000), 'outside')}
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: outside, labels: {app: near}}
spec: {nodeName: node-1, containers: [{name: curl, image: curl}]}
---
apiVersion: v1
kind: Pod
metadata: {name: caller, namespace: sidecar, labels: {app: caller}}
spec: {nodeName: node-1, serviceAccountName: caller, containers: [{name: curl, image: curl}]}
`,
});
before(async () => {
  await world.up();
  await waitFor('HBONE to be announced', () => takesHbone('far') && takesHbone('late'), { timeoutMs: 60_000 });
  await world.settled();
});
after(() => world.down());

type Tunnel = Input['tunnels'][number];
type Shown = Partial<Pick<Input, 'cert' | 'key' | 'tlsVersion'>>;

const uid = (name: string): string => world.lab.pod('node', name).uid;
const ips = (name: string): string[] => world.lab.pod('node', name).ips;
const at = (name: string, port: number): string => `${ips(name)[0]}:${port}`;
const takesHbone = (name: string): boolean => world.lab.pod('node', name).annotations['ambient.istio.io/redirection'] === 'enabled';

const CALLER = { namespace: 'sidecar', serviceAccount: 'caller' };
async function shown(identity: { namespace: string; serviceAccount: string; trustDomain?: string } = CALLER, from: CertificateAuthority = world.ca): Promise<Shown> {
  const { chainPem, privateKeyPem } = await from.issue({ trustDomain: 'cluster.local', ...identity });
  return { cert: chainPem, key: privateKeyPem };
}

/** From a pod of the other node, and outside the mesh, so that nothing captures what it opens. */
async function call(pod: string, tunnels: Tunnel[], as?: Shown, address = ips(pod)[0]!): Promise<Outcome[]> {
  const input: Input = { ca: world.ca.rootPem, address, port: 15_008, tunnels, ...(as ?? (await shown())) };
  const { stdout, stderr } = await world.lab.exec('outside/near', [process.execPath, join(projectRoot, 'dist', 'test', 'hbone-client.js')], { input: JSON.stringify(input), timeoutMs: 60_000 });
  const outcomes = stdout.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Outcome);
  assert.equal(outcomes.length, tunnels.length, stderr);
  return outcomes;
}
const bodyOf = ({ body = '' }: Outcome): { pod: string; headers: Record<string, string>; bodyBytes: number } => JSON.parse(body) as ReturnType<typeof bodyOf>;

/** Connections that the node's Envoy has opened for tunnels to the pod, or tried to. */
async function opened(name: string): Promise<number> {
  const stats = await world.nodeProxyAdmin(`/stats?filter=cluster.pod/${uid(name)}/hbone.*upstream_cx_total`, 'node-2');
  return [...stats.matchAll(/upstream_cx_total: (\d+)$/gm)].reduce((sum, [, count]) => sum + Number(count), 0);
}

test('a pod without policies is reached by HBONE: both ends show who they are, HTTP, bytes and half-closed connections arrive whole', async () => {
  const [http, large, raw] = await call('far', [
    { authorities: [at('far', 8080)], path: '/' },
    { authorities: [at('far', 8080)], path: '/', bytes: 20 << 20 },
    { authorities: [at('far', 9000)], raw: 'server first or not' },
  ]);
  assert.deepEqual({ ...http, body: '' }, { statuses: [200], peers: ['URI:spiffe://cluster.local/ns/node/sa/far'], http: 200, body: '' });
  assert.equal(bodyOf(http!).pod, 'far');
  assert.deepEqual([large!.http, bodyOf(large!).bodyBytes], [200, 20 << 20]);
  assert.equal(raw!.body, 'server first or not');
  const [late] = await call('late', [{ authorities: [at('late', 7000)], raw: 'the answer comes after the end', end: true }]);
  assert.equal(late!.body, 'THE ANSWER COMES AFTER THE END');
});

test('HBONE over IPv6, to an authority of the other family as well', async () => {
  const [four, six] = ips('far') as [string, string];
  for (const address of [four, six]) {
    const outcomes = await call('far', [{ authorities: [`[${six}]:8080`], path: '/' }, { authorities: [`${four}:8080`], path: '/' }], undefined, address);
    assert.deepEqual(outcomes.map(({ statuses, http }) => [statuses, http]), [[[200], 200], [[200], 200]], address);
  }
});

test('a pod is no relay: whatever is not its own address, as the mesh writes it, and an allowed port is refused with 403, and no connection is opened for it', async () => {
  const [four, six] = ips('late') as [string, string];
  const numbers = four.split('.').map(Number) as [number, number, number, number];
  const decimal = numbers.reduce((sum, part) => sum * 256 + part, 0);
  const nodes = world.lab.info().nodes.flatMap((node) => node.ips).map((ip) => (ip.includes(':') ? `[${ip}]` : ip));
  const authorities = [
    ...['127.0.0.1', '127.1', '0.0.0.0', '0', '[::1]', '[::]', 'localhost', ...nodes, ips('far')[0]!, ips('web-v1')[0]!, `[${ips('far')[1]}]`, '10.96.0.1', 'example.com', 'late.node.svc.cluster.local', '*'].flatMap((host) => [`${host}:7000`, `${host}:9999`]),
    ...[`[::ffff:${four}]`, `::ffff:${four}`, `[::${four}]`, six, `[${six.toUpperCase()}]`.replace(/^\[FD/, '[Fd'), `[${six}%eth0]`, `[0${six}]`, String(decimal), `0x${decimal.toString(16)}`, `0x${numbers[0].toString(16)}.${numbers.slice(1).join('.')}`, `0${four}`, `${numbers[0]}.${numbers[1]}.${numbers[2]}.0${numbers[3]}`, `${numbers.map((part) => `0${part.toString(8)}`).join('.')}`, `${numbers[0]}.${numbers[1]}.${numbers[2] * 256 + numbers[3]}`, `x${four}`, `${four}x`, `${four}.`, `user@${four}`, `${four}@127.0.0.1`].map((host) => `${host}:7000`),
    ...['15001', '15006', '15008', '0', '65536', '70000', '07000', '+7000', '-1', '7000.0', '0x1b58', '', 'http', '7000:7000', '7000/x'].flatMap((port) => [`${four}:${port}`, `[${six}]:${port}`]),
    four, `[${six}]`, `${four}:7000,127.0.0.1:9999`,
  ];
  const before = await opened('late');
  const outcomes = await call('late', authorities.map((authority) => ({ authorities: [authority], raw: 'x', end: true })));
  // What is no authority at all is not even a request to Envoy.
  const wrong = outcomes.flatMap(({ statuses, body }, index) => (body === undefined && (statuses[0] === 403 || statuses[0] === undefined) ? [] : [[authorities[index], statuses, body]]));
  assert.deepEqual(wrong, []);
  const refused = outcomes.filter(({ statuses }) => statuses[0] === 403).length;
  assert.ok(refused > authorities.length * 0.8, `${refused} of ${authorities.length} answered 403: ${JSON.stringify(outcomes.flatMap(({ statuses, error }, index) => (statuses[0] === 403 ? [] : [[authorities[index], error]])))}`);
  assert.equal(await opened('late'), before);
  const [allowed] = await call('late', [{ authorities: [`${four}:7000`], raw: 'x', end: true }]);
  assert.deepEqual([allowed!.statuses, allowed!.body], [[200], 'X']);
  assert.equal(await opened('late'), before + 1);
});

test('what a request says beside its authority leads nowhere else, and only CONNECT leads anywhere', async () => {
  const own = at('late', 7000);
  const before = await opened('late');
  const [original, host, websocket, get] = await call('late', [
    { authorities: ['127.0.0.1:9999'], connect: { 'x-envoy-original-dst-host': own }, raw: 'x', end: true },
    { authorities: ['127.0.0.1:9999'], connect: { host: own }, raw: 'x', end: true },
    { authorities: [own], connect: { ':method': 'POST', ':path': '/', ':scheme': 'https' }, raw: 'x', end: true },
    { authorities: [own], connect: { ':method': 'GET', ':path': '/', ':scheme': 'https' }, raw: 'x', end: true },
  ]);
  assert.deepEqual([original, host, websocket, get].map((outcome) => outcome!.statuses[0]), [403, 403, 403, 403]);
  assert.equal(await opened('late'), before);
  const [misled] = await call('late', [{ authorities: [own], connect: { 'x-envoy-original-dst-host': '127.0.0.1:9999' }, raw: 'x', end: true }]);
  assert.equal(misled!.body, 'X');
  assert.match(await world.nodeProxyAdmin('/clusters', 'node-2'), new RegExp(`pod/${uid('late')}/hbone::${own}::cx_total::[1-9]`));
  assert.doesNotMatch(await world.nodeProxyAdmin('/clusters', 'node-2'), new RegExp(`pod/${uid('late')}/hbone::127`));
});

test('without a certificate of the mesh, or with TLS 1.2, nobody comes as far as a request', async () => {
  const tunnels: Tunnel[] = [{ authorities: [at('far', 8080)], path: '/' }];
  for (const as of [{}, await shown({ ...CALLER, trustDomain: 'elsewhere.example' }), await shown(CALLER, await CertificateAuthority.create()), { ...(await shown()), tlsVersion: 'TLSv1.2' as const }]) {
    const [outcome] = await call('far', tunnels, as);
    assert.deepEqual(outcome!.statuses, []);
    assert.match(outcome!.error!, /alert|ECONNRESET|closed|version/i);
  }
});

/** Until all of several tunnels, since listeners drain, end so. */
async function until(what: string, tunnel: Tunnel, as: Shown | undefined, holds: (outcome: Outcome) => boolean): Promise<void> {
  let last: Outcome[] = [];
  await waitFor(what, async () => (last = await call('far', [tunnel, tunnel, tunnel], as)).every(holds), { timeoutMs: 60_000 }).catch((error: unknown) => {
    throw new Error(`${String(error)}: last ${JSON.stringify(last)}`);
  });
}

test('policies of the pod hold for what comes by HBONE, for HTTP and TCP, by the caller\'s certificate and address, and the application hears who called', async () => {
  const policy = (rest: string): string => `apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: tried, namespace: node}\nspec: {selector: {matchLabels: {app: far}}, ${rest}}\n`;
  const from = (source: string): string => `rules: [{from: [{source: {${source}}}]}]`;
  const strict = 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: node}\nspec: {mtls: {mode: STRICT}}\n';
  const [near] = world.lab.pod('outside', 'near').ips;
  const tried: [string, 'taken' | 'refused'][] = [
    [strict, 'taken'],
    [policy(`action: ALLOW, ${from('principals: ["cluster.local/ns/node/sa/other"]')}`), 'refused'],
    [policy(`action: ALLOW, ${from('principals: ["cluster.local/ns/sidecar/sa/caller"]')}`), 'taken'],
    [policy(`action: DENY, ${from('namespaces: [sidecar]')}`), 'refused'],
    [policy(`action: DENY, ${from('notPrincipals: ["cluster.local/ns/sidecar/sa/caller"]')}`), 'taken'],
    [policy(`action: ALLOW, ${from(`ipBlocks: ["${near}"]`)}`), 'taken'],
    [policy(`action: DENY, ${from(`ipBlocks: ["${near}"]`)}`), 'refused'],
    [policy('action: DENY, rules: [{to: [{operation: {ports: ["8080", "9000"]}}]}]'), 'refused'],
    [policy('action: DENY, rules: [{to: [{operation: {ports: ["8081", "15008"]}}]}]'), 'taken'],
  ];
  const [http, tcp]: [Tunnel, Tunnel] = [{ authorities: [at('far', 8080)], path: '/', headers: { 'x-forwarded-client-cert': 'URI=spiffe://cluster.local/ns/forged/sa/forged' } }, { authorities: [at('far', 9000)], raw: 'x' }];
  for (const [yaml, end] of tried) {
    await world.apply('mesh', yaml);
    await until(`HTTP to be ${end}: ${yaml}`, http, undefined, (outcome) => outcome.http === (end === 'taken' ? 200 : 403));
    await until(`TCP to be ${end}: ${yaml}`, tcp, undefined, ({ body }) => body === (end === 'taken' ? 'x' : undefined));
    if (end === 'taken') assert.equal(bodyOf((await call('far', [http]))[0]!).headers['x-forwarded-client-cert'], 'URI=spiffe://cluster.local/ns/sidecar/sa/caller');
  }
  // The pod's own addresses and ports alone, also where a policy stands in between.
  const outcomes = await call('far', ['127.0.0.1:8080', `${ips('web-v1')[0]}:8080`, at('far', 15_006)].map((authority) => ({ authorities: [authority] })));
  assert.deepEqual(outcomes.map(({ statuses }) => statuses[0]), [403, 403, 403]);
  await world.clear('mesh');
  await until('nothing to stand in between', http, undefined, (outcome) => outcome.http === 200);
  assert.deepEqual(await world.nacks(), []);
});

test('a pod is reached by the names of its own services, too, as what comes through an east-west gateway has no other: at its own port, under its policies', async () => {
  const name = 'far.node.svc.cluster.local';
  const [http, raw] = await call('far', [{ authorities: [`${name}:80`], path: '/' }, { authorities: [`${name}:9000`], raw: 'x' }]);
  assert.deepEqual([http!.statuses, http!.http, bodyOf(http!).pod, raw!.body], [[200], 200, 'far', 'x']);
  const before = await opened('far');
  const refused = [`${name}:8080`, `${name}:81`, `${name}`, `${name}:`, `${name}.:80`, `x${name}:80`, name.replace('.svc', 'xsvc') + ':80', 'web.node.svc.cluster.local:80', 'far.node:80', 'far:80', `${name}:80,127.0.0.1:8080`];
  assert.deepEqual((await call('far', refused.map((authority) => ({ authorities: [authority], raw: 'x' })))).flatMap(({ statuses, body }, index) => (statuses[0] === 403 || (statuses[0] === undefined && body === undefined) ? [] : [refused[index]])), []);
  assert.equal(await opened('far'), before);
  const deny = (port: number): string => `apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: by-port, namespace: node}\nspec: {selector: {matchLabels: {app: far}}, action: DENY, rules: [{to: [{operation: {ports: ["${port}"]}}]}]}\n`;
  for (const [port, status] of [[8080, 403], [80, 200]] as const) {
    await world.apply('mesh', deny(port));
    await until(`${name}:80 to be answered ${status}`, { authorities: [`${name}:80`], path: '/' }, undefined, (outcome) => outcome.http === status);
  }
  await world.clear('mesh');
});

test('a service that begins to select a pod gives it a name, with no end of the tunnels that are open', async () => {
  const late = 'late.node.svc.cluster.local';
  assert.equal((await call('late', [{ authorities: [`${late}:70`], raw: 'x', end: true }]))[0]!.statuses[0], 403);
  // Its version is the time of its last change, too.
  const own = async (): Promise<string> => {
    const text = await world.nodeProxyAdmin('/config_dump?resource=dynamic_listeners', 'node-2');
    const found = (JSON.parse(text) as { configs: { name: string; active_state: { last_updated: string } }[] }).configs.find(({ name }) => name === `pod/${uid('late')}/hbone`);
    return found?.active_state.last_updated ?? assert.fail(text);
  };
  const before = await own();
  await world.apply('mesh', 'apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: node}\nspec: {clusterIP: None, selector: {app: late}, ports: [{name: tcp-late, port: 70, targetPort: 7000}]}\n');
  await waitFor('the name to lead to the pod', async () => (await call('late', [{ authorities: [`${late}:70`], raw: 'x', end: true }]))[0]!.body === 'X', { timeoutMs: 120_000 });
  await world.clear('mesh');
  await waitFor('the name to be gone', async () => (await call('late', [{ authorities: [`${late}:70`], raw: 'x', end: true }]))[0]!.statuses[0] === 403, { timeoutMs: 120_000 });
  assert.equal(await own(), before);
});

/** As a ztunnel sees it. */
async function workloads(): Promise<Map<string, TunnelProtocol>> {
  const ztunnel = new TestClient(world.discovery, 'ztunnel~10.0.0.1~node.istio-system~istio-system.svc.cluster.local', {});
  try {
    ztunnel.subscribe(TYPE.address);
    const known = (): Map<string, TunnelProtocol> => new Map(ztunnel.of(TYPE.address).flatMap(({ resources }) => resources.flatMap(({ resource }) => {
      const { type } = Address.decode(resource!.value);
      return type?.$case === 'workload' ? [[`${type.value.namespace}/${type.value.name}`, type.value.tunnel_protocol] as const] : [];
    })));
    await waitFor('the workloads', () => known().size > 0, { timeoutMs: 120_000 });
    return known();
  } finally {
    ztunnel.close();
  }
}

test('WDS names HBONE for the pods where it ends, and for no others', async () => {
  const known = await workloads();
  const by = (name: string): TunnelProtocol | undefined => known.get(name);
  assert.deepEqual(['node/far', 'node/late', 'node/web-v1', 'node/client'].map(by), [TunnelProtocol.HBONE, TunnelProtocol.HBONE, TunnelProtocol.HBONE, TunnelProtocol.HBONE]);
  assert.deepEqual(['node/taken', 'outside/near', 'sidecar/caller', 'sidecar/web-v1'].map(by), [TunnelProtocol.NONE, TunnelProtocol.NONE, TunnelProtocol.NONE, TunnelProtocol.NONE]);
});

/** After a failed bind in a pod's namespace Envoy's main thread would stay there. */
async function envoyIsAtHome(): Promise<void> {
  const { nacks, envoy } = (await world.agentStatus('node-2')).proxy;
  assert.deepEqual(nacks, []);
  assert.equal(readlinkSync(`/proc/${envoy.pid}/ns/net`), `net:[${statSync(world.lab.info().nodes[1]!.netns).ino}]`, 'Envoy has not stayed in the namespace of a pod');
}

test('a pod whose own program has port 15008 keeps it: nobody is told of HBONE, and it is in the mesh as before', async () => {
  assert.equal(takesHbone('taken'), false);
  const status = await world.agentStatus('node-2');
  const taken = status.pods.find(({ name }) => name === 'taken');
  assert.deepEqual([taken?.state, taken?.notes, status.proxy.nacks], ['enrolled', ["takes no HBONE, since port 15008 is a program's of its own"], []]);
  await envoyIsAtHome();
  const { stdout } = await world.lab.exec('outside/near', ['bash', '-c', `exec 3<>/dev/tcp/${ips('taken')[0]}/15008 && cat <&3`]);
  assert.equal(stdout, 'own');
});

const tunnelled = async (name: string): Promise<number> => Number(/downstream_rq_total: (\d+)/.exec(await world.nodeProxyAdmin(`/stats?filter=http.pod_${uid(name)}_hbone.downstream_rq_total`, 'node-2'))?.[1] ?? 0);

test('sidecars reach the node\'s pods by HBONE, HTTP and TCP', async () => {
  const before = await tunnelled('far');
  const { stdout, stderr } = await world.lab.exec('sidecar/caller', ['curl', '-sS', '--max-time', '30', 'http://far.node/']);
  assert.match(stdout, /"pod":"far"/, stderr);
  const line = await world.lab.exec('sidecar/caller', ['bash', '-c', 'exec 3<>/dev/tcp/far.node/9000 && echo ping >&3 && timeout 10 head -1 <&3']);
  assert.equal(line.stdout, 'ping\n');
  assert.ok((await tunnelled('far')) >= before + 2, 'both came by tunnels');
});

test('a pod leaves the mesh and comes back while sidecars call it: no request fails, and HBONE ends last', async () => {
  const script = `
const http = require('node:http');
const agent = new http.Agent({ keepAlive: true });
const seen = {};
let stop = false;
process.stdin.on('end', () => (stop = true)).resume();
const one = () => new Promise((resolve) => http.get('http://far.node/', { agent }, (response) => response.resume().on('end', () => resolve(response.statusCode))).on('error', (error) => resolve(error.message)));
(async () => {
  while (!stop) { const end = await one(); seen[end] = (seen[end] ?? 0) + 1; await new Promise((resolve) => setTimeout(resolve, 5)); }
  console.log(JSON.stringify(seen));
  process.exit(0);
})();`;
  const label = (value: string | null): Promise<void> => world.lab.label({ kind: 'Pod', namespace: 'node', name: 'far', labels: { 'underpass.io/mode': value } });
  const state = async (): Promise<string | undefined> => (await world.agentStatus('node-2')).pods.find(({ name }) => name === 'far')?.state;
  // A connection that is still redirected would keep the pod for as long as the sidecar keeps the connection.
  await world.enrolled();
  const calling = world.lab.spawnIn('sidecar/caller', [process.execPath, '-e', script]);
  let said = '';
  calling.stdout!.on('data', (chunk: Buffer) => (said += chunk.toString()));
  await waitFor('requests by tunnel', async () => (await tunnelled('far')) > 0, { timeoutMs: 120_000 });
  await label('off');
  await waitFor('the pod to have left', async () => (await state()) === 'off', { timeoutMs: 120_000 });
  assert.equal(takesHbone('far'), false);
  const refused = await call('far', [{ authorities: [at('far', 8080)] }]);
  assert.match(refused[0]!.error!, /ECONNREFUSED/);
  const before = await tunnelled('far');
  await label(null);
  await waitFor('HBONE again', () => takesHbone('far'), { timeoutMs: 120_000 });
  await world.settled();
  await waitFor('requests by tunnel again', async () => (await tunnelled('far')) > before, { timeoutMs: 120_000 });
  calling.stdin!.end();
  await once(calling, 'close');
  assert.deepEqual(Object.keys(JSON.parse(said) as object), ['200']);
});

test('an agent that is stopped leaves tunnels open and new ones possible, and the next one changes nothing of it', async () => {
  await world.stopAgent('node-2');
  assert.equal((await call('far', [{ authorities: [at('far', 8080)], path: '/' }]))[0]!.http, 200);
  const listeners = (): Promise<string> => world.nodeProxyAdmin('/stats?filter=^listener_manager.listener_(added|modified|removed)$', 'node-2');
  const before = await listeners();
  await world.startAgent('node-2');
  await world.enrolled();
  await world.settled();
  assert.equal(takesHbone('far'), true);
  assert.equal((await call('far', [{ authorities: [at('far', 8080)], path: '/' }]))[0]!.http, 200);
  assert.equal(await listeners(), before);
  assert.equal((await world.agentStatus('node-2')).proxy.envoy.adopted, true);
});

/** What a pod outside of the mesh is answered; nothing where the kernel drops what it sends. */
const dial = async (address: string, port: number): Promise<string> => (await world.lab.exec('outside/near', ['timeout', '2', 'bash', '-c', `exec 3<>/dev/tcp/${address}/${port} && cat <&3`])).stdout;

test('a pod whose own program has port 15001 is not captured and says why; Envoy does not try', async () => {
  const key = { kind: 'Pod', namespace: 'outside', name: 'outbound-taken' } as const;
  const now = async () => (await world.agentStatus('node-2')).pods.find(({ name }) => name === 'outbound-taken');
  await world.lab.label({ ...key, labels: { 'underpass.io/mode': 'node' } });
  try {
    await waitFor('the pod to say why', async () => (await now())?.state === 'failed', { timeoutMs: 60_000 });
    assert.equal((await now())?.error, "port 15001 of the pod, where the proxy has to listen, is a program's of its own");
    await envoyIsAtHome();
    assert.equal(await dial(world.lab.pod('outside', 'outbound-taken').ips[0]!, 7000), 'own', 'it goes on without the mesh');
  } finally {
    await world.lab.label({ ...key, labels: { 'underpass.io/mode': null } });
  }
  await waitFor('the pod to be left alone', async () => (await now())?.state === 'off', { timeoutMs: 120_000 });
});

test('a pod whose own program has port 15006 keeps it: its callers are never led there, and whom its policy leaves to Envoy is refused', async () => {
  const key = { kind: 'Pod', namespace: 'outside', name: 'inbound-taken' } as const;
  const address = world.lab.pod('outside', 'inbound-taken').ips[0]!;
  await world.lab.label({ ...key, labels: { 'underpass.io/mode': 'node' } });
  await waitFor('the pod to be enrolled', async () => (await world.agentStatus('node-2')).pods.find(({ name }) => name === 'inbound-taken')?.state === 'enrolled', { timeoutMs: 60_000 });
  assert.equal(await dial(address, 7000), 'own');
  await world.apply('mesh', 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: inbound-taken, namespace: outside}\nspec: {selector: {matchLabels: {app: inbound-taken}}, mtls: {mode: STRICT}}\n');
  await waitFor('the caller in plaintext to be refused', async () => (await dial(address, 7000)) === '', { timeoutMs: 60_000 });
  await world.stopAgent('node-2');
  await world.startAgent('node-2');
  await world.enrolled();
  await world.settled();
  await envoyIsAtHome();
  assert.equal(await dial(address, 7000), '', 'nor after a restart of the agent');
  const now = (await world.agentStatus('node-2')).pods.find(({ name }) => name === 'inbound-taken');
  assert.deepEqual([now?.state, now?.notes], ['enrolled', ["callers that its policy leaves to the proxy are refused, since port 15006 is a program's of its own"]]);
  await world.clear('mesh');
  await waitFor('the caller to be let in again', async () => (await dial(address, 7000)) === 'own', { timeoutMs: 60_000 });
});
