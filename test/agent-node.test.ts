// The node agent as a user runs it (`underpass node --embedded-pilot` beside a lab), with real pods, BPF, Envoy and xDS.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { askAgent, instanceCgroup, type AgentStatus } from '../agent/index.js';
import { cleanOrphanedAgents } from '../cli/orphans.js';
import { defaultRunDir } from '../common/paths.js';
import { EXIT } from '../cli/exit-codes.js';
import type { NodeView } from '../common/dashboard-views.js';
import { processStartTime } from '../common/process-id.js';
import { run } from '../common/process.js';
import type { Graph } from '../common/traffic.js';
import { NodeUnderTest, enrolled } from './agent-harness.js';

const node = new NodeUnderTest(`up-agent-${process.pid}`);
// As a user runs it.
node.ownSelfTest = true;
const { instance, paths } = node;

before(() => node.up(['shop.yaml', 'plain.yaml']));
after(() => node.down());

test('an enrolled client is captured by BPF and routed 75/25, or by header, through the shared Envoy', async () => {
  node.startAgent('--metrics-address', '127.0.0.1:0');
  await node.podsAre('shop', 'shop to be enrolled', enrolled('bpf'));
  const some = node.load('shop/client');
  const split = await some.run(600);
  assert.deepEqual(split.failures, {});
  assert.equal(split.fresh.direct + split.kept.direct, 0, 'every request goes through Envoy');
  const share = (split.versions['v2'] ?? 0) / split.requests;
  // 600 draws at 0.25: six standard deviations are 0.106.
  assert.ok(Math.abs(share - 0.25) < 0.11, `v2 got ${share}`);
  await some.end();
  const jesse = node.load('shop/client', { headers: { user: 'jesse' } });
  const { versions, failures } = await jesse.run(100);
  assert.deepEqual({ versions: Object.keys(versions), failures }, { versions: ['v2'], failures: {} });
  await jesse.end();
  const now = await node.status();
  assert.equal(now.selfTest && 'checks' in now.selfTest, true);
  assert.deepEqual(now.proxy.nacks, []);
});

test('a namespace joins and leaves under load: new connections change their way, existing ones keep theirs, none fails', async () => {
  const before = await node.rulesOf('plain/client');
  const early = node.load('plain/client');
  const plain = await early.run(200);
  assert.equal(plain.fresh.proxied + plain.kept.proxied, 0);
  await node.label('plain', { mode: 'node' });
  await node.podsAre('plain', 'plain to be enrolled', enrolled('bpf'));
  const joined = await early.run(200);
  assert.deepEqual([joined.fresh.direct, joined.kept.proxied, joined.connections, joined.failures], [0, 0, 0, {}]);
  assert.ok(joined.fresh.proxied > 0 && joined.kept.direct > 0);
  const late = node.load('plain/client');
  assert.equal((await late.run(100)).kept.direct, 0);

  await node.label('plain', { mode: 'off' });
  await node.podsAre('plain', 'plain to be let go', (pod) => pod.way === 'plain' && (pod.name.startsWith('client') ? pod.state === 'draining' : pod.state === 'off'));
  const left = await late.run(200);
  assert.deepEqual([left.fresh.proxied, left.kept.direct, left.connections, left.failures], [0, 0, 0, {}]);
  assert.ok(left.fresh.direct > 0 && left.kept.proxied > 0, 'its kept connections still go through Envoy');
  const ends = [await late.end(), await early.end()];
  for (const { failures } of ends) assert.deepEqual(failures, {});
  await node.podsAre('plain', 'plain to be off', (pod) => pod.state === 'off' && pod.settled);
  assert.equal(await node.rulesOf('plain/client'), before);
  const uids = new Set((await node.status()).pods.filter((pod) => pod.namespace === 'plain').map((pod) => pod.uid));
  assert.deepEqual(readdirSync(paths.netnsFolder).filter((uid) => uids.has(uid)), []);
});

