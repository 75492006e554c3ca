/** What the lab's HTTP programs share: one port for HTTP/1.1 and HTTP/2, and whom they say that they are. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createHttp2Server, createSecureServer, type SecureServerOptions } from 'node:http2';
import { createServer as createTcpServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';

/** HTTP/2 requests come with Node's compatibility interface, which has the same shape. */
export type Handler = (request: IncomingMessage, response: ServerResponse) => void | Promise<void>;
export type UpgradeHandler = (request: IncomingMessage, socket: Duplex, head: Buffer) => void;

/** Longer than any client's: a connection is not closed just when a proxy puts its next request on it. */
const KEEP_ALIVE_MS = 3_600_000;
/** RFC 9113, 3.4: what a client that speaks HTTP/2 without being asked sends first. */
const PREFACE_START = Buffer.from('PRI * HTTP/2');

export const identity = {
  pod: process.env['POD_NAME'] ?? '',
  namespace: process.env['POD_NAMESPACE'] ?? '',
  version: process.env['VERSION'] ?? '',
};

/** The ports in a variable such as `8080,8081`. */
export function portList(name: string, otherwise: readonly number[] = []): number[] {
  const found = (process.env[name] ?? '').split(',').filter(Boolean).map(Number);
  return found.length ? found : [...otherwise];
}

/** Where a volume's files are, for mounts that the lab has no place for, e.g. at /data: see LAB_VOLUMES in docs/lab.md. */
export function volumePath(path: string): string {
  const mounts = JSON.parse(process.env['LAB_VOLUMES'] ?? '{}') as Record<string, string>;
  const mount = Object.keys(mounts).find((candidate) => path === candidate || path.startsWith(`${candidate.replace(/\/$/, '')}/`));
  return mount === undefined ? path : (mounts[mount] as string) + path.slice(mount.replace(/\/$/, '').length);
}

function guarded(handler: Handler) {
  return (request: IncomingMessage, response: ServerResponse): void => {
    response.on('error', () => response.destroy());
    Promise.resolve(handler(request, response)).catch(() => response.destroy());
  };
}

/** Serves HTTP/1.1 and HTTP/2 with prior knowledge (h2c) on the same port; `::` where there is IPv6. */
export function listenHttp(port: number, handler: Handler, options: { onUpgrade?: UpgradeHandler } = {}): Server {
  const http1 = createServer(guarded(handler));
  http1.keepAliveTimeout = KEEP_ALIVE_MS;
  if (options.onUpgrade) http1.on('upgrade', options.onUpgrade);
  const http2 = createHttp2Server(guarded(handler) as never);
  const server = createTcpServer((socket) => {
    socket.on('error', () => socket.destroy());
    socket.once('data', (chunk: Buffer) => {
      socket.pause();
      socket.unshift(chunk);
      const length = Math.min(chunk.length, PREFACE_START.length);
      const isHttp2 = chunk.subarray(0, length).equals(PREFACE_START.subarray(0, length));
      (isHttp2 ? http2 : http1).emit('connection', socket);
      process.nextTick(() => socket.resume());
    });
  });
  return server.listen(port);
}

/** Serves HTTP/1.1 and HTTP/2 over TLS, as ALPN says. */
export function listenHttps(port: number, options: SecureServerOptions, handler: Handler): void {
  createSecureServer({ ...options, allowHTTP1: true }, guarded(handler) as never).listen(port);
}

export function listenTcp(port: number, onConnection: (socket: Socket) => void): void {
  createTcpServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    onConnection(socket);
  }).listen(port);
}

export async function readBody(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

export function sendJson(response: ServerResponse, value: unknown, status = 200, headers: Record<string, string> = {}): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(JSON.stringify(value) + '\n');
}

export function sendText(response: ServerResponse, text: string, status = 200, contentType = 'text/plain; charset=utf-8'): void {
  response.writeHead(status, { 'content-type': contentType });
  response.end(text);
}

/** One line a request on stdout, as the tasks in Istio's documentation look for in a pod's log. */
export function logRequest(request: IncomingMessage, status: number): void {
  const { remoteAddress } = request.socket;
  process.stdout.write(`${remoteAddress} - - [${new Date().toISOString()}] "${request.method} ${request.url} HTTP/${request.httpVersion}" ${status}\n`);
}

/** Ends at once when asked to: a pod's end should not wait for clients' idle connections. */
export function endOnSignal(): void {
  process.on('SIGTERM', () => process.exit(0));
}
