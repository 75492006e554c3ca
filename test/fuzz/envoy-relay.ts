// What a real Envoy writes when it passes on what hostile peers sent: requests to a server, answers to a client, as bytes, and
// where each message ends as Envoy means it. Of a request that is known by the number of its body's bytes, which a filter in
// Envoy counts; of an answer by what Envoy writes behind it, an answer of its own whose bytes nobody else can guess.
import type { ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, Socket, type Server } from 'node:net';
import { join } from 'node:path';
import type { Message } from './corpus.js';
import { cluster, listener, lua, startEnvoy, stopEnvoy } from './envoy-process.js';

/** Connections at a time: most of the time they wait for messages that don't end. */
const LANES = 64;
/** After which Envoy gives up what does not end. */
const IDLE_S = 0.5;
/** Of the whole exchange, for the case that Envoy does not. */
const SILENCE_MS = 5_000;

/** What Envoy wrote on one connection. */
export interface Written extends Message {
  /** Where its messages end, of those that Envoy ended: of an answer the first final one. */
  readonly ends: readonly number[];
}

/** Waiting for the body holds the head back, so that it can say how long the body is. */
const COUNTING = `
function envoy_on_request(handle)
  local body = handle:body()
  handle:headers():replace("x-length", tostring(body and body:length() or 0))
end`;
const NEXT = 'GET /next HTTP/1.1\r\nHost: next\r\n\r\n';
const NO_BODY = 'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n';

/** Hostile requests go to one server, hostile answers come from another. */
export class EnvoyRelay {
  readonly #folder: string;
  readonly #envoy: ChildProcess;
  readonly #servers: readonly Server[];
  readonly #secret: string;
  readonly #answers: string[] = [];
  /** Of the server that is asked. */
  readonly #asked = new Set<{ socket: Socket; text: string; ends: number[]; isBroken: boolean }>();
  #ownBytes = 0;

