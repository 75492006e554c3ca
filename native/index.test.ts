/** The addon: typed errors, handles that close at exit, worker threads. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { Server, Socket, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { Worker } from 'node:worker_threads';
import { waitFor } from '../common/retry.js';
import {
  bindMount, BpfObject, cgroup2Root, cgroupId, createNetns, isBpffs, KernelError, linkInfo, mountBpffs, netnsCookie, openSocket, unmount,
} from './index.js';

/** The verifier takes seconds for all of them. */
const FEW = ['connect4', 'getsockopt'];
const INDEX = new URL('./index.js', import.meta.url).href;
const folder = mkdtempSync(join(tmpdir(), 'up-addon-'));
const netns = join(folder, 'netns');

const cgroup = join(cgroup2Root(), `up-addon-${process.pid}`);

before(async () => {
  await createNetns(netns);
  mkdirSync(cgroup);
});
after(() => {
  rmdirSync(cgroup);
  unmount(netns);
  rmSync(folder, { recursive: true, force: true });
});

/** Open descriptors of BPF objects; others come and go with Node's own work. */
function bpfDescriptors(): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes('bpf');
    } catch {
      return false;
    }
  }).length;
}

test('the BPF object loads while signals come in all the time, as those of a profiler: the verifier is not interrupted', async () => {
  const script = `const { BpfObject } = await import(${JSON.stringify(INDEX)}); BpfObject.open({ pinDir: null, programs: ['pod_sockops'] }).close(); console.log('loaded');`;
  // It samples by a signal each 50 µs; judging the program takes ten thousand times as long.
  const { stdout } = await promisify(execFile)(process.execPath, ['--cpu-prof', '--cpu-prof-interval=50', `--cpu-prof-dir=${folder}`, '--input-type=module', '--eval', script], { timeout: 180_000 });
  assert.equal(stdout, 'loaded\n');
});

test('netnsCookie is another for another namespace', async () => {
  const own = await netnsCookie('/proc/self/ns/net');
  assert.equal(await netnsCookie('/proc/self/ns/net'), own);
  assert.notEqual(await netnsCookie(netns), own);
});

test('errors name action, place, system call and errno', async () => {
  await assert.rejects(netnsCookie('/nowhere'), (error: unknown) => {
    assert.ok(error instanceof KernelError);
    assert.deepEqual([error.code, error.syscall, error.errnoName], ['UNDERPASS_KERNEL', 'open', 'ENOENT']);
    assert.match(error.message, /\/nowhere/);
    return true;
  });
  await assert.rejects(netnsCookie('/etc/passwd'), { code: 'UNDERPASS_KERNEL', syscall: 'setns' });
  await assert.rejects(openSocket({ netns, family: 'ipv4', type: 'stream', connect: { address: '127.0.0.1', port: 1 } }), { errnoName: 'ECONNREFUSED' });
  await assert.rejects(openSocket({ netns, family: 'ipv6', type: 'stream', bind: { address: '127.0.0.1', port: 1 } }), { errnoName: 'EINVAL' });
  assert.throws(() => cgroupId(folder), { code: 'UNDERPASS_CGROUP' });
  assert.throws(() => cgroupId('/nowhere'), { code: 'UNDERPASS_CGROUP' });
  assert.throws(() => bindMount('/nowhere', join(folder, 'x')), { errnoName: 'ENOENT' });
  assert.equal(existsSync(join(folder, 'x')), false, 'the target that was made for it is gone again');
  await assert.rejects(createNetns(netns), { errnoName: 'EEXIST' });
  assert.throws(() => linkInfo('/nowhere'), { errnoName: 'ENOENT' });
});

test('bad arguments throw a TypeError, never crash', async () => {
  const bad = [undefined, null, 0, '', {}, [], 'a\0b', Symbol('x'), -1, 1e99, NaN, Buffer.alloc(3)];
  for (const value of bad) {
    const argument = value as never;
    assert.throws(() => bindMount(argument, argument), TypeError);
    assert.throws(() => unmount(argument), TypeError);
    assert.throws(() => mountBpffs(argument), TypeError);
    assert.throws(() => linkInfo(argument), TypeError);
    assert.throws(() => openSocket(argument), TypeError);
    assert.throws(() => openSocket({ netns, family: argument, type: 'stream' }), TypeError);
    assert.throws(() => openSocket({ netns, family: 'ipv4', type: argument }), TypeError);
    assert.throws(() => netnsCookie(argument), TypeError);
    assert.throws(() => createNetns(argument), TypeError);
    if (value !== undefined && value !== null) {
      assert.throws(() => openSocket({ netns, family: 'ipv4', type: 'stream', bind: argument }), TypeError);
      if (value !== 0) assert.throws(() => openSocket({ netns, family: 'ipv4', type: 'stream', listen: argument }), TypeError);
    }
  }
  assert.throws(() => openSocket({ netns, family: 'ipv4', type: 'stream', bind: { address: '127.0.0.1', port: 65536 } }), TypeError);
});

