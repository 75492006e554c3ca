/** What comes to a pod over the network gets to the proxy's listeners there, with the addresses that it was sent to. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { BpfObject } from '../../native/index.js';
import type { TestPod } from '../../native/testing.js';
import { Action, Authorization, Scope } from '../../proto/generated/istio/security/authorization.js';
import { compilePolicy } from '../policy/compile.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';

/** `a` is steered, `b` another pod, `c` the node. */
let w: KernelWorld;
const children = new Set<ChildProcess>();
const [A, B, NODE] = [0, 1, 2].map((i) => () => w.world.pod(i)) as [() => TestPod, () => TestPod, () => TestPod];

/** Says its name, and the address that the connection was accepted at. */
const SERVER = `
const net = require('node:net');
const [port, name] = JSON.parse(process.argv[1]);
let open = 0;
for (const host of ['0.0.0.0', '::']) {
  const server = net.createServer((socket) => socket.on('error', () => {}).end(JSON.stringify({ name, at: [socket.localAddress, socket.localPort], peer: socket.remoteAddress })));
  server.listen({ port, host, ipv6Only: host === '::' }, () => ++open === 2 && console.log('listening'));
}`;

/**
 * Three sockets on one port, each of which says its number and what SO_ORIGINAL_DST says: for IPv4 at level 0, for IPv6 at level 41.
 * Node.js can't.
 */
const SHARED_SERVER = `
import json, select, socket, struct, sys
listeners = []
for i in range(3):
    for family, any in ((socket.AF_INET, '0.0.0.0'), (socket.AF_INET6, '::')):
        s = socket.socket(family)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6: s.setsockopt(41, 26, 1)
        s.bind((any, 15006)); s.listen(64); listeners.append((i, family, s))
print('listening', flush=True)
while True:
    for s in select.select([l[2] for l in listeners], [], [])[0]:
        i, family, _ = next(l for l in listeners if l[2] is s)
        c, peer = s.accept()
        try:
            raw = c.getsockopt(0 if family == socket.AF_INET else 41, 80, 16 if family == socket.AF_INET else 28)
            original = [socket.inet_ntop(family, raw[4:8] if family == socket.AF_INET else raw[8:24]), struct.unpack('!H', raw[2:4])[0]]
        except OSError: original = None
        try: c.sendall(json.dumps({'name': 'shared', 'socket': i, 'at': list(c.getsockname()[:2]), 'peer': peer[0], 'original': original}).encode())
        except OSError: pass
        c.close()
`;
const skip = existsSync('/usr/bin/python3') ? false : 'there is no Python';

interface Said {
  name: string;
  at: [string, number];
  peer: string;
  socket?: number;
  original?: [string, number] | null;
}

