/**
 * The node's one endpoint for Prometheus: GET /metrics over HTTP/1.1 and TCP, and nothing else of the admin API. Whoever
 * reaches the address may ask, so that it costs the agent at most one set of texts a second, and holds few sockets, with one answer
 * each.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { isIP, type AddressInfo, type Socket } from 'node:net';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setImmediate as turn } from 'node:timers/promises';
import { constants, createGunzip, createGzip } from 'node:zlib';
import type { SocketAddress } from '../../common/arguments.js';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { OneAtATime } from '../../common/one-at-a-time.js';
import { Backoff, sleep } from '../../common/retry.js';
import { CONTENT_TYPES, type MetricsFormat, type MetricsPage } from '../telemetry/prometheus.js';

const MAX_CONNECTIONS = 32;
const MAX_HEADER_BYTES = 8_192;
/** In milliseconds. */
export interface MetricsLimits {
  /** For a request's head, and again for a reader that takes nothing of its answer. */
  idleMs: number;
  /** In which an answer has to be taken as a whole. */
  answerMs: number;
  /** How old an answer may be: more often than that nothing is counted up. */
  ageMs: number;
}

const LIMITS: MetricsLimits = { idleMs: 10_000, answerMs: 30_000, ageMs: 1_000 };
/** After which other work has its turn while texts are made. */
const TURN_MS = 5;
const RETRY = { initialMs: 500, maxMs: 5_000, factor: 2, jitter: 0.2 };

/** An answer, for all who want it while it is young. */
interface Made {
  page: MetricsPage;
  /** Once somebody wants it so. Compressed it is a small part of what it is as text, so this is what is kept for all who ask. */
  gzipped: Map<MetricsFormat, Promise<readonly Buffer[]>>;
}

export interface MetricsStatus {
  /** Where it listens, or is to. */
  address: string;
  /** Why it does not. */
  problem?: string;
}

export class MetricsListener implements Closable {
  readonly #server: Server;
  readonly #abort = new AbortController();
  readonly #listening: Promise<void>;
  #address: string;
  #problem: string | undefined = 'not yet';
  #made: Promise<Made> | undefined;
  #forget: NodeJS.Timeout | undefined;
  readonly #limits: MetricsLimits;
  /** By the address they come from, the oldest first. */
  readonly #sockets = new Map<string, Set<Socket>>();
  readonly #requests = new OneAtATime();

  constructor(readonly wanted: SocketAddress, readonly metrics: () => Promise<MetricsPage>, readonly logger: Logger, limits: Partial<MetricsLimits> = {}) {
    this.#address = written(wanted);
    this.#limits = { ...LIMITS, ...limits };
    const { idleMs } = this.#limits;
    this.#server = createServer({ maxHeaderSize: MAX_HEADER_BYTES, requestTimeout: idleMs, headersTimeout: idleMs, keepAliveTimeout: idleMs, connectionsCheckingInterval: Math.min(1_000, idleMs) }, (request, response) => void this.#answer(request, response));
    this.#server.setTimeout(idleMs);
    this.#server.on('connection', (socket) => this.#admit(socket));
    // As when the process has too many open files; also what #tryToListen is told of.
    this.#server.on('error', (error) => this.logger.debug({ reason: errorMessage(error) }, 'serving metrics'));
    this.#listening = this.#listen();
  }

