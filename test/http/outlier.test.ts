/** Outlier detection in the kernel: who is left out of the draw after which answers, for how long, and when nobody is. Real sockets, programs and tables. */
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { PATIENCE_MS, waitFor } from '../../common/retry.js';
import type { HttpEndpoint, HttpTable, OutlierDetection } from '../../agent/http/table.js';
import { anew, answer, client, closeAll, connection, DRAWN, envoy, exchanges, lesson, line, request, server, startBeat, stopBeat, text, upstream, w } from './exchange-testing.js';

const FAILS = 3;
/** Who is out stays out for the rest of the test, however busy the machine is. */
const LONG_MS = 60_000;
const USUAL: OutlierDetection = {
  consecutive5xx: FAILS, consecutiveGatewayFailure: 0, intervalMs: 200, baseEjectionMs: LONG_MS, maxEjectionMs: 300_000, maxEjectionPercent: 100, alwaysEjectOneHost: false, hosts: 2, spare: 1, panic: Infinity,
};
let detection: OutlierDetection = USUAL;
let serial = 0;
let ports = [80, 81];

/** One class, whose cluster has the server's two ports as its endpoints. */
function tableOf(): HttpTable {
  const endpoint = (port: number): HttpEndpoint => ({ address: w.world.pod(1).ipv4, port, policy: 'open', weight: 1, teachable: true, text: line('x-endpoint', `${w.world.pod(1).ipv4}:${port}`, 160) });
  return {
    ports: [{ address: undefined, port: 80, routes: 0 }], routes: [{ name: '80', hosts: [{ host: 'shop', virtualHost: 0 }] }],
    virtualHosts: [{ rules: [{ path: { kind: 'any', value: '', inverted: false }, methods: undefined, headers: [], verdict: 0 }], otherwise: -1 }],
    classes: [{ ...w.kernel.http.tables.takeName()!, splits: [{ until: 1, cluster: 0, text: line('x-weight', '0', 32) }] }],
    clusters: [{ name: `outbound|80||shop-${serial}`, balance: 'least-request', outlierDetection: detection, endpoints: ports.map(endpoint) }],
    policies: [], findings: [], classOf: () => undefined,
  };
}

exchanges(() => true, tableOf);

/** A cluster that nothing is known of. */
async function fresh(changes: Partial<OutlierDetection> = {}): Promise<void> {
  serial++;
  detection = { ...USUAL, ...changes };
  await anew();
}
beforeEach(() => fresh());

const status = () => w.kernel.http.tables.outliers.status.clusters.find(({ cluster }) => cluster === `outbound|80||shop-${serial}`)!;
const ejected = (): number[] => status().ejected.map(({ port }) => port).sort();
const SENT = request('/');
const failed = (code = 503, more = ''): string => `HTTP/1.1 ${code} No\r\n${more}Content-Length: 0\r\n\r\n`;
const tried = (times: number | string): string => `x-underpass-tried: ${times}\r\n`;

/** Sends a request, which has to go through Envoy. @returns the port that was drawn; undefined: none was */
async function draw(): Promise<number | undefined> {
  await client.do('send', 'c', SENT);
  const got = text(await envoy.do('receive', 'd', SENT.length));
  if (!got.includes('\r\nx-weight')) {
    assert.equal(got, SENT);
    return undefined;
  }
  const all = got + text(await envoy.do('receive', 'd', DRAWN));
  return Number(/x-endpoint: [\d.]+:(\d+)/.exec(all)![1]);
}

async function answered(back: string, seen = back): Promise<void> {
  await envoy.do('send', 'd', back);
  assert.equal(text(await client.do('receive', 'c', back.length)), seen);
}

/** Requests until `count` of them were drawn for this port, which fail; others are answered well. @returns for whom all of them were */
async function failAt(port: number, count: number, back = failed()): Promise<(number | undefined)[]> {
  const found: (number | undefined)[] = [];
  for (let failures = 0; failures < count && found.length < 200; ) {
    const drawn = await draw();
    found.push(drawn);
    if (drawn === port) failures++;
    await answered(drawn === port ? back : answer('ok'));
  }
  return found;
}

async function draws(count: number): Promise<(number | undefined)[]> {
  const found: (number | undefined)[] = [];
  for (let i = 0; i < count; i++) {
    found.push(await draw());
    await answered(answer('ok'));
  }
  return [...new Set(found)].sort();
}

