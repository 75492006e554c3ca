// A node's life: it starts again with all that an earlier boot left in its files, and hundreds of pods come and go.
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { instanceCgroup, instancePaths } from '../../agent/index.js';
import { EnvoyAdmin } from '../../agent/proxy/envoy-admin.js';
import { removeCgroup } from '../../common/cgroup.js';
import { run } from '../../common/process.js';
import { sleep, waitFor } from '../../common/retry.js';
import { AgentWorld } from './agent-world.js';

const WAIT = { everyMs: 50 };
const world = new AgentWorld();
const [OTHER_UID, LAST_UID] = ['0f0f0f0f-0000-4000-8000-000000000001', '0f0f0f0f-0000-4000-8000-000000000002'];

before(() => world.up('life'));
after(() => world.down());

const paths = (): ReturnType<typeof instancePaths> => instancePaths({ instance: world.node.instance });
/** Pods that hooks are attached to. */
const linked = (): string[] => {
  const folder = join(paths().bpffsDir, paths().instance, 'links', 'pods');
  return existsSync(folder) ? readdirSync(folder).sort() : [];
};
const answers = (): Promise<unknown> => waitFor('an answer', async () => (await world.node.curl('shop/client', 'http://10.96.7.7/', '-H', 'host: web')).status === 200, WAIT);
const uids = async (): Promise<string[]> => (await world.node.status()).pods.filter(({ mode }) => mode === 'node').map(({ uid }) => uid).sort();

test('a node that starts again: what an earlier boot left in files is found, taken for nothing that it was, and removed', async () => {
  const { folder, netnsFolder, bpffsDir, instance } = paths();
  const wanted = await uids();
  const { pid: envoy } = (await world.node.status()).proxy.envoy;
  await world.node.stopAgent();
  // All that lives in memory is gone: Envoy, mounts, pins, cgroups. All files stay.
  process.kill(envoy!, 'SIGKILL');
  for (const uid of readdirSync(netnsFolder)) await run('umount', [join(netnsFolder, uid)]);
  assert.ok(readdirSync(netnsFolder).every((uid) => statSync(join(netnsFolder, uid)).size === 0), 'plain files');
  rmSync(join(bpffsDir, instance), { recursive: true });
  await removeCgroup(instanceCgroup(instance));
  // Of pods of then, of which nothing is left; and process ids, which somebody else has by now.
  for (const uid of [OTHER_UID, LAST_UID]) writeFileSync(join(netnsFolder, uid!), '');
  for (const name of ['envoy.state.json', 'agent.lock']) {
    const file = join(folder, name);
    const before = name === 'agent.lock' ? { purpose: 'underpass agent', since: new Date(0).toISOString() } : (JSON.parse(readFileSync(file, 'utf8')) as object);
    writeFileSync(file, JSON.stringify({ ...before, pid: process.pid, startTime: '1' }));
  }
  writeFileSync(join(folder, 'labelled'), 'gone\n');
  assert.ok(readdirSync(folder).some((name) => name.endsWith('.sock')), 'sockets that nobody listens on');

  world.startAgent();
  await world.node.settles('shop', 'client', 'node');
  await answers();
  assert.deepEqual(await uids(), wanted);
  assert.deepEqual(readdirSync(netnsFolder).sort(), wanted);
  assert.deepEqual(linked(), wanted);
  await waitFor('the list of labelled namespaces', () => readFileSync(join(folder, 'labelled'), 'utf8') === 'shop\n', WAIT);
  const status = await world.node.status();
  assert.notEqual(status.proxy.envoy.pid, process.pid);
  assert.equal(status.proxy.envoy.adopted, false);
});

interface Held {
  pods: string[];
  pins: string[];
  links: string[];
  listeners: string[];
  /** Entries of each pinned hash. */
  entries: Record<string, number>;
  /** Listeners that Envoy has removed, and keeps until their time to drain is over. */
  draining: number;
  agentFds: number;
  envoyFds: number;
  agentMiB: number;
  /** What it has not given back to its allocator. */
  envoyMiB: number;
}

