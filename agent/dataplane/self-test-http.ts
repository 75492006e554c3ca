/**
 * What the HTTP fast path needs of this kernel (docs/http-fast-path.md), tried by the real programs: a client, Envoy's part and a
 * server exchange requests over real sockets, step by step, and every byte is compared. Part of self-test.ts.
 */
import { randomBytes } from 'node:crypto';
import { UnderpassError } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { LESSON_HEADER, TAUGHT_MARK } from '../http/names.js';
import { className, ENVOY, type HttpClass, type HttpTable } from '../http/table.js';
import { HttpEndingQueue } from './http-endings.js';
import type { HttpEnd } from './kernel-http-control.js';
import type { Kernel } from './kernel.js';
import { SocketEnds, type EndsAnswer } from './socket-ends.js';

export interface HttpSelfTestWorld {
  kernel: Kernel;
  netns: string;
  netnsCookie: bigint;
  podCgroup: string;
  proxyCgroup: string;
  logger: Logger;
}

/** A check says what it saw; it throws when that is wrong. */
export type HttpCheck = readonly [name: string, body: () => Promise<string>];

const VIP = '192.0.2.80';
const SERVER = '127.0.0.1';
const PORT = 80;
const OUTBOUND = 15001;
/** A class for each check that leaves its own to Envoy for ten seconds. */
const CLASSES = 3;
/** Bytes that the kernel puts into a request, HTTP_DRAW_TEXT in bpf/http-structs.h: two lines. */
const WEIGHT_LINE = header('x-self-test-weight', '0', 32);
const ENDPOINT_LINE = header('x-self-test-endpoint', `${SERVER}:${PORT}`, 160);
/** However long it has no turn. */
const AHEAD_MS = 600_000;
/** How long one thing may take to happen: only what hangs gets there, not a busy node. */
const STEP_S = 5;
/** The same: a client that is not told waits for ever. */
const ENDING_S = 5;
/** HTTP_ANSWER_CAP, and what is sent in one go. */
const ANSWER_CAP_BYTES = 4 << 20;
const PIECE_BYTES = 256 << 10;

/** The heads' and the kernel's own buffers for short messages lie in pieces of 32 KiB: so many fill more than one. */
const SHORT_REQUESTS = 32;
const SHORT_TARGET_BYTES = 1_150;
const PAGES_BYTES = 40_000;
const LARGE_BYTES = 300_000;

export class HttpSelfTest implements Closable {
  readonly #world: HttpSelfTestWorld;
  readonly #client: SocketEnds;
  readonly #envoy: SocketEnds;
  readonly #server: SocketEnds;
  readonly #endings: HttpEndingQueue;
  readonly #ends: HttpEnd[] = [];
  #classes: HttpClass[] = [];
  #clientPort = 0;

