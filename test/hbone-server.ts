/**
 * An HBONE server that knows nothing of this code, to be run in a pod: takes HTTP/2 CONNECT over mutual TLS on port 15008 as
 * ztunnels do, answers what it is sent with the same bytes, and 403 for port 9001. With `forward` it is a waypoint: what is for
 * one of those authorities goes on, by HBONE with its own certificate, to the pod that stands there. Reads one JSON of Keys from
 * stdin, prints `ready`, then one Seen a line for each CONNECT.
 */
import { connect, createSecureServer, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { TLSSocket } from 'node:tls';

export interface Keys {
  /** PEM. */
  cert: string;
  key: string;
  ca: string;
  /** Authority → `address:port` of a pod. */
  forward?: Record<string, string>;
}

export interface Seen {
  /** A number for each connection. */
  session: number;
  /** SPIFFE id in the peer's certificate, its address, and what TLS agreed on. */
  peer: string;
  address: string;
  tls: string;
  authority: string;
  headers: Record<string, string>;
}

let text = '';
for await (const chunk of process.stdin) text += String(chunk);
const { forward = {}, ...keys } = JSON.parse(text) as Keys;
const sessions = new Map<ServerHttp2Session, number>();
const server = createSecureServer({ ...keys, requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3', ALPNProtocols: ['h2'] });
server.on('session', (session) => void sessions.set(session, sessions.size + 1).size);
server.on('stream', (stream, headers) => {
  stream.on('error', () => undefined);
  const session = stream.session as ServerHttp2Session;
  const socket = session.socket as TLSSocket;
  const { ':authority': authority = '', ':method': method, ...rest } = headers;
  if (method !== 'CONNECT' || authority.endsWith(':9001')) return stream.respond({ ':status': 403 }, { endStream: true });
  const others = Object.entries(rest).filter(([name]) => !name.startsWith(':')).map(([name, value]) => [name, String(value)]);
  const seen: Seen = { session: sessions.get(session)!, peer: socket.getPeerCertificate().subjectaltname ?? '', address: socket.remoteAddress ?? '', tls: `${socket.getProtocol()} ${String(socket.alpnProtocol)}`, authority, headers: Object.fromEntries(others) as Record<string, string> };
  process.stdout.write(`${JSON.stringify(seen)}\n`);
  const onward = forward[authority];
  if (onward !== undefined) return passOn(stream, onward);
  stream.respond({ ':status': 200 });
  stream.pipe(stream);
});

function passOn(stream: ServerHttp2Stream, target: string): void {
  const [host] = target.split(':');
  const session = connect(`https://${host}:15008`, { ...keys, ALPNProtocols: ['h2'], checkServerIdentity: () => undefined });
  const end = (): void => session.close();
  session.on('error', () => stream.close());
  const next = session.request({ ':method': 'CONNECT', ':authority': target });
  next.on('error', () => stream.close()).on('close', end);
  stream.on('close', () => next.close());
  next.on('response', ({ ':status': status }) => {
    if (status !== 200) return stream.respond({ ':status': 503 }, { endStream: true });
    stream.respond({ ':status': 200 });
    stream.pipe(next);
    next.pipe(stream);
  });
}
server.listen(15_008, '::', () => process.stdout.write('ready\n'));