test('redirection changes between bpf and iptables under load with no failed request, and the rules go away exactly', async () => {
  const before = await node.rulesOf('shop/client');
  const steady = node.load('shop/client');
  await steady.run(100);
  await node.label('shop', { redirection: 'iptables' });
  await node.podsAre('shop', 'shop to be redirected by iptables', enrolled('iptables'));
  assert.match(await node.rulesOf('shop/client'), /-A OUTPUT -p tcp -j UNDERPASS_OUTPUT/);
  const byRules = node.load('shop/client');
  for (const some of [await steady.run(200), await byRules.run(100)]) {
    assert.deepEqual(some.failures, {});
    assert.equal(some.fresh.direct + some.kept.direct, 0);
  }
  await node.label('shop', { redirection: 'bpf' });
  await node.podsAre('shop', 'shop to be captured by BPF', (pod) => pod.way === 'bpf' && pod.state === 'enrolled');
  const client = (await node.status()).pods.find((pod) => pod.namespace === 'shop' && pod.name.startsWith('client'));
  assert.equal(client?.drainingConnections, 3, 'the kept connections that iptables redirected live from the rules that are left');
  assert.doesNotMatch(await node.rulesOf('shop/client'), /-A OUTPUT -p tcp -j UNDERPASS_OUTPUT/);
  const again = await byRules.run(200);
  assert.deepEqual([again.failures, again.connections], [{}, 0]);
  for (const some of [byRules, steady]) assert.deepEqual((await some.end()).failures, {});
  await node.podsAre('shop', 'the rules to be gone', enrolled('bpf'));
  assert.equal(await node.rulesOf('shop/client'), before);
});

test('acceleration changes under load with no failed request', async () => {
  await node.label('shop', { acceleration: 'force' });
  await node.podsAre('shop', 'acceleration force', (pod) => enrolled('bpf')(pod) && pod.acceleration === 'force');
  const moved = async (): Promise<number> => (await node.counters())['connections_short_circuited'] ?? 0;
  const some = node.load('shop/client');
  const start = await moved();
  await some.run(200);
  const accelerated = (await node.status()).acceleration.on;
  if (accelerated) assert.ok((await moved()) > start, 'connections are short-circuited');
  await node.label('shop', { acceleration: 'off' });
  await node.podsAre('shop', 'acceleration off', (pod) => enrolled('bpf')(pod) && pod.acceleration === 'off');
  await some.run(50);
  const off = await moved();
  await some.run(200);
  assert.equal(await moved(), off, 'no new connection is short-circuited');
  await node.label('shop', { acceleration: 'l4' });
  await node.podsAre('shop', 'acceleration l4', (pod) => enrolled('bpf')(pod) && pod.acceleration === 'l4');
  await some.run(200);
  assert.deepEqual((await some.end()).failures, {});
  await node.label('shop', { acceleration: null });
});

test('the agent is killed under load and started again: the same Envoy, no failed request', async () => {
  const some = node.load('shop/client');
  await some.run(100);
  const before = await node.status();
  await node.endAgent('SIGKILL');
  const alone = await some.run(200);
  assert.deepEqual([alone.failures, alone.fresh.direct], [{}, 0], 'kernel and Envoy go on alone');
  node.startAgent('--metrics-address', '127.0.0.1:0');
  await node.podsAre('shop', 'shop to be taken over', enrolled('bpf'));
  await some.run(200);
  const now = await node.status();
  assert.notEqual(now.pid, before.pid);
  assert.equal(now.proxy.envoy.pid, before.proxy.envoy.pid);
  assert.equal(now.proxy.envoy.adopted, true);
  const all = await some.end();
  assert.deepEqual([all.failures, all.connections, all.fresh.direct], [{}, 3, 0]);
});

