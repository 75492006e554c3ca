// What a real Envoy makes of messages that the parser took: requests by a Lua filter that answers with what it was given,
// answers by a server behind Envoy. Each message is followed by another on the same connection, so an end that is seen
// elsewhere shows as an answer that isn't that one's.
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { Agent, request as httpRequest } from 'node:http';
import { createServer, Socket, type Server } from 'node:net';
import { join } from 'node:path';
import { cluster, listener, lua, startEnvoy, stopEnvoy } from './envoy-process.js';

/** Of no progress at all; Envoy answers each within microseconds. */
const SILENCE_MS = 5_000;
/** Connections at a time. */
const LANES = 8;
/** The header whose value is compared. */
export const PROBED = 'x-p';

/** Sends back method, target, authority, how many of the header, its value, and the body, in hexadecimal. Waiting for the body ends the headers' scope. */
const SCRIPT = `
function envoy_on_request(handle)
  local headers = handle:headers()
  local head = table.concat({headers:get(":method"), headers:get(":path"), headers:get(":authority"),
    tostring(headers:getNumValues("${PROBED}")), headers:get("${PROBED}") or "", ""}, "\\n")
  local body = handle:body()
  local text = head .. (body and body:length() > 0 and body:getBytes(0, body:length()) or "")
  handle:respond({[":status"] = "200", ["x-read"] = (text:gsub(".", function(c) return string.format("%02x", c:byte()) end))}, "")
end`;

/** What Envoy saw of a request. */
export interface Seen {
  readonly method: string;
  readonly target: string;
  readonly host: string;
  readonly found: number;
  readonly value: string;
  readonly body: string;
}

/** What came of an answer at the client of Envoy. */
export interface Passed {
  readonly status: number;
  readonly body: string;
  /** The server's connection was used again for the next exchange. */
  readonly reused: boolean;
}

const SENTINEL = 'GET /next HTTP/1.1\r\nHost: next\r\n\r\n';

/** To the listener whose Lua filter answers. */
class Connection {
  private readonly socket = new Socket();
  private text = '';
  private answers: (Seen | string)[] = [];
  private wanted = 0;
  private finish: (() => void) | undefined;

  constructor(path: string) {
    const done = (): void => this.finish?.();
    this.socket.setTimeout(SILENCE_MS, done);
    this.socket.on('error', done).on('close', done).on('data', (part) => this.read(part.toString('latin1'))).connect(path);
  }

  /** As many answers as there are, up to `count`; one that is not the filter's is a text and the last. */
  async exchange(bytes: string, count: number): Promise<(Seen | string)[]> {
    this.answers = [];
    this.wanted = count;
    await new Promise<void>((resolve) => {
      this.finish = resolve;
      this.socket.write(bytes, 'latin1');
    });
    return this.answers;
  }

  close(): void {
    this.socket.destroy();
  }

  private read(part: string): void {
    this.text += part;
    for (let end = this.text.indexOf('\r\n\r\n'); end >= 0; end = this.text.indexOf('\r\n\r\n')) {
      const read = /\r\nx-read: ([0-9a-f]*)/.exec(this.text.slice(0, end));
      if (!read) {
        this.answers.push(this.text.slice(0, 300));
        return this.finish?.();
      }
      const [method = '', target = '', host = '', found = '', value = '', ...body] = Buffer.from(read[1] ?? '', 'hex').toString('latin1').split('\n');
      this.answers.push({ method, target, host, found: Number(found), value, body: body.join('\n') });
      this.text = this.text.slice(end + 4);
    }
    if (this.answers.length >= this.wanted) this.finish?.();
  }
}

export class EnvoyReader {
  private readonly agent = new Agent({ keepAlive: true, maxSockets: 1 });
  private readonly connections = new Map<Socket, number>();
  private readonly sent: { text: string; ends: boolean; connection: number }[] = [];
  private constructor(private readonly child: ChildProcess, private readonly server: Server, private readonly folder: string) {
    this.server.on('connection', (socket) => this.serve(socket));
  }