async function held(): Promise<Held> {
  const { folder, netnsFolder, bpffsDir, instance } = paths();
  const { pid, proxy: { envoy } } = await world.node.status();
  const mebibytes = (of: number): number => Math.round(Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${of}/status`, 'utf8'))![1]) / 1024);
  const entries: Record<string, number> = {};
  for (const name of readdirSync(join(bpffsDir, instance, 'maps'))) {
    const path = join(bpffsDir, instance, 'maps', name);
    const shown = await run('bpftool', ['-j', 'map', 'show', 'pinned', path], { okCodes: [0, 255] });
    const { type } = (shown.code === 0 ? JSON.parse(shown.stdout) : {}) as { type?: string };
    // Of least-recently-used ones and of sockets' storage the kernel itself disposes.
    if (type !== 'hash' && type !== 'sockhash' && type !== 'lpm_trie') continue;
    const dump = await run('bpftool', ['-j', 'map', 'dump', 'pinned', path], { okCodes: [0, 255] });
    if (dump.code === 0) entries[name] = (JSON.parse(dump.stdout) as unknown[]).length;
  }
  const admin = new EnvoyAdmin(join(folder, 'envoy-admin.sock'));
  const [draining = -1] = (await admin.stats('^listener_manager\\.total_listeners_draining$')).values();
  const { allocated } = JSON.parse(await admin.get('/memory')) as { allocated: number };
  return {
    pods: await uids(), pins: readdirSync(netnsFolder).sort(), links: linked(),
    listeners: (await admin.listeners()).map(({ name }) => name).sort(), entries, draining,
    agentFds: readdirSync(`/proc/${pid}/fd`).length, envoyFds: readdirSync(`/proc/${envoy.pid}/fd`).length, agentMiB: mebibytes(pid), envoyMiB: Math.round(allocated / (1 << 20)),
  };
}

async function churn(from: number, count: number): Promise<void> {
  let next = from;
  await Promise.all(Array.from({ length: 4 }, async () => {
    while (next < from + count) {
      const index = next++;
      const pod = await world.node.starting('shop', `churn-${index}`);
      const { code, answer } = await world.node.addNetwork(pod, `10.99.${2 + (index >> 8)}.${index & 255}`);
      assert.equal(code, 0, JSON.stringify(answer));
      await world.cluster.client.request('DELETE', `/api/v1/namespaces/shop/pods/${pod.name}`, { body: { gracePeriodSeconds: 0 } });
      await world.node.end(pod);
    }
  }));
}

test('200 pods come and go: of pods, pins, links, maps\' entries, listeners and open files nothing is left of them, nor of memory', async (context) => {
  const settled = async (before?: Held): Promise<Held> => {
    let now = await held();
    await waitFor('the last ones to be gone', async () => {
      now = await held();
      return before === undefined || (now.pods.length === before.pods.length && now.pins.length === before.pins.length && now.listeners.length === before.listeners.length && JSON.stringify(now.entries) === JSON.stringify(before.entries) && now.draining === 0 && now.envoyFds <= before.envoyFds);
    }, { timeoutMs: 120_000, everyMs: 1_000 }).catch(() => undefined);
    return now;
  };
  const first = await held();
  await churn(0, 40);
  // What is made once is made by now: the same as at first in all that is counted, and a measure for memory.
  const warm = await settled(first);
  await churn(40, 200);
  await sleep(1_000);
  const last = await settled(warm);
  context.diagnostic(`at first ${JSON.stringify({ ...first, listeners: first.listeners.length })}`);
  context.diagnostic(`after 40 ${JSON.stringify({ ...warm, listeners: warm.listeners.length })}`);
  context.diagnostic(`after 200 more ${JSON.stringify({ ...last, listeners: last.listeners.length })}`);
  for (const key of ['pods', 'pins', 'links', 'listeners', 'entries'] as const) assert.deepEqual(last[key], first[key], key);
  assert.ok(last.envoyFds <= warm.envoyFds, `Envoy's open files: ${warm.envoyFds}, then ${last.envoyFds}`);
  assert.ok(last.agentFds <= warm.agentFds + 2, `the agent's open files: ${warm.agentFds}, then ${last.agentFds}`);
  // Less than what one pod's configuration takes, a pod; heaps go up and down by more than nothing.
  assert.ok(last.agentMiB - warm.agentMiB < 60, `the agent's memory: ${warm.agentMiB}, then ${last.agentMiB} MiB`);
  assert.ok(last.envoyMiB - warm.envoyMiB < 10, `Envoy's memory: ${warm.envoyMiB}, then ${last.envoyMiB} MiB`);
  await answers();
});
