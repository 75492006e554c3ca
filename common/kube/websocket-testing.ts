/** An API server that takes nothing but WebSockets, as its exec and port-forward do. */
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { TestContext } from 'node:test';
import { WebSocketServer, type WebSocket } from 'ws';

export interface SocketsWorld {
  /** What each request asked for. */
  onAsked: (request: IncomingMessage) => void;
  onOpened: (socket: WebSocket) => void;
  /** Instead of a WebSocket; the body may be empty. */
  refusal?: { status: number; body: string };
  /** The connection of one that was refused, which stays open at this end as the API server's does, has ended. */
  onRefusedEnd?: () => void;
}

/** @returns its address; it ends with the test */
export async function serveSockets(context: TestContext, { onAsked, onOpened, refusal, onRefusedEnd }: SocketsWorld): Promise<URL> {
  const http = createServer();
  const sockets = new WebSocketServer({ noServer: true, handleProtocols: (offered) => [...offered][0] ?? false });
  http.on('upgrade', (request, socket, head) => {
    onAsked(request);
    if (refusal) {
      socket.on('error', () => undefined).on('end', () => onRefusedEnd?.()).resume();
      return void socket.write(`HTTP/1.1 ${refusal.status} No\r\ncontent-length: ${Buffer.byteLength(refusal.body)}\r\n\r\n${refusal.body}`);
    }
    sockets.handleUpgrade(request, socket, head, onOpened);
  });
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
  context.after(() => {
    for (const socket of sockets.clients) socket.terminate();
    http.closeAllConnections();
    http.close();
  });
  return new URL(`http://127.0.0.1:${(http.address() as AddressInfo).port}`);
}