/** Until it is back, and how long that took from `since`. */
async function untilBack(port: number, since: number): Promise<number> {
  for (;;) {
    if ((await draws(1))[0] === port) return performance.now() - since;
    assert.ok(performance.now() - since < PATIENCE_MS, `${port} is not back`);
  }
}

test('an endpoint that fails so often in a row is not drawn until its time is over, and then is', async () => {
  await fresh({ baseEjectionMs: 2_000 });
  await connection();
  const since = performance.now();
  await failAt(80, FAILS);
  // The first draw of it comes when its time is over.
  const took = await untilBack(80, since);
  assert.ok(took >= 1_990, `back after ${took} ms`);
  assert.deepEqual([ejected(), status().ejections], [[], { consecutive5xx: 1, consecutiveGatewayFailure: 0 }]);
});

test('each ejection in a row lasts longer by the base time, up to the longest', async () => {
  // Of the factor each whole interval without an ejection takes one.
  await fresh({ baseEjectionMs: 600, maxEjectionMs: 700, intervalMs: 2_000 });
  await connection();
  for (const [least, times] of [[590, 1], [690, 2]] as const) {
    const since = performance.now();
    await failAt(80, FAILS);
    const [{ forMs, times: factor } = { forMs: 0, times: 0 }] = status().ejected;
    assert.equal(factor, times);
    assert.ok(forMs <= 2_700, `${forMs} ms`);
    const took = await untilBack(80, since);
    assert.ok(took >= least, `back after ${took} ms`);
  }
});

test('an answer that is none of 5xx begins the count anew; other gateway failures count apart', async () => {
  await connection();
  for (let round = 0; round < 3; round++) {
    await failAt(80, FAILS - 1);
    await failAt(80, 1, answer('ok'));
  }
  assert.deepEqual(ejected(), []);
  await fresh({ consecutive5xx: 0, consecutiveGatewayFailure: 2 });
  await failAt(80, 5, failed(500));
  await failAt(80, 1, failed(502));
  await failAt(80, 1, failed(500));
  await failAt(80, 1, failed(504));
  assert.deepEqual(ejected(), []);
  await failAt(80, 1, failed(503));
  assert.deepEqual([ejected(), status().ejections], [[80], { consecutive5xx: 0, consecutiveGatewayFailure: 1 }]);
});

test('no more are ejected than may be, but one where that is asked for', async () => {
  await connection();
  await fresh({ maxEjectionPercent: 49 });
  await failAt(80, FAILS);
  assert.deepEqual([ejected(), status().overflows], [[], 1]);
  await fresh({ maxEjectionPercent: 0, alwaysEjectOneHost: true });
  await failAt(80, FAILS);
  await failAt(81, FAILS);
  assert.deepEqual([ejected(), status().overflows], [[80], 1]);
});

test('with all of them out requests are Envoy\'s, undrawn; in panic all are drawn', async () => {
  await connection();
  await failAt(80, FAILS);
  await failAt(81, FAILS);
  assert.deepEqual(ejected(), [80, 81]);
  const { counters } = await w.counted(async () => assert.deepEqual(await draws(10), [undefined]));
  assert.equal(counters['http_ejected'], 10);
  await fresh({ spare: 0, panic: 1 });
  await failAt(80, FAILS);
  assert.deepEqual([ejected(), await draws(60)], [[80], [80, 81]]);
});

test('an answer that Envoy tried for more than once is a failure of the one that was drawn, one that it never tried for says nothing; the client sees no word of it', async () => {
  await connection();
  for (let i = 0, failures = 0; failures < FAILS && i < 200; i++) {
    const drawn = await draw();
    const line = tried(drawn === 80 ? 2 : 1);
    if (drawn === 80) failures++;
    const back = answer('ok', `x-a: b\r\n${line}`);
    await answered(back, back.replace(`\r\n${line}`, `${' '.repeat(line.length)}\r\n`));
  }
  assert.deepEqual(ejected(), [80]);
  await fresh();
  for (let i = 0; i < 4 * FAILS; i++) {
    await draw();
    const back = failed(503, tried(0));
    await answered(back, back.replace(`\r\n${tried(0)}`, `${' '.repeat(tried(0).length)}\r\n`));
  }
  assert.deepEqual(ejected(), []);
});

test('a change of tables keeps what was ejected and counted', async () => {
  await connection();
  await failAt(80, FAILS);
  await failAt(81, FAILS - 1);
  await anew();
  assert.deepEqual(ejected(), [80]);
  assert.deepEqual(await draws(20), [81]);
  await fresh();
  await failAt(80, FAILS - 1);
  await anew();
  await failAt(80, 1);
  assert.deepEqual(ejected(), [80]);
});

