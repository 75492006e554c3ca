// Where the fuzzer begins: plain messages, and known ways to make two readers of one stream disagree. Most are Envoy's; what
// counts is that none that the parser takes is read otherwise by Envoy.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export type Kind = 'request' | 'answer' | 'answer-to-head';
export interface Message {
  readonly kind: Kind;
  /** latin1. */
  readonly text: string;
}

const smuggled = 'GET /smuggled HTTP/1.1\r\nHost: c\r\n\r\n';
const hello = '5\r\nhello\r\n0\r\n\r\n';
const head = (line: string, headers: readonly string[]): string => [line, ...headers, '', ''].join('\r\n');
const post = (headers: readonly string[], body: string): Message => ({ kind: 'request', text: head('POST /a HTTP/1.1', ['Host: a', ...headers]) + body });
const get = (...headers: string[]): Message => ({ kind: 'request', text: head('GET /a/b?c=d HTTP/1.1', ['Host: a.b:80', ...headers]) });
const line = (text: string): Message => ({ kind: 'request', text: head(text, ['Host: a']) });
const answer = (headers: readonly string[], body = '', status = '200 OK'): Message => ({ kind: 'answer', text: head(`HTTP/1.1 ${status}`, headers) + body });

export const corpus: readonly Message[] = [
  get('User-Agent: curl/7.88.1', 'Accept: */*', 'x-p: 1'),
  get('Connection: keep-alive'), get('Connection: close'), get('Content-Length: 0'), post(['Content-Length: 5'], 'hello'), post(['Transfer-Encoding: chunked'], hello), post([], ''),
  ...['HEAD', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'].map((method) => line(`${method} /a HTTP/1.1`)),
  // CL.TE, TE.CL, TE.TE, CL.CL, and a length of a method that has none
  post(['Content-Length: 6', 'Transfer-Encoding: chunked'], '0\r\n\r\nX'), post(['Transfer-Encoding: chunked', 'Content-Length: 4'], `5c\r\n${smuggled}\r\n0\r\n\r\n`),
  ...['xchunked', ' chunked', 'chunked, identity', 'identity, chunked', 'chunked\t', '\tchunked', 'CHUNKED', '\x0bchunked', '"chunked"', 'chunked;a=b', 'chunked,', 'gzip, chunked', ''].map((value) => post([`Transfer-Encoding: ${value}`], hello + smuggled)),
  post(['Transfer-Encoding: chunked', 'Transfer-encoding: x'], hello), post(['Transfer-Encoding : chunked'], hello), post(['Transfer-Encoding', ': chunked'], hello), post(['X: y\nTransfer-Encoding: chunked'], hello), post(['X: y\rTransfer-Encoding: chunked'], hello), post(['Transfer_Encoding: chunked'], hello),
  ...['+5', '-5', '0x10', '5, 5', '5 5', '05', '5.0', '5;', '\t5', '5 ', '', '4294967301', '18446744073709551621'].map((value) => post([`Content-Length: ${value}`], 'hello' + smuggled)),
  post(['Content-Length: 5', 'Content-Length: 6'], 'hello!'), post(['Content-Length: 5', 'Content-Length: 5'], 'hello'), post(['Content-Length : 5'], 'hello'), post(['Content_Length: 5'], smuggled), get('Content-Length: 5'),
  // Lines: folded, ended by CR or LF alone, blanks before the colon, no name, NUL
  get('x-p: a', ' b'), get('x-p:', '\tb'), get(' x-p: a'), get('x-p: a\nb: c'), get('x-p: a\rb: c'), get('x-p : a'), get(': a'), get('x-p'), get('x-p: a\0b'), get('x\0p: a'), get('x-p: \x80'), get('x_p: a'), get('x-p: a', 'X-P: b'), get('x-p:  a \t'), get('x-p:'),
  { kind: 'request', text: 'GET /a HTTP/1.1\nHost: a\n\n' }, { kind: 'request', text: '\r\n' + head('GET /a HTTP/1.1', ['Host: a']) }, { kind: 'request', text: 'GET /a HTTP/1.1\r\nHost: a\r\n\n' },
  // Hosts
  get('Host: c'), get('host: a.b:80'), { kind: 'request', text: head('GET /a HTTP/1.1', []) }, ...['', 'a, b', 'u@a', 'a/b', 'a b', '[::1]', 'a:b:c', 'A_b', '::', 'a\tb', '*', 'a#b', '%61'].map((host): Message => ({ kind: 'request', text: head('GET /a HTTP/1.1', [`Host: ${host}`]) })),
  // Targets and first lines
  ...['http://c/d', '//c/d', '/a//b', '/a/./b', '/a/../b', '/..;/b', '/%2e%2e/b', '/a%2fb', '/a%5cb', '/a\\b', '/a#b', '/a?b#c', '/a?b=%2e%2e%2f', '/a?b/../c', '*', 'c:80', '/a;b=c', '/a..', '/a/...', '/?', '/a??b'].map((path) => line(`GET ${path} HTTP/1.1`)),
  ...['GET  /a HTTP/1.1', 'GET /a  HTTP/1.1', 'GET /a HTTP/1.0', 'GET /a HTTP/1.2', 'GET /a HTTP/2.0', 'GET /a', 'GET /a http/1.1', 'get /a HTTP/1.1', 'GET\t/a HTTP/1.1', 'CONNECT c:80 HTTP/1.1', 'GET /a HTTP/1.1 x'].map(line),
  // What asks something of a proxy
  ...['Expect: 100-continue', 'Connection: upgrade', 'Connection: x-p', 'Upgrade: h2c', 'TE: trailers', 'TE: gzip', 'Keep-Alive: 1', 'Proxy-Connection: close', 'Max-Forwards: 0', 'x-forwarded-proto: x', 'x-http-method-override: PUT'].map((header) => get(header)),
  // Chunks
  ...['5;a=b\r\nhello\r\n0\r\n\r\n', '5 \r\nhello\r\n0\r\n\r\n', '5\nhello\r\n0\r\n\r\n', '0x5\r\nhello\r\n0\r\n\r\n', '+5\r\nhello\r\n0\r\n\r\n', '05\r\nhello\r\n000\r\n\r\n', '5\r\nhello0\r\n\r\n', '5\r\nhello\r\n0\r\nX: y\r\n\r\n', '5\r\nhello\r\n0\n\n', 'a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n', '100000005\r\nhello\r\n0\r\n\r\n', '5\r\nhello\r\n\r\n0\r\n\r\n'].map((body) => post(['Transfer-Encoding: chunked'], body)),
  // Answers
  answer(['Content-Length: 5'], 'hello'), answer(['Transfer-Encoding: chunked'], hello), answer([], 'hello'), answer(['Content-Length: 0']), answer(['Connection: close'], 'hello'), answer(['Connection: close', 'Content-Length: 5'], 'hello'), answer(['Connection: keep-alive', 'Keep-Alive: timeout=5', 'Content-Length: 5'], 'hello'),
  answer([], '', '204 No Content'), answer(['Content-Length: 5'], '', '304 Not Modified'), answer(['Content-Length: 0'], '', '204 No Content'), answer(['Transfer-Encoding: chunked'], '', '304 Not Modified'), answer([], '', '100 Continue'), answer(['Link: </a>'], '', '103 Early Hints'), answer([], '', '101 Switching Protocols'), answer(['Content-Length: 5'], 'hello', '205 Reset Content'), answer(['Content-Length: 5'], 'hello', '206 Partial Content'), answer(['Content-Length: 5'], 'hello', '599 '), answer(['Content-Length: 5'], 'hello', '200'), answer(['Content-Length: 5'], 'hello', '500 \xe4'),
  answer(['Content-Length: 5', 'Transfer-Encoding: chunked'], hello), answer(['Content-Length: 5', 'Content-Length: 5'], 'hello'), answer(['Content-Length: 05'], 'hello'), answer(['Transfer-Encoding: gzip, chunked'], hello), answer(['x-p: \xe4', 'Content-Length: 5'], 'hello'), answer(['x-p: a', ' b', 'Content-Length: 5'], 'hello'), answer(['Content-Length: 5'], 'hello!'), { kind: 'answer', text: 'HTTP/1.0 200 OK\r\n\r\nhello' },
  ...[['Content-Length: 5'], ['Transfer-Encoding: chunked'], []].map((headers): Message => ({ kind: 'answer-to-head', text: head('HTTP/1.1 200 OK', headers) })),
];

/** As build/http-fuzz reads them: a byte for the kind, then the message. */
export function writeCorpus(folder: string): void {
  mkdirSync(folder, { recursive: true });
  corpus.forEach(({ kind, text }, i) => writeFileSync(join(folder, String(i)), Buffer.from({ request: '\0', answer: '\x02', 'answer-to-head': '\x03' }[kind] + text, 'latin1')));
}
