// What bpf/http-parse.h accepts and refuses, in user space and by the BPF program that has the same text.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ask, hex, read, readBodies, TRACE, type Question, type Reading, type Where } from './parser.js';

const request = (line: string, ...headers: string[]): string => [line, ...headers, '', ''].join('\r\n');
/** A plain request with these headers. */
const get = (...headers: string[]): string => request('GET / HTTP/1.1', 'Host: a', ...headers);
const post = (...headers: string[]): string => request('POST / HTTP/1.1', 'Host: a', ...headers);
const target = (path: string): string => request(`GET ${path} HTTP/1.1`, 'Host: a');
const answer = (status: string, ...headers: string[]): string => [`HTTP/1.1 ${status}`, ...headers, '', ''].join('\r\n');
const trace = `00-${'a'.repeat(32)}-${'b'.repeat(16)}`;
/** What headers say of being traced. */
const traces: [header: string, trace: number][] = [
  ['X: y', 0],
  ...[`${trace}-00`, `${trace}-02`, `${trace}-08`].map((value): [string, number] => [`traceparent: ${value}`, TRACE.w3c]),
  ...[`${trace}-01`, `${trace}-03`, `${trace}-0x`, `${trace}-0e`, trace, `01${trace.slice(2)}-00`, `${trace}-00-00`, ''].map((value): [string, number] => [`TraceParent: ${value}`, TRACE.w3cAsked]),
  ...['0', ...[16, 32].flatMap((n) => [`${'a'.repeat(n)}-${'b'.repeat(16)}-0`, `${'a'.repeat(n)}-${'b'.repeat(16)}-0-${'c'.repeat(16)}`])].map((value): [string, number] => [`b3: ${value}`, TRACE.b3]),
  ...['1', 'd', '', '00', `${'a'.repeat(32)}-${'b'.repeat(16)}-1`, `${'a'.repeat(32)}-${'b'.repeat(16)}-1-${'0'.repeat(16)}`, `${'a'.repeat(32)}-${'b'.repeat(16)}`].map((value): [string, number] => [`B3: ${value}`, TRACE.b3Asked]),
  ['x-b3-sampled: 0', TRACE.b3],
  ...['1', 'true', 'd', '', '00'].map((value): [string, number] => [`X-B3-Sampled: ${value}`, TRACE.b3Asked]),
  ['x-client-trace-id: 1', TRACE.asked],
  ['x-request-id: 0aa5d0b4-4a3e-4e0e-9e6e-1f1f1f1f1f1f', TRACE.id],
  ['X-Request-Id:', TRACE.id],
  ...['9', 'a', 'B'].map((version): [string, number] => [`x-request-id: 0aa5d0b4-4a3e-${version}e0e-9e6e-1f1f1f1f1f1f`, TRACE.asked | TRACE.id]),
];
const long = (n: number): string => get(`X: ${'v'.repeat(n - get('X: ').length)}`);

