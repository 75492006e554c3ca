/** What the kernel does with requests of classes that are traced: it draws, says so, and repeats what a trace context says. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { answer, client, closeAll, connection, DRAWN, envoy, exchanges, request, server, tableOf, taught, text, w } from './exchange-testing.js';

const SHARE = 0.2;
exchanges(() => true, () => tableOf([{ kind: 'b3', sampled: SHARE }, { kind: 'w3c', sampled: SHARE }]));

/** By class: the path, the server's port, and how long what its server is told is. */
const KINDS = { b3: { path: '/a', port: 80, told: 24 }, w3c: { path: '/b', port: 81, told: 72 } } as const;
const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7';
const NOT_SAMPLED = { b3: 'x-b3-sampled: 0\r\n', w3c: `traceparent: 00-${TRACE}-00\r\n` } as const;
const SAMPLED = { b3: 'x-b3-sampled: 1\r\n', w3c: `traceparent: 00-${TRACE}-01\r\n` } as const;

/** Taught by a request that is not sampled, so that nothing is drawn of it. */
async function learn(kind: keyof typeof KINDS): Promise<void> {
  const clientPort = await connection();
  // Of five requests one is drawn to be traced: that lesson is as good, but its line is called otherwise.
  for (let attempt = 0; ; attempt++) {
    try {
      return await taught(KINDS[kind].path, KINDS[kind].port, clientPort, { connect: attempt === 0 });
    } catch (error) {
      if (!(error instanceof assert.AssertionError) || attempt > 20 || !/x-seight/.test(String(error.actual))) throw error;
      await envoy.do('send', 'd', answer('x'));
      await client.do('receive', 'c', answer('x').length);
    }
  }
}

/** What the server is told if the request was fast; undefined: Envoy had it, and was told that it is to be traced. */
async function exchange(kind: keyof typeof KINDS, more = ''): Promise<string | undefined> {
  const { path, port, told } = KINDS[kind];
  const sent = request(path, more);
  const { counters } = await w.counted(async () => {
    await client.do('send', 'c', sent);
  });
  if (counters['http_requests_fast'] === 1) {
    const bytes = more === NOT_SAMPLED[kind] ? 0 : told;
    const got = text(await server.do('receive', `s${port}`, sent.length + bytes));
    await server.do('send', `s${port}`, answer('fast'));
    assert.equal(text(await client.do('receive', 'c', answer('fast').length)), answer('fast'));
    const begins = sent.indexOf('\r\n') + 2;
    assert.equal(got.slice(0, begins) + got.slice(begins + bytes), sent);
    return got.slice(begins, begins + bytes);
  }
  assert.equal(counters['http_sampled'], 1, JSON.stringify(counters));
  const got = text(await envoy.do('receive', 'd', sent.length + DRAWN));
  assert.match(got, /^GET [^\r]+\r\nx-seight: 0 *\r\nx-endpoint: [\d.:]+ *\r\nHost: shop\r\n/);
  await envoy.do('send', 'd', answer('traced'));
  assert.equal(text(await client.do('receive', 'c', answer('traced').length)), answer('traced'));
  return undefined;
}

for (const kind of ['b3', 'w3c'] as const) {
  test(`${kind}: of 600 requests that say nothing ${SHARE * 100} % are Envoy's to trace, and the servers of the others are told that they were not sampled`, async (t) => {
    await learn(kind);
    const told: string[] = [];
    for (let i = 0; i < 600; i++) told.push((await exchange(kind)) ?? 'traced');
    const traced = told.filter((each) => each === 'traced').length;
    t.diagnostic(`${traced} of 600`);
    // Of a binomial distribution, 99.99 %.
    assert.ok(Math.abs(traced - 600 * SHARE) <= 3.9 * Math.sqrt(600 * SHARE * (1 - SHARE)), `${traced} of 600`);
    const fastOnes = told.filter((each) => each !== 'traced');
    for (const each of fastOnes) assert.match(each, kind === 'b3' ? /^x-b3-sampled: 0 +\r\n$/ : /^traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00 +\r\n$/);
    if (kind === 'w3c') {
      assert.equal(new Set(fastOnes).size, fastOnes.length, 'a trace of its own each');
      assert.equal(new Set(fastOnes.join('').match(/[0-9a-f]/g)).size, 16, 'of all digits');
    }
    await closeAll();
  });

  test(`${kind}: a request that says that it is not sampled is never drawn to be, and goes on as it is`, async () => {
    await learn(kind);
    for (let i = 0; i < 100; i++) assert.equal(await exchange(kind, NOT_SAMPLED[kind]), '', `request ${i}`);
    await closeAll();
  });

  test(`${kind}: one that says that it is sampled is Envoy's, undrawn, each time, and the connection stays fast for others`, async () => {
    await learn(kind);
    for (const more of [SAMPLED[kind], NOT_SAMPLED[kind] + SAMPLED[kind], 'x-client-trace-id: 1\r\n', 'x-request-id: 0aa5d0b4-4a3e-9e0e-9e6e-1f1f1f1f1f1f\r\n']) {
      const sent = request(KINDS[kind].path, more);
      const { counters } = await w.counted(async () => {
        await client.do('send', 'c', sent);
        assert.equal(text(await envoy.do('receive', 'd', sent.length)), sent);
      });
      assert.deepEqual([counters['http_traced'], counters['http_requests_envoy'], counters['http_sampled']], [1, 1, undefined], JSON.stringify(counters));
      await envoy.do('send', 'd', answer('x'));
      await client.do('receive', 'c', answer('x').length);
      assert.equal(await exchange(kind, NOT_SAMPLED[kind]), '');
    }
    await closeAll();
  });

  test(`${kind}: contexts of the other kind are none`, async () => {
    await learn(kind);
    const other = kind === 'b3' ? 'w3c' : 'b3';
    const results = [];
    for (let i = 0; i < 20; i++) results.push(await exchange(kind, i % 2 ? SAMPLED[other] : NOT_SAMPLED[other]));
    assert.ok(results.filter((each) => each !== undefined && each !== '').length >= 5, JSON.stringify(results));
    await closeAll();
  });
}