  /** Of bpf/http-client.h, http-server.h and http-proxy.h, in this order: each stands on those before it. */
  readonly checks: readonly HttpCheck[] = [
    ['http-draw', () => this.#draws()],
    ['http-draw-large', () => this.#drawsIntoLarge()],
    ['http-lesson', () => this.#lesson()],
    ['http-exchange', () => this.#exchanges()],
    ['http-order', () => this.#order()],
    ['http-server-reset', () => this.#serverResets()],
    ['http-bound', () => this.#bound()],
    ['http-server-end', () => this.#serverEnds()],
    ['http-client-end', () => this.#clientEnds()],
    ['http-switch', () => this.#switch()],
  ];

  constructor(world: HttpSelfTestWorld) {
    this.#world = world;
    const { kernel, netns, podCgroup, proxyCgroup, logger } = world;
    this.#client = new SocketEnds({ netns, cgroup: podCgroup });
    this.#server = new SocketEnds({ netns, cgroup: podCgroup });
    this.#envoy = new SocketEnds({ netns, cgroup: proxyCgroup });
    this.#endings = new HttpEndingQueue({ netnsPathOf: () => netns, proxyPid: () => this.#envoy.pid, logger });
    kernel.http.control.listen((end) => {
      this.#ends.push(end);
      this.#endings.end(end);
    });
  }

  /** The listeners, the client's table, and verdicts for both programs, which have no time for probation. */
  async open(): Promise<string> {
    const { kernel, netnsCookie } = this.#world;
    await this.#envoy.do('listen', 'outbound', '127.0.0.1', OUTBOUND);
    await this.#server.do('listen', 'listener', SERVER, PORT);
    this.#classes = Array.from({ length: CLASSES }, (_, cluster) => ({ ...kernel.http.tables.takeName()!, splits: [{ until: 1, cluster, text: WEIGHT_LINE }] }));
    kernel.http.control.setPod(netnsCookie, { table: kernel.http.tables.write('self-test', this.#table()), state: 'live' });
    this.#live(true);
    kernel.markListener({ netnsCookie, address: SERVER, port: PORT }, 'event-driven');
    // As the kernel calls it: of an executable on an overlayfs stat() says something else.
    await this.#connect();
    await this.#client.do('send', 'c', 'x');
    await this.#envoy.do('receive', 'd', 1, STEP_S);
    const found = kernel.probation().map(({ kind, key }) => (kind === 'client' ? /^cgroup \d+ exe (\d+):(\d+)$/.exec(key) : null)).find((match) => match !== null);
    if (!found) throw wrong("the client's program was not seen in probation");
    kernel.markProgram({ device: Number(found[1]), inode: BigInt(found[2]!) }, 'event-driven');
    return 'a client, a server and what plays Envoy are there';
  }

  /** Between two checks. */
  async reset(): Promise<void> {
    for (const [end, names] of [[this.#client, ['c']], [this.#envoy, ['d', 'u']], [this.#server, ['s']]] as const) {
      for (const name of names) await end.do('close', name).catch(() => undefined);
    }
    await this.#endings.idle();
    this.#ends.length = 0;
  }

  async close(): Promise<void> {
    await Promise.all([this.#client, this.#envoy, this.#server].map((end) => end.close()));
    await this.#endings.idle();
  }

  #live(on: boolean): void {
    const { control } = this.#world.kernel.http;
    control.beat(on, control.lostEnds(), AHEAD_MS);
  }

  #table(): HttpTable {
    const anyPath = { kind: 'any', value: '', inverted: false } as const;
    const rule = (path: HttpTable['virtualHosts'][number]['rules'][number]['path'], verdict: number): HttpTable['virtualHosts'][number]['rules'][number] => ({ path, methods: undefined, headers: [], verdict });
    return {
      ports: [{ address: undefined, port: PORT, routes: 0 }],
      routes: [{ name: 'self-test', hosts: [{ host: 'self-test', virtualHost: 0 }] }],
      virtualHosts: [{
        rules: [
          rule({ kind: 'prefix', value: '/envoys', inverted: false }, ENVOY),
          ...this.#classes.slice(1).map((_, index) => rule({ kind: 'prefix', value: `/class-${index + 1}`, inverted: false }, index + 1)),
          rule(anyPath, 0),
        ],
        otherwise: ENVOY,
      }],
      classes: this.#classes,
      clusters: this.#classes.map((_, index) => ({ name: `self-test-${index}`, balance: 'least-request', endpoints: [{ address: SERVER, port: PORT, policy: 'open', weight: 1, teachable: true, text: ENDPOINT_LINE }] })),
      policies: [],
      findings: [],
      classOf: () => undefined,
    };
  }

  async #draws(): Promise<string> {
    await this.#connect();
    for (let turn = 0; turn < SHORT_REQUESTS; turn++) await this.#byEnvoy(request(`/${'t'.repeat(SHORT_TARGET_BYTES)}${turn}`, text(turn)), true);
    return `${SHORT_REQUESTS} requests of one message each had two lines put into them, and all else was as sent`;
  }

  async #drawsIntoLarge(): Promise<string> {
    const { kernel } = this.#world;
    await this.#connect();
    for (const bytes of [PAGES_BYTES, LARGE_BYTES]) await this.#byEnvoy(request('/large', text(bytes)), true);
    // By TCP, since Envoy has not read what came before: it answers without.
    const unread = request('/envoys', '');
    kernel.setGlobalAcceleration(false);
    await this.#client.do('send', 'c', unread);
    kernel.setGlobalAcceleration(true);
    await this.#answerFrom('d', answer('unread'));
    const sent = request('/large', text(PAGES_BYTES));
    await this.#arrives(this.#client, 'c', sent, this.#envoy, 'd', unread + drawn(sent), 'a request by TCP');
    await this.#answerFrom('d', answer('read'));
    return `requests of ${PAGES_BYTES} and ${LARGE_BYTES} bytes in one write had two lines put into them, moved and by TCP`;
  }

  async #lesson(): Promise<string> {
    await this.#connect();
    const lessons = await this.#counted('http_lessons', () => this.#teach(0, text(PAGES_BYTES)));
    if (lessons !== 1) throw wrong('nothing was learnt of a lesson');
    return 'what Envoy says of a request is learnt, and blank where the server reads it';
  }

  async #exchanges(): Promise<string> {
    await this.#learnt(0);
    await this.#fast(request('/', ''), answer('short'));
    await this.#fast(request('/', text(50_000)), answer(text(LARGE_BYTES)), { asked: 3, answered: 3 });
    const chunks = `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${'1\r\nx\r\n'.repeat(500)}0\r\n\r\n`;
    await this.#fast(request('/', ''), chunks, { answered: 3 });
    for (let turn = 0; turn < 3; turn++) {
      await this.#byEnvoy(request('/envoys', ''), false);
      await this.#fast(request('/', ''), answer(`fast ${turn}`));
    }
    return 'requests and answers of up to 300,000 bytes, by length and by chunks, were moved between client and server, between others by Envoy';
  }

  /** Moved bytes are read before TCP's: docs/kernel-rules.md, rule 2. */
  async #order(): Promise<string> {
    const { kernel } = this.#world;
    await this.#learnt(0);
    const long = answer(text(20_000));
    await this.#arrives(this.#client, 'c', request('/envoys', ''), this.#envoy, 'd', request('/envoys', ''), 'a request');
    kernel.setGlobalAcceleration(false);
    await this.#envoy.do('send', 'd', long);
    kernel.setGlobalAcceleration(true);
    const next = request('/', '');
    await this.#arrives(this.#client, 'c', next, this.#envoy, 'd', drawn(next), "a request of a client that has not read Envoy's answer");
    const last = answer('last');
    await this.#arrives(this.#envoy, 'd', last, this.#client, 'c', long + last, 'two answers');

    // The same at the server, which answers without having read what it was asked.
    const unread = request('/unread', text(500));
    await this.#arrives(this.#client, 'c', request('/envoys', ''), this.#envoy, 'd', request('/envoys', ''), 'a request');
    kernel.setGlobalAcceleration(false);
    await this.#envoy.do('send', 'u', unread);
    kernel.setGlobalAcceleration(true);
    await this.#arrives(this.#server, 's', answer('early'), this.#envoy, 'u', answer('early'), 'an answer');
    await this.#answerFrom('d', answer('early'));
    await this.#arrives(this.#client, 'c', next, this.#envoy, 'd', drawn(next), 'a request to a server that has not read what came by TCP');
    await this.#arrives(this.#envoy, 'u', next, this.#server, 's', unread + next, 'two requests');
    return 'nothing is moved past what came by TCP and is still to be read, at either end';
  }

  /** There is no way back by TCP for what is moved, so it is bounded by the programs. */
  async #bound(): Promise<string> {
    await this.#learnt(1);
    await this.#arrives(this.#client, 'c', request('/class-1', ''), this.#server, 's', request('/class-1', ''), 'a request');
    let queued = 0;
    await this.#server.do('send', 's', `HTTP/1.1 200 OK\r\nContent-Length: ${4 * ANSWER_CAP_BYTES}\r\n\r\n`);
    while (queued < 2 * ANSWER_CAP_BYTES && this.#ends.length === 0) {
      const { error } = await this.#server.do('send', 's', 'x'.repeat(PIECE_BYTES));
      if (error !== undefined) throw wrong(`an answer was held back after ${queued} bytes, and its client's connection not ended: ${error}`);
      queued += PIECE_BYTES;
      await new Promise((resolve) => setImmediate(resolve));
    }
    if (queued >= 2 * ANSWER_CAP_BYTES) throw wrong(`${queued} bytes of an answer were taken for a client that reads none`);
    const { error, data = '', end } = await this.#client.do('receive', 'c', 2 * ANSWER_CAP_BYTES, ENDING_S);
    if (error === undefined) throw wrong(`the connection of a client that read nothing was ${end ? 'ended as if all had come' : `not ended in ${ENDING_S} s`}: ${data.length} of ${queued} bytes came (${JSON.stringify(this.#endings.count)})`);
    return `${queued} bytes were taken for a client that reads none, then its connection ended`;
  }

  async #serverResets(): Promise<string> {
    await this.#learnt(0);
    await this.#arrives(this.#client, 'c', request('/', ''), this.#server, 's', request('/', ''), 'a request');
    const part = answer('cut off').slice(0, -3);
    await this.#arrives(this.#server, 's', part, this.#client, 'c', part, 'the first part of an answer');
    await this.#server.do('reset', 's');
    const { error } = await this.#client.do('receive', 'c', 1, ENDING_S);
    if (error === undefined) throw wrong(`a client whose server was reset in the middle of an answer was not told in ${ENDING_S} s`);
    return 'a client whose server was reset in the middle of an answer is told (SOCK_DESTROY)';
  }

  async #serverEnds(): Promise<string> {
    await this.#learnt(2);
    await this.#arrives(this.#client, 'c', request('/class-2', ''), this.#server, 's', request('/class-2', ''), 'a request');
    const whole = `HTTP/1.1 200 OK\r\n\r\n${text(5_000)}`;
    await this.#server.do('send', 's', whole);
    await this.#server.do('close', 's');
    const got = await this.#client.do('receive', 'c', whole.length + 1, ENDING_S);
    same(got, whole, 'an answer that ends with its connection');
    if (!got.end) throw wrong(`a client whose server ended its answer by closing was ${got.error === undefined ? `not told in ${ENDING_S} s` : 'reset'}`);
    return 'an answer that ends with its connection ends so at the client (pidfd_getfd)';
  }

  async #clientEnds(): Promise<string> {
    await this.#learnt(0);
    await this.#arrives(this.#client, 'c', request('/', ''), this.#server, 's', request('/', ''), 'a request');
    await this.#client.do('close', 'c');
    const { error, end } = await this.#server.do('receive', 's', 1, ENDING_S);
    if (error === undefined && !end) throw wrong(`a server whose client went away was not told in ${ENDING_S} s`);
    return 'a server whose client went away is told';
  }

  async #switch(): Promise<string> {
    await this.#learnt(0);
    await this.#fast(request('/', ''), answer('on'));
    this.#live(false);
    await this.#byEnvoy(request('/', ''), false);
    this.#live(true);
    await this.#fast(request('/', ''), answer('on again'));
    return 'switched off, requests go to Envoy';
  }

  async #connect(): Promise<void> {
    const { port, error } = await this.#client.do('connect', 'c', VIP, PORT);
    if (port === undefined) throw wrong(`a client could not connect: ${error ?? ''}`);
    this.#clientPort = port;
    await this.#envoy.do('accept', 'd', 'outbound', STEP_S);
  }

  /** A connection of which the server of a class is learnt. */
  async #learnt(of: number): Promise<void> {
    await this.#connect();
    await this.#teach(of, '');
  }

  async #teach(of: number, body: string): Promise<void> {
    const path = of === 0 ? '/' : `/class-${of}`;
    const { error } = await this.#envoy.do('connect', 'u', SERVER, PORT, TAUGHT_MARK);
    if (error !== undefined) throw wrong(`Envoy's part could not connect to the server: ${error}`);
    await this.#server.do('accept', 's', 'listener', STEP_S);
    const sent = request(path, body);
    await this.#arrives(this.#client, 'c', sent, this.#envoy, 'd', drawn(sent), 'a request');
    const lesson = `${LESSON_HEADER}: ${className(this.#classes[of]!)}-${this.#world.netnsCookie.toString(16).padStart(16, '0')}-${this.#clientPort}`;
    const passedOn = sent.replace('\r\n\r\n', `\r\n${lesson}\r\nx-last: 1\r\n\r\n`);
    await this.#arrives(this.#envoy, 'u', passedOn, this.#server, 's', passedOn.replace(`\r\n${lesson}`, ' '.repeat(lesson.length + 2)), 'a request with a lesson');
    await this.#arrives(this.#server, 's', answer('taught'), this.#envoy, 'u', answer('taught'), 'an answer to Envoy');
    await this.#answerFrom('d', answer('taught'));
  }

  /** @param isDrawn whether the kernel has to tell Envoy of its draw */
  async #byEnvoy(sent: string, isDrawn: boolean): Promise<void> {
    await this.#arrives(this.#client, 'c', sent, this.#envoy, 'd', isDrawn ? drawn(sent) : sent, 'a request');
    await this.#answerFrom('d', answer('by Envoy'));
  }

  async #answerFrom(name: 'd', back: string): Promise<void> {
    await this.#arrives(this.#envoy, name, back, this.#client, 'c', back, "Envoy's answer");
  }