const accepted: [name: string, question: Question, expected: Partial<Reading>][] = [
  ['all of a request', { kind: 'request', head: request('GET /a/b?x=%41&y=/?:@ HTTP/1.1', 'Host: Reviews.Default:9080', 'X-Foo:  bar \t') + 'GET', name: 'X-FOO', prefix: '/a/b' },
    { end: 77, method: 'GET', framing: 'none', close: false, length: 0, target: '/a/b?x=%41&y=/?:@', path: '/a/b', host: 'reviews.default:9080', same: true, found: 1, value: 'bar' }],
  ...['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'].map((method): [string, Question, Partial<Reading>] => [`method ${method}`, { kind: 'request', head: request(`${method} /x HTTP/1.1`, 'host:a') }, { method, target: '/x', path: '/x', host: 'a' }]),
  ['a length', { kind: 'request', head: post('Content-Length: 9999999999') }, { framing: 'length', length: 9999999999 }],
  ['a length of 0', { kind: 'request', head: post('content-length:0') }, { framing: 'none', length: 0 }],
  ['a body of GET', { kind: 'request', head: get('content-length: 007') }, { framing: 'length', length: 7 }],
  ['chunked', { kind: 'request', head: post('Transfer-Encoding: CHUNKED') }, { framing: 'chunked' }],
  ['Connection: Close', { kind: 'request', head: get('Connection: Close') }, { close: true }],
  ['Connection: Keep-Alive', { kind: 'request', head: get('connection:Keep-Alive\t') }, { close: false }],
  ['TE: trailers', { kind: 'request', head: get('te: trailers') }, {}],
  ...traces.map(([header, trace]): [string, Question, Partial<Reading>] => [header, { kind: 'request', head: get(header) }, { trace }]),
  ['two trace contexts', { kind: 'request', head: get('b3: 0', 'x-b3-sampled: 1', `traceparent: ${trace}-00`) }, { trace: TRACE.b3 | TRACE.b3Asked | TRACE.w3c }],
  ['a request id that is no UUID', { kind: 'request', head: get('x-request-id: 0123456789abcd9') }, {}],
  ['a query with a slash and a dot behind', { kind: 'request', head: target('/a?b//c/../d') }, { path: '/a' }],
  ['a path of its other bytes', { kind: 'request', head: target("/-._~!$&'()*+,;=:@aZ09/z") }, { path: "/-._~!$&'()*+,;=:@aZ09/z" }],
  ['a % at a word\'s end', { kind: 'request', head: target('/?aaaaaa%20') }, {}],
  ['an IPv6 host', { kind: 'request', head: request('GET / HTTP/1.1', 'Host: [FD00::1]:80') }, { host: '[fd00::1]:80' }],
  ['a host of 64 bytes', { kind: 'request', head: request('GET / HTTP/1.1', `Host: ${'H'.repeat(64)}`) }, { host: 'h'.repeat(64) }],
  ['an absent header', { kind: 'request', head: get('foo-bar: 1'), name: 'foo' }, { found: 0 }],
  ['a header twice', { kind: 'request', head: get('foo: 1', 'FOO: 2'), name: 'foo' }, { found: 2 }],
  ['a header of 32 bytes', { kind: 'request', head: get('a_23456789-123456789-123456789-1: x'), name: 'A_23456789-123456789-123456789-1' }, { found: 1, value: 'x' }],
  ['an empty header', { kind: 'request', head: get('foo:'), name: 'foo' }, { found: 1, value: '' }],
  ['a header of blanks', { kind: 'request', head: get('foo:   '), name: 'foo' }, { found: 1, value: '' }],
  ['a header among too many blanks', { kind: 'request', head: get(`foo:${' '.repeat(9)}x`), name: 'foo' }, { found: 2 }],
  ['a header before too many blanks', { kind: 'request', head: get(`foo: x${' '.repeat(9)}`), name: 'foo' }, { found: 2 }],
  ['a target that is not the prefix', { kind: 'request', head: target('/abcdefghij'), prefix: '/abcdefghik' }, { same: false }],
  ['a prefix longer than the target', { kind: 'request', head: target('/abc'), prefix: '/abc/' }, { same: false }],
  ['48 lines', { kind: 'request', head: get(...Array.from({ length: 46 }, (_, i) => `h${i}: x`)) }, {}],
  ['a head of 2,048 bytes', { kind: 'request', head: long(2048) }, { end: 2048 }],
  ['what follows is not read', { kind: 'request', head: get() + '\0\n\r\xff' }, { end: get().length }],
  ['all of an answer', { kind: 'answer', head: answer('200 OK', 'Content-Length: 12', 'Connection: close', 'Keep-Alive: timeout=5', 'X: \xe4') + 'x' }, { status: 200, framing: 'length', length: 12, close: true }],
  ['an empty reason', { kind: 'answer', head: answer('200 ', 'content-length: 0') }, { status: 200, framing: 'none' }],
  ['a chunked answer', { kind: 'answer', head: answer('404 Not Found', 'transfer-encoding: chunked') }, { status: 404, framing: 'chunked' }],
  ['an answer without length', { kind: 'answer', head: answer('200 OK') }, { framing: 'until close' }],
  ['an answer to HEAD', { kind: 'answer-to-head', head: answer('200 OK', 'content-length: 5') }, { framing: 'none', length: 0 }],
  ['204', { kind: 'answer', head: answer('204 No Content') }, { framing: 'none' }],
  ['304 with a length', { kind: 'answer', head: answer('304 Not Modified', 'content-length: 5') }, { framing: 'none', length: 0 }],
  ['103', { kind: 'answer', head: answer('103 Early Hints', 'link: </a>') }, { status: 103, framing: 'none' }],
];

