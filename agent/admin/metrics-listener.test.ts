import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { test, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { socketAddress } from '../../common/arguments.js';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { PrometheusText, type MetricsPage } from '../telemetry/prometheus.js';
import { MetricsListener, type MetricsLimits } from './metrics-listener.js';

const WAIT = { everyMs: 10 };
const log = logger('test').child({}, { level: 'silent' });

/** Texts that are the same in every format. */
const page = (metrics: () => Promise<Iterable<string>>) => async (): Promise<MetricsPage> => {
  const texts = await metrics();
  return { pieces: () => texts };
};

async function listening(context: TestContext, metrics: () => Promise<Iterable<string>>, { address = '127.0.0.1:0', ...limits }: { address?: string } & Partial<MetricsLimits> = {}): Promise<{ listener: MetricsListener; port: number; url: (path: string) => string }> {
  const listener = new MetricsListener(socketAddress(address), page(metrics), log, limits);
  context.after(() => listener.close());
  await waitFor('the listener', () => listener.status.problem === undefined, WAIT);
  return { listener, port: Number(/\d+$/.exec(listener.status.address)![0]), url: (path) => `http://${listener.status.address}${path}` };
}

/** What comes back on a connection until it ends. */
async function conversation(port: number, words: string): Promise<string> {
  const socket = connect(port, '127.0.0.1');
  let text = '';
  socket.on('data', (chunk: Buffer) => (text += chunk.toString())).on('error', () => undefined);
  socket.write(words);
  await once(socket, 'close');
  return text;
}

test('MetricsListener: GET of /metrics is answered, and no other path, method or body', async (context) => {
  const { url, port } = await listening(context, () => Promise.resolve(['# TYPE a counter\n', 'a 1\n']));
  const answer = await fetch(url('/metrics?x=1'));
  assert.deepEqual([answer.status, answer.headers.get('content-type'), await answer.text()], [200, 'text/plain; version=0.0.4', '# TYPE a counter\na 1\n']);
  for (const path of ['/', '/v1/status', '/v1/http-fast-path', '/healthz', '/readyz', '/metrics/', '//metrics', '/v1/../metrics2', '/%6detrics']) assert.equal((await fetch(url(path))).status, 404, path);
  for (const method of ['POST', 'HEAD', 'PUT', 'DELETE', 'OPTIONS']) assert.equal((await fetch(url('/metrics'), { method })).status, 405, method);
  assert.match(await conversation(port, 'GET /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n'), /^HTTP\/1\.1 413 /);
  assert.match(await conversation(port, 'GET /metrics HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n'), /^HTTP\/1\.1 413 /);
  assert.match(await conversation(port, `GET /metrics HTTP/1.1\r\nhost: a\r\nx: ${'y'.repeat(10_000)}\r\n\r\n`), /^HTTP\/1\.1 431 /);
  assert.match(await conversation(port, 'no HTTP\r\n\r\n'), /^HTTP\/1\.1 400 /);
});

test('MetricsListener: who takes gzip has it, and nobody else', async (context) => {
  const text = `a{b="ü\\"\\\\"} 1\n`.repeat(5_000);
  const { url } = await listening(context, () => Promise.resolve([text, text]));
  for (const [accepted, isGzipped] of [['gzip', true], ['deflate, GZIP;q=0.5', true], ['gzip;q=1.0,deflate;q=0.6', true], ['gzip;q=0', false], ['identity', false], ['xgzip', false]] as const) {
    const answer = await fetch(url('/metrics'), { headers: { 'accept-encoding': accepted } });
    assert.deepEqual([answer.headers.get('content-encoding'), (await answer.text()) === text + text], [isGzipped ? 'gzip' : null, true], accepted);
  }
});

test('MetricsListener: who asks before texts are old gets those that were made once; a failure says nothing of its reason', async (context) => {
  let made = 0;
  const young = await listening(context, () => Promise.resolve([`made ${++made}\n`]), { ageMs: 3_600_000 });
  const ask = async (): Promise<string> => (await fetch(young.url('/metrics'))).text();
  assert.deepEqual([...new Set([...(await Promise.all(Array.from({ length: 20 }, ask))), await ask()])], ['made 1\n']);
  let answer = (): Promise<Iterable<string>> => Promise.reject(new Error('a secret of the agent'));
  const old = await listening(context, () => answer(), { ageMs: 1 });
  const failed = await fetch(old.url('/metrics'));
  assert.deepEqual([failed.status, await failed.text()], [500, "the metrics could not be read; the agent's log says why\n"]);
  answer = () => Promise.resolve(['a 1\n']);
  await waitFor('new texts', async () => (await fetch(old.url('/metrics'))).status === 200, WAIT);
});

test('MetricsListener: connections over the limit are closed at once, and there is room again when others end', async (context) => {
  const { port, url } = await listening(context, () => Promise.resolve(['a 1\n']));
  let closed = 0;
  const sockets: Socket[] = [];
  for (let index = 0; index < 40; index++) {
    const socket = connect(port, '127.0.0.1').on('error', () => undefined).on('close', () => closed++);
    sockets.push(socket);
    await once(socket, 'connect');
  }
  await waitFor('those over the limit to be closed', () => closed >= 8, WAIT);
  for (const socket of sockets) socket.destroy();
  await waitFor('room', () => fetch(url('/metrics')).then(({ status }) => status === 200, () => false), WAIT);
});

test('MetricsListener: whoever holds all connections that there may be keeps no other address out', async (context) => {
  const { port, url } = await listening(context, () => Promise.resolve(['a 1\n']), { idleMs: 600_000 });
  const sockets: Socket[] = [];
  context.after(() => sockets.forEach((socket) => socket.destroy()));
  for (const localAddress of ['127.0.0.2', '127.0.0.3']) {
    for (let index = 0; index < 40; index++) {
      const socket = connect({ port, host: '127.0.0.1', localAddress }).on('error', () => undefined);
      sockets.push(socket);
      await once(socket, 'connect');
    }
  }
  for (let index = 0; index < 3; index++) assert.equal(await (await fetch(url('/metrics'))).text(), 'a 1\n');
});

test('MetricsListener: requests that do not wait for the answer before them end their connection, and are not answered all at once', async (context) => {
  let pages = 0;
  const { port, url } = await listening(context, () => Promise.resolve([(pages++, `a{b="${'x'.repeat(1_000_000)}"} 1\n`)]), { ageMs: 3_600_000 });
  const request = 'GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n';
  const answered = (await conversation(port, request.repeat(500))).split('HTTP/1.1 200').length - 1;
  assert.ok(answered <= 1, `${answered} answers`);
  // One after the other on one connection they are.
  const socket = connect(port, '127.0.0.1').setEncoding('utf8');
  context.after(() => socket.destroy());
  for (let index = 0; index < 3; index++) {
    socket.write(request);
    let text = '';
    while (!text.endsWith('0\r\n\r\n')) text += String((await once(socket, 'data'))[0]);
    assert.match(text, /^HTTP\/1\.1 200 /);
  }
  assert.equal((await fetch(url('/metrics'))).status, 200);
  assert.equal(pages, 1);
});

test('MetricsListener: a port that somebody else has is tried again until it is free, and the status says why nobody is served', async (context) => {
  const other = createServer().listen(0, '127.0.0.1');
  await once(other, 'listening');
  const { port } = other.address() as AddressInfo;
  const listener = new MetricsListener({ host: '127.0.0.1', port }, page(() => Promise.resolve(['a 1\n'])), log);
  context.after(() => listener.close());
  const problem = await waitFor('the reason', () => (listener.status.problem?.includes('EADDRINUSE') ? listener.status : undefined), WAIT);
  assert.equal(problem.address, `127.0.0.1:${port}`);
  other.close();
  await waitFor('its turn', () => listener.status.problem === undefined, WAIT);
  assert.equal((await fetch(`http://127.0.0.1:${port}/metrics`)).status, 200);
  await listener.close();
  await assert.rejects(fetch(`http://127.0.0.1:${port}/metrics`));
});

test('MetricsListener: over IPv6; closed while nobody could be served', async (context) => {
  const { url } = await listening(context, () => Promise.resolve(['a 1\n']), { address: '[::1]:0' });
  assert.match(url('/metrics'), /^http:\/\/\[::1\]:\d+\/metrics$/);
  assert.equal((await fetch(url('/metrics'))).status, 200);
  const never = new MetricsListener({ host: '192.0.2.1', port: 1 }, page(() => Promise.resolve([])), log);
  await waitFor('the reason', () => never.status.problem?.includes('EADDRNOTAVAIL'), WAIT);
  await never.close();
});

test('socketAddress: an address of IPv4 or IPv6 with its port, and nothing else', () => {
  assert.deepEqual(socketAddress('0.0.0.0:15020'), { host: '0.0.0.0', port: 15_020 });
  for (const text of ['[fd00::1]:15020', 'fd00::1:15020']) assert.deepEqual(socketAddress(text), { host: 'fd00::1', port: 15_020 });
  for (const text of ['', '15020', ':15020', 'node:15020', '10.0.0.1', '10.0.0.1:', '10.0.0.1:65536', '10.0.0.1:-1', '10.0.0.1:15020/metrics', '[fd00::1]', '10.0.0.256:1']) assert.throws(() => socketAddress(text), /expected an IP address and a port/, text);
});

test('MetricsListener: OpenMetrics of this version for who likes it better, the older format for all others; both of the same texts', async (context) => {
  let made = 0;
  const text = new PrometheusText().add('underpass_x_total', 'counter', 'The "x".', 1, { a: 'b' }).add('underpass_y', 'gauge', 'y.', 2);
  const listener = new MetricsListener(socketAddress('127.0.0.1:0'), () => {
    made++;
    return Promise.resolve(text);
  }, log, { ageMs: 3_600_000 });
  context.after(() => listener.close());
  await waitFor('the listener', () => listener.status.problem === undefined, WAIT);
  const ask = async (accept: string): Promise<[string | null, string]> => {
    const answer = await fetch(`http://${listener.status.address}/metrics`, { headers: { accept } });
    return [answer.headers.get('content-type'), await answer.text()];
  };
  const open = '# HELP underpass_x The \\"x\\".\n# TYPE underpass_x counter\nunderpass_x_total{a="b"} 1\n# HELP underpass_y y.\n# TYPE underpass_y gauge\nunderpass_y 2\n# EOF\n';
  const old = '# HELP underpass_x_total The "x".\n# TYPE underpass_x_total counter\nunderpass_x_total{a="b"} 1\n# HELP underpass_y y.\n# TYPE underpass_y gauge\nunderpass_y 2\n';
  for (const accept of [
    'application/openmetrics-text',
    // Prometheus 2.42, and 3.
    'application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1',
    'application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2',
    'Application/OpenMetrics-Text; Version=1.0.0',
  ]) assert.deepEqual(await ask(accept), ['application/openmetrics-text; version=1.0.0; charset=utf-8', open], accept);
  for (const accept of ['*/*', 'text/plain', 'application/json', 'application/openmetrics-text;q=0', 'application/openmetrics-text;q=0.5,text/plain', 'application/openmetrics-text,text/plain', 'application/openmetrics-text;version=0.0.1', 'application/openmetrics-text;version=2.0.0,*/*;q=0.1', ';;q=x,,']) assert.deepEqual(await ask(accept), ['text/plain; version=0.0.4', old], accept);
  assert.equal(made, 1);
});

test('MetricsListener: while texts are made others have their turn', async (context) => {
  let turns = 0;
  let isOver = false;
  const count = (): void => {
    turns++;
    if (!isOver) setImmediate(count);
  };
  context.after(() => (isOver = true));
  const piecesOf = new Map<number, number>();
  function* pieces(): Generator<string> {
    for (let index = 0; index < 100; index++) {
      const until = performance.now() + 2;
      while (performance.now() < until);
      piecesOf.set(turns, (piecesOf.get(turns) ?? 0) + 1);
      yield `a{b="${index}"} 1\n`;
    }
  }
  const { url } = await listening(context, () => Promise.resolve(pieces()));
  count();
  assert.equal((await (await fetch(url('/metrics'))).text()).split('\n').length, 101);
  // Two milliseconds each, however fast or slow the machine is: after the third five have passed.
  assert.ok(Math.max(...piecesOf.values()) <= 4, JSON.stringify([...piecesOf.values()]));
});

test('MetricsListener: a reader that takes nothing is cut off, and one that goes early costs nothing; others are served meanwhile', async (context) => {
  const text = `a{b="${'x'.repeat(1_000)}"} 1\n`.repeat(20_000);
  const { url, port } = await listening(context, () => Promise.resolve([text]), { idleMs: 1_000, ageMs: 3_600_000 });
  const whole = async (): Promise<number> => (await (await fetch(url('/metrics'))).text()).length;
  assert.equal(await whole(), text.length);
  const idle = connect(port, '127.0.0.1').on('error', () => undefined);
  await once(idle, 'connect');
  idle.pause().write('GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n');
  for (let index = 0; index < 20; index++) {
    const early = connect(port, '127.0.0.1').on('error', () => undefined);
    early.write('GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n');
    await once(early, index % 2 === 0 ? 'data' : 'connect');
    early.destroy();
  }
  assert.equal(await whole(), text.length);
  await sleep(2_500);
  let taken = 0;
  const closed = once(idle, 'close');
  idle.on('data', (chunk: Buffer) => (taken += chunk.length)).resume();
  await closed;
  assert.ok(taken < text.length, `${taken} of ${text.length}`);
  assert.equal(await whole(), text.length);
});
