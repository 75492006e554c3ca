/** Connections of the HTTP fast path are ended as their other half ended: real sockets in pods' namespaces. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { logger } from '../../common/log.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { tcpSockets, type TcpSocket } from '../../native/index.js';
import { TestWorld, type TestPod } from '../../native/testing.js';
import { HttpEndingQueue } from './http-endings.js';

let world: TestWorld;
let proxy: ChildProcess;
const children: ChildProcess[] = [];

/** Runs JavaScript in a pod. */
function inPod(pod: TestPod, source: string): ChildProcess {
  const [program, ...args] = world.inPod(pod, [process.execPath, '-e', source]) as [string, ...string[]];
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  return child;
}

const said = (child: ChildProcess): (() => string) => {
  let text = '';
  child.stdout!.on('data', (data: Buffer) => (text += data.toString()));
  return () => text;
};
const until = (what: string, probe: () => unknown): Promise<unknown> => waitFor(what, async () => probe(), { everyMs: 5 });

before(async () => {
  world = await TestWorld.create('endings');
  // Answers with one byte and goes on listening, as Envoy's side of a captured connection.
  proxy = inPod(world.pod(0), `require('node:net').createServer({ allowHalfOpen: true }, (s) => { s.on('error', () => undefined); s.resume(); s.write('-'); }).listen(15001, '127.0.0.1', () => process.stdout.write('up'))`);
  await until('the proxy to listen', said(proxy));
});
after(async () => {
  for (const child of children) if (child.exitCode === null && child.signalCode === null) {
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
  await world.close();
});

const CLIENT = `const s = require('node:net').connect(15001, '127.0.0.1');
  s.on('data', (d) => process.stdout.write(d)); s.on('end', () => process.stdout.write('end')); s.on('error', (e) => process.stdout.write(e.code));`;

/** A client that is connected, and both ends of its connection. */
async function connected(): Promise<{ heard: () => string; client: TcpSocket; proxys: TcpSocket }> {
  const known = new Set((await tcpSockets(world.pod(0).netns)).map(({ cookie }) => cookie));
  const heard = said(inPod(world.pod(0), CLIENT));
  await until('the client to be connected', () => heard() === '-');
  const fresh = (await tcpSockets(world.pod(0).netns)).filter(({ cookie, listening }) => !listening && !known.has(cookie));
  const client = fresh.find(({ remotePort }) => remotePort === 15001) ?? assert.fail();
  return { heard, client, proxys: fresh.find(({ localPort, remotePort }) => localPort === 15001 && remotePort === client.localPort) ?? assert.fail() };
}

function queue(changes: { pid?: number | undefined } = {}): HttpEndingQueue {
  const pods = new Map(world.pods.map(({ netnsCookie, netns }) => [netnsCookie, netns]));
  const pid = 'pid' in changes ? changes.pid : proxy.pid;
  return new HttpEndingQueue({ netnsPathOf: (cookie) => pods.get(cookie), proxyPid: () => pid, logger: logger('test.endings') });
}

const NONE = { clientsEnded: 0, clientsReset: 0, serversReset: 0, gone: 0, failed: 0 };
const without = ({ local, remote, localPort, remotePort }: TcpSocket) => ({ local, remote, localPort, remotePort });

test('an orderly end: the client sees an end of stream, whichever end of its connection is named', async () => {
  for (const named of ['client', 'proxys', 'addresses'] as const) {
    const endings = queue();
    const { heard, client, proxys } = await connected();
    const socket = named === 'addresses' ? without(proxys) : named === 'client' ? client : proxys;
    endings.end({ side: 'client', orderly: true, netnsCookie: world.pod(0).netnsCookie, socket });
    await until('the client to hear of it', () => heard() !== '-');
    assert.equal(heard(), '-end', named);
    await endings.idle();
    assert.deepEqual(endings.count, { ...NONE, clientsEnded: 1 }, named);
  }
});

test('in the middle of an answer: the client\'s connection is reset; also an orderly one where Envoy\'s socket is not to be had', async () => {
  for (const [orderly, pid] of [[false, proxy.pid], [true, process.pid], [true, undefined]] as const) {
    const endings = queue({ pid });
    const { heard, client, proxys } = await connected();
    endings.end({ side: 'client', orderly, netnsCookie: world.pod(0).netnsCookie, socket: orderly ? client : proxys });
    await until('the client to hear of it', () => heard() !== '-');
    assert.equal(heard(), '-ECONNRESET');
    await endings.idle();
    assert.deepEqual(endings.count, { ...NONE, clientsReset: 1 });
  }
});

test('what has ended by itself, and a pod that is gone, are nobody\'s; another connection on the same addresses stays', async () => {
  const endings = queue();
  const { heard, client } = await connected();
  const [of] = [{ side: 'client' as const, orderly: false }];
  endings.end({ ...of, netnsCookie: world.pod(0).netnsCookie, socket: { ...client, cookie: client.cookie + 1_000_000n } });
  endings.end({ ...of, netnsCookie: 1n, socket: client });
  await endings.idle();
  assert.deepEqual(endings.count, { ...NONE, gone: 2 });
  assert.equal(heard(), '-');
});

test('a server whose client is gone: its connection is reset', async () => {
  const [a, b] = [world.pod(0), world.pod(1)];
  const server = inPod(b, `require('node:net').createServer((s) => { s.on('error', (e) => process.stdout.write(e.code)); s.resume(); process.stdout.write('+'); }).listen(8080, '0.0.0.0', () => process.stdout.write('up'))`);
  const heard = said(server);
  await until('the server to listen', () => heard() === 'up');
  const upstream = said(inPod(a, `const s = require('node:net').connect(8080, '${b.ipv4}'); s.resume(); s.on('error', (e) => process.stdout.write(e.code))`));
  await until('the server to be called', () => heard() === 'up+');
  const socket = (await tcpSockets(b.netns)).find(({ listening, localPort }) => !listening && localPort === 8080) ?? assert.fail();
  const endings = queue();
  endings.end({ side: 'server', orderly: false, netnsCookie: b.netnsCookie, socket });
  await until('both to hear of it', () => heard() !== 'up+' && upstream() !== '');
  assert.deepEqual([heard(), upstream()], ['up+ECONNABORTED', 'ECONNRESET']);
  await endings.idle();
  assert.deepEqual(endings.count, { ...NONE, serversReset: 1 });
});

test('what can\'t be done is counted, and said once a minute', async () => {
  let now = 0;
  const lines: unknown[] = [];
  const log = { error: (...line: unknown[]) => lines.push(line) } as unknown as ReturnType<typeof logger>;
  const endings = new HttpEndingQueue({ netnsPathOf: () => '/nowhere', proxyPid: () => 1, logger: log, now: () => now });
  const socket = { local: Buffer.alloc(16), remote: Buffer.alloc(16), localPort: 1, remotePort: 2, cookie: 3n };
  for (const at of [0, 1_000, 61_000]) {
    now = at;
    endings.end({ side: 'server', orderly: false, netnsCookie: 1n, socket });
    await endings.idle();
  }
  assert.equal(endings.count.failed, 3);
  assert.equal(lines.length, 2);
});

test('a program that the reset does not get to is told all the same', async () => {
  const rule = ['-i', 'lo', '-p', 'tcp', '--tcp-flags', 'RST', 'RST', '-j', 'DROP'];
  const iptables = async (what: string): Promise<void> => {
    const [program, ...args] = world.inPod(world.pod(0), ['iptables', '-w', what, 'INPUT', ...rule]);
    await run(program!, args);
  };
  const { heard, proxys } = await connected();
  await iptables('-A');
  try {
    const endings = queue();
    endings.end({ side: 'client', orderly: false, netnsCookie: world.pod(0).netnsCookie, socket: proxys });
    await until('the client to hear of it', () => heard() !== '-');
    assert.match(heard(), /^-ECONN/);
    await endings.idle();
    assert.deepEqual(endings.count, { ...NONE, clientsReset: 1 });
  } finally {
    await iptables('-D');
  }
});