  /** In so many writes, each. */
  async #fast(sent: string, back: string, { asked = 1, answered = 1 } = {}): Promise<void> {
    const moved = await this.#counted('http_answers_fast', async () => {
      await this.#arrives(this.#client, 'c', sent, this.#server, 's', sent, "a request that is the kernel's", asked);
      await this.#arrives(this.#server, 's', back, this.#client, 'c', back, "an answer that is the kernel's", answered);
    });
    if (moved !== 1) throw wrong("an exchange was not counted as the kernel's");
  }

  async #arrives(from: SocketEnds, name: string, sent: string, to: SocketEnds, at: string, expected: string, what: string, writes = 1): Promise<void> {
    const received = to.do('receive', at, expected.length, STEP_S);
    received.catch(() => undefined);
    const piece = Math.ceil(sent.length / writes);
    for (let begin = 0; begin < sent.length; begin += piece) {
      const { error } = await from.do('send', name, sent.slice(begin, begin + piece));
      if (error !== undefined) throw wrong(`${what} could not be sent: ${error}`);
    }
    same(await received, expected, what);
  }

  async #counted(counter: string, body: () => Promise<void>): Promise<number> {
    const count = (): bigint => this.#world.kernel.counters()[counter] ?? 0n;
    const before = count();
    await body();
    return Number(count() - before);
  }
}

