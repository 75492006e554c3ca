/** What would let bytes of one exchange reach another, or leave one without an end: each case failed once, or is a suspicion that was wrong. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { answer, anew, byEnvoy, client, closeAll, connection, DRAWN, endings, ends, envoy, exchanges, fast, lesson, request, server, startBeat, stopBeat, taught, text, untilEnded, upstream, VIP, w } from './exchange-testing.js';

/** The agent is slow, or is no more. */
let isActing = false;
exchanges(() => isActing);

const post = (length: number, body = ''): string => request('/a', `Content-Length: ${length}\r\n`, body).replace('GET', 'POST');
const SMUGGLED = 'GET /b/never-asked HTTP/1.1\r\nHost: shop\r\n\r\n';

async function nothingAtEnvoy(): Promise<void> {
  assert.equal((await envoy.do('receive', 'd', 1, 0.3)).data, '', 'what belongs to no request of Envoy\'s');
}

async function nothingUnderWay(): Promise<void> {
  assert.equal(w.kernel.http.control.activity(w.world.pod(0).netnsCookie).underWay, 0n);
}

test('a request while the kernel has one under way does not reach Envoy, even if nobody ends the connection: its answer would be taken for the first one\'s', async () => {
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  await client.do('send', 'c', request('/b'));
  await untilEnded(1);
  await nothingAtEnvoy();
  await envoy.do('send', 'd', answer('of another'));
  assert.equal((await client.do('receive', 'c', 1, 0.3)).data, '');
  await nothingUnderWay();
});

test('what a client sends until it sees its connection reset: its sends succeed, as far as the kernel can keep what they are of, and it reaches nobody', async () => {
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  for (let i = 0; i < 100; i++) assert.equal((await client.do('send', 'c', i === 0 ? request('/b') : SMUGGLED)).error, undefined, `send ${i}`);
  await untilEnded(1);
  await nothingAtEnvoy();
  assert.equal((await server.do('receive', 's80', 1, 0.1)).data, '');
  endings.end(ends[0]!);
  await endings.idle();
  assert.match(String((await client.do('receive', 'c', 1)).error), /reset/);
  await nothingUnderWay();
  await closeAll();
  ends.length = 0;
  // Too much to be kept, and where nobody is there to end it.
  for (const isAlive of [true, false]) {
    await taught('/a', 80, await connection());
    await client.do('send', 'c', request('/a'));
    await server.do('receive', 's80', request('/a').length);
    if (!isAlive) stopBeat();
    if (!isAlive) await sleep(1_100);
    let error: unknown;
    for (let i = 0; i < (isAlive ? 200 : 1) && error === undefined; i++) error = (await client.do('send', 'c', i === 0 ? request('/b') : 'x'.repeat(40_000))).error;
    if (!isAlive) startBeat();
    assert.match(String(error), /Permission denied/);
    await nothingAtEnvoy();
    await closeAll();
  }
});

test('the rest of a body whose exchange was cut does not reach Envoy, which would take it for a request', async () => {
  for (const how of ['reset', 'close', 'with another request behind it'] as const) {
    await taught('/a', 80, await connection());
    const head = post(SMUGGLED.length + 1);
    await client.do('send', 'c', head);
    await client.do('send', 'c', 'x');
    await server.do('receive', 's80', head.length + 1);
    if (how !== 'with another request behind it') await server.do(how, 's80');
    if (how !== 'with another request behind it') await untilEnded(1);
    await client.do('send', 'c', how === 'with another request behind it' ? SMUGGLED + request('/a') : SMUGGLED);
    await untilEnded(1);
    await nothingAtEnvoy();
    await nothingUnderWay();
    await closeAll();
    ends.length = 0;
    await anew();
  }
});

test('Envoy speaks in the middle of an answer that the kernel moves: the client sees none of it', async () => {
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  const head = 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n';
  await server.do('send', 's80', head);
  await envoy.do('send', 'd', answer('whose?'));
  await untilEnded(1);
  assert.equal((await client.do('receive', 'c', 1_000, 0.3)).data, head);
  await nothingUnderWay();
});

test('a client that has not read all of Envoy\'s answer is not asked for the next one\'s by the kernel', async () => {
  await taught('/a', 80, await connection());
  assert.equal(await byEnvoy(request('/a/secret'), null), true);
  const long = answer('l'.repeat(20_000));
  w.kernel.setGlobalAcceleration(false); // by TCP
  await envoy.do('send', 'd', long);
  w.kernel.setGlobalAcceleration(true);
  await client.do('send', 'c', request('/a'));
  const atEnvoy = text(await envoy.do('receive', 'd', request('/a').length + DRAWN, 1));
  assert.match(atEnvoy, /^GET \/a HTTP/);
  await envoy.do('send', 'd', answer('second'));
  assert.equal(text(await client.do('receive', 'c', long.length + answer('second').length)), long + answer('second'));
  await fast('/a', 80);
  assert.deepEqual(ends, []);
});

