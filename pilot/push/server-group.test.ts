/** Real HTTP/2 clients on real sockets; only the clock of the servers' timers is wound by hand. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect as connectHttp2, type ClientHttp2Session, type ClientHttp2Stream, type IncomingHttpHeaders } from 'node:http2';
import { connect as connectTcp, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { afterEach, beforeEach, mock, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { getChannelzHandlers, ServerCredentials, type ServerDuplexStream } from '@grpc/grpc-js';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { ClosableStore } from '../../common/lifecycle.js';
import { rootLogger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { ServerIdentity } from '../ca/server-credentials.js';
import { ServerGroup } from './server-group.js';

const KEEPALIVE_MS = 30_000;
const TIMEOUT_MS = 10_000;
const GRACE_MS = 50;
const BUCKET_MS = 100;
const WAIT = { everyMs: 5 };
const PREFACE = Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0])]);

const bytes = (value: Buffer): Buffer => value;
const path = '/test.Echo/Stream';
const echo = { stream: { path, requestStream: true, responseStream: true, requestSerialize: bytes, requestDeserialize: bytes, responseSerialize: bytes, responseDeserialize: bytes } };

let store: ClosableStore;
let group: ServerGroup;
let streams: ServerDuplexStream<Buffer, Buffer>[];

beforeEach(() => {
  store = new ClosableStore();
  streams = [];
  group = new ServerGroup({ logger: rootLogger.child({}, { level: 'silent' }), keepaliveTimeMs: KEEPALIVE_MS, stopGraceMs: GRACE_MS, channel: { 'grpc.keepalive_timeout_ms': TIMEOUT_MS } });
  group.addService(echo, { stream: (call: ServerDuplexStream<Buffer, Buffer>) => void streams.push(call) });
});
afterEach(async () => {
  mock.timers.reset();
  await store.close();
  await group.close();
});

const listen = async (): Promise<number> => (await group.listen('127.0.0.1:0', ServerCredentials.createInsecure()))!;

async function connect(port: number): Promise<ClientHttp2Session> {
  const session = connectHttp2(`http://127.0.0.1:${port}`);
  store.defer(() => session.destroy());
  await once(session, 'remoteSettings');
  return session;
}

async function connectRaw(port: number): Promise<Socket> {
  const socket = connectTcp(port, '127.0.0.1');
  socket.on('error', () => undefined).resume();
  store.defer(() => void socket.destroy());
  await once(socket, 'connect');
  return socket;
}

function startStream(session: ClientHttp2Session): ClientHttp2Stream {
  session.on('error', () => undefined);
  return session.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' }).on('error', () => undefined).resume();
}

/** Frames keep their order: with its second answer, the server has what the client sent on its pings. */
async function settle(sessions: readonly ClientHttp2Session[]): Promise<void> {
  for (let round = 0; round < 2; round += 1) await Promise.all(sessions.map((session) => new Promise<void>((resolve) => void session.ping(() => resolve()))));
}

test('clients that connect at once are not pinged at once, and each in time', async () => {
  mock.timers.enable({ apis: ['setTimeout'] });
  const port = await listen();
  const early: ClientHttp2Session[] = [];
  for (let count = 0; count < 64; count += 1) early.push(await connect(port));
  // Those that go leave half of the Servers idle: these are filled first.
  const leaving = early.filter((_, index) => index % 32 < 16);
  for (const session of leaving) session.destroy();
  const staying = early.filter((session) => !leaving.includes(session));
  await settle(staying);
  while (group.connections > staying.length) await turn();
  const clients = [...staying, ...(await Promise.all(leaving.map(() => connect(port))))];
  const pings = clients.map(() => [] as number[]);
  let now = 0;
  clients.forEach((session, index) => session.on('ping', () => pings[index]!.push(now)));
  for (; now < 2 * KEEPALIVE_MS; now += BUCKET_MS) {
    mock.timers.tick(BUCKET_MS);
    await settle(clients);
  }
  for (const [first = Infinity, second = Infinity] of pings) {
    assert.ok(first <= KEEPALIVE_MS && second - first <= KEEPALIVE_MS, `pinged after ${first} and ${second} ms`);
    assert.ok(first >= KEEPALIVE_MS / 2, `pinged after ${first} ms`);
  }
  const perBucket = new Map<number, number>();
  for (const at of pings.flat()) perBucket.set(at, (perBucket.get(at) ?? 0) + 1);
  assert.ok(Math.max(...perBucket.values()) <= clients.length / 32, `${Math.max(...perBucket.values())} of ${clients.length} clients were pinged within ${BUCKET_MS} ms`);
});

