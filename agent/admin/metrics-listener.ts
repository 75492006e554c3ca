/**
 * The node's one endpoint for Prometheus: GET /metrics over HTTP/1.1 and TCP, and nothing else of the admin API. Whoever
 * reaches the address may ask, so that it costs the agent at most one set of texts a second, and holds few sockets.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { isIP, type AddressInfo } from 'node:net';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setImmediate as turn } from 'node:timers/promises';
import { constants, createGzip } from 'node:zlib';
import type { SocketAddress } from '../../common/arguments.js';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { Backoff, sleep } from '../../common/retry.js';

const MAX_CONNECTIONS = 32;
const MAX_HEADER_BYTES = 8_192;
/** For a request's head, and again for a reader that takes nothing of its answer. */
const TIMEOUT_MS = 10_000;
/** In which an answer has to be taken as a whole. */
const MAX_ANSWER_MS = 30_000;
/** How old an answer may be: more often than that nothing is counted up. */
const MAX_AGE_MS = 1_000;
/** After which other work has its turn while texts are made. */
const TURN_MS = 5;
const RETRY = { initialMs: 500, maxMs: 5_000, factor: 2, jitter: 0.2 };
const CONTENT_TYPE = 'text/plain; version=0.0.4';

/** An answer, for all who want it while it is young. */
interface Made {
  texts: readonly string[];
  /** Once somebody wants it so. */
  gzipped?: Promise<readonly Buffer[]>;
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

  /** @param metrics in Prometheus' text format 0.0.4 */
  constructor(readonly wanted: SocketAddress, readonly metrics: () => Promise<Iterable<string>>, readonly logger: Logger, readonly maxAgeMs = MAX_AGE_MS) {
    this.#address = written(wanted);
    this.#server = createServer({ maxHeaderSize: MAX_HEADER_BYTES, requestTimeout: TIMEOUT_MS, headersTimeout: TIMEOUT_MS, keepAliveTimeout: TIMEOUT_MS, connectionsCheckingInterval: 1_000 }, (request, response) => void this.#answer(request, response));
    this.#server.maxConnections = MAX_CONNECTIONS;
    this.#server.setTimeout(TIMEOUT_MS);
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

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const refuse = (status: number, text: string): void => {
      // Also ends what sends a body, which nobody reads.
      response.writeHead(status, { 'content-type': 'text/plain', 'content-length': Buffer.byteLength(text), connection: 'close' }).end(text);
    };
    if ((request.url ?? '').split('?', 1)[0] !== '/metrics') return refuse(404, 'only /metrics is served here\n');
    if (request.method !== 'GET') return refuse(405, 'only GET is served here\n');
    if (request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) !== 0) return refuse(413, 'expected a request without a body\n');
    const late = setTimeout(() => response.destroy(), MAX_ANSWER_MS);
    try {
      const made = await this.#texts();
      const gzipped = takesGzip(request.headers['accept-encoding'] ?? '') ? await (made.gzipped ??= gzip(made.texts)) : undefined;
      response.writeHead(200, { 'content-type': CONTENT_TYPE, vary: 'accept-encoding', ...(gzipped ? { 'content-encoding': 'gzip' } : {}) });
      await pipeline(Readable.from(gzipped ?? made.texts), response);
    } catch (error) {
      if (response.headersSent || response.destroyed) return void response.destroy();
      this.logger.warn({ reason: errorMessage(error) }, 'a scrape could not be answered');
      refuse(500, 'the metrics could not be read; the agent\'s log says why\n');
    } finally {
      clearTimeout(late);
    }
  }

  /** Those who ask at once, or before they are old, have the same ones. */
  #texts(): Promise<Made> {
    this.#made ??= this.#write().then((texts): Made => ({ texts })).finally(() => {
      this.#forget = setTimeout(() => (this.#made = undefined), this.maxAgeMs).unref();
    });
    return this.#made;
  }

  async #write(): Promise<readonly string[]> {
    const texts: string[] = [];
    let since = performance.now();
    for (const text of await this.metrics()) {
      texts.push(text);
      if (performance.now() - since < TURN_MS) continue;
      await turn();
      since = performance.now();
    }
    return texts;
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

/** In threads of their own. */
async function gzip(texts: readonly string[]): Promise<readonly Buffer[]> {
  const pieces: Buffer[] = [];
  await pipeline(Readable.from(texts), createGzip({ level: constants.Z_BEST_SPEED }), async (from: AsyncIterable<Buffer>) => {
    for await (const piece of from) pieces.push(piece);
  });
  return pieces;
}