function header(name: string, value: string, bytes: number): string {
  return `${`${name}: ${value}`.padEnd(bytes - 2)}\r\n`;
}

/** With the lines of the draw behind its first line. */
function drawn(sent: string): string {
  const at = sent.indexOf('\r\n') + 2;
  return sent.slice(0, at) + WEIGHT_LINE + ENDPOINT_LINE + sent.slice(at);
}

function request(path: string, body: string): string {
  return `${body === '' ? 'GET' : 'POST'} ${path} HTTP/1.1\r\nHost: self-test\r\n${body === '' ? '' : `Content-Length: ${body.length}\r\n`}\r\n${body}`;
}

function answer(body: string): string {
  return `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
}

/** No two places of it are alike, so that what is moved to another place is noticed. */
function text(bytes: number): string {
  return randomBytes(Math.ceil(bytes / 2)).toString('hex').slice(0, bytes);
}

function same({ data = '', error, end }: EndsAnswer, expected: string, what: string): void {
  if (data === expected) return;
  let at = 0;
  while (at < data.length && data[at] === expected[at]) at++;
  const why = error ?? (end ? 'the stream ended' : data.length < expected.length ? `no more in ${STEP_S} s` : 'all came');
  throw wrong(`${what}: ${data.length} of ${expected.length} bytes came, right up to byte ${at} (${why})`);
}

function wrong(what: string): UnderpassError {
  return new UnderpassError('UNDERPASS_SELF_TEST', what);
}
