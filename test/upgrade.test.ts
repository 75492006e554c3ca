/**
 * The upgrade of a node as the DaemonSet does it, with maxSurge: the next pod's agent and launcher start beside the former's, and
 * these are told to end when the next agent waits. Real pods, BPF, Envoys and xDS; requests flow all the while.
 */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { AgentStatus } from '../agent/index.js';
import { TestLauncher } from '../agent/testing/launcher.js';
import { logger } from '../common/log.js';
import { buildDir } from '../common/paths.js';
import { isRunning, processStartTime, type ProcessId } from '../common/process-id.js';
import { waitFor } from '../common/retry.js';
import { Pilot } from '../pilot/index.js';
import { CLI, NodeUnderTest, SHARED_SELF_TEST, enrolled } from './agent-harness.js';

const node = new NodeUnderTest(`up-upgrade-${process.pid}`);
const folder = mkdtempSync(join(tmpdir(), 'up-upgrade-'));
const discovery = `unix:${join(folder, 'xds.sock')}`;
const launchers: TestLauncher[] = [];
const agents: DaemonPod[] = [];
let pilot: Pilot;

/** Envoy judges it, so that callers from outside of the mesh are led to the pods' inbound listeners by the kernel (sk_lookup). */
const POLICY = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: shop}
spec: {selector: {matchLabels: {app: nginx}}, action: DENY, rules: [{to: [{operation: {paths: ["/forbidden"]}}]}]}
`;

/** A pod of the DaemonSet: its two containers. */
class DaemonPod {
  log = '';
  constructor(readonly launcher: TestLauncher, readonly agent: ChildProcess) {
    for (const stream of [agent.stdout, agent.stderr]) stream?.on('data', (chunk: Buffer) => (this.log += chunk.toString()));
  }

  static async start(): Promise<DaemonPod> {
    const socket = join(folder, `launcher${launchers.length}.sock`);
    const launcher = await TestLauncher.start(socket, { way: [join(buildDir, 'underpass-exec'), '--netns', node.lab.info().nodes[0]!.netns, '--'] });
    launchers.push(launcher);
    const args = ['agent', '--discovery', discovery, '--lab-socket', node.lab.socket, '--instance', node.instance, '--concurrency', '2', '--envoy-launcher', socket];
    const pod = new DaemonPod(launcher, spawn(process.execPath, [CLI, ...args], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...SHARED_SELF_TEST } }));
    agents.push(pod);
    return pod;
  }

  /** As kubelet does: both at once. */
  async terminate(): Promise<void> {
    this.launcher.process.kill('SIGTERM');
    await this.endAgent('SIGTERM');
  }
  async endAgent(signal: NodeJS.Signals): Promise<void> {
    if (this.agent.exitCode !== null || this.agent.signalCode !== null) return;
    this.agent.kill(signal);
    await once(this.agent, 'exit');
  }
}

before(async () => {
  await node.up(['shop.yaml', 'plain.yaml'], POLICY);
  pilot = new Pilot({ sources: [node.sourceDir, node.lab.objectsDir], logger: logger('pilot').child({}, { level: 'warn' }), debounce: { quietMs: 20 }, listen: [discovery] });
  await pilot.start();
});
after(async () => {
  for (const pod of agents) await pod.endAgent('SIGKILL');
  await node.down();
  for (const launcher of launchers) await launcher.kill();
  await pilot.stop();
  rmSync(folder, { recursive: true, force: true });
});

async function served(what: string, by: DaemonPod): Promise<AgentStatus> {
  let last: AgentStatus | undefined;
  const probe = async (): Promise<boolean> => {
    if (by.agent.exitCode !== null) throw new Error(`the agent ended: ${by.log.slice(-3_000)}`);
    last = await node.status().catch(() => undefined);
    return last !== undefined && last.pid === by.agent.pid && last.ready && last.pods.filter(({ namespace }) => namespace === 'shop').every(enrolled('bpf')) && last.pods.some(({ namespace }) => namespace === 'shop');
  };
  await waitFor(what, probe, { timeoutMs: 150_000 }).catch((error: unknown) => assert.fail(`${String(error)} ${JSON.stringify(last?.notReady)} ${by.log.slice(-3_000)}`));
  return last as AgentStatus;
}

function idOf({ proxy }: AgentStatus): ProcessId {
  const { pid = 0 } = proxy.envoy;
  return { pid, startTime: processStartTime(pid) ?? '' };
}

test('a second agent waits, says so in its log and in ps, and changes nothing meanwhile', async () => {
  const first = await DaemonPod.start();
  const { proxy } = await served('the first agent to serve', first);
  const load = node.load('shop/client');
  await load.run(100);
  const second = await DaemonPod.start();
  await waitFor('the second to wait', () => second.log.includes('this one waits until it has ended'), { timeoutMs: 60_000 });
  assert.match(second.log, new RegExp(`"holder":${first.agent.pid}`));
  assert.match((await node.cli(['ps', '--instance', node.instance])).stdout, new RegExp(`process ${second.agent.pid} waits since \\S+ to take over`));
  const meanwhile = await load.run(200);
  assert.deepEqual([meanwhile.failures, meanwhile.fresh.direct, meanwhile.kept.direct, meanwhile.connections], [{}, 0, 0, 0]);
  const now = await node.status();
  assert.deepEqual([now.pid, now.proxy.envoy.pid], [first.agent.pid, proxy.envoy.pid]);
  // One that is told to end while it waits does, and the first one is shown alone.
  await second.terminate();
  assert.equal(second.agent.exitCode, 0, second.log);
  assert.deepEqual((await node.status()).waiting, []);
  assert.deepEqual((await load.end()).failures, {});
});

async function forbidden(): Promise<string> {
  return (await node.lab.exec('plain/client', ['curl', '-s', '-m', '10', '-o', '/dev/null', '-w', '%{http_code}', 'http://nginx.shop/forbidden'])).stdout;
}

for (const acceleration of ['l4', 'l7']) {
  test(`upgrade under load: no request fails when agent and Envoy are replaced (acceleration ${acceleration})`, { timeout: 500_000 }, async () => {
    await node.label('shop', { acceleration });
    const old = agents.find(({ agent }) => agent.exitCode === null && agent.signalCode === null) as DaemonPod;
    const before = await served('the former agent to serve', old);
    const former = idOf(before);
    const load = node.load('shop/client', { keepAlive: 2, fresh: 2 });
    const outside = node.load('plain/client', { url: 'http://nginx.shop/', keepAlive: 1, fresh: 1 });
    await load.run(400);
    assert.equal((await outside.run(100)).fresh.direct, 0, 'callers from outside pass Envoy');
    assert.equal(await forbidden(), '403');
    const next = await DaemonPod.start();
    await waitFor('the next agent to wait', () => next.log.includes('this one waits until it has ended'), { timeoutMs: 60_000 });
    await old.terminate();
    assert.equal(old.agent.exitCode, 0);
    await served('the next agent to serve', next);
    await waitFor('the next Envoy to take over', async () => (await node.status()).proxy.envoy.draining === former.pid, { timeoutMs: 100_000 });
    assert.ok(old.launcher.isRunning, 'the former launcher keeps its Envoy until that has ended');
    await load.run(400);
    await waitFor('the former Envoy to end', async () => !isRunning(former) && (await node.status()).proxy.envoy.draining === undefined, { timeoutMs: 90_000 });
    assert.equal(await old.launcher.ended(), 0);
    const after_ = await served('all pods', next);
    assert.notEqual(after_.proxy.envoy.pid, former.pid);
    assert.deepEqual(after_.proxy.nacks, []);
    await load.run(400);
    const { failures, fresh, requests } = await load.end();
    assert.deepEqual(failures, {}, `of ${requests} requests\n${next.log.slice(-3_000)}`);
    const ofOutside = await outside.end();
    assert.deepEqual([ofOutside.failures, ofOutside.fresh.direct], [{}, 0], 'from outside of the mesh');
    assert.equal(await forbidden(), '403');
    if (acceleration === 'l4') assert.equal(fresh.direct, 0, 'every connection was captured');
  });
}

test('the agent is killed: Envoy and the kernel go on, and one that waits takes over at once', async () => {
  const old = agents.find(({ agent }) => agent.exitCode === null && agent.signalCode === null) as DaemonPod;
  const { proxy } = await served('the agent to serve', old);
  const load = node.load('shop/client');
  await load.run(100);
  // As a container that is started again: with the launcher that is there.
  const args = ['agent', '--discovery', discovery, '--lab-socket', node.lab.socket, '--instance', node.instance, '--concurrency', '2', '--envoy-launcher', old.launcher.socketPath];
  const next = new DaemonPod(old.launcher, spawn(process.execPath, [CLI, ...args], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...SHARED_SELF_TEST } }));
  agents.push(next);
  await waitFor('it to wait', () => next.log.includes('this one waits until it has ended'), { timeoutMs: 60_000 });
  await old.endAgent('SIGKILL');
  const now = await served('the next agent to serve', next);
  assert.deepEqual([now.proxy.envoy.pid, now.proxy.envoy.adopted], [proxy.envoy.pid, true], `${old.log.slice(-2_000)}\n${next.log.slice(-2_000)}\n${old.launcher.output.slice(-1_000)}`);
  assert.deepEqual((await load.end()).failures, {});
});
