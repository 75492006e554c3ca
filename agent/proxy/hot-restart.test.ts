// One Envoy replaced by another while requests flow: by another pod's launcher, and for another binary; and what if that fails.
import assert from 'node:assert/strict';
import { closeSync, copyFileSync, existsSync, mkdtempSync, openSync, readdirSync, readlinkSync, readSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { envoyBinary } from '../../common/paths.js';
import { isRunning, processStartTime, type ProcessId } from '../../common/process-id.js';
import { sleep, waitFor } from '../../common/retry.js';
import { TestLauncher } from '../testing/launcher.js';
import { echoServer, requests, type Load, type TestNetns } from '../testing/netns.js';
import { ProxyWorld, SERVICE_CLUSTER, SERVICE_VIP } from '../testing/proxy-world.js';
import { routes, sniffedListener } from '../testing/resources.js';
import { sharedMemory } from './hot-restart.js';
import { launcherStatus } from './launcher-client.js';
import type { NodeProxy, ProxyPod } from './node-proxy.js';
import { RDS } from './snapshot.js';

/** Of a replaced Envoy's connections; its successor ends it a second later. */
const DRAIN_SECONDS = 3;

/** A service whose protocol is looked at, behind an internal listener. */
const [SNIFFED_VIP, SNIFFED_PORT] = ['10.96.1.4', 7001];

/** Clients of both pods until `body` has ended, half of them over kept connections, to ports with and without an internal listener between. */
async function underLoad(pods: readonly { netns: TestNetns }[], body: () => Promise<void>): Promise<Load[]> {
  const urls = [`http://${SERVICE_VIP}/`, `http://${SNIFFED_VIP}:${SNIFFED_PORT}/`];
  let waiting = pods.length;
  let begin!: () => void;
  const allCall = new Promise<void>((resolve) => (begin = resolve));
  const done = allCall.then(body);
  return Promise.all(pods.map(({ netns }) => netns.load({ urls, host: 'web', kept: 2, anew: 2, pauseMs: 3 }, () => {
    if (--waiting === 0) begin();
    return done;
  })));
}

function idOf(proxy: NodeProxy): ProcessId {
  const { pid = 0 } = proxy.status().envoy;
  return { pid, startTime: processStartTime(pid) ?? '' };
}

/** @returns the process that executes this file, undefined if none does */
function processOf(file: string): number | undefined {
  const name = readdirSync('/proc').find((pid) => {
    try {
      return readlinkSync(`/proc/${pid}/exe`) === file;
    } catch {
      return false;
    }
  });
  return name === undefined ? undefined : Number(name);
}

describe('Envoy by hot restart', { timeout: 180_000 }, () => {
  const world = new ProxyWorld();
  const sockets = [1, 2].map((n) => join(world.folder, `launcher${n}.sock`)) as [string, string];
  const copies = mkdtempSync(join(tmpdir(), 'up-envoy-'));
  const launchers: TestLauncher[] = [];
  let pods: { pod: ProxyPod; netns: TestNetns }[];

  before(async () => {
    launchers.push(await TestLauncher.start(sockets[0]));
    world.controlPlane.set(sniffedListener(SNIFFED_VIP, SNIFFED_PORT, SERVICE_CLUSTER), `${SNIFFED_VIP}_${SNIFFED_PORT}`);
    world.controlPlane.set(routes(SNIFFED_PORT, { web: SERVICE_CLUSTER }), `${SNIFFED_PORT}`);
    await world.start({ launcherSocket: sockets[0], drainSeconds: DRAIN_SECONDS });
    pods = [await world.pod('pod-a'), await world.pod('pod-b')];
    for (const { netns } of pods) await netns.serve(echoServer(80));
    await serving(world.running);
  });
  after(async () => {
    await world.close();
    for (const launcher of launchers) await launcher.kill();
    rmSync(copies, { recursive: true, force: true });
  });

  async function serving(proxy: NodeProxy): Promise<void> {
    proxy.setPods(pods.map(({ pod }) => pod));
    await world.ready(...pods.map(({ pod }) => pod));
    await world.settled();
  }
  async function answers(host = 'web'): Promise<string[]> {
    return Promise.all(pods.map(async ({ netns }) => JSON.stringify((await netns.script<{ status: number }[]>(requests([{ url: `http://${SERVICE_VIP}/`, headers: { host } }]))).map(({ status }) => status))));
  }
  /** The successor has taken over, and the former one has ended. */
  async function replaced(former: ProcessId): Promise<void> {
    await waitFor('the next Envoy', () => world.running.status().envoy.pid !== former.pid && world.running.status().envoy.connected, { timeoutMs: 30_000 });
    await waitFor('the end of the former Envoy', () => !isRunning(former) && world.running.status().envoy.draining === undefined, { timeoutMs: 60_000 });
  }

  it('fails no request when the next agent has another launcher, whose Envoy takes over from that of the first', async () => {
    const former = idOf(world.running);
    const loads = await underLoad(pods, async () => {
      // The next pod's containers, while the former's still run; then those are told to end, the agent first.
      launchers.push(await TestLauncher.start(sockets[1]));
      await world.running.stop({ keepEnvoy: true });
      launchers[0]?.process.kill('SIGTERM');
      await sleep(500);
      const next = await world.startProxy({ launcherSocket: sockets[1], drainSeconds: DRAIN_SECONDS });
      assert.deepEqual([next.status().envoy.pid, next.status().envoy.adopted], [former.pid, true], 'what is there serves until it is replaced');
      await serving(next);
      await replaced(former);
      assert.equal(next.status().envoy.adopted, false);
      assert.deepEqual((await launcherStatus(sockets[1])).running.map(({ pid }) => pid), [next.status().envoy.pid]);
      assert.equal(await launchers[0]?.ended(), 0, 'a launcher whose Envoy was taken over from is done');
    });
    for (const { done, failed, connections } of loads) {
      assert.deepEqual(failed, []);
      assert.ok(done > connections, `${done} requests over ${connections} connections`);
    }
    assert.deepEqual(await answers(), ['[200]', '[200]']);
    // Changes reach the new one.
    world.controlPlane.set(routes(80, { web: SERVICE_CLUSTER, changed: SERVICE_CLUSTER }), '80');
    world.controlPlane.push(RDS);
    await waitFor('a change', async () => (await answers('changed')).every((text) => text === '[200]'));
  });

  it('goes on with the one that is there when the next does not start, and replaces it when it does', async () => {
    const former = idOf(world.running);
    await world.running.stop({ keepEnvoy: true });
    const broken = join(copies, 'broken');
    writeFileSync(broken, '#!/bin/sh\nexit 3\n', { mode: 0o755 });
    const next = await world.startProxy({ envoyPath: broken, drainSeconds: DRAIN_SECONDS });
    await serving(next);
    await sleep(2_000);
    assert.deepEqual([next.status().envoy.pid, next.status().envoy.adopted], [former.pid, true]);
    assert.ok(next.status().envoy.connected, 'it is the one that is told of changes');
    assert.deepEqual(await answers(), ['[200]', '[200]']);
    // Of a proxy that stops in between nothing is left but the Envoy that serves.
    await next.stop({ keepEnvoy: true });
    const loads = await underLoad(pods, async () => {
      const other = join(copies, 'envoy');
      copyFileSync(envoyBinary(), other);
      await serving(await world.startProxy({ envoyPath: other, drainSeconds: DRAIN_SECONDS }));
      await replaced(former);
    });
    for (const { failed } of loads) assert.deepEqual(failed, []);
    assert.deepEqual(await answers(), ['[200]', '[200]']);
  });

  it('is replaced for another binary, and an agent that ends in between leaves both to the next, which replaces the one when the other has ended', async () => {
    const former = idOf(world.running);
    const loads = await underLoad(pods, async () => {
      const { pid } = world.running.status().envoy;
      await world.running.stop({ keepEnvoy: true });
      const proxy = await world.startProxy({ drainSeconds: DRAIN_SECONDS });
      await serving(proxy);
      await waitFor('the next Envoy', () => proxy.status().envoy.pid !== pid, { timeoutMs: 30_000 });
      const second = idOf(proxy);
      await proxy.stop({ keepEnvoy: true });
      assert.ok(isRunning(former), 'the former one still drains, or serves');
      const next = await world.startProxy({ envoyPath: join(copies, 'envoy'), drainSeconds: DRAIN_SECONDS });
      assert.deepEqual([next.status().envoy.pid, next.status().envoy.adopted, next.status().envoy.draining], [second.pid, true, former.pid]);
      await serving(next);
      await waitFor('the end of the former Envoy', () => !isRunning(former), { timeoutMs: 60_000 });
      assert.ok(isRunning(second), 'the newer one is there until it is replaced');
      await replaced(second);
    });
    for (const { failed } of loads) assert.deepEqual(failed, []);
  });

  it('leaves the listeners to the former one, and then to the next, when the successor dies before it listens', async () => {
    const former = idOf(world.running);
    await world.running.stop({ keepEnvoy: true });
    const loads = await underLoad(pods, async () => {
      const other = join(copies, 'envoy2');
      copyFileSync(envoyBinary(), other);
      const proxy = await world.startProxy({ envoyPath: other, drainSeconds: DRAIN_SECONDS });
      const serves = serving(proxy);
      // As soon as it executes: a while later it has told the former one to stop listening.
      const second = await waitFor('the next Envoy', () => processOf(other), { timeoutMs: 30_000, everyMs: 2 });
      process.kill(second, 'SIGKILL');
      // However early that was: one that died a while later leaves this, by which every further one ends at once.
      const [memory, flags] = [openSync(sharedMemory(join(world.folder, 'run')), 'r+'), Buffer.alloc(1)];
      readSync(memory, flags, 0, 1, 96);
      writeSync(memory, Buffer.from([flags[0]! | 1]), 0, 1, 96);
      closeSync(memory);
      await serves;
      await waitFor('another one', () => ![former.pid, second, undefined].includes(proxy.status().envoy.pid) && proxy.status().envoy.connected, { timeoutMs: 30_000 });
      await waitFor('the end of the former Envoy', () => !isRunning(former), { timeoutMs: 60_000 });
    });
    for (const { failed } of loads) assert.deepEqual(failed, []);
    assert.deepEqual(await answers(), ['[200]', '[200]']);
  });

  it('leaves nothing of hot restarts when it is ended', async () => {
    const shared = (): string[] => readdirSync('/dev/shm').filter((name) => name.startsWith('envoy_shared_memory_'));
    const before_ = shared();
    await world.running.stop({ keepEnvoy: false });
    world.proxy = undefined;
    assert.equal(shared().length, before_.length - 1);
    assert.deepEqual(readdirSync(join(world.folder, 'run')).filter((name) => name.startsWith('hot_')), []);
    assert.ok(!existsSync(join(world.folder, 'run', 'envoy-admin.sock')));
  });
});
