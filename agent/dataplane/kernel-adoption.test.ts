/** DESIGN section 5, rule 9: the agent may die, restart and be upgraded while traffic flows. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { run } from '../../common/process.js';
import { PATIENCE_MS, sleep } from '../../common/retry.js';
import { BpfObject, linkInfo } from '../../native/index.js';
import { Kernel } from './kernel.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';

test('a restarted agent finds its pods, and connections do not notice', async () => {
  const w = await KernelWorld.create('adopt', { pinned: true });
  try {
    w.put({ capture: true });
    const [a, b] = [w.world.pod(0), w.world.pod(1)];
    const proxy = { pod: a, cgroup: w.world.proxyCgroup, address: '127.0.0.1' };
    const first = w.kernel.pods().sort((x, y) => x.uid.localeCompare(y.uid));
    const running = w.world.probe('order', proxy, { pod: a, address: '192.0.2.1' }, ['--port', '15001', '--connect-port', '80', '--bytes', '250000000']);
    await sleep(200);
    const counted = w.kernel.counters()['connections_short_circuited'];
    await w.kernel.close();
    // With no agent at all, new connections are captured, paired and moved.
    const churn = await w.world.probe('churn', { pod: b, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: b, address: '192.0.2.1' }, [
      '--port', '15001', '--connect-port', '80', '--count', '50',
    ]);
    assert.equal(churn.ok, true, JSON.stringify(churn));
    w.kernel = await w.open(TEST_BPFFS);
    assert.deepEqual(w.kernel.pods().sort((x, y) => x.uid.localeCompare(y.uid)), first);
    assert.equal(w.kernel.globalAcceleration(), true);
    assert.ok((w.kernel.counters()['connections_short_circuited'] ?? 0n) >= (counted ?? 0n) + 50n);
    const result = await running;
    assert.equal(result.ok, true, JSON.stringify(result));
    for (const pod of w.kernel.pods()) w.kernel.putPod(pod);
    const after = await w.counted(() =>
      w.world.probe('churn', proxy, { pod: a, address: '192.0.2.1' }, ['--port', '15001', '--connect-port', '80', '--count', '50']),
    );
    assert.equal(after.result.ok, true);
    assert.equal(after.counters['connections_short_circuited'], 50);
    assert.equal(w.kernel.liveConnections(first[0]?.uid ?? ''), 0);
  } finally {
    await w.close();
  }
});

test('programs are replaced in place: the links stay, with new programs', async () => {
  const w = await KernelWorld.create('adopt', { pinned: true });
  try {
    w.put();
    const folder = join(TEST_BPFFS, w.world.name, 'links', 'pods', readdirSync(join(TEST_BPFFS, w.world.name, 'links', 'pods'))[0] as string);
    const before = readdirSync(folder).map((name) => [name, linkInfo(join(folder, name))] as const);
    assert.equal(before.length, 10);
    await w.kernel.close();
    w.kernel = await w.open(TEST_BPFFS);
    for (const [name, info] of before) {
      const now = linkInfo(join(folder, name));
      assert.notEqual(now.targetId, 0n);
      assert.equal(now.targetId, info.targetId);
      assert.notEqual(now.programId, info.programId, name);
    }
  } finally {
    await w.close();
  }
});

test('2,000 connections opened and closed while agents come and go', async () => {
  const w = await KernelWorld.create('adopt', { pinned: true });
  try {
    w.put();
    const [a, b] = [w.world.pod(0), w.world.pod(1)];
    // As many rounds of 2,000 as it takes for three restarts to fall into them, however fast this machine is.
    let restarts = 0;
    while (restarts < 3) {
      let done = false;
      const churn = w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '2000']).finally(() => (done = true));
      for (;;) {
        await w.kernel.close();
        w.kernel = await w.open(TEST_BPFFS);
        for (const pod of w.kernel.pods()) w.kernel.putPod(pod);
        if (done) break;
        restarts++;
        await sleep(5);
      }
      const result = await churn;
      assert.equal(result.ok, true, JSON.stringify(result));
    }
    const tables = w.kernel.tables();
    assert.deepEqual([tables['establishing']?.entries, tables['peers']?.entries, tables['sockets']?.entries], [0, 0, 0]);
  } finally {
    await w.close();
  }
});

test('maps of another layout: what a pod\'s policy refused stays refused until the new agent has hooks and policies for it', async () => {
  const w = await KernelWorld.create('adopt', { pinned: true });
  try {
    const [client, server] = [w.world.pod(0), w.world.pod(1)];
    const [caller, called] = [w.podRecord(client).uid, w.podRecord(server).uid];
    const pins = join(TEST_BPFFS, w.world.name);
    const hooksOf = (uid: string): string[] => (existsSync(join(pins, 'links', 'pods', uid)) ? readdirSync(join(pins, 'links', 'pods', uid)).sort() : []);
    const [listen, ...rest] = w.world.inPod(server, [process.execPath, '-e', "require('node:net').createServer((socket) => socket.end()).listen(8080, () => console.log('listening'))"]);
    const listener = spawn(listen!, rest, { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(listener.stdout!, 'data');
    const getsIn = async (waitMs = 700): Promise<boolean> => {
      const script = `setTimeout(() => process.exit(), ${waitMs}); require('node:net').connect(8080, '${server.ipv4}').once('connect', () => { console.log('in'); process.exit(); }).once('error', () => process.exit());`;
      const [command, ...args] = w.world.inPod(client, [process.execPath, '-e', script]);
      return (await run(command!, args)).stdout.includes('in');
    };
    assert.equal(await getsIn(PATIENCE_MS), true);
    const nobody = new Map([[called, { compiled: undefined, behindProxy: false, version: 7n }]]);
    w.put({ capture: true });
    w.kernel.setPolicies(nobody);
    await w.kernel.close();
    const object = BpfObject.open({ pinDir: pins, programs: [] });
    const settings = object.map('settings');
    const layout = settings.get(Buffer.alloc(4))!;
    const offset = object.layout('settings').fields['layout']!.offset;
    layout.writeUInt32LE((layout.readUInt32LE(offset) ^ 1) >>> 0, offset);
    settings.set(Buffer.alloc(4), layout);
    object.close();
    w.kernel = await w.open(TEST_BPFFS);
    assert.deepEqual([w.kernel.pods(), w.kernel.isFormer(called), hooksOf(called)], [[], true, ['pod_sockops', 'police_ingress'].sort()]);
    assert.equal(await getsIn(), false, 'the former agent\'s policy holds');
    // And one that dies before it has put the pods.
    await w.kernel.close();
    w.kernel = await w.open(TEST_BPFFS);
    assert.equal(await getsIn(), false);
    w.kernel.setPolicies(nobody);
    w.put({ capture: true }, [server]);
    assert.deepEqual([w.kernel.isFormer(called), w.kernel.isFormer(caller), hooksOf(called).length], [false, true, 10]);
    assert.equal(await getsIn(), false, 'the new agent\'s policy does');
    w.kernel.keepFormer(new Set([called]));
    assert.deepEqual([w.kernel.isFormer(caller), hooksOf(caller)], [false, []]);
    w.kernel.setPolicies(new Map());
    assert.equal(await getsIn(PATIENCE_MS), true);
    listener.kill('SIGKILL');
    await once(listener, 'exit');
  } finally {
    await w.close();
  }
});

test('removePod detaches and forgets; cleanup leaves no pin', async () => {
  const w = await KernelWorld.create('adopt', { pinned: true });
  const instance = w.world.name;
  try {
    w.put();
    const uid = w.podRecord(w.world.pod(0)).uid;
    w.kernel.removePod(uid);
    w.kernel.removePod(uid);
    assert.equal(w.kernel.pods().length, 1);
    assert.deepEqual(Object.keys(readdirSync(join(TEST_BPFFS, instance, 'links', 'pods'))).length, 1);
    assert.equal(w.kernel.tables()['netns_of_address']?.entries, 2);
  } finally {
    await w.close();
  }
  assert.equal(existsSync(join(TEST_BPFFS, instance)), false);
  Kernel.cleanup({ bpffsDir: TEST_BPFFS, instance });
});

test('a pod of the same name in another namespace takes the place of the old one', async () => {
  const w = await KernelWorld.create('adopt');
  try {
    const [a, b] = [w.world.pod(0), w.world.pod(1)];
    w.kernel.putPod(w.podRecord(a, { uid: 'same' }));
    w.kernel.putPod(w.podRecord(b, { uid: 'same' }));
    assert.deepEqual(w.kernel.pods().map((pod) => [pod.uid, pod.netnsCookie]), [['same', b.netnsCookie]]);
    assert.equal(w.kernel.tables()['netns_of_address']?.entries, 2);
  } finally {
    await w.close();
  }
});

test('programs of the HTTP fast path are loaded for the first pod that wants them, and nothing waits meanwhile; the next agent replaces what is there, and loads none where none is', async () => {
  const w = await KernelWorld.create('adopt', { pinned: true, http: true });
  try {
    const next = async (): Promise<number[]> => {
      await w.kernel.close();
      w.kernel = await w.open(TEST_BPFFS);
      return w.kernel.httpPrograms!.ids;
    };
    w.put({ acceleration: 'l4' });
    assert.deepEqual([w.kernel.httpPrograms!.ids, await next()], [[], []]);
    let turns = 0;
    const counting = setInterval(() => turns++, 1);
    w.put({ acceleration: 'l7' }, [w.world.pod(1)]);
    assert.deepEqual([w.kernel.httpPrograms!.isLoading, w.kernel.httpPrograms!.ids], [true, []]);
    await w.kernel.httpPrograms!.want();
    clearInterval(counting);
    // It takes seconds.
    assert.ok(turns >= 10, `all else waited: ${turns} turns`);
    assert.equal(w.kernel.httpPrograms!.isLoading, false);
    const first = w.kernel.httpPrograms!.ids;
    assert.equal(new Set(first).size, 5);
    w.put({ acceleration: 'l7' });
    assert.deepEqual(w.kernel.httpPrograms!.ids, first);
    const second = await next();
    assert.equal(new Set([...first, ...second]).size, 10);
    assert.equal(w.kernel.httpProblem, undefined);
  } finally {
    await w.close();
  }
});

test('an agent that ends while programs of the HTTP fast path are loaded leaves none to the next one', async () => {
  const w = await KernelWorld.create('adopt', { pinned: true, http: true });
  try {
    w.put({ acceleration: 'l7' });
    const programs = w.kernel.httpPrograms!;
    assert.equal(programs.isLoading, true);
    await w.kernel.close();
    assert.equal(programs.isLoading, false);
    await programs.want();
    assert.equal(programs.isLoading, false, 'it is closed');
    w.kernel = await w.open(TEST_BPFFS);
    assert.equal(w.kernel.httpPrograms!.ids.length, 5, 'those that were there first are replaced');
  } finally {
    await w.close();
  }
});