test('who is out and not in the new table any more does not count', async () => {
  await fresh({ spare: 0 });
  await connection();
  await failAt(80, FAILS);
  assert.deepEqual(await draws(5), [undefined], 'others would have to take a part');
  ports = [81, 82];
  await anew();
  assert.deepEqual(await draws(40), [81, 82]);
  ports = [80, 81];
  await anew();
  assert.deepEqual([await draws(5), ejected()], [[undefined], [80]]);
});

/** Both servers are learnt of this connection. */
async function bothTaught(): Promise<void> {
  const clientPort = await connection();
  const left = new Set([80, 81]);
  for (let i = 0; left.size > 0; i++) {
    assert.ok(i < 100);
    await client.do('send', 'c', SENT);
    const { data = '' } = await envoy.do('receive', 'd', SENT.length + DRAWN, 0.2);
    const port = Number(/x-endpoint: [\d.]+:(\d+)/.exec(data)?.[1] ?? 0);
    if (port === 0) {
      await byKernel();
      continue;
    }
    await upstream(port);
    left.delete(port);
    const passedOn = `GET / HTTP/1.1\r\nhost: shop\r\nx-underpass-lesson: ${lesson(0, clientPort)}\r\n\r\n`;
    await envoy.do('send', `u${port}`, passedOn);
    await server.do('receive', `s${port}`, passedOn.length);
    await server.do('send', `s${port}`, answer('ok'));
    await envoy.do('receive', `u${port}`, answer('ok').length);
    await answered(answer('ok'));
  }
}

/** The request that was sent last, which the kernel has moved, is answered. @returns by which port */
async function byKernel(backOf: (port: number) => string = () => answer('ok')): Promise<number> {
  for (const port of [80, 81, 80, 81]) {
    const { data } = await server.do('receive', `s${port}`, SENT.length, 0.1).catch(() => ({ data: undefined }));
    if (data !== SENT) continue;
    const back = backOf(port);
    await server.do('send', `s${port}`, back);
    await client.do('receive', 'c', back.length);
    return port;
  }
  throw new assert.AssertionError({ message: 'no server has the request' });
}

test('answers that the kernel moves count as well, and the others stay fast', async () => {
  await fresh({ consecutive5xx: 1 });
  await bothTaught();
  let failing = 0;
  while (failing === 0) {
    await client.do('send', 'c', SENT);
    const port = await byKernel((each) => (each === 80 ? failed(500) : answer('ok')));
    if (port === 80) failing = port;
  }
  assert.deepEqual(ejected(), [80]);
  // A 5xx puts its class through Envoy for ten seconds, by the draw.
  assert.deepEqual(await draws(20), [81]);
});

test('an agent that stands still makes no difference: what is under way is judged, and who is out stays out', async () => {
  await fresh({ consecutive5xx: 1, baseEjectionMs: 3_000 });
  await bothTaught();
  await client.do('send', 'c', SENT);
  stopBeat();
  await sleep(1_300);
  const since = performance.now();
  const port = await byKernel(() => failed(500));
  startBeat();
  assert.deepEqual(ejected(), [port]);
  assert.deepEqual(await draws(5), [port === 80 ? 81 : 80]);
  stopBeat();
  await sleep(1_300);
  assert.deepEqual(await draws(5), [undefined], 'nothing is drawn');
  startBeat();
  assert.ok((await untilBack(port, since)) >= 2_900);
});

test('a server that ends in the middle of what the kernel moved has failed, and so has one whose answer Envoy breaks off', async () => {
  await fresh({ consecutive5xx: 1 });
  await bothTaught();
  await client.do('send', 'c', SENT);
  const port = await byKernel(() => 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab');
  assert.deepEqual(ejected(), []);
  await server.do('reset', `s${port}`);
  await waitFor('the ejection', () => ejected().length > 0, { everyMs: 10 });
  assert.deepEqual(ejected(), [port]);
  await closeAll();
  await fresh({ consecutive5xx: 1 });
  await connection();
  const drawn = await draw();
  await answered('HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab');
  await envoy.do('close', 'd');
  await waitFor('the ejection', () => ejected().length > 0, { everyMs: 10 });
  assert.deepEqual(ejected(), [drawn]);
  await client.do('close', 'c');
  await fresh({ consecutive5xx: 1 });
  await connection();
  await draw();
  await client.do('close', 'c');
  await sleep(50);
  assert.deepEqual(ejected(), [], 'a client that goes says nothing of the server');
});
