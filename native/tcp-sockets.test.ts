/** Sockets of others: found by their addresses and cookie, ended for their process, or at both ends. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { after, before, test } from 'node:test';
import { waitFor } from '../common/retry.js';
import { destroyTcpSockets, findTcpSocket, listeningTcpSockets, shutdownTcpSockets, tcpSocketId, tcpSockets, type TcpSocket } from './index.js';

const OWN = '/proc/self/ns/net';
let server: Server;
let port: number;

before(async () => {
  server = createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  port = (server.address() as AddressInfo).port;
});
after(() => server.close());

/** Another process that connects, and prints what it is sent. */
async function client(): Promise<{ pid: number; accepted: Socket; theirs: TcpSocket; heard(): string; end(): Promise<void> }> {
  const source = `const s = require('node:net').connect({ port: ${port}, host: '127.0.0.1', allowHalfOpen: true });
    s.on('data', (d) => process.stdout.write(d)); s.on('error', (e) => process.stdout.write(e.code)); s.on('close', () => process.exit())`;
  const child = spawn(process.execPath, ['-e', source], { stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  child.stdout.on('data', (data: Buffer) => (text += data.toString()));
  const exited = once(child, 'exit');
  const [accepted] = (await once(server, 'connection')) as [Socket];
  const theirs = (await tcpSockets(OWN)).find((socket) => socket.localPort === accepted.remotePort && socket.remotePort === port) ?? assert.fail('not listed');
  const end = async (): Promise<void> => {
    accepted.destroy();
    child.kill();
    await exited;
  };
  return { pid: child.pid!, accepted, theirs, heard: () => text, end };
}

test('listeningTcpSockets: those that listen, and no connection', async () => {
  const { end } = await client();
  try {
    const [all, listening] = [await tcpSockets(OWN), await listeningTcpSockets(OWN)];
    assert.deepEqual([all.some((each) => !each.listening && each.localPort === port), listening.some((each) => !each.listening)], [true, false]);
    assert.ok(listening.some(({ localPort }) => localPort === port));
  } finally {
    await end();
  }
});

test('shutdownTcpSockets: the other end sees an end of stream, and the process can still be sent to', async () => {
  const { pid, accepted, theirs, heard, end } = await client();
  try {
    const { cookie, local, remote, localPort, remotePort } = theirs;
    const byAddresses = await findTcpSocket(OWN, tcpSocketId({ local: remote, remote: local, localPort: remotePort, remotePort: localPort }));
    assert.deepEqual([byAddresses?.localPort, byAddresses?.remotePort, byAddresses?.cookie === cookie], [port, localPort, false], 'the other end');
    const id = tcpSocketId({ cookie, local, remote, localPort, remotePort });
    assert.ok(id.subarray(0, 37).equals(theirs.id.subarray(0, 37)), 'the id that the list gives, but for the interface');
    assert.equal(await shutdownTcpSockets(OWN, [tcpSocketId({ ...theirs, cookie: cookie + 1n })], pid), 0, 'the addresses of another socket');
    assert.equal(await shutdownTcpSockets(OWN, [id], process.pid), 0, 'not a socket of this process');
    const ended = once(accepted, 'end');
    accepted.resume();
    assert.equal(await shutdownTcpSockets(OWN, [id], pid), 1);
    await ended;
    accepted.end('after the end');
    await waitFor('the process to have it', () => heard() === 'after the end', { everyMs: 5 });
  } finally {
    await end();
  }
});

test('destroyTcpSockets by addresses and cookie: both ends are reset, and another cookie ends nobody', async () => {
  const { accepted, theirs, heard, end } = await client();
  try {
    assert.equal(await destroyTcpSockets(OWN, [tcpSocketId({ ...theirs, cookie: theirs.cookie + 1n })]), 0);
    const reset = once(accepted, 'error') as Promise<[NodeJS.ErrnoException]>;
    accepted.resume();
    assert.equal(await destroyTcpSockets(OWN, [tcpSocketId(theirs)]), 1);
    assert.equal((await reset)[0].code, 'ECONNRESET');
    assert.equal(await destroyTcpSockets(OWN, [tcpSocketId(theirs)]), 0, 'it is gone');
    assert.equal(await shutdownTcpSockets(OWN, [tcpSocketId(theirs)], process.pid), 0);
    assert.equal(await findTcpSocket(OWN, theirs.id), undefined);
    await waitFor('the process to hear of it', () => heard() === 'ECONNABORTED', { everyMs: 5 });
  } finally {
    await end();
  }
});

test('tcpSocketId without a cookie is whichever socket has the addresses; IPv6 too', async () => {
  const { accepted, theirs, end } = await client();
  try {
    accepted.on('error', () => undefined).resume();
    const { local, remote, localPort, remotePort } = theirs;
    assert.equal(await destroyTcpSockets(OWN, [tcpSocketId({ local: remote, remote: local, localPort: remotePort, remotePort: localPort })]), 1, 'the accepted end');
  } finally {
    await end();
  }
  const v6 = { local: Buffer.from('fd000000000000000000000000000001', 'hex'), remote: Buffer.from('fd000000000000000000000000000002', 'hex'), localPort: 1, remotePort: 2 };
  assert.equal(tcpSocketId(v6)[0], 10);
  assert.equal(await destroyTcpSockets(OWN, [tcpSocketId(v6)]), 0);
});

test('tcpSocketId and shutdownTcpSockets: bad arguments throw a TypeError', () => {
  const bytes = Buffer.alloc(16);
  const good = { local: bytes, remote: bytes, localPort: 1, remotePort: 2 };
  for (const change of [{ local: Buffer.alloc(4) }, { remote: undefined }, { localPort: -1 }, { remotePort: 65536 }, { cookie: 5 }, { cookie: 1n << 64n }, { cookie: -1n }]) {
    assert.throws(() => tcpSocketId({ ...good, ...change } as never), TypeError);
  }
  for (const id of [undefined, 'x', Buffer.alloc(3)]) assert.throws(() => shutdownTcpSockets(OWN, [id] as never, 1), TypeError);
  for (const pid of [0, -1, 2 ** 31, 'x']) assert.throws(() => shutdownTcpSockets(OWN, [tcpSocketId(good)], pid as never), TypeError);
});