test('two clients of one namespace with the same port: a lesson is learnt by the one whose it is, and neither has the other\'s server', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  await client.do('connect', 'c2', VIP, 80, null, [w.world.pod(0).ipv4, port]);
  const { port: second } = await envoy.do('accept', 'd2', 'listener');
  assert.equal(second, port);
  const { counters } = await w.counted(async () => {
    await client.do('send', 'c2', request('/a'));
    await sleep(50);
    await envoy.do('send', 'u80', `GET /a HTTP/1.1\r\nhost: shop\r\nx-underpass-lesson: ${lesson(0, port)}\r\n\r\n`);
  });
  assert.equal(counters['http_lessons'], undefined);
  assert.deepEqual(w.kernel.http.control.orphans(), [], 'the first client lives');
  assert.equal(text(await envoy.do('receive', 'd2', request('/a').length)), request('/a'), 'no draw, and so no lesson');
  for (const [end, name] of [[client, 'c2'], [envoy, 'd2']] as const) await end.do('close', name);
  await closeAll();
  // Its port is free again.
  await taught('/a', 80, await connection());
  await fast('/a', 80);
});

test('an answer of many small chunks, and an interim answer with the final one, in one write each: the connection stays fast', async () => {
  await taught('/a', 80, await connection());
  const chunks = `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${'1\r\nx\r\n'.repeat(2_000)}0\r\n\r\n`;
  const hints = 'HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n';
  for (const whole of [chunks, hints + answer('final'), hints + chunks]) {
    const { counters } = await w.counted(async () => {
      await client.do('send', 'c', request('/a'));
      await server.do('receive', 's80', request('/a').length);
      await server.do('send', 's80', whole);
      assert.equal(text(await client.do('receive', 'c', whole.length)), whole);
    });
    assert.equal(counters['http_answers_fast'], 1, whole.slice(0, 60));
    await fast('/a', 80);
  }
  // The same by Envoy.
  for (const whole of [chunks, hints + answer('final')]) {
    assert.equal(await byEnvoy(request('/a/secret'), whole), true);
    await fast('/a', 80);
  }
});

test('HEAD with the headers of a chunked answer: it ends with its head', async () => {
  await taught('/a', 80, await connection());
  const sent = request('/a').replace('GET', 'HEAD');
  const head = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n';
  await client.do('send', 'c', sent);
  await server.do('receive', 's80', sent.length);
  await server.do('send', 's80', head);
  assert.equal(text(await client.do('receive', 'c', head.length)), head);
  await fast('/a', 80);
});

test('a head so long that what Envoy adds makes it longer than the kernel reads is not told of a draw, so that no lesson gets to a server', async () => {
  await connection();
  const long = request('/a', `x-long: ${'l'.repeat(1_700)}\r\n`);
  assert.equal(await byEnvoy(long), false);
  const many = request('/a', Array.from({ length: 44 }, (_, i) => `x-${i}: 1\r\n`).join(''));
  assert.equal(await byEnvoy(many), false);
  await taught('/a', 80, Number((await client.do('port', 'c')).port));
  await client.do('send', 'c', long);
  assert.equal(text(await server.do('receive', 's80', long.length)), long, 'learnt, it is fast all the same');
  await server.do('send', 's80', answer('x'));
  assert.equal(text(await client.do('receive', 'c', answer('x').length)), answer('x'));
});

test('what Envoy tries again on another server: the second one is learnt, a late answer of the first does not reach the client', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  await byEnvoy(request('/a/secret/1'), null);
  const passedOn = `GET /a/secret/1 HTTP/1.1\r\nhost: shop\r\nx-underpass-lesson: ${lesson(0, port)}\r\n\r\n`;
  await envoy.do('send', 'u80', passedOn);
  await server.do('receive', 's80', passedOn.length);
  await upstream(80, undefined, '80b');
  await envoy.do('send', 'u80b', passedOn);
  await server.do('receive', 's80b', passedOn.length);
  await server.do('send', 's80b', answer('second'));
  await envoy.do('receive', 'u80b', answer('second').length);
  await envoy.do('send', 'd', answer('second'));
  assert.equal(text(await client.do('receive', 'c', answer('second').length)), answer('second'));
  await client.do('send', 'c', request('/a'));
  assert.equal(text(await server.do('receive', 's80b', request('/a').length)), request('/a'));
  await server.do('send', 's80', answer('first, late'));
  assert.equal(text(await envoy.do('receive', 'u80', answer('first, late').length)), answer('first, late'));
  await server.do('send', 's80b', answer('third'));
  assert.equal(text(await client.do('receive', 'c', answer('third').length)), answer('third'));
  assert.equal((await client.do('receive', 'c', 1, 0.2)).data, '');
});