  private constructor(folder: string, envoy: ChildProcess, servers: readonly Server[], secret: string) {
    [this.#folder, this.#envoy, this.#servers, this.#secret] = [folder, envoy, servers, secret];
    servers[0]!.on('connection', (socket) => this.#serveAsked(socket));
    servers[1]!.on('connection', (socket) => this.#serveAnswers(socket));
  }

  /** @throws Error with the end of Envoy's log if it does not come up. */
  static async start(folder: string): Promise<EnvoyRelay> {
    const path = (name: string): string => join(folder, name);
    const servers = await Promise.all(['asked', 'answering'].map(async (name) => {
      const server = createServer();
      server.listen(path(name));
      await once(server, 'listening');
      return server;
    }));
    const secret = randomBytes(16).toString('hex');
    const options = { stream_idle_timeout: `${IDLE_S}s`, request_headers_timeout: `${IDLE_S}s`, delayed_close_timeout: `${IDLE_S / 20}s`, common_http_protocol_options: { idle_timeout: `${2 * IDLE_S}s` } };
    const own = { match: { path: '/next' }, direct_response: { status: 200 }, response_headers_to_add: [{ header: { key: 'x-own', value: secret } }] };
    const listeners = [
      listener(path('to-asked'), 'to-asked', { route: { cluster: 'asked', timeout: '0s' } }, [lua(COUNTING)], options),
      listener(path('to-answering'), 'to-answering', {}, [], { ...options, route_config: { virtual_hosts: [{ name: 'all', domains: ['*'], routes: [own, { match: { prefix: '/' }, route: { cluster: 'answering', timeout: '0s' } }] }] } }),
    ];
    const envoy = await startEnvoy(folder, 'relay', { listeners, clusters: ['asked', 'answering'].map((name) => cluster(path(name), name)) }, [path('to-asked'), path('to-answering')]);
    const relay = new EnvoyRelay(folder, envoy, servers, secret);
    relay.#ownBytes = (await relay.#exchange('to-answering', NEXT, secret)).length;
    return relay;
  }

  async close(): Promise<void> {
    await stopEnvoy(this.#envoy);
    for (const { socket } of this.#asked) socket.destroy();
    for (const server of this.#servers) server.close();
  }

  /** Each on a connection of its own, another request behind it. @returns what the server got, by connection */
  async passRequests(messages: readonly Message[]): Promise<Written[]> {
    await inLanes(messages, ({ text }) => this.#exchange('to-asked', text + NEXT, this.#secret));
    const streams = [...this.#asked];
    for (const stream of streams) {
      stream.socket.destroy();
      this.#asked.delete(stream);
    }
    return streams.map(({ text, ends }) => ({ kind: 'request', text, ends }));
  }

  /** Each as the answer of a server that then ends its connection. @returns what the client got */
  async passAnswers(messages: readonly Message[]): Promise<Written[]> {
    return inLanes(messages, async ({ kind, text }) => {
      const index = this.#answers.push(text) - 1;
      const got = await this.#exchange('to-answering', `${kind === 'answer' ? 'GET' : 'HEAD'} /${index} HTTP/1.1\r\nHost: a\r\n\r\n${NEXT}`, this.#secret);
      this.#answers[index] = '';
      return { kind, text: got, ends: got.endsWith('\r\n\r\n') && got.includes(this.#secret) ? [got.length - this.#ownBytes] : [got.length] };
    });
  }

  /** What comes back until the connection ends, or there is `last` with the end of its head. */
  async #exchange(name: string, bytes: string, last: string): Promise<string> {
    const socket = new Socket();
    let text = '';
    await new Promise<void>((resolve) => {
      const done = (): void => resolve();
      socket.setTimeout(SILENCE_MS, done).on('error', done).on('close', done).on('data', (part) => {
        text += part.toString('latin1');
        const at = text.indexOf(last);
        if (at >= 0 && text.indexOf('\r\n\r\n', at) >= 0) done();
      }).connect(join(this.#folder, name), () => socket.write(bytes, 'latin1'));
    });
    socket.destroy();
    return text;
  }

  #serveAsked(socket: Socket): void {
    const stream = { socket, text: '', ends: [] as number[], isBroken: false };
    this.#asked.add(stream);
    socket.on('error', () => undefined).on('data', (part) => {
      stream.text += part.toString('latin1');
      while (!stream.isBroken) {
        const at = stream.ends.at(-1) ?? 0;
        const end = endOfRequest(stream.text, at);
        if (end === undefined) return;
        if (end < 0) return void (stream.isBroken = true);
        stream.ends.push(end);
        socket.write(stream.text.startsWith('GET /next HTTP/1.1\r\n', at) ? NO_BODY.replace('\r\n', `\r\nx-own: ${this.#secret}\r\n`) : NO_BODY);
      }
    });
  }

  #serveAnswers(socket: Socket): void {
    let text = '';
    socket.on('error', () => undefined).on('data', (part) => {
      text += part.toString('latin1');
      const index = /^\w+ \/(\d+) /.exec(text)?.[1];
      if (text.includes('\r\n\r\n')) socket.end(this.#answers[Number(index)] ?? '', 'latin1');
    });
  }
}

async function inLanes<T, R>(items: readonly T[], body: (item: T) => Promise<R>): Promise<R[]> {
  const results = new Array<R>(items.length);
  let index = 0;
  await Promise.all(Array.from({ length: LANES }, async () => {
    for (let mine = index++; mine < items.length; mine = index++) results[mine] = await body(items[mine]!);
  }));
  return results;
}

/** By Envoy's own word of its body's length, and by the framing that Envoy chose. Undefined: it is still to come; negative: it isn't as Envoy writes. */
function endOfRequest(text: string, from: number): number | undefined {
  const head = text.indexOf('\r\n\r\n', from) + 4;
  if (head < 4) return undefined;
  const lines = text.slice(from, head).split('\r\n');
  const of = (name: string): string[] => lines.filter((line) => line.toLowerCase().startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trim());
  const [length] = of('x-length');
  let left = Number(length);
  if (of('transfer-encoding').length === 0) return text.length < head + left ? undefined : head + left;
  for (let at = head; ;) {
    const line = text.indexOf('\r\n', at);
    if (line < 0) return undefined;
    const size = parseInt(text.slice(at, line), 16);
    if (size === 0) return left === 0 ? (text.length < line + 4 ? undefined : line + 4) : -1;
    left -= size;
    at = line + 2 + size + 2;
    if (!(left >= 0)) return -1;
    if (text.length < at) return undefined;
  }
}