  get status(): MetricsStatus {
    return { address: this.#address, ...(this.#problem === undefined ? {} : { problem: this.#problem }) };
  }

  /** A port that somebody else has is no reason to leave a node without its agent. */
  async #listen(): Promise<void> {
    const backoff = new Backoff(RETRY);
    while (!this.#abort.signal.aborted) {
      const problem = await this.#tryToListen();
      if (problem === undefined) {
        this.#problem = undefined;
        this.#address = written({ host: this.wanted.host, port: (this.#server.address() as AddressInfo).port });
        this.logger.info({ address: this.#address }, 'metrics are served, to whoever reaches the address');
        return;
      }
      if (problem !== this.#problem) this.logger.warn({ address: this.#address, reason: problem }, '--metrics-address: nobody can be served there; it is tried again');
      this.#problem = problem;
      await sleep(backoff.next(), this.#abort.signal).catch(() => undefined);
    }
  }

  #tryToListen(): Promise<string | undefined> {
    return new Promise((resolve) => {
      const done = (error?: Error): void => {
        this.#server.off('error', done).off('listening', done);
        resolve(error && errorMessage(error));
      };
      this.#server.on('error', done).on('listening', done).listen(this.wanted);
    });
  }

  /** Where there are too many the address that has most of them loses its oldest: whoever holds all that he gets keeps nobody else out. */
  #admit(socket: Socket): void {
    const address = socket.remoteAddress ?? '';
    const own = this.#sockets.get(address) ?? new Set();
    this.#sockets.set(address, own.add(socket));
    socket.once('close', () => {
      own.delete(socket);
      if (own.size === 0 && this.#sockets.get(address) === own) this.#sockets.delete(address);
    });
    const all = [...this.#sockets.values()];
    if (all.reduce((sum, { size }) => sum + size, 0) <= MAX_CONNECTIONS) return;
    const [most] = all.sort((x, y) => y.size - x.size);
    const [oldest] = most!;
    // Its close comes later.
    most!.delete(oldest!);
    oldest!.destroy();
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (!this.#requests.admits(request, response)) return;
    const refuse = (status: number, text: string): void => {
      // Also ends what sends a body, which nobody reads.
      response.writeHead(status, { 'content-type': 'text/plain', 'content-length': Buffer.byteLength(text), connection: 'close' }).end(text);
    };
    if ((request.url ?? '').split('?', 1)[0] !== '/metrics') return refuse(404, 'only /metrics is served here\n');
    if (request.method !== 'GET') return refuse(405, 'only GET is served here\n');
    if (request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) !== 0) return refuse(413, 'expected a request without a body\n');
    const late = setTimeout(() => response.destroy(), this.#limits.answerMs);
    try {
      const format = formatOf(request.headers.accept ?? '');
      const gzipped = Readable.from(await this.#gzipped(format));
      const isPlain = !takesGzip(request.headers['accept-encoding'] ?? '');
      response.writeHead(200, { 'content-type': CONTENT_TYPES[format], vary: 'accept, accept-encoding', ...(isPlain ? {} : { 'content-encoding': 'gzip' }) });
      await (isPlain ? pipeline(gzipped, createGunzip(), response) : pipeline(gzipped, response));
    } catch (error) {
      if (response.headersSent || response.destroyed) return void response.destroy();
      this.logger.warn({ reason: errorMessage(error) }, 'a scrape could not be answered');
      refuse(500, 'the metrics could not be read; the agent\'s log says why\n');
    } finally {
      clearTimeout(late);
    }
  }

  /** Those who ask at once, or before they are old, have the same ones. */
  async #gzipped(format: MetricsFormat): Promise<readonly Buffer[]> {
    this.#made ??= this.metrics().then((page): Made => ({ page, gzipped: new Map() })).finally(() => {
      this.#forget = setTimeout(() => (this.#made = undefined), this.#limits.ageMs).unref();
    });
    const { page, gzipped } = await this.#made;
    const known = gzipped.get(format) ?? gzip(inTurns(page.pieces(format)));
    gzipped.set(format, known);
    return known;
  }

  async close(): Promise<void> {
    this.#abort.abort();
    await this.#listening;
    clearTimeout(this.#forget);
    if (!this.#server.listening) return;
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }
}

function written({ host, port }: SocketAddress): string {
  return `${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
}

/** https://www.rfc-editor.org/rfc/rfc9110#name-accept-encoding */
function takesGzip(accepted: string): boolean {
  const [, weight] = /(?:^|,)\s*gzip\s*(?:;\s*q=([\d.]+)\s*)?(?:,|$)/i.exec(accepted) ?? [undefined, '0'];
  return weight === undefined || Number(weight) > 0;
}

/**
 * Which of both the reader likes better; of two that it likes alike the older one, as of a reader that says nothing. OpenMetrics of
 * another version than the one that is written is none.
 */
function formatOf(accepted: string): MetricsFormat {
  const liked: Record<MetricsFormat, number> = { text: 0, openmetrics: 0 };
  for (const range of accepted.split(',')) {
    const [type = '', ...parameters] = range.split(';').map((part) => part.trim().toLowerCase());
    const parameter = (name: string): string | undefined => parameters.find((each) => each.startsWith(`${name}=`))?.slice(name.length + 1);
    const weight = Number(parameter('q') ?? 1) || 0;
    const isOpen = type === 'application/openmetrics-text' && ['1.0.0', undefined].includes(parameter('version'));
    if (isOpen) liked.openmetrics = Math.max(liked.openmetrics, weight);
    else if (['text/plain', 'text/*', '*/*'].includes(type)) liked.text = Math.max(liked.text, weight);
  }
  return liked.openmetrics > liked.text ? 'openmetrics' : 'text';
}

async function* inTurns(pieces: Iterable<string>): AsyncGenerator<string> {
  let since = performance.now();
  for (const piece of pieces) {
    yield piece;
    if (performance.now() - since < TURN_MS) continue;
    await turn();
    since = performance.now();
  }
}

/** In threads of their own. */
async function gzip(texts: AsyncIterable<string>): Promise<readonly Buffer[]> {
  const pieces: Buffer[] = [];
  await pipeline(Readable.from(texts), createGzip({ level: constants.Z_BEST_SPEED }), async (from: AsyncIterable<Buffer>) => {
    for await (const piece of from) pieces.push(piece);
  });
  return pieces;
}
