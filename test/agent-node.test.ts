// The node agent as a user runs it (`underpass node --embedded-pilot` beside a lab), with real pods, BPF, Envoy and xDS.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { askAgent, instanceCgroup, instancePaths, type AgentStatus, type PodStatus } from '../agent/index.js';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { Lab } from '../lab/index.js';
import { Load } from './load.js';

const instance = `up-agent-${process.pid}`;
const paths = instancePaths({ instance });
let lab: Lab;
let sources: string;
let agent: ChildProcess | undefined;
let agentLog = '';
const loads: Load[] = [];

const cli = (...args: string[]) => [join(projectRoot, 'dist', 'cli', 'main.js'), ...args];

function startAgent(...more: string[]): ChildProcess {
  agentLog = '';
  const child = spawn(process.execPath, cli('node', '--embedded-pilot', '--lab-socket', lab.socket, '--instance', instance, '--concurrency', '1', ...more), { stdio: ['ignore', 'pipe', 'pipe'] });
  for (const stream of [child.stdout, child.stderr]) stream?.on('data', (chunk: Buffer) => (agentLog += chunk.toString()));
  agent = child;
  return child;
}

async function endAgent(signal: NodeJS.Signals): Promise<void> {
  const child = agent;
  agent = undefined;
  if (!child || child.exitCode !== null || child.signalCode !== null) return;
  child.kill(signal);
  await once(child, 'exit');
}

async function status(): Promise<AgentStatus> {
  return JSON.parse(await askAgent(paths.adminSocket, '/v1/status')) as AgentStatus;
}

/** All pods of the namespace are as `wanted` says, and have settled unless it says otherwise. */
async function podsAre(namespace: string, what: string, wanted: (pod: PodStatus) => boolean): Promise<void> {
  let last: unknown;
  try {
    await waitFor(
      what,
      async () => {
        if (agent?.exitCode !== null) throw new Error(`the agent ended: ${agentLog.slice(-3000)}`);
        const now = await status().catch((error: unknown) => {
          last = error;
          return undefined;
        });
        const pods = now?.pods.filter((pod) => pod.namespace === namespace) ?? [];
        if (now) last = { pods, notReady: now.notReady };
        return pods.length > 0 && now?.ready && pods.every(wanted);
      },
      { timeoutMs: 30_000, everyMs: 50 },
    );
  } catch (error) {
    throw new Error(`${String(error)}\n${JSON.stringify(last, undefined, 1)}\n${agentLog.slice(-4000)}`);
  }
}
const enrolled = (way: 'bpf' | 'iptables') => (pod: PodStatus) => pod.state === 'enrolled' && pod.way === way && pod.settled;

const label = (namespace: string, labels: Record<string, string | null>) =>
  lab.label({ kind: 'Namespace', name: namespace, labels: Object.fromEntries(Object.entries(labels).map(([key, value]) => [`underpass.io/${key}`, value])) });

function load(pod: string, options: { keepAlive?: number; fresh?: number; headers?: Record<string, string> } = {}): Load {
  const started = Load.start(lab, pod, { url: 'http://nginx/', keepAlive: options.keepAlive ?? 3, fresh: options.fresh ?? 2, headers: options.headers ?? {} });
  loads.push(started);
  return started;
}