async function start(cgroup: string, argv: readonly string[]): Promise<ChildProcess> {
  const [command, ...args] = w.world.inPod({ ...A(), cgroup }, argv);
  const child = spawn(command!, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  children.add(child);
  await once(child.stdout!, 'data');
  return child;
}

const serve = (cgroup: string, port: number, name: string): Promise<ChildProcess> => start(cgroup, [process.execPath, '-e', SERVER, JSON.stringify([port, name])]);

async function end(child: ChildProcess): Promise<void> {
  children.delete(child);
  child.kill('SIGKILL');
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
}

const CLIENT = `
const net = require('node:net');
const [host, port] = JSON.parse(process.argv[1]);
let text = '';
const end = (word) => { console.log(word); process.exit(); };
setTimeout(() => end('silence'), 50000);
net.connect({ host, port }).on('error', ({ code }) => end(code)).on('data', (chunk) => (text += chunk)).on('end', () => end(text));`;

async function call(from: TestPod, address: string, port = 8080): Promise<Said | string> {
  const [command, ...args] = w.world.inPod(from, [process.execPath, '-e', CLIENT, JSON.stringify([address, port])]);
  const text = (await run(command!, args, { timeoutMs: 60_000 })).stdout.trim();
  return text.startsWith('{') ? (JSON.parse(text) as Said) : text;
}

const steered = (): { uid: string; netnsPath: string; netnsCookie: bigint; ipv6: boolean } => ({ uid: w.podRecord(A()).uid, netnsPath: A().netns, netnsCookie: A().netnsCookie, ipv6: true });

let proxy: ChildProcess;
before(async () => {
  w = await KernelWorld.create('steer', { pods: 3, pinned: true });
  w.put({ acceleration: 'off' }, [A(), B()]);
  await w.kernel.host.attach(NODE().netns, w.world.proxyCgroup);
  await serve(A().cgroup, 8080, 'app');
  await serve(A().cgroup, 15008, 'tunnels');
});
after(async () => {
  await Promise.all([...children].map(end));
  await w.close();
});

test('a pod whose proxy does not listen is not steered, and the reason names the namespace', async () => {
  await assert.rejects(w.kernel.steering.start(steered()), (error: Error) => error.message.includes(A().netns));
  assert.equal(((await call(B(), A().ipv4)) as Said).name, 'app');
});

for (const family of ['ipv4', 'ipv6'] as const) {
  test(`what comes over the network gets to the proxy at the address and port that it was sent to; loopback, HBONE and the node do not (${family})`, async () => {
    proxy ??= await serve(w.world.proxyCgroup, 15006, 'proxy');
    await w.kernel.steering.start(steered());
    const address = A()[family];
    const { result, counters } = await w.counted(() => call(B(), address));
    assert.deepEqual(result, { name: 'proxy', at: [address, 8080], peer: B()[family] });
    assert.equal(counters['inbound_steered'], 1, 'once a connection: what follows its SYN finds its socket');
    // A port that nothing listens on is the proxy's to answer for too.
    assert.deepEqual(((await call(B(), address, 9)) as Said).at, [address, 9]);
    const names = await Promise.all([call(A(), address), call(A(), family === 'ipv4' ? '127.0.0.1' : '::1'), call(B(), address, 15008), call(NODE(), address)]);
    assert.deepEqual(names.map((each) => (each as Said).name), ['app', 'app', 'tunnels', 'app']);
  });
}

test('a port that the kernel judges passes the proxy for pods of the node that its policy lets in, and for nobody else', async () => {
  const uids = [A(), B()].map((pod) => w.podRecord(pod).uid) as [string, string];
  const identities = new Map(uids.map((uid, i) => [uid, { trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: ['a', 'b'][i]! }]));
  const judge = (account: string, judgedPorts: number[]): void => {
    const groups = [{ rules: [{ matches: [{ principals: [{ match_type: { $case: 'exact' as const, value: `cluster.local/ns/shop/sa/${account}` } }] }] }] }];
    const compiled = compilePolicy([Authorization.fromPartial({ name: 'p', namespace: 'shop', scope: Scope.NAMESPACE, action: Action.ALLOW, groups })], identities);
    w.kernel.setPolicies(new Map([[uids[0], { version: 1n, compiled, behindProxy: true, judgedPorts }]]));
  };
  const nameOf = (said: Said | string): string => (typeof said === 'string' ? said : said.name);
  try {
    for (const family of ['ipv4', 'ipv6'] as const) {
      judge('b', [8080]);
      const { result, counters } = await w.counted(() => call(B(), A()[family]));
      assert.deepEqual([nameOf(result), counters['policy_connect_let_past'], counters['inbound_steered']], ['app', 1, undefined], family);
      assert.equal(nameOf(await call(B(), A()[family], 9)), 'proxy', 'of another port the proxy knows more');
      judge('b', []);
      assert.equal(nameOf(await call(B(), A()[family])), 'proxy');
      judge('a', [8080]);
      const refused = await w.counted(() => call(B(), A()[family]));
      assert.deepEqual([nameOf(refused.result), refused.counters['policy_connect_refused']], ['ECONNREFUSED', 1]);
    }
    // Who has left the mesh has no identity, and is not asked at connect(): the proxy is.
    w.kernel.removePod(uids[1]);
    assert.equal(nameOf(await call(B(), A().ipv4)), 'proxy');
  } finally {
    w.kernel.setPolicies(new Map());
    w.put({ acceleration: 'off' }, [B()]);
  }
});

test('the agent is replaced: nobody notices, and the next one knows', async () => {
  await w.kernel.close();
  assert.equal(((await call(B(), A().ipv4)) as Said).name, 'proxy');
  w.kernel = await w.open(TEST_BPFFS);
  assert.equal(w.kernel.steering.state(steered().uid), 'active');
  assert.equal(((await call(B(), A().ipv4)) as Said).name, 'proxy');
});

test('maps of another layout: the former agent\'s steering holds until the next one has its own, or knows that the pod is gone', async () => {
  const pins = join(TEST_BPFFS, w.world.name);
  const { uid } = steered();
  await w.kernel.close();
  const object = BpfObject.open({ pinDir: pins, programs: [] });
  const settings = object.map('settings');
  const layout = settings.get(Buffer.alloc(4))!;
  const { offset } = object.layout('settings').fields['layout']!;
  layout.writeUInt32LE((layout.readUInt32LE(offset) ^ 1) >>> 0, offset);
  settings.set(Buffer.alloc(4), layout);
  object.close();
  // And one that dies before it has put the pods.
  for (let i = 0; i < 2; i++) {
    w.kernel = await w.open(TEST_BPFFS);
    assert.deepEqual([w.kernel.steering.state(uid), ((await call(B(), A().ipv4)) as Said).name], ['stopped', 'proxy']);
    if (i === 0) await w.kernel.close();
  }
  w.kernel.attachProxy(w.world.proxyCgroup);
  w.put({ acceleration: 'off' }, [A(), B()]);
  await w.kernel.host.attach(NODE().netns, w.world.proxyCgroup);
  // The new maps have seen no listener, so that nothing is changed.
  await assert.rejects(w.kernel.steering.start(steered(), false));
  w.kernel.keepFormer(new Set([uid]));
  assert.equal(((await call(B(), A().ipv4)) as Said).name, 'proxy');
  w.kernel.keepFormer(new Set());
  assert.deepEqual([w.kernel.steering.state(uid), ((await call(B(), A().ipv4)) as Said).name], ['none', 'app']);
  await end(proxy);
  proxy = await serve(w.world.proxyCgroup, 15006, 'proxy');
  await w.kernel.steering.start(steered());
  assert.deepEqual([w.kernel.steering.state(uid), ((await call(B(), A().ipv4)) as Said).name], ['active', 'proxy']);
});

test('without its proxy a pod refuses at once, and one that comes again is found', async () => {
  await end(proxy);
  const { result, counters } = await w.counted(() => Promise.all([call(B(), A().ipv4), call(B(), A().ipv6), call(NODE(), A().ipv4)]));
  assert.deepEqual(result.map((each) => (typeof each === 'string' ? each : each.name)), ['ECONNREFUSED', 'ECONNREFUSED', 'app']);
  assert.equal(counters['inbound_unserved'], 2);
  proxy = await serve(w.world.proxyCgroup, 15006, 'proxy again');
  await waitFor('the new proxy', async () => ((await call(B(), A().ipv4)) as Said).name === 'proxy again', { everyMs: 50 });
});

test('of several sockets on the port each gets connections, as their SO_REUSEPORT says; the proxy is told the original destination, others are not', { skip }, async () => {
  await end(proxy);
  for (const cgroup of [w.world.proxyCgroup, A().cgroup]) {
    const child = await start(cgroup, ['python3', '-c', SHARED_SERVER]);
    try {
      if (cgroup === A().cgroup) {
        // No proxy's, and so not in the map: it is asked directly.
        assert.equal(((await call(B(), A().ipv4, 15006)) as Said).original, null);
        continue;
      }
      const sockets = new Set<number>();
      for (let i = 0; i < 40 && sockets.size < 3; i++) sockets.add(((await call(B(), A().ipv4)) as Said).socket!);
      assert.deepEqual([...sockets].sort(), [0, 1, 2]);
      for (const family of ['ipv4', 'ipv6'] as const) assert.deepEqual(((await call(B(), A()[family], 9)) as Said).original, [A()[family], 9]);
    } finally {
      await end(child);
    }
  }
});

test('when steering ends all is as it was', async () => {
  w.kernel.steering.stop(steered().uid);
  assert.equal(((await call(B(), A().ipv4)) as Said).name, 'app');
  const { result } = await w.counted(() => call(B(), A().ipv4, 9));
  assert.equal(result, 'ECONNREFUSED');
  // The agent that comes next knows that connections may be left that need the listener.
  await w.kernel.close();
  w.kernel = await w.open(TEST_BPFFS);
  assert.equal(w.kernel.steering.state(steered().uid), 'stopped');
  w.kernel.removePod(steered().uid);
  assert.equal(w.kernel.steering.state(steered().uid), 'none');
});
