/**
 * The `httpbin` image (kennethreitz/httpbin, mccutchen/go-httpbin): the endpoints that Istio's documentation uses. Go's
 * variant answers header and query values as lists. One line a request on stdout.
 *   httpbin [-b HOST:PORT]   as gunicorn is told where to listen
 */
import { randomUUID } from 'node:crypto';
import { STATUS_CODES, type IncomingMessage, type ServerResponse } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { endOnSignal, identity, listenHttp, logRequest, portList, readBody, sendJson, sendText } from './http.js';

const MAX_DELAY_MS = 10_000;
const MAX_BYTES = 100 << 10;
const asLists = process.env['HTTPBIN_LISTS'] === '1';
const HTML = '<!DOCTYPE html>\n<html>\n<head></head>\n<body>\n<h1>Herman Melville - Moby-Dick</h1>\n</body>\n</html>\n';
const TEAPOT = '-=[ teapot ]=-\n';

const canonical = (name: string): string => name.replace(/(^|-)([a-z])/g, (_, dash: string, letter: string) => dash + letter.toUpperCase());

type Values = Record<string, string | string[]>;

function grouped(pairs: Iterable<readonly [string, string]>): Values {
  const found = new Map<string, string[]>();
  for (const [name, value] of pairs) found.set(name, [...(found.get(name) ?? []), value]);
  return Object.fromEntries([...found].map(([name, values]) => [name, asLists ? values : values.join(',')]));
}

/** Pseudo headers of HTTP/2 are told as what they stand for. */
function headersOf(request: IncomingMessage): Values {
  const { ':authority': authority, ...headers } = request.headers as Record<string, string | string[] | undefined>;
  const pairs = Object.entries({ ...(authority ? { host: authority } : {}), ...headers }).filter(([name]) => !name.startsWith(':'));
  return grouped(pairs.flatMap(([name, value]) => [value ?? []].flat().map((one) => [canonical(name), one] as const)));
}

function origin(request: IncomingMessage): string {
  const forwarded = request.headers['x-forwarded-for'];
  return (Array.isArray(forwarded) ? forwarded.join(', ') : forwarded) ?? (request.socket.remoteAddress ?? '').replace(/^::ffff:/, '');
}

function parsed(body: Buffer, contentType: string): object {
  const data = body.toString('utf8');
  const form = contentType.startsWith('application/x-www-form-urlencoded') ? grouped(new URLSearchParams(data)) : {};
  let json: unknown = null;
  try {
    json = JSON.parse(data) as unknown;
  } catch {
    // no JSON
  }
  return { data: Object.keys(form).length ? '' : data, files: {}, form, json };
}

/** `418`, `200,503` (one of them), `200:0.9,503:0.1` (by weight). */
function chosenStatus(codes: string): number {
  const choices = codes.split(',').map((part) => part.split(':')).map(([code, weight]) => ({ code: Number(code), weight: Number(weight ?? 1) }));
  let draw = Math.random() * choices.reduce((sum, { weight }) => sum + weight, 0);
  return choices.find(({ weight }) => (draw -= weight) < 0)?.code ?? choices[0]?.code ?? 200;
}

function described(request: IncomingMessage, url: URL): { args: Values; headers: Values; origin: string; url: string } {
  const authority = request.headers.host ?? (request.headers as Record<string, string>)[':authority'] ?? '';
  const scheme = (request.headers['x-forwarded-proto'] as string | undefined) ?? 'http';
  return { args: grouped(url.searchParams), headers: headersOf(request), origin: origin(request), url: `${scheme}://${authority}${request.url}` };
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const url = new URL(request.url ?? '/', 'http://httpbin');
  const body = await readBody(request);
  const [, verb = '', argument = ''] = url.pathname.split('/');
  response.on('finish', () => logRequest(request, response.statusCode));
  const method = request.method ?? 'GET';
  const whole = (): object => ({ ...described(request, url), method, ...parsed(body, request.headers['content-type'] ?? '') });
  const methods: Record<string, string> = { get: 'GET', post: 'POST', put: 'PUT', patch: 'PATCH', delete: 'DELETE' };
  const only = methods[verb];
  if (only !== undefined) {
    if (method !== only && !(only === 'GET' && method === 'HEAD')) return sendText(response, 'Method Not Allowed', 405);
    return sendJson(response, only === 'GET' ? described(request, url) : whole());
  }
  switch (verb) {
    case '':
      return sendText(response, '<!DOCTYPE html>\n<html><head><title>httpbin.org</title></head><body>httpbin</body></html>\n', 200, 'text/html; charset=utf-8');
    case 'anything':
      return sendJson(response, whole());
    case 'headers':
      return sendJson(response, { headers: headersOf(request) });
    case 'ip':
      return sendJson(response, { origin: origin(request) });
    case 'user-agent':
      return sendJson(response, { 'user-agent': request.headers['user-agent'] ?? '' });
    case 'hostname':
      return sendJson(response, { hostname: identity.pod });
    case 'uuid':
      return sendJson(response, { uuid: randomUUID() });
    case 'html':
      return sendText(response, HTML, 200, 'text/html; charset=utf-8');
    case 'robots.txt':
      return sendText(response, 'User-agent: *\nDisallow: /deny\n');
    case 'cookies':
      return sendJson(response, { cookies: grouped((request.headers.cookie ?? '').split(/; */).filter(Boolean).map((pair) => pair.split('=') as [string, string])) });
    case 'status': {
      const status = chosenStatus(decodeURIComponent(argument));
      if (!STATUS_CODES[status] && !(status >= 200 && status <= 599)) return sendText(response, 'Invalid status code', 400);
      if (status === 418) return sendText(response, TEAPOT, status);
      response.writeHead(status, status >= 300 && status < 400 ? { location: '/redirect/1', 'content-length': 0 } : { 'content-length': 0 });
      return void response.end();
    }
    case 'redirect':
      response.writeHead(302, { location: '/get', 'content-length': 0 });
      return void response.end();
    case 'delay':
      await delay(Math.min((Number(argument) || 0) * 1000, MAX_DELAY_MS));
      return sendJson(response, whole());
    case 'bytes':
      response.writeHead(200, { 'content-type': 'application/octet-stream' });
      return void response.end(Buffer.alloc(Math.min(Number(argument) || 0, MAX_BYTES), 'x'));
    case 'response-headers':
      for (const name of new Set(url.searchParams.keys())) response.setHeader(name, url.searchParams.getAll(name));
      return sendJson(response, grouped(url.searchParams));
    default:
      return sendText(response, 'Not Found\n', 404);
  }
}

const bound = process.argv.indexOf('-b');
const ports = bound > 0 ? [Number((process.argv[bound + 1] ?? '').split(':').at(-1))] : portList('HTTP_PORTS', [80]);
for (const port of ports) listenHttp(port, answer);
endOnSignal();
