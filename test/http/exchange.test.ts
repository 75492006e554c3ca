/** What one client connection of the fast path may meet, at every point of an exchange. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { TAUGHT_MARK } from '../../agent/http/names.js';
import { answer, anew, byEnvoy, client, closeAll, connection, DRAWN, endings, ends, envoy, exchanges, fast, lesson, request, server, startBeat, stopBeat, tableId, taught, text, untilEnded, upstream, VIP, w } from './exchange-testing.js';

exchanges();

test('after Envoy has taught, requests go from the client\'s socket to the server\'s, and answers back', async () => {
  const port = await connection();
  const { counters } = await w.counted(() => taught('/a', 80, port));
  assert.deepEqual([counters['http_lessons'], counters['http_requests_drawn'], counters['http_requests_fast']], [1, 1, undefined], JSON.stringify(counters));
  for (let i = 0; i < 5; i++) await fast(`/a/${i}`, 80, `answer ${i}`);
  const { underWay } = w.kernel.http.control.activity(w.world.pod(0).netnsCookie);
  assert.equal(underWay, 0n);
  await closeAll();
});

test('two classes of one connection: each to its own server, none to the other\'s', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  await taught('/b', 81, port);
  for (let i = 0; i < 10; i++) {
    await fast(`/a/${i}`, 80, `a${i}`);
    await fast(`/b/${i}`, 81, `b${i}`);
  }
  await closeAll();
});

for (const [what, options] of Object.entries<{ mark?: null; lesson?: (port: number) => string }>({
  'from a connection that Envoy did not open by a taught cluster': { mark: null },
  'of another class than the request has': { lesson: (port) => lesson(1, port) },
  'of a generation that is over': { lesson: (port) => lesson(0, port).replace(/^(.{8})(.{8})/, (_, index: string, generation: string) => index + (parseInt(generation, 16) + 1).toString(16).padStart(8, '0')) },
  'for another port': { lesson: (port) => lesson(0, port === 65_535 ? port - 1 : port + 1) },
  'for another namespace': { lesson: (port) => lesson(0, port).replace(/-.*-/, `-${w.world.pod(1).netnsCookie.toString(16).padStart(16, '0')}-`) },
  'that is none': { lesson: () => 'zzzzzzzzzzzzzzzz-0000000000000000-1' },
  'without a port': { lesson: (port) => lesson(0, port).replace(/-\d+$/, '-') },
})) {
  test(`a lesson ${what} is not learnt`, async () => {
    const port = await connection();
    const { counters } = await w.counted(async () => {
      if (options.mark === null) {
        await upstream(80, null);
        await byEnvoy(request('/a'), null);
        await envoy.do('send', 'u80', `GET /a HTTP/1.1\r\nhost: shop\r\nx-underpass-lesson: ${lesson(0, port)}\r\n\r\n`);
        await envoy.do('send', 'd', answer('x'));
        await client.do('receive', 'c', answer('x').length);
      } else {
        await taught('/a', 80, port, { lesson: options.lesson!(port) });
      }
      assert.equal(await byEnvoy(request('/a/again')), true);
    });
    assert.equal(counters['http_lessons'], undefined, JSON.stringify(counters));
    assert.equal(counters['http_requests_fast'], undefined);
    await closeAll();
  });
}

test('a lesson counts only where a request begins: neither in a body nor where the server is not the one that was drawn', async () => {
  const port = await connection();
  const head = `GET /a HTTP/1.1\r\nhost: shop\r\nx-underpass-lesson: ${lesson(0, port)}\r\n\r\n`;
  await upstream(80);
  await upstream(81);
  const { counters } = await w.counted(async () => {
    await byEnvoy(request('/a'), null);
    await envoy.do('send', 'u80', `POST /a HTTP/1.1\r\nhost: shop\r\ncontent-length: ${head.length}\r\n\r\n`);
    await envoy.do('send', 'u80', head);
    await envoy.do('send', 'u81', head);
    // What can't be delimited, and then what looks like a head.
    await upstream(80, TAUGHT_MARK, '80b');
    await envoy.do('send', 'u80b', 'GET /a HTTP/1.1\r\nhost: sh');
    await envoy.do('send', 'u80b', head);
    await envoy.do('send', 'd', answer('x'));
    await client.do('receive', 'c', answer('x').length);
    assert.equal(await byEnvoy(request('/a/again')), true);
  });
  assert.equal(counters['http_lessons'], undefined, JSON.stringify(counters));
  await closeAll();
});

test('a lesson for a client that has nothing under way is not learnt; nor one by a connection that another client has been taught', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  const { counters } = await w.counted(async () => {
    await envoy.do('send', 'u80', `GET /a HTTP/1.1\r\nhost: shop\r\nx-underpass-lesson: ${lesson(0, port)}\r\n\r\n`);
  });
  assert.deepEqual([counters['http_lessons'], counters['http_lessons_refused']], [undefined, 1]);
  // Envoy has a request of its own there now: not for the kernel until it is answered.
  assert.equal(await byEnvoy(request('/a/busy'), null), true);
  await closeAll();

  const first = await connection();
  await taught('/a', 80, first);
  const { port: second } = await client.do('connect', 'c2', VIP, 80);
  await envoy.do('accept', 'd2', 'listener');
  await client.do('send', 'c2', request('/a'));
  await envoy.do('receive', 'd2', request('/a').length + DRAWN);
  const { counters: after } = await w.counted(() => envoy.do('send', 'u80', `GET /a HTTP/1.1\r\nhost: shop\r\nx-underpass-lesson: ${lesson(0, second!)}\r\n\r\n`));
  assert.deepEqual([after['http_lessons'], after['http_lessons_refused']], [undefined, 1]);
  await client.do('close', 'c2');
  await envoy.do('close', 'd2');
  await closeAll();
});

test('a connection whose lesson does not count is its client\'s all the same: learnt later, or swept when the client is gone', async () => {
  const port = await connection();
  const passedOn = `GET /a HTTP/1.1\r\nhost: shop\r\nx-underpass-lesson: ${lesson(0, port)}\r\n\r\n`;
  const { netnsCookie } = w.world.pod(0);
  await upstream(80);
  const refused = async (): Promise<void> => {
    await byEnvoy(request('/a'), null);
    w.kernel.http.control.setPod(netnsCookie, { table: tableId, state: 'suspended' });
    const { counters } = await w.counted(() => envoy.do('send', 'u80', passedOn));
    assert.deepEqual([counters['http_lessons'], counters['http_lessons_refused']], [undefined, 1]);
    await server.do('receive', 's80', passedOn.length);
    await server.do('send', 's80', answer('x'));
    await envoy.do('receive', 'u80', answer('x').length);
    await envoy.do('send', 'd', answer('x'));
    await client.do('receive', 'c', answer('x').length);
    w.kernel.http.control.setPod(netnsCookie, { table: tableId, state: 'live' });
  };
  await refused();
  assert.deepEqual(w.kernel.http.control.orphans(), []);
  await taught('/a', 80, port, { connect: false });
  await fast('/a', 80);
  await closeAll();
  const next = await connection();
  await upstream(80);
  await byEnvoy(request('/a'), null);
  w.kernel.http.control.setPod(netnsCookie, { table: tableId, state: 'suspended' });
  await envoy.do('send', 'u80', passedOn.replace(/-\d+\r/, `-${next}\r`));
  assert.deepEqual(w.kernel.http.control.orphans(), []);
  await client.do('reset', 'c');
  assert.equal(w.kernel.http.control.orphans().length, 1);
});

test('a policy of the endpoint sends what it does not plainly allow to Envoy, with the draw; what it allows stays fast', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  await fast('/a/public', 80);
  assert.equal(await byEnvoy(request('/a/secret/1')), true);
  await fast('/a/public', 80);
  await closeAll();
});

test('a route that is Envoy\'s gets no draw, and so does a host that is not known; a header twice that a route asks for leads to Envoy', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  await taught('/b', 81, port);
  assert.equal(await byEnvoy(request('/envoys')), false);
  assert.equal(await byEnvoy('GET /a HTTP/1.1\r\nHost: other\r\n\r\n'), false);
  assert.equal(await byEnvoy(request('/c', 'x-version: v2\r\nx-version: v1\r\n')), false);
  await fast('/c', 81);
  await fast('/a', 80);
  await closeAll();
});

test('a trace context is nothing to a class that is not traced: what has one is fast, and goes on as it is', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  for (const more of ['x-b3-sampled: 1\r\n', 'b3: 1\r\n', 'traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n', 'x-request-id: 0aa5d0b4-4a3e-9e0e-9e6e-1f1f1f1f1f1f\r\n', 'x-client-trace-id: 1\r\n']) {
    await client.do('send', 'c', request('/a', more));
    assert.equal(text(await server.do('receive', 's80', request('/a', more).length)), request('/a', more));
    await server.do('send', 's80', answer('fast'));
    assert.equal(text(await client.do('receive', 'c', answer('fast').length)), answer('fast'));
  }
  await closeAll();
});

test('a head that differs from the one before in a single byte is read anew, wherever that byte is', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  const head = (path: string, value: string, host: string): string => `GET ${path} HTTP/1.1\r\nX-Value: ${value}\r\nHost: ${host}\r\n\r\n`;
  const usual = head('/a/public', '1', 'shop');
  const viaKernel = async (sent: string): Promise<void> => {
    await client.do('send', 'c', sent);
    assert.equal(text(await server.do('receive', 's80', sent.length)), sent);
    await server.do('send', 's80', answer('ok'));
    assert.equal(text(await client.do('receive', 'c', answer('ok').length)), answer('ok'));
  };
  await viaKernel(usual);
  await viaKernel(usual);
  await viaKernel(head('/a/public', '2', 'shop'));
  await viaKernel(usual);
  for (const other of [head('/a/public', '1', 'shoq'), head('/a/public', '1', 'chop'), head('/envoys', '123', 'shop'), head('/a/secret', '1', 'shop')]) {
    assert.equal(other.length, usual.length);
    await byEnvoy(other);
    await viaKernel(usual);
  }
  // A length that differs, in answers as well.
  for (const body of ['1234567', '12345678', 'abcdefgh', '', '1']) {
    await client.do('send', 'c', usual);
    await server.do('receive', 's80', usual.length);
    await server.do('send', 's80', answer(body));
    assert.equal(text(await client.do('receive', 'c', answer(body).length)), answer(body));
  }
  await viaKernel(usual);
});

test('suspended: all goes to Envoy, undrawn and untaught, and nothing is counted as under way', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  const { netnsCookie } = w.world.pod(0);
  w.kernel.http.control.setPod(netnsCookie, { table: tableId, state: 'suspended' });
  assert.equal(await byEnvoy(request('/a')), false);
  assert.equal(w.kernel.http.control.activity(netnsCookie).underWay, 0n);
  w.kernel.http.control.setPod(netnsCookie, { table: tableId, state: 'live' });
  await fast('/a', 80);
  w.kernel.http.control.removePod(netnsCookie);
  assert.equal(await byEnvoy(request('/a')), false);
  w.kernel.http.control.setPod(netnsCookie, { table: tableId, state: 'live' });
  await fast('/a', 80);
  await closeAll();
});

test('bodies of requests: in one write, in several, by chunks; all of it arrives, and once', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  const body = 'b'.repeat(5_000);
  for (const parts of [[request('/a', `Content-Length: ${body.length}\r\n`, body)], [request('/a', `Content-Length: ${body.length}\r\n`), body.slice(0, 2_000), body.slice(2_000)]]) {
    parts[0] = parts[0]!.replace('GET', 'POST');
    const sent = parts.join('');
    for (const part of parts) await client.do('send', 'c', part);
    assert.equal(text(await server.do('receive', 's80', sent.length)), sent);
    await server.do('send', 's80', answer('ok'));
    assert.equal(text(await client.do('receive', 'c', answer('ok').length)), answer('ok'));
  }
  // By chunks it is Envoy's, that connection goes on.
  const chunked = `POST /a HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n`;
  await client.do('send', 'c', chunked);
  assert.match(text(await envoy.do('receive', 'd', chunked.length + DRAWN)), /x-weight/);
  for (const part of ['5\r\nhel', 'lo\r\n0', '\r\n\r\n']) await client.do('send', 'c', part);
  assert.equal(text(await envoy.do('receive', 'd', 15)), '5\r\nhello\r\n0\r\n\r\n');
  await envoy.do('send', 'd', answer('ok'));
  await client.do('receive', 'c', answer('ok').length);
  await fast('/a', 80);
  await closeAll();
});

test('answers: HEAD, 204, 304, without a body, interim ones, by chunks, in several writes', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  const cases: [method: string, ...parts: string[]][] = [
    ['HEAD', 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n'],
    ['GET', 'HTTP/1.1 204 No Content\r\n\r\n'],
    ['GET', 'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n'],
    ['GET', 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n'],
    ['GET', 'HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n', answer('after hints')],
    ['GET', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n'],
    ['GET', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', '5\r', '\nhel', 'lo\r\n1', '0\r\n0123456789abcdef\r\n', '0\r\n', '\r\n'],
    ['GET', 'HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n', 'abc', 'def'],
  ];
  for (const [method, ...parts] of cases) {
    const sent = request('/a').replace('GET', method);
    const { counters } = await w.counted(async () => {
      await client.do('send', 'c', sent);
      assert.equal(text(await server.do('receive', 's80', sent.length)), sent);
      for (const part of parts) await server.do('send', 's80', part);
      assert.equal(text(await client.do('receive', 'c', parts.join('').length)), parts.join(''));
    });
    assert.deepEqual([counters['http_requests_fast'], counters['http_answers_fast']], [1, 1], JSON.stringify([method, parts, counters]));
  }
  await fast('/a', 80);
  await closeAll();
});

test('more than one request in a write, a head in two writes, what is no HTTP: Envoy\'s, from then on for good', async () => {
  for (const parts of [[request('/a') + request('/a')], ['GET /a HTTP/1.1\r\nHo', 'st: shop\r\n\r\n'], ['PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'], [request('/a').replace('\r\n\r\n', '\r\n x\r\n\r\n')], [request('/a/../b')]]) {
    const port = await connection();
    await taught('/a', 80, port);
    const { counters } = await w.counted(async () => {
      for (const part of parts) await client.do('send', 'c', part);
      assert.equal(text(await envoy.do('receive', 'd', parts.join('').length)), parts.join(''));
      await client.do('send', 'c', request('/a'));
      assert.equal(text(await envoy.do('receive', 'd', request('/a').length)), request('/a'));
    });
    assert.deepEqual([counters['http_channels_lost'], counters['http_requests_fast']], [1, undefined], JSON.stringify([parts, counters]));
    await closeAll();
  }
  assert.deepEqual(ends, []);
});

test('a second request while Envoy has one under way is Envoy\'s; while the kernel has one, a request of another class resets the connection', async () => {
  await taught('/a', 80, await connection());
  assert.equal(await byEnvoy(request('/envoys'), null), false);
  await client.do('send', 'c', request('/a'));
  assert.equal(text(await envoy.do('receive', 'd', request('/a').length)), request('/a'));
  await closeAll();
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  await client.do('send', 'c', request('/b'));
  await untilEnded(1);
  assert.match(String((await client.do('receive', 'c', 1)).error), /reset/);
  // Nobody is left to whom the late answer could go.
  await server.do('send', 's80', answer('late'));
  await closeAll();
  assert.equal(w.kernel.http.control.activity(w.world.pod(0).netnsCookie).underWay, 0n);
});

test('a request that is answered before it was sent whole: the rest is that server\'s, and never a request of its own to Envoy', async () => {
  const post = `POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 33\r\n\r\n`;
  const smuggled = 'GET /b HTTP/1.1\r\nHost: shop\r\n\r\n'.padEnd(33, ' ').slice(0, 33);
  await taught('/a', 80, await connection());
  await client.do('send', 'c', post);
  await server.do('receive', 's80', post.length);
  await server.do('send', 's80', answer('early'));
  assert.equal(text(await client.do('receive', 'c', answer('early').length)), answer('early'));
  for (const part of [smuggled.slice(0, 7), smuggled.slice(7)]) await client.do('send', 'c', part);
  assert.equal(text(await server.do('receive', 's80', 33)), smuggled);
  assert.equal((await envoy.do('receive', 'd', 1, 0.05)).timeout, true);
  assert.equal(w.kernel.http.control.activity(w.world.pod(0).netnsCookie).underWay, 0n);
  await fast('/a', 80);
  assert.deepEqual(ends, []);
  await closeAll();
  // A server that is gone, and one request behind another: whatever comes after that, Envoy has not seen how it began.
  for (const how of ['reset', 'close', 'pipelined'] as const) {
    await taught('/a', 80, await connection());
    await client.do('send', 'c', how === 'pipelined' ? request('/a') : post);
    await server.do('receive', 's80', how === 'pipelined' ? request('/a').length : post.length);
    if (how !== 'pipelined') await server.do(how, 's80');
    for (let i = 0; i < 3; i++) await client.do('send', 'c', smuggled);
    assert.equal((await envoy.do('receive', 'd', 1, 0.05)).data || undefined, undefined, how);
    await untilEnded(1);
    ends.length = 0;
    await closeAll();
  }
});

test('the server ends in the middle: the client is told within a second, as it would be without a mesh', async () => {
  for (const [how, before, isOrderly] of [['reset', '', false], ['close', '', false], ['reset', 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc', false], ['close', 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc', false], ['close', 'HTTP/1.1 200 OK\r\n\r\nuntil close', true], ['close', 'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc', true]] as const) {
    await taught('/a', 80, await connection());
    await client.do('send', 'c', request('/a'));
    await server.do('receive', 's80', request('/a').length);
    if (before) await server.do('send', 's80', before);
    await server.do(how, 's80');
    const got = await client.do('receive', 'c', 100_000, 1);
    assert.equal(got.timeout, undefined, `${how} after ${JSON.stringify(before)}`);
    if (isOrderly) assert.deepEqual([got.data, got.end], [before, true]);
    else assert.ok(before.startsWith(got.data!) && /reset/.test(String(got.error)), JSON.stringify([how, before, got]));
    assert.equal(ends.length, 1, how);
    await closeAll();
    ends.length = 0;
    await sleep(0);
    // Answers without an end put the class aside for a while: a class of its own for each turn.
    await anew();
  }
});

test('a server that ends between two exchanges ends nobody\'s connection: the next request is Envoy\'s', async () => {
  for (const how of ['close', 'reset']) {
    await taught('/a', 80, await connection());
    await fast('/a', 80);
    await server.do(how, 's80');
    await sleep(20);
    assert.equal(await byEnvoy(request('/a')), true, how);
    assert.deepEqual(ends, []);
    await closeAll();
  }
});

test('the client ends in the middle: the server\'s connection is reset, and a late answer meets nobody', async () => {
  for (const how of ['close', 'reset', 'shutdown']) {
    await taught('/a', 80, await connection());
    await client.do('send', 'c', request('/a'));
    await server.do('receive', 's80', request('/a').length);
    await client.do(how, 'c');
    await untilEnded(1);
    const got = await server.do('receive', 's80', 1, 1);
    assert.equal(got.timeout, undefined, how);
    ends.length = 0;
    await closeAll();
    assert.equal(w.kernel.http.control.activity(w.world.pod(0).netnsCookie).underWay, 0n);
  }
});

test('a client\'s connection that is told to end when it has ended by itself: what listens for others stays', async () => {
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  await server.do('reset', 's80');
  await untilEnded(1);
  await endings.idle();
  await closeAll();
  for (const { cookie, ...socket } of [ends[0]!.socket]) {
    assert.ok(cookie, 'the kernel says which');
    endings.end({ ...ends[0]!, socket });
    endings.end(ends[0]!);
  }
  await endings.idle();
  await connection();
});

test('Envoy speaks although the kernel has the exchange: the connection is reset', async () => {
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  await envoy.do('send', 'd', answer('whose?'));
  await untilEnded(1);
  await closeAll();
});

test('an answer of 5xx, or a long one, puts its class aside; one that is too long by far ends its client\'s connection', async () => {
  await taught('/a', 80, await connection());
  const failed = 'HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n';
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  await server.do('send', 's80', failed);
  assert.equal(text(await client.do('receive', 'c', failed.length)), failed);
  assert.equal(await byEnvoy(request('/a')), true);
  await closeAll();
  await anew();
  await taught('/a', 80, await connection());
  const long = answer('l'.repeat(2 << 20));
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  await server.do('send', 's80', long);
  assert.equal(text(await client.do('receive', 'c', long.length)), long);
  assert.equal(await byEnvoy(request('/a')), true);
  await closeAll();
  await anew();
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  await server.do('send', 's80', `HTTP/1.1 200 OK\r\nContent-Length: ${8 << 20}\r\n\r\n`);
  for (let i = 0; i < 32 && ends.length === 0; i++) await server.do('send', 's80', 'x'.repeat(1 << 18));
  await untilEnded(1);
  await closeAll();
  await anew();
});

test('what Envoy answers: a connection stays the kernel\'s to look at unless the answer ends it, or its own end can\'t be told; each has its counter', async () => {
  const closing = answer('x', 'Connection: close\r\n');
  const cases: [asked: string, pieces: string[], lost: Record<string, number>][] = [
    ['Connection: close\r\n', [closing], { http_lost_close: 1 }],
    ['', [closing], { http_lost_close: 1 }],
    ['', ['HTTP/1.1 200 OK\r\n\r\nx'], { http_lost_answer: 1 }],
    ['', ['HTTP/1.1 200 OK\r\nContent-Le', 'ngth: 1\r\n\r\nx'], { http_lost_answer: 1 }],
    ['', ['HTTP/1.1 100 Continue\r\n\r\n', answer('x')], {}],
    ['', [`HTTP/1.1 103 Early Hints\r\n\r\n${answer('x')}`], {}],
    ['', ['HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', '1\r\nx\r\n0\r\n\r\n'], {}],
  ];
  for (const [asked, pieces, expected] of cases) {
    await connection();
    const { counters } = await w.counted(async () => {
      await byEnvoy(request('/a', asked), null);
      for (const piece of pieces) {
        await envoy.do('send', 'd', piece);
        assert.equal(text(await client.do('receive', 'c', piece.length)), piece);
      }
    });
    const lost = Object.fromEntries(Object.entries(counters).filter(([name]) => name.startsWith('http_lost_')));
    assert.deepEqual(lost, expected, JSON.stringify(pieces));
    assert.equal(await byEnvoy(request('/a')), Object.keys(expected).length === 0, JSON.stringify(pieces));
    await closeAll();
  }
});

test('without a heartbeat nothing new is fast; what is under way ends well', async () => {
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  stopBeat();
  await sleep(1_300);
  await server.do('send', 's80', answer('still'));
  assert.equal(text(await client.do('receive', 'c', answer('still').length)), answer('still'));
  assert.equal(await byEnvoy(request('/a')), false);
  startBeat();
  await fast('/a', 80);
  await closeAll();
});

// Last: its program is no event-driven one from here on.
test('a client whose socket becomes blocking between two requests is Envoy\'s', async () => {
  await taught('/a', 80, await connection());
  await client.do('blocking', 'c', true);
  await client.do('send', 'c', request('/a'));
  assert.equal(text(await envoy.do('receive', 'd', request('/a').length)), request('/a'));
  assert.equal(w.kernel.http.control.activity(w.world.pod(0).netnsCookie).underWay, 0n);
  assert.deepEqual(ends, []);
});
