/**
 * The `echo` image: an HTTP server that answers with what it was asked, and TCP ports that send back what they get.
 *   GET /anything            JSON: method, path, headers, body length, pod, namespace, version, addresses
 *   GET /status/503          that status
 *   GET /delay/250           the same after 250 ms
 *   GET /bytes/65536         a body of that length
 *   PUT /ready, DELETE /ready, GET /ready   sets, clears, tells readiness (200 or 503), for probes
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createTcpServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

const list = (name: string): number[] => (process.env[name] ?? '').split(',').filter(Boolean).map(Number);
const identity = {
  pod: process.env['POD_NAME'] ?? '',
  namespace: process.env['POD_NAMESPACE'] ?? '',
  version: process.env['VERSION'] ?? '',
};
const MAX_BYTES = 64 << 20;
let ready = true;

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  let length = 0;
  for await (const chunk of request) length += (chunk as Buffer).length;
  const path = request.url ?? '/';
  const [, verb, argument] = path.split('?')[0]?.split('/') ?? [];
  response.setHeader('x-pod', identity.pod);
  response.setHeader('x-version', identity.version);
  let status = 200;
  if (verb === 'ready') {
    if (request.method === 'PUT') ready = true;
    if (request.method === 'DELETE') ready = false;
    status = request.method === 'GET' && !ready ? 503 : 200;
  } else if (verb === 'status') {
    status = Number(argument) || 200;
  } else if (verb === 'delay') {
    await delay(Math.min(Number(argument) || 0, 60_000));
  } else if (verb === 'bytes') {
    response.end(Buffer.alloc(Math.min(Number(argument) || 0, MAX_BYTES), 'x'));
    return;
  }
  const { localAddress, localPort, remoteAddress, remotePort } = request.socket;
  const body = {
    ...identity,
    method: request.method,
    path,
    headers: request.headers,
    bodyBytes: length,
    local: `${localAddress}:${localPort}`,
    remote: `${remoteAddress}:${remotePort}`,
  };
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body) + '\n');
}

for (const port of list('HTTP_PORTS')) {
  const server = createServer((request, response) => {
    answer(request, response).catch(() => response.destroy());
  });
  server.keepAliveTimeout = 3_600_000;
  server.listen(port); // :: where there is IPv6
}
for (const port of list('TCP_PORTS')) {
  createTcpServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    socket.pipe(socket);
  }).listen(port);
}
process.on('SIGTERM', () => process.exit(0));