/** What iptables and nft say in a pod, without counters; the lab's own table follows its services, not the mesh. */
async function rulesOf(namespace: string, pod: string): Promise<string> {
  const { stdout } = await lab.exec(`${namespace}/${pod}`, ['sh', '-c', 'iptables-nft-save; ip6tables-nft-save; nft list tables; cat /proc/net/ip_tables_names']);
  return stdout.replace(/^#.*$/gm, '').replace(/\[\d+:\d+\]/g, '');
}

before(async () => {
  sources = mkdtempSync(join(tmpdir(), `${instance}-`));
  for (const file of ['shop.yaml', 'plain.yaml']) copyFileSync(join(projectRoot, 'examples', 'canary', file), join(sources, file));
  lab = await Lab.up({ name: instance, sources: [sources], watch: false, purpose: 'test' });
  await lab.whenReady();
});

after(async () => {
  for (const { child } of loads) child.kill('SIGKILL');
  await endAgent('SIGKILL');
  await run(process.execPath, cli('agent', '--cleanup', '--instance', instance), { okCodes: [0, 1] });
  await lab?.down();
  rmSync(sources, { recursive: true, force: true });
});

test('an enrolled client is captured by BPF and routed 75/25, or by header, through the shared Envoy', async () => {
  startAgent();
  await podsAre('shop', 'shop to be enrolled', enrolled('bpf'));
  const some = load('shop/client');
  const split = await some.run(600);
  assert.deepEqual(split.failures, {});
  assert.equal(split.fresh.direct + split.kept.direct, 0, 'every request goes through Envoy');
  const share = (split.versions['v2'] ?? 0) / split.requests;
  // 600 draws at 0.25: six standard deviations are 0.106.
  assert.ok(Math.abs(share - 0.25) < 0.11, `v2 got ${share}`);
  await some.end();
  const jesse = load('shop/client', { headers: { user: 'jesse' } });
  const { versions, failures } = await jesse.run(100);
  assert.deepEqual({ versions: Object.keys(versions), failures }, { versions: ['v2'], failures: {} });
  await jesse.end();
  const now = await status();
  assert.equal(now.selfTest && 'checks' in now.selfTest, true);
  assert.deepEqual(now.proxy.nacks, []);
});

test('a namespace joins and leaves under load: new connections change their way, existing ones keep theirs, none fails', async () => {
  const before = await rulesOf('plain', 'client');
  const early = load('plain/client');
  const plain = await early.run(200);
  assert.equal(plain.fresh.proxied + plain.kept.proxied, 0);
  await label('plain', { mode: 'node' });
  await podsAre('plain', 'plain to be enrolled', enrolled('bpf'));
  const joined = await early.run(200);
  assert.deepEqual([joined.fresh.direct, joined.kept.proxied, joined.connections, joined.failures], [0, 0, 0, {}]);
  assert.ok(joined.fresh.proxied > 0 && joined.kept.direct > 0);
  const late = load('plain/client');
  assert.equal((await late.run(100)).kept.direct, 0);

  await label('plain', { mode: 'off' });
  await podsAre('plain', 'plain to be let go', (pod) => pod.way === 'plain' && (pod.name.startsWith('client') ? pod.state === 'draining' : pod.state === 'off'));
  const left = await late.run(200);
  assert.deepEqual([left.fresh.proxied, left.kept.direct, left.connections, left.failures], [0, 0, 0, {}]);
  assert.ok(left.fresh.direct > 0 && left.kept.proxied > 0, 'its kept connections still go through Envoy');
  const ends = [await late.end(), await early.end()];
  for (const { failures } of ends) assert.deepEqual(failures, {});
  await podsAre('plain', 'plain to be off', (pod) => pod.state === 'off' && pod.settled);
  assert.equal(await rulesOf('plain', 'client'), before);
  const uids = new Set((await status()).pods.filter((pod) => pod.namespace === 'plain').map((pod) => pod.uid));
  assert.deepEqual(readdirSync(paths.netnsFolder).filter((uid) => uids.has(uid)), []);
});

test('redirection changes between bpf and iptables under load with no failed request, and the rules go away exactly', async () => {
  const before = await rulesOf('shop', 'client');
  const steady = load('shop/client');
  await steady.run(100);
  await label('shop', { redirection: 'iptables' });
  await podsAre('shop', 'shop to be redirected by iptables', enrolled('iptables'));
  assert.match(await rulesOf('shop', 'client'), /-A OUTPUT -p tcp -j UNDERPASS_OUTPUT/);
  const byRules = load('shop/client');
  for (const some of [await steady.run(200), await byRules.run(100)]) {
    assert.deepEqual(some.failures, {});
    assert.equal(some.fresh.direct + some.kept.direct, 0);
  }
  await label('shop', { redirection: 'bpf' });
  await podsAre('shop', 'shop to be captured by BPF', (pod) => pod.way === 'bpf' && pod.state === 'enrolled');
  const client = (await status()).pods.find((pod) => pod.namespace === 'shop' && pod.name.startsWith('client'));
  assert.equal(client?.drainingConnections, 3, 'the kept connections that iptables redirected live from the rules that are left');
  assert.doesNotMatch(await rulesOf('shop', 'client'), /-A OUTPUT -p tcp -j UNDERPASS_OUTPUT/);
  const again = await byRules.run(200);
  assert.deepEqual([again.failures, again.connections], [{}, 0]);
  for (const some of [byRules, steady]) assert.deepEqual((await some.end()).failures, {});
  await podsAre('shop', 'the rules to be gone', enrolled('bpf'));
  assert.equal(await rulesOf('shop', 'client'), before);
});

test('acceleration changes under load with no failed request', async () => {
  await label('shop', { acceleration: 'force' });
  await podsAre('shop', 'acceleration force', (pod) => enrolled('bpf')(pod) && pod.acceleration === 'force');
  const moved = async (): Promise<number> => {
    const { node } = JSON.parse(await askAgent(paths.adminSocket, '/v1/counters')) as { node: Record<string, number> };
    return node['connections_short_circuited'] ?? 0;
  };
  const some = load('shop/client');
  const start = await moved();
  await some.run(200);
  const accelerated = (await status()).acceleration.on;
  if (accelerated) assert.ok((await moved()) > start, 'connections are short-circuited');
  await label('shop', { acceleration: 'off' });
  await podsAre('shop', 'acceleration off', (pod) => enrolled('bpf')(pod) && pod.acceleration === 'off');
  await some.run(50);
  const off = await moved();
  await some.run(200);
  assert.equal(await moved(), off, 'no new connection is short-circuited');
  await label('shop', { acceleration: 'l4' });
  await podsAre('shop', 'acceleration l4', (pod) => enrolled('bpf')(pod) && pod.acceleration === 'l4');
  await some.run(200);
  assert.deepEqual((await some.end()).failures, {});
  await label('shop', { acceleration: null });
});

test('the agent is killed under load and started again: the same Envoy, no failed request', async () => {
  const some = load('shop/client');
  await some.run(100);
  const before = await status();
  await endAgent('SIGKILL');
  const alone = await some.run(200);
  assert.deepEqual([alone.failures, alone.fresh.direct], [{}, 0], 'kernel and Envoy go on alone');
  startAgent();
  await podsAre('shop', 'shop to be taken over', enrolled('bpf'));
  await some.run(200);
  const now = await status();
  assert.notEqual(now.pid, before.pid);
  assert.equal(now.proxy.envoy.pid, before.proxy.envoy.pid);
  assert.equal(now.proxy.envoy.adopted, true);
  const all = await some.end();
  assert.deepEqual([all.failures, all.connections, all.fresh.direct], [{}, 3, 0]);
});

test('a graceful end leaves Envoy and capture at work as well, and what changed meanwhile is made up for', async () => {
  const some = load('shop/client');
  await some.run(50);
  const before = await status();
  await endAgent('SIGTERM');
  assert.equal(existsSync(paths.adminSocket), false);
  assert.deepEqual((await some.run(100)).fresh.direct, 0);
  await label('shop', { mode: 'off' });
  startAgent();
  await podsAre('shop', 'shop to be let go', (pod) => pod.way === 'plain');
  assert.equal((await status()).proxy.envoy.pid, before.proxy.envoy.pid);
  const left = await some.run(100);
  assert.deepEqual([left.fresh.proxied, left.kept.direct], [0, 0]);
  await label('shop', { mode: 'node' });
  await podsAre('shop', 'shop to be enrolled again', enrolled('bpf'));
  const all = await some.end();
  assert.deepEqual([all.failures, all.connections], [{}, 3]);
});

test('an unknown label value is said once, and counts as off', async () => {
  await label('plain', { mode: 'nodes', acceleration: 'warp' });
  await podsAre('plain', 'plain to be told of its label', (pod) => pod.mode === 'off' && pod.state === 'off' && (pod.reason ?? '').includes('underpass.io/mode=nodes'));
  await label('plain', { 'mode-note': 'x' });
  await podsAre('plain', 'plain to settle', (pod) => pod.settled);
  const said = agentLog.split('\n').filter((line) => line.includes('unknown label value') && line.includes('"nodes"'));
  assert.equal(said.length, 1, said.join('\n'));
  assert.match(said[0] ?? '', /"owner":"namespace plain".*"expected":\["node","sidecar","off"\]/);
  await label('plain', { mode: null, acceleration: null, 'mode-note': null });
});

test('a second agent of the same instance says who holds it', async () => {
  const { pid, since } = await status();
  const second = await run(process.execPath, cli('node', '--embedded-pilot', '--lab-socket', lab.socket, '--instance', instance), { okCodes: [1], timeoutMs: 20_000 });
  assert.match(second.stderr, new RegExp(`instance ${instance} is held by process ${pid} \\(underpass node\\) since ${since}`));
  assert.doesNotMatch(second.stderr, /\n\s+at /);
  const clean = await run(process.execPath, cli('agent', '--cleanup', '--instance', instance), { okCodes: [1], timeoutMs: 20_000 });
  assert.match(clean.stderr, /is held by process/);
  assert.equal((await status()).pid, pid, 'the first one is untouched');
});

test('ps and the admin API tell what is', async () => {
  const table = (await run(process.execPath, cli('ps', '--instance', instance))).stdout;
  assert.match(table, /^NAMESPACE +POD +MODE +STATE +WAY +ACCELERATION/);
  assert.match(table, /^shop +client-\S+ +node +enrolled +bpf/m);
  assert.match(table, /control plane +connected/);
  const parsed = JSON.parse((await run(process.execPath, cli('ps', '-o', 'json', '--instance', instance))).stdout) as AgentStatus;
  assert.equal(parsed.ready, true);
  assert.match(await askAgent(paths.adminSocket, '/metrics'), /^underpass_pods\{mode="node",way="bpf",state="enrolled"\} 3$/m);
  assert.equal(await askAgent(paths.adminSocket, '/healthz'), 'ok\n');
  assert.match(await askAgent(paths.adminSocket, '/readyz'), /"ready": true/);
  const socket = await run('stat', ['-c', '%a', paths.adminSocket]);
  assert.equal(socket.stdout.trim(), '600');
  const absent = await run(process.execPath, cli('ps', '--instance', `${instance}-x`), { okCodes: [1] });
  assert.match(absent.stderr, /UNDERPASS_AGENT_NOT_RUNNING/);
});

test('cleanup removes all that the agents made, and the pods work on without the mesh', async () => {
  const envoy = (await status()).proxy.envoy.pid ?? assert.fail('no Envoy');
  await endAgent('SIGTERM');
  assert.ok(existsSync(`/proc/${envoy}`));
  await run(process.execPath, cli('agent', '--cleanup', '--instance', instance), { timeoutMs: 30_000 });
  assert.equal(existsSync(`/proc/${envoy}`), false);
  assert.equal(existsSync(paths.folder), false);
  assert.equal(existsSync(join(paths.bpffsDir, instance)), false);
  assert.equal(existsSync(instanceCgroup(instance)), false);
  assert.equal(readFileSync('/proc/self/mounts', 'utf8').includes(`/${instance}/netns/`), false);
  assert.doesNotMatch(await rulesOf('shop', 'client'), /UNDERPASS/);
  const some = load('shop/client');
  const { failures, fresh, kept } = await some.run(50);
  assert.deepEqual([failures, fresh.proxied + kept.proxied], [{}, 0]);
  await some.end();
  mkdirSync(paths.folder, { recursive: true });
  await run(process.execPath, cli('agent', '--cleanup', '--instance', instance), { timeoutMs: 30_000 });
  assert.equal(existsSync(paths.folder), false, 'a second cleanup finds nothing to do');
});
