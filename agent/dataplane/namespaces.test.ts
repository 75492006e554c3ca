import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer, connect, type AddressInfo } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { run } from '../../common/process.js';
import { PinnedNamespaces, countCaptured } from './namespaces.js';

test('countCaptured: counts what was accepted at the port and is alive, and tells redirected from captured', () => {
  const row = (local: string, remote: string, state: string): string => `   1: ${local} ${remote} ${state} 00000000:00000000 00:00000000 00000000     0        0 1 1 0 0`;
  const text = [
    '  sl  local_address rem_address   st tx_queue rx_queue',
    row('0100007F:3A99', '00000000:0000', '0A'), // the listener
    row('0100007F:3A99', '0100007F:A000', '01'), // captured by BPF
    row('0100007F:3A99', '0200F40A:A001', '01'), // redirected: 10.244.0.2
    row('0100007F:3A99', '0200F40A:A002', '06'), // TIME_WAIT
    row('0100007F:A000', '0100007F:3A99', '01'), // the captured one's client side
    row('00000000000000000000000001000000:3A99', '00000000000000000000000001000000:A003', '08'), // ::1, CLOSE_WAIT
    row('00000000000000000000000001000000:3A99', '100000FD4402100000000000AA000000:A004', '03'), // redirected IPv6, SYN_RECV
    row('0000000000000000FFFF00000100007F:3A99', '0000000000000000FFFF00000100007F:A005', '01'), // mapped
  ].join('\n');
  assert.deepEqual(countCaptured(text, 15001), { total: 5, redirected: 2 });
});

test('PinnedNamespaces: a pin is the namespace itself, outlives its name, and is gone after unpin', async (context) => {
  const name = `up-agent-${process.pid}-pin`;
  const folder = mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  await run('ip', ['netns', 'add', name]);
  const inode = statSync(`/run/netns/${name}`).ino;
  const namespaces = new PinnedNamespaces(folder);
  const path = namespaces.pin('uid-1', `/run/netns/${name}`);
  assert.equal(namespaces.pin('uid-1', `/run/netns/${name}`), path);
  assert.equal(readFileSync('/proc/self/mounts', 'utf8').split(path).length - 1, 1, 'pinned once');
  await run('ip', ['netns', 'del', name]);
  assert.equal(statSync(path).ino, inode);
  assert.deepEqual(namespaces.pinned(), ['uid-1']);
  assert.notEqual(await namespaces.cookie(path), 0n);
  assert.deepEqual(await namespaces.capturedSockets(path), { total: 0, redirected: 0 });
  namespaces.unpin('uid-1');
  namespaces.unpin('uid-1');
  assert.equal(existsSync(path), false);
  assert.equal(readFileSync('/proc/self/mounts', 'utf8').includes(path), false);
});

test('PinnedNamespaces: files that are no mounts any more, as after the node started again, are removed, and pins stay', async (context) => {
  const folder = mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`));
  const namespaces = new PinnedNamespaces(folder);
  context.after(() => {
    namespaces.unpin('live');
    rmSync(folder, { recursive: true, force: true });
  });
  namespaces.pin('live', '/proc/self/ns/net');
  writeFileSync(namespaces.path('stale'), '');
  assert.equal(namespaces.removeStale(), 1);
  assert.deepEqual(namespaces.pinned(), ['live']);
  assert.notEqual(await namespaces.cookie(namespaces.path('live')), 0n);
});

test('PinnedNamespaces: one look tells of all ports whether they are taken, and whether loopback leads there', async (context) => {
  const namespaces = new PinnedNamespaces(mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`)));
  context.after(() => rmSync(namespaces.folder, { recursive: true, force: true }));
  const unused = createServer().listen(0, '127.0.0.1');
  await once(unused, 'listening');
  const { port: free } = unused.address() as AddressInfo;
  unused.close();
  const other = Object.values(networkInterfaces()).flatMap((each) => each ?? []).find(({ family, internal }) => family === 'IPv4' && !internal)?.address;
  for (const [address, byLoopback] of [['127.0.0.1', true], ['::1', true], ['::', true], ['0.0.0.0', true], ...(other === undefined ? [] : [[other, false] as const])] as const) {
    const server = createServer().listen(0, address);
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    assert.deepEqual(await namespaces.takenPorts('/proc/self/ns/net', [{ port }, { port: free }]), new Set([port]), address);
    assert.deepEqual(await namespaces.takenPorts('/proc/self/ns/net', [{ port, where: 'loopback' }, { port: free }]), new Set(byLoopback ? [port] : []), address);
    server.close();
    await once(server, 'close');
    assert.deepEqual(await namespaces.takenPorts('/proc/self/ns/net', [{ port }]), new Set(), `${address}, closed`);
  }
});