test('openSocket: a listener and a client inside another namespace', async () => {
  const listener = await openSocket({ netns, family: 'ipv4', type: 'stream', bind: { address: '127.0.0.1', port: 0 }, listen: 16 });
  const server = new Server((socket) => socket.pipe(socket));
  server.listen({ fd: listener });
  await once(server, 'listening');
  const port = (server.address() as AddressInfo).port;
  await assert.rejects(once(new Socket().connect(port, '127.0.0.1'), 'connect'), 'not in our own namespace');
  const fd = await openSocket({ netns, family: 'ipv4', type: 'stream', connect: { address: '127.0.0.1', port } });
  const client = new Socket({ fd, readable: true, writable: true });
  client.write('through');
  const [answer] = (await once(client, 'data')) as [Buffer];
  assert.equal(answer.toString(), 'through');
  client.destroy();
  server.close();
});

test('bindMount and unmount: a missing target is made, unmounting twice is no error', () => {
  const source = join(folder, 'source');
  const target = join(folder, 'target');
  writeFileSync(source, 'bound');
  bindMount(source, target);
  assert.equal(readFileSync(target, 'utf8'), 'bound');
  unmount(target);
  unmount(target);
  unmount(join(folder, 'never'));
  assert.equal(readFileSync(target, 'utf8'), '');
});

test('mountBpffs and isBpffs', () => {
  const path = join(folder, 'bpf');
  assert.equal(isBpffs(folder), false);
  assert.equal(isBpffs('/nowhere'), false);
  mountBpffs(path);
  try {
    assert.equal(isBpffs(path), true);
  } finally {
    unmount(path);
  }
});

test('cgroup2Root and cgroupId', () => {
  assert.equal(cgroupId(cgroup2Root()), 1n);
});

test('BpfMap.setMany writes more entries than one batch holds, and says when they do not fit', () => {
  const object = BpfObject.open({ pinDir: null, programs: FEW, maxEntries: { endpoints: 40_000, netns_of_address: 10 } });
  const array = object.map('endpoints');
  const count = array.maxEntries;
  const keys = Buffer.alloc(count * 4);
  const values = Buffer.alloc(count * array.valueSize);
  for (let n = 0; n < count; n++) {
    keys.writeUInt32LE(n, n * 4);
    values.writeUInt32LE(n + 1, n * array.valueSize);
  }
  array.setMany(keys, values);
  for (const n of [0, 16_383, 16_384, count - 1]) assert.equal(array.get(keys.subarray(n * 4, n * 4 + 4))?.readUInt32LE(), n + 1);
  const counters = object.map('counters');
  counters.setMany(keys.subarray(0, 8), Buffer.alloc(2 * counters.cpus * 8, 1));
  assert.equal(counters.get(keys.subarray(4, 8))?.[0], 1, 'a per-CPU map goes entry by entry');
  const hash = object.map('netns_of_address');
  const many = Buffer.from(Array.from({ length: 20 }, (_, n) => n.toString(16).padStart(32, '0')).join(''), 'hex');
  assert.throws(() => hash.setMany(many, Buffer.alloc(20 * 8)), { errnoName: 'E2BIG' });
  assert.throws(() => hash.setMany(many, Buffer.alloc(8)), TypeError);
  object.close();
});

