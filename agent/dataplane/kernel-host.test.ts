/** What the node itself opens to its pods passes their policy and their redirection; what only looks like it does not. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { run } from '../../common/process.js';
import { PATIENCE_MS, waitFor } from '../../common/retry.js';
import type { TestPod } from '../../native/testing.js';
import { KernelWorld } from './kernel-testing.js';
import { IptablesCapture, INBOUND_PORT, iptablesProblem } from './iptables.js';

/** `a` is a pod that lets nobody in, `b` another pod, `c` the node, `d` somebody that is not in the mesh. */
let w: KernelWorld;
let match: string;
const children: ChildProcess[] = [];
const [A, B, NODE, D] = [0, 1, 2, 3].map((i) => () => w.world.pod(i)) as [() => TestPod, () => TestPod, () => TestPod, () => TestPod];

before(async () => {
  w = await KernelWorld.create('host', { pods: 4, pinned: true });
  w.put({ acceleration: 'off' }, [A(), B()]);
  w.kernel.setPolicies(new Map([[w.podRecord(A()).uid, { compiled: undefined, behindProxy: false, version: 1n }]]));
  match = (await w.kernel.host.attach(NODE().netns, w.world.proxyCgroup))!;
  // Whoever answers says on which port it listens.
  const script = `
const net = require('node:net');
let open = 0;
for (const port of [8080, ${INBOUND_PORT}]) net.createServer((socket) => socket.on('error', () => {}).end(String(port))).listen(port, '::', () => ++open === 2 && console.log('listening'));`;
  const [command, ...args] = w.world.inPod(A(), [process.execPath, '-e', script]);
  const child = spawn(command!, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  await once(child.stdout!, 'data');
});
after(async () => {
  for (const child of children) child.kill('SIGKILL');
  await Promise.all(children.map((child) => child.exitCode ?? child.signalCode ?? once(child, 'exit')));
  await w.close();
});

const CLIENT = `
const net = require('node:net');
const [host, localAddress, localPort, waitMs] = JSON.parse(process.argv[1]);
const socket = net.connect({ host, port: 8080, ...(localAddress ? { localAddress } : {}), ...(localPort ? { localPort } : {}) });
let text = '';
const end = (word) => { console.log(word); process.exit(); };
setTimeout(() => end('silence'), waitMs);
socket.on('error', ({ code }) => end(code)).on('data', (chunk) => (text += chunk)).on('end', () => end(text));`;

/** Of whom no answer is expected. */
const SILENT = { waitMs: 1_500 };

/** The port of who answered, an error's code, or `silence`. */
async function call(from: TestPod, about: { family?: 'ipv4' | 'ipv6'; source?: string; port?: number; waitMs?: number } = {}): Promise<string> {
  const [command, ...args] = w.world.inPod(from, [process.execPath, '-e', CLIENT, JSON.stringify([A()[about.family ?? 'ipv4'], about.source ?? null, about.port ?? null, about.waitMs ?? PATIENCE_MS])]);
  return (await run(command!, args, { timeoutMs: 2 * PATIENCE_MS })).stdout.trim();
}

/** Where there is no iptables at all, as in the guests of the kernels' matrix. */
const skip = (await iptablesProblem()) ?? false;

const ip = (pod: TestPod, ...args: string[]): Promise<unknown> => run('ip', ['-n', pod.netns.split('/').at(-1)!, ...args]);

for (const family of ['ipv4', 'ipv6'] as const) {
  test(`the node's own connections pass a policy that lets nobody in, a pod's and a stranger's do not (${family})`, async () => {
    const { result, counters } = await w.counted(() => Promise.all([call(NODE(), { family }), call(B(), { family }), call(D(), { family, ...SILENT })]));
    assert.deepEqual(result, ['8080', 'ECONNREFUSED', 'silence']);
    // Its SYN and the segment that completes the handshake.
    assert.equal(counters['policy_host_let_in'], 2);
  });
}

test("what the shared proxy opens from the node's namespace is not the node's", async () => {
  assert.equal(await call({ ...NODE(), cgroup: w.world.proxyCgroup }, SILENT), 'silence');
});

test("a note is there for as long as the node's socket, and no longer", async () => {
  await call(NODE());
  assert.equal(w.kernel.host.noted(), 0);
});

/** Somebody beside the pod takes the node's address, and all that the pod answers. */
async function asImpostor(body: () => Promise<void>): Promise<void> {
  const mac = JSON.parse((await run('ip', ['-j', '-n', D().netns.split('/').at(-1)!, 'link', 'show', 'eth0'])).stdout)[0].address as string;
  await ip(D(), 'addr', 'add', `${NODE().ipv4}/32`, 'dev', 'eth0');
  await ip(A(), 'neigh', 'replace', NODE().ipv4, 'lladdr', mac, 'dev', 'eth0', 'nud', 'permanent');
  try {
    await body();
  } finally {
    await ip(A(), 'neigh', 'del', NODE().ipv4, 'dev', 'eth0');
    await ip(D(), 'addr', 'del', `${NODE().ipv4}/32`, 'dev', 'eth0');
  }
}

test("a stranger that takes the node's address is refused, also with the very port from which the node is calling", async () => {
  await asImpostor(async () => {
    w.kernel.setPolicies(new Map());
    assert.equal(await call(D(), { source: NODE().ipv4 }), '8080', 'it would be answered');
    w.kernel.setPolicies(new Map([[w.podRecord(A()).uid, { compiled: undefined, behindProxy: false, version: 2n }]]));
    assert.equal(await call(D(), { source: NODE().ipv4, ...SILENT }), 'silence');
    // The node's own SYNs get lost on their way, so that its connection is being opened all the while.
    await ip(NODE(), 'neigh', 'replace', A().ipv4, 'lladdr', '02:00:00:00:00:01', 'dev', 'eth0', 'nud', 'permanent');
    const port = 40_404;
    const opening = call(NODE(), { port, ...SILENT });
    try {
      await waitFor('the note', () => w.kernel.host.noted() > 0, { everyMs: 5 });
      assert.equal(w.kernel.host.noted(), 1);
      assert.equal(await call(D(), { source: NODE().ipv4, port, ...SILENT }), 'silence');
    } finally {
      assert.equal(await opening, 'silence');
      await ip(NODE(), 'neigh', 'del', A().ipv4, 'dev', 'eth0');
    }
  });
});

test("iptables redirect a stranger and who takes the node's address, and not the node", { skip }, async () => {
  w.kernel.setPolicies(new Map());
  const rules = new IptablesCapture(A().netns, { direction: 'inbound', hostMatch: match });
  try {
    const { notes } = await rules.start();
    assert.deepEqual(notes, []);
    assert.deepEqual(await rules.state(), { active: true, present: true });
    assert.equal((await new IptablesCapture(A().netns, { direction: 'inbound', hostMatch: `${match}0` }).state()).outdated, true);
    for (const family of ['ipv4', 'ipv6'] as const) assert.deepEqual([await call(NODE(), { family }), await call(D(), { family })], ['8080', String(INBOUND_PORT)]);
    await asImpostor(async () => assert.equal(await call(D(), { source: NODE().ipv4 }), String(INBOUND_PORT)));
  } finally {
    await rules.remove();
  }
});

test('without a program to ask they redirect all, and say so', { skip }, async () => {
  const rules = new IptablesCapture(A().netns, { direction: 'inbound', hostMatch: `${match}_gone` });
  try {
    const { notes } = await rules.start();
    assert.match(notes.join('; '), /IPv4: what the node itself opens to the pod, kubelet probes too, is redirected: /);
    assert.equal(await call(NODE()), String(INBOUND_PORT));
  } finally {
    await rules.remove();
  }
});