test('PinnedNamespaces: a pin of another namespace under the same uid is replaced', async (context) => {
  const names = ['a', 'b'].map((letter) => `up-agent-${process.pid}-${letter}`);
  const folder = mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`));
  const namespaces = new PinnedNamespaces(folder);
  for (const name of names) await run('ip', ['netns', 'add', name]);
  context.after(async () => {
    namespaces.unpin('u');
    rmSync(folder, { recursive: true, force: true });
    for (const name of names) await run('ip', ['netns', 'del', name]);
  });
  for (const name of names) {
    const path = namespaces.pin('u', `/run/netns/${name}`);
    assert.equal(statSync(path).ino, statSync(`/run/netns/${name}`).ino);
  }
});

test('PinnedNamespaces: capturedSockets sees a real connection to the port', async (context) => {
  const folder = mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`));
  const server = createServer();
  context.after(() => {
    server.close();
    rmSync(folder, { recursive: true, force: true });
  });
  const namespaces = new PinnedNamespaces(folder);
  const before = await namespaces.capturedSockets('/proc/self/ns/net');
  const listening = await new Promise<boolean>((resolve) => {
    server.once('error', () => resolve(false));
    server.listen(15001, '127.0.0.1', () => resolve(true));
  });
  if (!listening) return context.skip('somebody listens at 127.0.0.1:15001 of this namespace');
  const client = connect(15001, '127.0.0.1');
  await new Promise((resolve) => client.once('connect', resolve));
  const during = await namespaces.capturedSockets('/proc/self/ns/net');
  assert.deepEqual(during, { total: before.total + 1, redirected: before.redirected });
  client.destroy();
});

test('PinnedNamespaces: closeConnections resets both ends of a connection in the namespace and leaves who listens', async (context) => {
  const name = `up-agent-${process.pid}-close`;
  const folder = mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`));
  await run('ip', ['netns', 'add', name]);
  const namespaces = new PinnedNamespaces(folder);
  const path = namespaces.pin('u', `/run/netns/${name}`);
  await run('ip', ['-n', name, 'link', 'set', 'lo', 'up']);
  const program = `const net = require('node:net');
    const reset = (socket) => new Promise((resolve) => socket.on('error', ({ code }) => resolve(code)).on('close', () => resolve('closed')));
    const server = net.createServer((socket) => { console.log('connected'); Promise.all([reset(socket), reset(client)]).then((ends) => { console.log(ends.join()); process.exit(0); }); });
    let client; server.listen(7000, '127.0.0.1', () => { client = net.connect(7000, '127.0.0.1'); });`;
  const child = spawn('ip', ['netns', 'exec', name, process.execPath, '-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
  context.after(async () => {
    child.kill('SIGKILL');
    namespaces.unpin('u');
    rmSync(folder, { recursive: true, force: true });
    await run('ip', ['netns', 'del', name]);
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  assert.equal((await lines.next()).value, 'connected');
  // The reset of the first may have ended the other.
  assert.ok((await namespaces.closeConnections(path)) >= 1);
  // SOCK_DESTROY tells the program itself ECONNABORTED, the other end hears a reset.
  assert.match((await lines.next()).value as string, /^ECONN(ABORTED|RESET),ECONN(ABORTED|RESET)$/);
});