test('a graceful end leaves Envoy and capture at work as well, and what changed meanwhile is made up for', async () => {
  const some = node.load('shop/client');
  await some.run(50);
  const before = await node.status();
  await node.endAgent('SIGTERM');
  assert.equal(existsSync(paths.adminSocket), false);
  assert.deepEqual((await some.run(100)).fresh.direct, 0);
  await node.label('shop', { mode: 'off' });
  node.startAgent('--metrics-address', '127.0.0.1:0', '--dashboard-port', '0');
  await node.podsAre('shop', 'shop to be let go', (pod) => pod.way === 'plain');
  assert.equal((await node.status()).proxy.envoy.pid, before.proxy.envoy.pid);
  const left = await some.run(100);
  assert.deepEqual([left.fresh.proxied, left.kept.direct], [0, 0]);
  await node.label('shop', { mode: 'node' });
  await node.podsAre('shop', 'shop to be enrolled again', enrolled('bpf'));
  const all = await some.end();
  assert.deepEqual([all.failures, all.connections], [{}, 3]);
});

test('an unknown label value is said once, and counts as off', async () => {
  await node.label('plain', { mode: 'nodes', acceleration: 'warp' });
  await node.podsAre('plain', 'plain to be told of its label', (pod) => pod.mode === 'off' && pod.state === 'off' && (pod.reason ?? '').includes('underpass.io/mode=nodes'));
  await node.label('plain', { 'mode-note': 'x' });
  await node.podsAre('plain', 'plain to settle', (pod) => pod.settled);
  const said = node.log.split('\n').filter((line) => line.includes('unknown label value') && line.includes('"nodes"'));
  assert.equal(said.length, 1, said.join('\n'));
  assert.match(said[0] ?? '', /"owner":"namespace plain".*"expected":\["node","sidecar","off"\]/);
  await node.label('plain', { mode: null, acceleration: null, 'mode-note': null });
});

test('a second agent of the same instance says who holds it', async () => {
  const { pid, since } = await node.status();
  const second = await node.cli(['node', '--embedded-pilot', '--lab-socket', node.lab.socket, '--instance', instance], [1]);
  assert.match(second.stderr, new RegExp(`instance ${instance} is held by process ${pid} \\(underpass node\\) since ${since}`));
  assert.doesNotMatch(second.stderr, /\n\s+at /);
  const clean = await node.cli(['agent', '--cleanup', '--instance', instance], [1]);
  assert.match(clean.stderr, /is held by process/);
  assert.equal((await node.status()).pid, pid, 'the first one is untouched');
});