test('a client that answers no ping is cut off, one that does stays', async () => {
  mock.timers.enable({ apis: ['setTimeout'] });
  const port = await listen();
  const answering = await connect(port);
  const silent = await connectRaw(port);
  let ended = false;
  silent.once('close', () => (ended = true)).write(PREFACE);
  await once(silent, 'data');
  mock.timers.tick(KEEPALIVE_MS);
  await settle([answering]);
  assert.equal(ended, false);
  mock.timers.tick(TIMEOUT_MS);
  if (!ended) await once(silent, 'close');
  await settle([answering]);
  assert.equal(answering.closed, false);
});

test('close() tells clients, lets streams end within the grace, and cuts off what goes on after it, TLS handshakes too', async () => {
  const port = await listen();
  const identity = await ServerIdentity.start({ ca: await CertificateAuthority.create({ trustDomain: 'cluster.local' }), hosts: ['127.0.0.1'], identity: { namespace: 'istio-system', serviceAccount: 'istiod' }, onError: (error) => assert.fail(error) });
  store.add(identity);
  const securePort = (await group.listen('127.0.0.1:0', identity.credentials))!;
  const plain = await connect(port);
  const secure = connectHttp2(`https://127.0.0.1:${securePort}`, { createConnection: () => connectTls({ port: securePort, host: '127.0.0.1', rejectUnauthorized: false, ALPNProtocols: ['h2'] }) });
  store.defer(() => secure.destroy());
  const ending = startStream(plain);
  await waitFor('the first stream', () => streams.length === 1, WAIT);
  const unending = [startStream(plain), startStream(secure)];
  const raw = await Promise.all([connectRaw(port), connectRaw(securePort)]);
  await waitFor('all streams and connections', () => streams.length === 3 && group.connections === 4, WAIT);
  const toldAll = [plain, secure].map((session) => once(session, 'goaway'));
  const cut = [plain, secure, ...raw].map((end) => once(end, 'close'));
  const answer = once(ending, 'response');
  mock.timers.enable({ apis: ['setTimeout'] });
  const closed = group.close();
  await Promise.all(toldAll);
  streams[0]!.end();
  const [{ 'grpc-status': status }] = (await answer) as [IncomingHttpHeaders];
  assert.equal(status, '0');
  mock.timers.tick(GRACE_MS - 1);
  await turn();
  assert.deepEqual(unending.map(({ closed }) => closed), [false, false]);
  mock.timers.tick(1);
  await Promise.all([closed, ...cut]);
  assert.equal(group.connections, 0);
  await assert.rejects(connectRaw(port), { code: 'ECONNREFUSED' });
});

test('channelz keeps no books of servers, sockets and streams', async () => {
  const port = await listen();
  await connect(port);
  const handlers = getChannelzHandlers() as unknown as { GetServers(call: object, answer: (error: unknown, value: { server: unknown[] }) => void): void };
  handlers.GetServers({ request: { start_server_id: 0, max_results: 100 } }, (error, { server }) => {
    assert.equal(error, null);
    assert.deepEqual(server, []);
  });
});

test('where it can\'t listen, the error says so, and a later try succeeds', async () => {
  const taken = await listen();
  await assert.rejects(group.listen(`127.0.0.1:${taken}`, ServerCredentials.createInsecure()), new RegExp(`EADDRINUSE.*127\\.0\\.0\\.1:${taken}`));
  await connect(await listen());
});