const refused: [doubt: string, kind: Question['kind'], ...heads: string[]][] = [
  ['INCOMPLETE', 'request', '', 'G', 'GET / HTTP/1.1\r\n', get().slice(0, -1), get().slice(0, -2), get().slice(0, -3)],
  ['TOO_LONG', 'request', long(2049)],
  ['TOO_MANY_LINES', 'request', get(...Array.from({ length: 47 }, (_, i) => `h${i}: x`))],
  ['BAD_BYTE', 'request', get('a: \0'), get('a: \x1f'), get('a: \x7f'), get('a: \x80'), get('a: \xff'), get('a\0: b'), target('/\0')],
  ['BAD_BYTE', 'answer', answer('200 \0'), answer('200 OK', 'a: \x7f')],
  ['BAD_LINE_END', 'request', get().replace('\r\n', '\n'), get('a: b\rc'), get('a: b\nc: d'), get('a: b\r\rc'), get().slice(0, -2) + '\n', '\r\n' + get(), '\n', get('a: b\n')],
  ['BAD_METHOD', 'request', request('get / HTTP/1.1', 'Host: a'), request('GETS / HTTP/1.1'), request('CONNECT a:80 HTTP/1.1'), request('TRACE / HTTP/1.1'), request(' GET / HTTP/1.1'), request('GET\t/ HTTP/1.1'), 'PRI * HTTP/2.0\r\n\r\n', answer('200 OK')],
  ['BAD_VERSION', 'request', request('GET / HTTP/1.0', 'Host: a'), request('GET /', 'Host: a'), request('GET / http/1.1'), request('GET / HTTP/1.1 '), request('GET / HTTP/1.11'), request('GET /\tHTTP/1.1'), request('GET /aHTTP/1.1')],
  ['BAD_TARGET', 'request', ...['*', 'a', 'http://a/', '//', '/a//b', '/.', '/a/./b', '/a/../b', '/.x', '/%41', '/a%2fb', '/a\\b', '/a#b', '/a?b#c', '/a b', ' /a', '/a ', '/a"', '/<', '/`', '/{', '/a?%', '/a?%4', '/a?%4g', '/a?%%41', '/?aaaaaa%2g', '/?aaaaa%g2', '/?aaaaaaa%', '/?"', '/?[', '/aaaaaa/.', '/aaaaaa//'].map(target)],
  ['BAD_NAME', 'request', get('a b: c'), get('a : c'), get(': c'), get('a'), get(' a: b'), get('\ta: b'), get('a: b', ' c'), get('a(: b'), get(`${'a'.repeat(56)}: b`), get('a\x7e: b')],
  ['BAD_NAME', 'answer', answer('200 OK', '\xe4: b'), answer('200 OK', ' b')],
  ['BAD_HOST', 'request', request('GET / HTTP/1.1'), request('GET / HTTP/1.1', 'Host:'), request('GET / HTTP/1.1', 'Host:  '), get('host: b'), request('GET / HTTP/1.1', 'Host: a b'), request('GET / HTTP/1.1', 'Host: a,b'), request('GET / HTTP/1.1', 'Host: u@a'), request('GET / HTTP/1.1', 'Host: a/'), request('GET / HTTP/1.1', `Host: ${'h'.repeat(65)}`)],
  ['BAD_LENGTH', 'request', ...['', '+1', '-1', '0x10', '1 1', '1,1', '1.', 'a', '12345678901', '99999999999999999999', '1;'].map((value) => post(`Content-Length: ${value}`)), post('Content-Length: 1', 'Content-Length: 1')],
  ['BAD_CODING', 'request', ...['', 'xchunked', 'chunkedx', 'chunked, identity', 'identity, chunked', 'chunked,', ', chunked', 'gzip', 'identity', '"chunked"', 'chunked;q=1', 'chun ked'].map((value) => post(`Transfer-Encoding: ${value}`)), post('Transfer-Encoding: chunked', 'Transfer-Encoding: chunked')],
  ['BOTH_FRAMINGS', 'request', post('Content-Length: 1', 'Transfer-Encoding: chunked'), post('Transfer-Encoding: chunked', 'Content-Length: 0')],
  ['BOTH_FRAMINGS', 'answer', answer('200 OK', 'Content-Length: 1', 'Transfer-Encoding: chunked')],
  ['BODY_NOT_ALLOWED', 'request', get('Transfer-Encoding: chunked'), request('DELETE / HTTP/1.1', 'Host: a', 'Transfer-Encoding: chunked')],
  ['BODY_NOT_ALLOWED', 'answer', answer('204 No Content', 'Content-Length: 0'), answer('100 Continue', 'Transfer-Encoding: chunked')],
  ['BAD_CONNECTION', 'request', ...['', 'upgrade', 'close, x', 'keep-alive, close', 'x-foo', 'closed', 'keep-alivee'].map((value) => get(`Connection: ${value}`)), get('Connection: close', 'Connection: close')],
  ['SPECIAL', 'request', ...['Expect: 100-continue', 'Upgrade: websocket', 'Trailer: x', 'TE: gzip', 'Keep-Alive: 1', 'Proxy-Connection: close', 'Proxy-Authorization: x', 'HTTP2-Settings: x', 'Early-Data: 1', 'grpc-timeout: 1S', 'Content-Type: Application/GRPC-web', 'x-forwarded-client-cert: a', `TE:${' '.repeat(9)}trailers`].map((header) => get(header))],
  ['RESERVED', 'request', get('x-envoy-foo: 1'), get('X-Envoy-: 1'), get('X-UNDERPASS-class: 1')],
  ['RESERVED', 'answer', answer('200 OK', 'x-envoy-overloaded: 1')],
  ['BAD_VERSION', 'answer', 'HTTP/1.0 200 OK\r\n\r\n', 'HTTP/2 200 OK\r\n\r\n', 'ICY 200 OK\r\n\r\n', ' HTTP/1.1 200 OK\r\n\r\n'],
  ['BAD_STATUS', 'answer', answer('101 Switching'), answer('200'), answer('20 OK'), answer('2000 OK'), answer('600 X'), answer('099 X'), answer(' 200 OK'), answer('2x0 OK'), answer('')],
  ['BAD_CODING', 'answer', answer('200 OK', 'transfer-encoding: gzip, chunked')],
  ['BAD_LENGTH', 'answer', answer('200 OK', 'content-length: 5', 'content-length: 5')],
  ['BAD_CONNECTION', 'answer', answer('200 OK', 'connection: upgrade')],
];