  /** @throws Error with the end of Envoy's log if it does not come up. */
  static async start(folder: string): Promise<EnvoyReader> {
    const path = (name: string): string => join(folder, name);
    const server = createServer({ allowHalfOpen: false });
    server.listen(path('server'));
    await once(server, 'listening');
    const listeners = [listener(path('requests'), 'requests', { direct_response: { status: 500 } }, [lua(SCRIPT)], NORMALISING), listener(path('answers'), 'answers', { route: { cluster: 'server', timeout: '0s' } }, [], NORMALISING)];
    const child = await startEnvoy(folder, 'reader', { listeners, clusters: [cluster(path('server'), 'server')] }, [path('requests'), path('answers')]);
    const reader = new EnvoyReader(child, server, folder);
    return reader;
  }

  async close(): Promise<void> {
    this.agent.destroy();
    this.server.close();
    for (const socket of this.connections.keys()) socket.destroy();
    await stopEnvoy(this.child);
  }

  /**
   * Each followed at once by a plain request, on connections that are used again. Where it is not read as one request, or
   * that one is not what comes next, there is a text that says so.
   */
  async readRequests(messages: readonly { text: string; close: boolean }[]): Promise<(Seen | string)[]> {
    const all = new Array<Seen | string>(messages.length);
    let index = 0;
    const lane = async (): Promise<void> => {
      let connection: Connection | undefined;
      for (let mine = index++; mine < messages.length; mine = index++) {
        const { text, close } = messages[mine] as (typeof messages)[number];
        connection ??= new Connection(join(this.folder, 'requests'));
        const [first = 'no answer', next] = await connection.exchange(text + (close ? '' : SENTINEL), close ? 1 : 2);
        const follows = close || (typeof next === 'object' && next.target === '/next' && next.host === 'next' && next.body === '');
        all[mine] = typeof first === 'string' || follows ? first : `the next request is ${JSON.stringify(next ?? 'not answered')}`;
        if (!close && typeof all[mine] === 'object') continue;
        connection.close();
        connection = undefined;
      }
      connection?.close();
    };
    await Promise.all(Array.from({ length: LANES }, lane));
    return all;
  }

  /** One after another; the server sends each as it is, and ends the connection behind it where `ends` says so. */
  async readAnswers(messages: readonly { text: string; toHead: boolean; ends: boolean; interim: boolean }[]): Promise<(Passed | string)[]> {
    const all: (Omit<Passed, 'reused'> | string)[] = [];
    const first = this.sent.length;
    for (const { text, toHead, ends, interim } of messages) {
      this.sent.push({ text: text + (interim ? 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n' + (toHead ? '' : 'final') : ''), ends, connection: 0 });
      all.push(await this.pass(this.sent.length - 1, toHead));
    }
    this.sent.push({ text: 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n', ends: false, connection: 0 });
    await this.pass(this.sent.length - 1, false);
    return all.map((got, i) => (typeof got === 'string' ? got : { ...got, reused: this.sent[first + i]?.connection === this.sent[first + i + 1]?.connection }));
  }

  private pass(index: number, toHead: boolean): Promise<Omit<Passed, 'reused'> | string> {
    return new Promise((resolve) => {
      const request = httpRequest({ agent: this.agent, socketPath: join(this.folder, 'answers'), path: `/${index}`, method: toHead ? 'HEAD' : 'GET', timeout: SILENCE_MS }, (response) => {
        const parts: Buffer[] = [];
        response.on('data', (part: Buffer) => parts.push(part));
        response.on('error', (error) => resolve(`broken off: ${error.message}`));
        response.on('end', () => resolve({ status: response.statusCode ?? 0, body: Buffer.concat(parts).toString('latin1') }));
      });
      request.on('timeout', () => request.destroy(new Error('silence')));
      request.on('error', (error) => resolve(`no answer: ${error.message}`));
      request.end();
    });
  }

  private serve(socket: Socket): void {
    const number = this.connections.size + 1;
    this.connections.set(socket, number);
    let text = '';
    socket.on('error', () => undefined);
    socket.on('data', (part) => {
      text += part.toString('latin1');
      for (let end = text.indexOf('\r\n\r\n'); end >= 0; end = text.indexOf('\r\n\r\n')) {
        const answer = this.sent[Number(/^\w+ \/(\d+)/.exec(text)?.[1])];
        text = text.slice(end + 4);
        if (!answer) return socket.destroy();
        answer.connection = number;
        if (answer.ends) socket.end(answer.text, 'latin1');
        else socket.write(answer.text, 'latin1');
      }
    });
  }
}

/** All normalisation that Istio can ask for is on: a path that comes out as it went in is the same to every setting. */
const NORMALISING = { normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: 'UNESCAPE_AND_FORWARD' };
