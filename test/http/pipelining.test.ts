/** A client that sends requests before it has its answers, while the kernel has its exchange: to the same server, in order, or not at all. */
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { answer, anew, byEnvoy, client, closeAll, connection, ends, envoy, exchanges, fast, request, server, tableId, taught, text, untilEnded, w } from './exchange-testing.js';

exchanges();
// Answers without an end put their class aside for a while: classes of its own for each test.
beforeEach(anew);

const PIPELINED = 16;
const underWay = (): bigint => w.kernel.http.control.activity(w.world.pod(0).netnsCookie).underWay;
const heads = (path: string): string => request(path).replace('GET', 'HEAD');

/** Sends these one after the other, and looks whether the server of /a has them all. */
async function sent(...requests: string[]): Promise<void> {
  for (const each of requests) assert.equal((await client.do('send', 'c', each)).error, undefined);
  assert.equal(text(await server.do('receive', 's80', requests.join('').length)), requests.join(''));
}

async function heard(...answers: string[]): Promise<void> {
  assert.equal(text(await client.do('receive', 'c', answers.join('').length)), answers.join(''));
}

/** How many of the kernel's exchanges since the last call ended how, by status. */
function totals(): Record<string, number> {
  const out: Record<string, number> = {};
  for (const { id, status, ending, totals: { requests } } of w.kernel.http.totals.entries()) {
    out[`${status} ${ending}`] = (out[`${status} ${ending}`] ?? 0) + Number(requests);
    w.kernel.http.totals.take(id);
  }
  return out;
}

/** Of the client's connection nothing is Envoy's, and nothing is under way any more. */
async function cut(): Promise<void> {
  await untilEnded(1);
  assert.equal((await envoy.do('receive', 'd', 1, 0.05)).data || undefined, undefined, 'nothing of it is Envoy\'s');
  assert.equal(underWay(), 0n);
  await closeAll();
  ends.length = 0;
}

test('requests of one class before the answers: the same server has them in order, the client its answers, and then the connection is Envoy\'s', async () => {
  await taught('/a', 80, await connection());
  totals();
  const { counters } = await w.counted(async () => {
    await sent(request('/a/1'), heads('/a/2'), request('/a/3'), request('/a/4', 'Content-Length: 4\r\n', 'body').replace('GET', 'POST'));
    assert.equal(underWay(), 4n);
    const toHead = 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n';
    await server.do('send', 's80', answer('one'));
    await heard(answer('one'));
    assert.equal(underWay(), 3n);
    // The next two with the beginning of the fourth in one write.
    const [third, fourth] = ['HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthree\r\n0\r\n\r\n', answer('four')];
    await server.do('send', 's80', toHead + third + fourth.slice(0, -2));
    await heard(toHead, third, fourth.slice(0, -2));
    assert.equal(underWay(), 1n);
    await server.do('send', 's80', fourth.slice(-2));
    await heard(fourth.slice(-2));
    assert.equal(underWay(), 0n);
    assert.equal(await byEnvoy(request('/a/5')), false);
    assert.equal(await byEnvoy(request('/a/6')), false);
  });
  assert.deepEqual([counters['http_requests_fast'], counters['http_requests_pipelined'], counters['http_answers_fast'], counters['http_channels_lost']], [4, 3, 4, 1], JSON.stringify(counters));
  assert.deepEqual(totals(), { '200 answered': 3, '404 answered': 1 });
  assert.deepEqual(ends, []);
});

test('several requests in one write behind one that is under way, and more while they are answered', async () => {
  await taught('/a', 80, await connection());
  const kinds = [{ isHead: false, hints: false }, { isHead: true, hints: false }, { isHead: false, hints: true }, { isHead: true, hints: true }];
  const asked = (i: number): string => (kinds[i % 4]!.isHead ? heads : request)(`/a/${i}`);
  await sent(asked(0), [1, 2, 3].map(asked).join(''));
  for (let i = 0; i < 40; i++) {
    const { isHead, hints } = kinds[i % 4]!;
    const whole = (hints ? 'HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n' : '') + answer(`answer ${i}`).slice(0, isHead ? -`answer ${i}`.length : undefined);
    await server.do('send', 's80', whole);
    await heard(whole);
    await sent(asked(i + 4));
    assert.equal(underWay(), 4n);
  }
  await client.do('close', 'c');
  await untilEnded(1);
  assert.equal(underWay(), 0n);
});

test('what may not go the same way resets the connection, and none of it reaches Envoy or a server', async () => {
  for (const [what, more] of Object.entries({
    'of another class': [request('/b')],
    'of no class': [request('/envoys')],
    'of another host': [request('/a').replace('shop', 'else')],
    'that the policy of the endpoint does not let in': [request('/a/secret/1')],
    'that could be read in two ways': [request('/a', 'Content-Length: 1\r\nTransfer-Encoding: chunked\r\n', 'x').replace('GET', 'POST')],
    'whose head comes in pieces': ['GET /a HTTP/1.1\r\nHo'],
    'whose body is not there': [request('/a', 'Content-Length: 5\r\n').replace('GET', 'POST')],
    'by chunks': [request('/a', 'Transfer-Encoding: chunked\r\n', '0\r\n\r\n').replace('GET', 'POST')],
    'behind one that may': [request('/a') + request('/b')],
    'behind the one that asked for the end': [request('/a', 'Connection: close\r\n'), request('/a')],
    'beyond as many as there may be': Array.from({ length: PIPELINED + 1 }, (_, i) => request(`/a/${i}`)),
  })) {
    await taught('/a', 80, await connection());
    totals();
    await sent(request('/a'));
    const { counters } = await w.counted(async () => {
      for (const each of more) await client.do('send', 'c', each);
      await untilEnded(1);
    });
    const accepted = more.slice(0, -1).join('');
    if (accepted) assert.equal(text(await server.do('receive', 's80', accepted.length)), accepted, what);
    assert.equal((await server.do('receive', 's80', 1, 0.02)).data, '', what);
    assert.equal(counters['http_lost_pipelined'], 1, what);
    assert.match(String((await client.do('receive', 'c', 1)).error), /reset/, what);
    // One that was under way when the message was read, and is not in it, counts as well.
    assert.deepEqual(Object.keys(totals()), ['0 reset-here'], what);
    await cut();
  }
});