test('BpfObject: maps, batches, layouts, and errors after close', () => {
  const object = BpfObject.open({ pinDir: null, programs: FEW, maxEntries: { netns_of_address: 2000, sockets: 16 } });
  const map = object.map('netns_of_address');
  assert.deepEqual([map.name, map.keySize, map.valueSize, map.maxEntries], ['netns_of_address', 16, 8, 2000]);
  const key = (n: number): Buffer => Buffer.from(n.toString(16).padStart(32, '0'), 'hex');
  const value = Buffer.alloc(8, 7);
  for (let n = 0; n < 1500; n++) map.set(key(n), value);
  assert.equal(map.entries().length, 1500);
  assert.equal(new Set(map.entries().map(([each]) => each.toString('hex'))).size, 1500);
  assert.deepEqual(new Set(map.keys().map((each) => each.toString('hex'))), new Set(map.entries().map(([each]) => each.toString('hex'))));
  // Values of several kilobytes are read a few at a time.
  const large = object.map('policies');
  const cookies = Array.from({ length: 100 }, (_, n) => Buffer.from(n.toString(16).padStart(16, '0'), 'hex'));
  cookies.forEach((cookie, n) => large.set(cookie, Buffer.alloc(large.valueSize, n)));
  assert.deepEqual(new Map(large.entries().map(([cookie, { length, 0: first }]) => [cookie.toString('hex'), [length, first]])), new Map(cookies.map((cookie, n) => [cookie.toString('hex'), [large.valueSize, n]])));
  assert.deepEqual(large.keys().map((each) => each.toString('hex')).sort(), cookies.map((each) => each.toString('hex')));
  assert.deepEqual(map.get(key(3)), value);
  assert.equal(map.get(key(9999)), undefined);
  assert.equal(map.delete(key(3)), true);
  assert.equal(map.delete(key(3)), false);
  assert.throws(() => map.set(key(4), value, 1), { errnoName: 'EEXIST' });
  assert.throws(() => map.get(Buffer.alloc(3)), /expected 16 bytes, got 3/);
  for (const argument of [undefined, null, 'x', 1, {}, new Uint16Array(8)]) {
    assert.throws(() => map.get(argument as never), TypeError);
    assert.throws(() => map.set(key(1), argument as never), TypeError);
    assert.throws(() => object.map(argument as never), TypeError);
    assert.throws(() => object.layout(argument as never), TypeError);
    assert.throws(() => object.enumValues(argument as never), TypeError);
    assert.throws(() => object.ringBuffer('events', argument as never), TypeError);
  }
  assert.throws(() => object.map('none'), TypeError);
  assert.throws(() => object.ringBuffer('pods', () => undefined), TypeError);
  assert.throws(() => object.attachCgroup('none', cgroup2Root(), null), TypeError);
  assert.throws(() => object.attachCgroup('connect4', folder, null), KernelError);
  assert.throws(() => object.attachCgroup('connect4', '/nowhere', null), { errnoName: 'ENOENT' });
  assert.throws(() => object.attachCgroup('connect4', cgroup2Root(), 'x/y'), TypeError);
  assert.equal(object.layout('address').sizeBytes, 16);
  assert.equal(object.enumValues('counter')['COUNTER_CONNECTIONS_CAPTURED'], 0);
  const perCpu = object.map('counters');
  assert.equal(perCpu.get(Buffer.alloc(4))?.length, perCpu.cpus * 8);
  object.close();
  object.close();
  assert.throws(() => map.get(key(1)), /closed/);
  assert.throws(() => object.programs(), /closed/);
});

test('BpfObject: unknown parameters and sizes are refused', () => {
  assert.throws(() => BpfObject.open({ pinDir: null, rodata: { none: 1 } }), TypeError);
  assert.throws(() => BpfObject.open({ pinDir: null, maxEntries: { none: 1 } }), TypeError);
  assert.throws(() => BpfObject.open({ pinDir: null, maxEntries: { pods: 0 } }), TypeError);
  assert.throws(() => BpfObject.open({ pinDir: join(folder, 'no-bpffs'), programs: FEW }), { code: 'UNDERPASS_KERNEL' });
});

test('BpfObject: of its programs only the wanted ones are loaded', () => {
  const loaded = (programs?: string[]): number => {
    const before = bpfDescriptors();
    const object = BpfObject.open({ pinDir: null, ...(programs ? { programs } : {}) });
    const descriptors = bpfDescriptors() - before;
    object.close();
    return descriptors;
  };
  const none = loaded([]);
  assert.equal(loaded(['connect4', 'getsockopt']), none + 2);
  assert.ok(loaded() > none + 2);
  assert.throws(() => BpfObject.open({ pinDir: null, programs: ['no-such'] }), /no-such: not in the BPF object/);
});

test('BpfObject.openLater: the same object and the same errors, and this thread goes on', async () => {
  const now = BpfObject.open({ pinDir: null, programs: FEW });
  let turns = 0;
  const counting = setInterval(() => turns++, 1);
  const later = await BpfObject.openLater({ pinDir: null, programs: ['http_client'] });
  clearInterval(counting);
  assert.ok(turns > 1, `${turns} turns`);
  assert.deepEqual([later.maps(), later.mapsFingerprint()], [now.maps(), now.mapsFingerprint()]);
  assert.deepEqual(['http_client', FEW[0]!].map((program) => later.isLoaded(program)), [true, false]);
  now.close();
  later.close();
  await assert.rejects(BpfObject.openLater({ pinDir: null, rodata: { none: 1 } }), TypeError);
  await assert.rejects(BpfObject.openLater({ pinDir: join(folder, 'no-bpffs'), programs: FEW }), { code: 'UNDERPASS_KERNEL' });
});

