import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { afterEach, test } from 'node:test';
import { listenOn, listenOnAll, type Listening } from './listener.js';

const open: Server[] = [];
const accepted: Socket[] = [];
const accept = (socket: Socket): void => void accepted.push(socket.on('error', () => undefined));
const keep = (listening: Listening): Listening => {
  open.push(...listening.servers);
  return listening;
};

afterEach(async () => {
  for (const socket of accepted.splice(0)) socket.destroy();
  for (const server of open.splice(0)) await new Promise((resolve) => server.close(resolve));
});

async function reach(host: string, port: number): Promise<void> {
  const client = connect(port, host);
  await once(client, 'connect');
  client.destroy();
}

test('several addresses are listened on at one port, that which the first was given', async () => {
  const { port, failures } = keep(await listenOnAll([{ host: '127.0.0.1', port: 0 }, { host: '127.0.0.2', port: 0 }], accept));
  assert.deepEqual(failures, []);
  await reach('127.0.0.1', port!);
  await reach('127.0.0.2', port!);
});

test('an address that is taken keeps none of the others from being listened on, and is named', async () => {
  const other = createServer().listen(0, '127.0.0.1');
  open.push(other);
  await once(other, 'listening');
  const { port } = other.address() as AddressInfo;
  const { failures } = keep(await listenOnAll([{ host: '127.0.0.1', port }, { host: '127.0.0.2', port }], accept));
  assert.deepEqual(failures, [`listen EADDRINUSE: address already in use 127.0.0.1:${port}`]);
  await reach('127.0.0.2', port);
  await assert.rejects(listenOn(`127.0.0.1:${port}`, accept), { message: `No address added out of total 1 resolved errors: [listen EADDRINUSE: address already in use 127.0.0.1:${port}]` });
});

test('a name stands for its addresses', async () => {
  const { port } = keep(await listenOn('localhost:0', accept));
  await reach('localhost', port!);
});

for (const address of ['127.0.0.1', ':0', '::1:0', '127.0.0.1:http', '127.0.0.1:65536', '127.0.0.1:-1', ''])
  test(`"${address}" is refused with what was expected`, async () => {
    await assert.rejects(listenOn(address, accept), { message: 'expected host:port, or unix:PATH' });
  });

test('a name without an address is refused by name', async () => {
  await assert.rejects(listenOn('nowhere.invalid:0', accept), /nowhere\.invalid/);
});
