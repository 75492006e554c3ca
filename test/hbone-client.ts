/**
 * An HBONE client that knows nothing of this code, to be run in a pod: HTTP/2 CONNECT over mutual TLS as ztunnels speak it,
 * also one within another through an east-west gateway. Reads one JSON of Input from stdin, prints one Outcome a line.
 */
import { connect as connectHttp2, constants, type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2';
import type { Duplex } from 'node:stream';
import { connect as connectTls, type TLSSocket } from 'node:tls';

export interface Input {
  /** PEM; without a certificate none is shown. */
  cert?: string;
  key?: string;
  ca: string;
  /** Default: 1.3 alone. */
  tlsVersion?: 'TLSv1.2';
  /** Whoever ends the first tunnel. */
  address: string;
  port: number;
  tunnels: {
    /** One for each tunnel, the outermost first. */
    authorities: string[];
    /** Asked for by HTTP/1.1 in the last tunnel. */
    path?: string;
    /** Written into the last tunnel as it is; the answer is what comes back, as long as it. */
    raw?: string;
    /** The client ends its side behind `raw`; the answer is all that comes until the other side ends too. */
    end?: boolean;
    /** Headers of each CONNECT beside its authority; in the place of those that it has. */
    connect?: Record<string, string>;
    headers?: Record<string, string>;
    /** Bytes to be sent along, and to come back. */
    bytes?: number;
  }[];
}

export interface Outcome {
  /** `:status` of each CONNECT, in order; those that were not reached are missing. */
  statuses: number[];
  /** SPIFFE ids of those who ended the tunnels. */
  peers: string[];
  /** Of what was written into the last tunnel. */
  http?: number;
  body?: string;
  error?: string;
}

const input = JSON.parse(await read(process.stdin)) as Input;
for (const tunnel of input.tunnels) process.stdout.write(`${JSON.stringify(await run(tunnel))}\n`);
process.exit(0);

async function run({ authorities, path, raw, end = false, connect = {}, headers = {}, bytes = 0 }: Input['tunnels'][number]): Promise<Outcome> {
  const outcome: Outcome = { statuses: [], peers: [] };
  const sessions: ClientHttp2Session[] = [];
  try {
    let below: Duplex | undefined;
    for (const authority of authorities) {
      const secured = await secure(below);
      outcome.peers.push(secured.getPeerCertificate().subjectaltname ?? '');
      const session = connectHttp2('https://tunnel', { createConnection: () => secured });
      session.on('error', () => undefined);
      sessions.unshift(session);
      const { stream, status } = await tunnelTo(session, authority, connect);
      outcome.statuses.push(status);
      if (status !== 200) return outcome;
      below = stream;
    }
    if (raw !== undefined) outcome.body = await exchange(below!, raw, end);
    if (path !== undefined) Object.assign(outcome, await ask(below!, path, headers, bytes));
  } catch (error) {
    outcome.error = (error as Error).message;
  } finally {
    for (const session of sessions) session.destroy();
  }
  return outcome;
}

function secure(below: Duplex | undefined): Promise<TLSSocket> {
  const { cert, key, ca, address, port, tlsVersion } = input;
  return new Promise((resolve, reject) => {
    const place = below ? { socket: below } : { host: address, port };
    // The peer has a SPIFFE id and no host name.
    const socket = connectTls({ ...place, ...(cert && key ? { cert, key } : {}), ca, ALPNProtocols: ['h2'], ...(tlsVersion ? { minVersion: tlsVersion, maxVersion: tlsVersion } : { minVersion: 'TLSv1.3' as const }), checkServerIdentity: () => undefined });
    socket.once('secureConnect', () => resolve(socket));
    socket.once('error', reject);
    socket.once('close', () => reject(new Error('closed')));
    socket.setTimeout(25_000, () => socket.destroy(new Error('no answer in 25 s')));
  });
}

function tunnelTo(session: ClientHttp2Session, authority: string, more: Record<string, string>): Promise<{ stream: ClientHttp2Stream; status: number }> {
  return new Promise((resolve, reject) => {
    // A client whose certificate is missing or wrong is told so after the handshake, from its point of view.
    session.once('error', reject);
    session.once('close', () => reject(new Error('closed')));
    const stream = session.request({ ':method': 'CONNECT', ':authority': authority, ...more }, { endStream: false });
    stream.once('response', (headers) => resolve({ stream, status: Number(headers[constants.HTTP2_HEADER_STATUS]) }));
    stream.once('error', reject);
  });
}

function exchange(tunnel: Duplex, text: string, end: boolean): Promise<string> {
  return new Promise((resolve, reject) => {
    let answer = '';
    // It may have come to its end together with the answer to CONNECT.
    if (tunnel.destroyed) reject(new Error('closed'));
    tunnel.on('data', (chunk: Buffer) => {
      answer += chunk.toString('utf8');
      if (!end && answer.length >= text.length) resolve(answer);
    });
    tunnel.once('end', () => (end ? resolve(answer) : reject(new Error('ended'))));
    tunnel.once('error', reject);
    tunnel.once('close', () => reject(new Error('closed')));
    if (end) tunnel.end(text);
    else tunnel.write(text);
  });
}

function ask(tunnel: Duplex, path: string, headers: Record<string, string>, bytes: number): Promise<Pick<Outcome, 'http' | 'body'>> {
  return new Promise((resolve, reject) => {
    let answer = '';
    tunnel.on('data', (chunk: Buffer) => {
      answer += chunk.toString('latin1');
      const complete = whole(answer);
      if (complete) resolve(complete);
    });
    tunnel.once('error', reject);
    tunnel.once('end', () => reject(new Error(`closed in the middle of an answer: ${answer.slice(0, 200)}`)));
    const lines = { host: 'web', ...headers, ...(bytes > 0 ? { 'content-length': String(bytes) } : {}) };
    tunnel.write(`${bytes > 0 ? 'POST' : 'GET'} ${path} HTTP/1.1\r\n${Object.entries(lines).map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`);
    if (bytes > 0) tunnel.write(Buffer.alloc(bytes, 'x'));
  });
}

/** Nobody has to close for an HTTP answer to end. */
function whole(answer: string): Pick<Outcome, 'http' | 'body'> | undefined {
  const split = answer.indexOf('\r\n\r\n');
  if (split < 0) return undefined;
  const [head, rest] = [answer.slice(0, split), answer.slice(split + 4)];
  const http = Number(head.split(' ')[1]);
  const length = /^content-length: (\d+)/im.exec(head)?.[1];
  if (length !== undefined) return rest.length >= Number(length) ? { http, body: rest } : undefined;
  if (!rest.endsWith('0\r\n\r\n')) return undefined;
  return { http, body: rest.replace(/[0-9a-f]+\r\n([^]*?)\r\n/g, '$1') };
}

async function read(stream: AsyncIterable<Buffer | string>): Promise<string> {
  let text = '';
  for await (const chunk of stream) text += String(chunk);
  return text;
}