test('opening and closing leaves no file descriptor behind', () => {
  const round = (): void => {
    const object = BpfObject.open({ pinDir: null, programs: FEW });
    object.ringBuffer('events', () => undefined).close();
    object.map('pods').entries();
    object.close();
  };
  round();
  return new Promise<void>((resolve, reject) => {
    setTimeout(() => {
      const before = bpfDescriptors();
      for (let i = 0; i < 5; i++) round();
      // A ring buffer closes by the event loop.
      setTimeout(() => {
        try {
          assert.equal(bpfDescriptors(), before);
          resolve();
        } catch (error) {
          reject(error instanceof Error ? error : new Error(String(error)));
        }
      }, 20);
    }, 20);
  });
});

test('the addon loads and works in worker threads, several at once, and closes what they leave open', async () => {
  const source = `
    import { parentPort } from 'node:worker_threads';
    const { BpfObject, netnsCookie } = await import(${JSON.stringify(INDEX)});
    const object = BpfObject.open({ pinDir: null, programs: ${JSON.stringify(FEW)} });
    object.ringBuffer('events', () => undefined);
    const map = object.map('pods');
    parentPort.postMessage({ programs: object.programs().length, entries: map.entries().length, cookie: await netnsCookie('/proc/self/ns/net') });
  `;
  const own = BpfObject.open({ pinDir: null, programs: FEW });
  const programs = own.programs().length;
  own.close();
  const before = bpfDescriptors();
  await Promise.all(
    [1, 2, 3].map(async () => {
      const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`));
      const exit = once(worker, 'exit');
      const [message] = (await once(worker, 'message')) as [{ programs: number; entries: number; cookie: bigint }];
      assert.equal(message.programs, programs);
      assert.equal(message.entries, 0);
      const [code] = (await exit) as [number];
      assert.equal(code, 0);
    }),
  );
  assert.equal(bpfDescriptors(), before);
});

test('a worker that is terminated with everything open ends cleanly', async () => {
  const source = `
    import { parentPort } from 'node:worker_threads';
    const { BpfObject } = await import(${JSON.stringify(INDEX)});
    globalThis.kept = BpfObject.open({ pinDir: null, programs: ${JSON.stringify(FEW)} });
    globalThis.ring = kept.ringBuffer('events', () => undefined);
    setInterval(() => {}, 1000);
    parentPort.postMessage('open');
  `;
  const before = bpfDescriptors();
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`));
  await once(worker, 'message');
  await worker.terminate();
  assert.equal(bpfDescriptors(), before);
});

test('a worker that is terminated while an object is opened beside it ends cleanly', async () => {
  const source = `
    import { parentPort } from 'node:worker_threads';
    const { BpfObject } = await import(${JSON.stringify(INDEX)});
    globalThis.opening = BpfObject.openLater({ pinDir: null, programs: ['http_client'] });
    setInterval(() => {}, 1000);
    parentPort.postMessage('opening');
  `;
  const before = bpfDescriptors();
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`));
  await once(worker, 'message');
  await worker.terminate();
  await waitFor('all descriptors to be closed', () => bpfDescriptors() === before, { timeoutMs: 60_000 });
});

for (const [name, ending] of [
  ['at its natural end', ''],
  ['by process.exit', 'process.exit(0);'],
  ['with garbage collected handles', 'globalThis.object = globalThis.ring = undefined; for (let i = 0; i < 5; i++) { gc(); await new Promise(setImmediate); }'],
] as const) {
  test(`a process that leaves everything open ends cleanly ${name}`, async () => {
    const source = `
      const { BpfObject, openSocket } = await import(${JSON.stringify(INDEX)});
      globalThis.object = BpfObject.open({ pinDir: null, programs: ${JSON.stringify([...FEW, 'probe_egress'])} });
      globalThis.ring = object.ringBuffer('events', () => undefined);
      const link = object.attachCgroup('probe_egress', ${JSON.stringify(cgroup)}, null);
      openSocket({ netns: '/proc/self/ns/net', family: 'ipv4', type: 'stream', bind: { address: '127.0.0.1', port: 0 }, listen: 1 });
      object.map('pods');
      ${ending}
    `;
    const { stderr } = await promisify(execFile)(process.execPath, ['--expose-gc', '--input-type=module', '-e', source], { timeout: 180_000 });
    assert.equal(stderr, '');
  });
}