test('acceleration is switched off in the middle of a body and of an answer: both arrive, and it is fast again behind it', async () => {
  await taught('/a', 80, await connection());
  await client.do('send', 'c', post(6, 'abc'));
  w.kernel.setGlobalAcceleration(false);
  await client.do('send', 'c', 'def');
  assert.equal(text(await server.do('receive', 's80', post(6, 'abcdef').length)), post(6, 'abcdef'));
  const whole = answer('in two writes');
  await server.do('send', 's80', whole.slice(0, -5));
  w.kernel.setGlobalAcceleration(true);
  await server.do('send', 's80', whole.slice(-5));
  assert.equal(text(await client.do('receive', 'c', whole.length)), whole);
  await fast('/a', 80);
});

test('Envoy answers by itself, and the late answer of a server whose length would be another one by the next request\'s method keeps that server busy to its end', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  await taught('/b', 81, port);
  await byEnvoy(request('/a/secret/1'), null);
  const passedOn = 'GET /a/secret/1 HTTP/1.1\r\nhost: shop\r\n\r\n';
  await envoy.do('send', 'u80', passedOn);
  await server.do('receive', 's80', passedOn.length);
  await envoy.do('send', 'd', answer('local'));
  assert.equal(text(await client.do('receive', 'c', answer('local').length)), answer('local'));
  await byEnvoy(request('/envoys').replace('GET', 'HEAD'), null);
  const inner = answer('of another request');
  const late = `HTTP/1.1 200 OK\r\nContent-Length: ${inner.length}\r\n\r\n`;
  await server.do('send', 's80', late);
  await envoy.do('send', 'd', 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n');
  await client.do('receive', 'c', 38);
  assert.equal(await byEnvoy(request('/a'), null), true, 'the server is not free');
  await server.do('send', 's80', inner);
  assert.equal(text(await envoy.do('receive', 'u80', (late + inner).length)), late + inner);
  await envoy.do('send', 'd', answer('right'));
  assert.equal(text(await client.do('receive', 'c', answer('right').length)), answer('right'));
  await fast('/a', 80);
});

test('requests in many small writes with MSG_MORE, and empty ones between: the body arrives whole, and once', async () => {
  await taught('/a', 80, await connection());
  const body = 'abcdefghij'.repeat(20);
  for (let round = 0; round < 3; round++) {
    await client.do('send', 'c', post(body.length), true);
    for (let at = 0; at < body.length; at += 10) {
      await client.do('send', 'c', body.slice(at, at + 10), at + 10 < body.length);
      await client.do('empty', 'c');
    }
    assert.equal(text(await server.do('receive', 's80', post(body.length, body).length)), post(body.length, body));
    await server.do('send', 's80', answer('ok'));
    assert.equal(text(await client.do('receive', 'c', answer('ok').length)), answer('ok'));
  }
  await nothingUnderWay();
});

test('a socket that is connected anew begins from nothing', async () => {
  await taught('/a', 80, await connection());
  await client.do('send', 'c', post(10, 'half'));
  await server.do('receive', 's80', post(10, 'half').length);
  await client.do('again', 'c', VIP, 80);
  await envoy.do('close', 'd');
  await envoy.do('accept', 'd', 'listener');
  await client.do('send', 'c', request('/a'));
  const got = text(await envoy.do('receive', 'd', request('/a').length));
  assert.match(got, /^GET \/a HTTP\/1\.1\r\n/);
  await envoy.do('send', 'd', answer('anew'));
  assert.equal(text(await client.do('receive', 'c', answer('anew').length)), answer('anew'));
  await nothingUnderWay();
});

// Last: its program is no event-driven one from here on.
test('a client whose socket becomes blocking in the middle of a body: nothing of it reaches Envoy, and its program is found out', async () => {
  await taught('/a', 80, await connection());
  const head = post(SMUGGLED.length);
  await client.do('send', 'c', head);
  await server.do('receive', 's80', head.length);
  await client.do('blocking', 'c', true);
  await client.do('send', 'c', SMUGGLED);
  await untilEnded(1);
  await nothingAtEnvoy();
  await nothingUnderWay();
  assert.deepEqual(w.kernel.probation().filter(({ kind }) => kind === 'client').map(({ verdict }) => verdict), ['blocking']);
});