for (const where of ['user space', 'kernel'] satisfies Where[]) {
  test(`http_read_request, http_read_answer, in ${where}: what is accepted, with all that is read`, async () => {
    const readings = await read(accepted.map(([, question]) => question), where);
    readings.forEach((reading, i) => {
      const [name, , expected] = accepted[i] as (typeof accepted)[number];
      assert.deepEqual({ name, doubt: reading.doubt, ...Object.fromEntries(Object.keys(expected).map((key) => [key, reading[key as keyof Reading]])) }, { name, doubt: 'PLAIN', ...expected });
    });
  });

  test(`http_read_request, http_read_answer, in ${where}: what is Envoy's, and why`, async () => {
    const all = refused.flatMap(([doubt, kind, ...heads]) => heads.map((head) => ({ doubt, kind, head })));
    const readings = await read(all, where);
    assert.deepEqual(all.flatMap(({ head, doubt }, i) => (readings[i]?.doubt === doubt ? [] : [{ head, doubt, got: readings[i]?.doubt }])), []);
  });

  test(`http_read_request, in ${where}: each byte in each place of a word, by a regular expression`, async () => {
    const places: [name: string, good: RegExp, head: (text: string) => string][] = [
      ['name', /^[A-Za-z0-9_-]$/, (text) => get(`x${text}y: v`)],
      ['value', /^[\t\x20-\x7e]$/, (text) => get(`x: v${text}w`)],
      ['path', /^[A-Za-z0-9._~!$&'()*+,;=:@/?-]$/, (text) => target(`/x${text}y`)],
      ['query', /^[A-Za-z0-9._~!$&'()*+,;=:@/?-]$/, (text) => target(`/?x${text}y`)],
      ['host', /^[A-Za-z0-9_.:[\]-]$/, (text) => request('GET / HTTP/1.1', `Host: a${text}b`)],
    ];
    const all = places.flatMap(([name, good, head]) => Array.from({ length: 256 * 8 }, (_, i) => {
      const byte = String.fromCharCode(i & 255);
      return { name, byte, head: head('z'.repeat(i >> 8) + byte), good: good.test(byte) || (name === 'name' && byte === ':') };
    }));
    const readings = await read(all.map(({ head }) => ({ kind: 'request', head })), where);
    const wrong = all.filter(({ good }, i) => good !== (readings[i]?.doubt === 'PLAIN'));
    assert.deepEqual(wrong, []);
  });
}

test('http_read_request: the kernel reads a head of 260 bytes', async (t) => {
  const head = request('GET /productpage?u=normal HTTP/1.1', 'Host: productpage.default.svc.cluster.local:9080', 'User-Agent: Mozilla/5.0 (X11; Linux x86_64)', 'Accept: text/html,application/xhtml+xml', 'Accept-Encoding: gzip, deflate', 'Cookie: session=eyJ1c2VyIjoiam9lIn0', 'x-a: 1');
  const [got] = await ask([`time ${hex(head)} 20000`], 'kernel');
  t.diagnostic(`${head.length} bytes in ${got?.get('nanoseconds')} ns`);
  assert.equal(got?.get('doubt'), 'PLAIN');
});

test('http_body_advance: ends where the body does, however it is cut into messages', async () => {
  const chunked = '5\r\nhello\r\nA\r\n0123456789\r\n00000003;'.slice(0, -1) + '\r\nabc\r\n0\r\n\r\n';
  const cuts = Array.from({ length: chunked.length - 1 }, (_, i) => ({ framing: 'chunked' as const, messages: [chunked.slice(0, i + 1), chunked.slice(i + 1) + 'GET '] }));
  const bytes = { framing: 'chunked' as const, messages: [...chunked] };
  for (const [i, got] of (await readBodies([...cuts, bytes])).entries()) {
    assert.deepEqual([i, got.doubt, got.done, got.used.reduce((a, b) => a + b)], [i, '', true, chunked.length]);
  }
  assert.deepEqual(await readBodies([
    { framing: 'none', messages: ['GET'] },
    { framing: 'length', length: 10, messages: ['01234', '56789GET'] },
    { framing: 'length', length: 10, messages: ['01234', '5678'] },
    { framing: 'until close', messages: ['01234', '5678'] },
    { framing: 'chunked', messages: [`40\r\n${'x'.repeat(30)}`, 'x'.repeat(34) + '\r\n0\r\n\r\n0'] },
    { framing: 'chunked', messages: ['5\r\nhello\r\n0\r\n'] },
  ]), [
    { used: [0], doubt: '', done: true },
    { used: [5, 5], doubt: '', done: true },
    { used: [5, 4], doubt: '', done: false },
    { used: [5, 4], doubt: '', done: false },
    { used: [34, 41], doubt: '', done: true },
    { used: [13], doubt: '', done: false },
  ]);
});

test('http_body_advance: what is not plainly a chunk is Envoy\'s', async () => {
  const wrong = ['\r\n', '5 \r\nhello', '5;a=b\r\nhello', ' 5\r\nhello', '0x5\r\nhello', '+5\r\nhello', '-5\r\n', 'g\r\n', '5\nhello', '5\rhello', '5\r\nhello\n', '5\r\nhellox\r\n', '5\r\nhello\r5', '0\r\nX: y\r\n\r\n', '0\r\n\n', '0\r\n\rx', '000000005\r\n', '100000000\r\n', ''.padEnd(40, '0')];
  const got = await readBodies(wrong.map((text) => ({ framing: 'chunked', messages: [text] })));
  assert.deepEqual(got.map(({ doubt }, i) => [wrong[i], doubt]), wrong.map((text) => [text, 'BAD_CHUNK']));
});