test('ps and the admin API tell what is', async () => {
  const table = (await node.cli(['ps', '--instance', instance])).stdout;
  assert.match(table, /^NAMESPACE +POD +MODE +STATE +WAY +ACCELERATION/);
  assert.match(table, /^shop +client-\S+ +node +enrolled +bpf/m);
  assert.match(table, /control plane +connected/);
  const parsed = JSON.parse((await node.cli(['ps', '-o', 'json', '--instance', instance])).stdout) as AgentStatus;
  assert.equal(parsed.ready, true);
  assert.match(await askAgent(paths.adminSocket, '/metrics'), /^underpass_pods\{mode="node",way="bpf",state="enrolled"\} 3$/m);
  assert.equal(await askAgent(paths.adminSocket, '/healthz'), 'ok\n');
  assert.match(await askAgent(paths.adminSocket, '/readyz'), /"ready": true/);
  const socket = await run('stat', ['-c', '%a', paths.adminSocket]);
  assert.equal(socket.stdout.trim(), '600');
  const { address } = parsed.metrics ?? assert.fail('nothing about metrics');
  assert.match(table, new RegExp(`^metrics +http://${address}/metrics$`, 'm'));
  assert.match(await (await fetch(`http://${address}/metrics`)).text(), /^underpass_pods\{mode="node",way="bpf",state="enrolled"\} 3$/m);
  for (const path of ['/v1/status', '/v1/http-fast-path?on=false', '/healthz']) assert.equal((await fetch(`http://${address}${path}`)).status, 404, path);
  const wrong = await node.cli(['agent', '--metrics-address', 'localhost'], [EXIT.usage]);
  assert.match(wrong.stderr, /--metrics-address <address:port>' argument 'localhost' is invalid\. expected an IP address and a port/);
  const absent = await node.cli(['ps', '--instance', `${instance}-x`], [3]);
  assert.match(absent.stderr, /UNDERPASS_AGENT_NOT_RUNNING/);
});

test('the agent serves the dashboard of its node on 127.0.0.1, to who has the token that root is told, and nothing changes by it', async () => {
  const { stdout } = await node.cli(['dashboard', '--of-agent', '--instance', instance]);
  const [, origin, token] = /^(http:\/\/127\.0\.0\.1:\d+)\/#token=([\w-]{43,})\n$/.exec(stdout) ?? assert.fail(stdout);
  assert.match(await (await fetch(`${origin}/`)).text(), /<title>Underpass<\/title>/);
  const ask = (path: string, method = 'GET', given = token): Promise<Response> => fetch(`${origin}${path}`, { method, headers: { authorization: `Bearer ${given}` } });
  assert.deepEqual([(await ask('/api/nodes', 'GET', 'x')).status, (await ask('/api/nodes', 'POST')).status, (await ask('/v1/http-fast-path?on=false')).status], [401, 405, 404]);
  const [view] = (await (await ask('/api/nodes')).json()) as NodeView[];
  assert.deepEqual([view!.ready, view!.pods.filter(({ namespace }) => namespace === 'shop').length > 0], [true, true]);
  assert.deepEqual(((await (await ask('/api/graph')).json()) as Graph).nodes, [{ node: view!.node }]);
  assert.ok(node.log.includes(origin!) && !node.log.includes(token!), 'the log has the address, without the token');
  assert.doesNotMatch((await node.cli(['ps', '-o', 'json', '--instance', instance])).stdout, new RegExp(token!));
});

test('cleanup removes all that the agents made, and the pods work on without the mesh', async () => {
  const envoy = (await node.status()).proxy.envoy.pid ?? assert.fail('no Envoy');
  await node.endAgent('SIGTERM');
  assert.notEqual(processStartTime(envoy), undefined);
  await node.cli(['agent', '--cleanup', '--instance', instance]);
  assert.equal(processStartTime(envoy), undefined);
  assert.equal(existsSync(paths.folder), false);
  assert.equal(existsSync(join(paths.bpffsDir, instance)), false);
  assert.equal(existsSync(instanceCgroup(instance)), false);
  assert.equal(readFileSync('/proc/self/mounts', 'utf8').includes(`/${instance}/netns/`), false);
  assert.doesNotMatch(await node.rulesOf('shop/client'), /UNDERPASS/);
  const some = node.load('shop/client');
  const { failures, fresh, kept } = await some.run(50);
  assert.deepEqual([failures, fresh.proxied + kept.proxied], [{}, 0]);
  await some.end();
  mkdirSync(paths.folder, { recursive: true });
  await node.cli(['agent', '--cleanup', '--instance', instance]);
  assert.equal(existsSync(paths.folder), false, 'a second cleanup finds nothing to do');
});

test('what an agent leaves at work is removed when its lab is gone, and not before', async () => {
  node.startAgent('--metrics-address', '127.0.0.1:0');
  await node.podsAre('shop', 'shop to be enrolled', enrolled('bpf'));
  assert.equal((await cleanOrphanedAgents(defaultRunDir)).some((report) => report.instance === instance), false);
  await node.endAgent('SIGKILL');
  assert.equal((await cleanOrphanedAgents(defaultRunDir)).some((report) => report.instance === instance), false);
  await node.lab.down();
  const reports = await cleanOrphanedAgents(defaultRunDir);
  assert.deepEqual(reports.filter((report) => report.instance === instance), [{ instance }]);
  assert.equal(existsSync(paths.folder) || existsSync(instanceCgroup(instance)), false);
});