test('suspended, or without an agent\'s word: nothing is added to what is under way, and that ends well', async () => {
  await taught('/a', 80, await connection());
  await sent(request('/a/1'), request('/a/2'));
  w.kernel.http.control.setPod(w.world.pod(0).netnsCookie, { table: tableId, state: 'suspended' });
  await server.do('send', 's80', answer('one') + answer('two'));
  await heard(answer('one'), answer('two'));
  assert.equal(underWay(), 0n);
  await closeAll();
  w.kernel.http.control.setPod(w.world.pod(0).netnsCookie, { table: tableId, state: 'live' });
  await taught('/a', 80, await connection());
  await sent(request('/a/1'));
  w.kernel.http.control.setPod(w.world.pod(0).netnsCookie, { table: tableId, state: 'suspended' });
  await client.do('send', 'c', request('/a/2'));
  await cut();
});

test('the server goes with several under way: the client has what was answered, and is told; each counts', async () => {
  for (const how of ['close', 'reset']) {
    await taught('/a', 80, await connection());
    totals();
    await sent(request('/a/1'), request('/a/2'), request('/a/3'));
    await server.do('send', 's80', answer('one') + answer('two').slice(0, -1));
    await heard(answer('one'));
    await server.do(how, 's80');
    const got = await client.do('receive', 'c', 1_000, 1);
    assert.match(String(got.error), /reset/, JSON.stringify(got));
    assert.deepEqual(totals(), { '200 answered': 1, '200 server-ended': 1, '0 server-ended': 1 });
    await cut();
  }
});

test('the server says that it closes before all is answered: the client has its answer and the end of the stream', async () => {
  await taught('/a', 80, await connection());
  totals();
  await sent(request('/a/1'), request('/a/2'), request('/a/3'));
  const last = answer('last', 'Connection: close\r\n');
  await server.do('send', 's80', last);
  await server.do('close', 's80');
  const got = await client.do('receive', 'c', 1_000, 1);
  assert.deepEqual([got.data, got.end], [last, true]);
  assert.deepEqual(totals(), { '200 answered': 1, '0 server-ended': 2 });
  await cut();
  // Delimited by the end itself.
  await anew();
  await taught('/a', 80, await connection());
  totals();
  await sent(request('/a/1'), request('/a/2'));
  await server.do('send', 's80', 'HTTP/1.1 200 OK\r\n\r\nuntil close');
  await server.do('close', 's80');
  const until = await client.do('receive', 'c', 1_000, 1);
  assert.deepEqual([until.data, until.end], ['HTTP/1.1 200 OK\r\n\r\nuntil close', true]);
  assert.deepEqual(totals(), { '200 answered': 1, '0 server-ended': 1 });
  await cut();
});

test('the last request asks for the connection\'s end: the client sees it behind the answer, also if the server does not say so', async () => {
  for (const more of ['', 'Connection: close\r\n']) {
    await taught('/a', 80, await connection());
    await sent(request('/a/1'), request('/a/2', 'Connection: close\r\n'));
    await server.do('send', 's80', answer('one'));
    await heard(answer('one'));
    await server.do('send', 's80', answer('two', more));
    const got = await client.do('receive', 'c', 1_000, 1);
    assert.deepEqual([got.data, got.end], [answer('two', more), true]);
    await cut();
  }
});

test('the client goes with several under way: the server\'s connection is reset; each counts', async () => {
  for (const how of ['close', 'reset', 'shutdown']) {
    await taught('/a', 80, await connection());
    totals();
    await sent(request('/a/1'), request('/a/2'), request('/a/3'));
    await client.do(how, 'c');
    await untilEnded(1);
    assert.equal((await server.do('receive', 's80', 1, 1)).timeout, undefined, how);
    assert.deepEqual(totals(), { '0 client-ended': 3 });
    assert.equal(underWay(), 0n);
    await closeAll();
    ends.length = 0;
  }
});

test('Envoy speaks with several under way: the client sees none of it', async () => {
  await taught('/a', 80, await connection());
  await sent(request('/a/1'), request('/a/2'));
  await envoy.do('send', 'd', answer('whose?'));
  await untilEnded(1);
  assert.equal((await client.do('receive', 'c', 1, 0.2)).data, '');
  assert.equal(underWay(), 0n);
});

test('a server that answers more than it was asked: what comes behind the last answer belongs to no request of the next server', async () => {
  await taught('/a', 80, await connection());
  await sent(request('/a/1'), request('/a/2'));
  const whole = answer('one') + answer('two') + answer('never asked');
  await server.do('send', 's80', whole);
  await heard(whole);
  // Nobody knows where the second answer ends: a request now is one before it.
  await client.do('send', 'c', request('/a/3'));
  await cut();
});

test('a connection that waits for its answers stays fast', async () => {
  await taught('/a', 80, await connection());
  for (let i = 0; i < 5; i++) await fast(`/a/${i}`, 80, `${i}`);
});
