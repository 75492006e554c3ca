/**
 * The `echo` image: an HTTP server (HTTP/1.1 and h2c on each port) that answers with what it was asked, and TCP ports that
 * send back what they get. WebSocket upgrades get their messages back.
 *   GET /anything            JSON: method, path, headers, body length, protocol, pod, namespace, version, addresses
 *   GET /status/503          that status
 *   GET /delay/0.25          the same after a quarter of a second
 *   GET /bytes/65536         a body of that length
 *   GET /flaky/2/503?key=a   503 to the first two requests of that key, 200 from then on
 *   GET /reset, /hang        closes the connection without an answer; never answers
 *   GET /headers?name=value  answers with these headers
 *   PUT /fail/503, DELETE /fail   every request gets that status until the latter, to make this endpoint an outlier
 *   GET /count, DELETE /count     how many requests came, in all and by path; forgets them
 *   PUT /ready, DELETE /ready, GET /ready   sets, clears, tells readiness (200 or 503), for probes
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { endOnSignal, identity, listenHttp, listenTcp, portList, sendJson } from './http.js';
import { echoMessages } from './websocket.js';

const MAX_BYTES = 64 << 20;
const MAX_DELAY_MS = 60_000;
let ready = true;
let failing: number | undefined;
const counts = new Map<string, number>();
const flaky = new Map<string, number>();

/** What sets and tells the server's own state: neither counted nor failed. */
function control(request: IncomingMessage, verb: string | undefined, argument: string | undefined, response: ServerResponse): boolean {
  const { method } = request;
  if (verb === 'ready') {
    if (method === 'PUT') ready = true;
    if (method === 'DELETE') ready = false;
    sendJson(response, { ...identity, ready }, method === 'GET' && !ready ? 503 : 200);
    return true;
  }
  if (verb === 'fail' && method !== 'GET') {
    failing = method === 'PUT' ? Number(argument) || 503 : undefined;
    sendJson(response, { ...identity, failing: failing ?? null });
    return true;
  }
  if (verb === 'count') {
    if (method === 'DELETE') counts.clear();
    sendJson(response, { ...identity, total: [...counts.values()].reduce((sum, count) => sum + count, 0), paths: Object.fromEntries(counts) });
    return true;
  }
  return false;
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  let length = 0;
  for await (const chunk of request) length += (chunk as Buffer).length;
  const url = new URL(request.url ?? '/', 'http://echo');
  const [, verb, argument, second] = url.pathname.split('/');
  response.setHeader('x-pod', identity.pod);
  response.setHeader('x-version', identity.version);
  if (control(request, verb, argument, response)) return;
  counts.set(url.pathname, (counts.get(url.pathname) ?? 0) + 1);
  let status = failing ?? 200;
  if (verb === 'status') {
    status = Number(argument) || 200;
  } else if (verb === 'delay') {
    await delay(Math.min((Number(argument) || 0) * 1000, MAX_DELAY_MS));
  } else if (verb === 'flaky') {
    const key = `${url.pathname}?${url.searchParams.get('key') ?? ''}`;
    const seen = (flaky.get(key) ?? 0) + 1;
    flaky.set(key, seen);
    if (seen <= Number(argument)) status = Number(second) || 503;
  } else if (verb === 'headers') {
    for (const [name, value] of url.searchParams) response.setHeader(name, value);
  } else if (verb === 'reset') {
    request.socket.destroy();
    return;
  } else if (verb === 'hang') {
    return;
  } else if (verb === 'bytes') {
    response.end(Buffer.alloc(Math.min(Number(argument) || 0, MAX_BYTES), 'x'));
    return;
  }
  const { localAddress, localPort, remoteAddress, remotePort } = request.socket;
  const body = {
    ...identity,
    method: request.method,
    path: request.url,
    protocol: `HTTP/${request.httpVersion}`,
    headers: request.headers,
    bodyBytes: length,
    local: `${localAddress}:${localPort}`,
    remote: `${remoteAddress}:${remotePort}`,
  };
  sendJson(response, body, status);
}

for (const port of portList('HTTP_PORTS')) listenHttp(port, answer, { onUpgrade: echoMessages });
for (const port of portList('TCP_PORTS')) listenTcp(port, (socket) => void socket.pipe(socket));
endOnSignal();
