/**
 * Keeps the public keys of token issuers at hand: Envoys get them from here and never fetch them. Keys are fetched when a
 * rule asks for them first, and again every 20 minutes; what was good last stays in force while a source is away.
 */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { Backoff } from '../../common/retry.js';
import { isDiscovery, usableJwks, type WantedKeys } from '../model/jwks.js';
import { fetchText, type FetchLimits } from './fetch.js';

const REFRESH_MS = 20 * 60_000;
const RETRY = { initialMs: 1_000, maxMs: 5 * 60_000, factor: 2, jitter: 0.2 };
const PARALLEL = 8;

export interface JwksFetcherOptions {
  logger: Logger;
  /** Keys that are new or other than before; undefined when nobody asks for them any more. */
  onKeys: (source: string, keys: string | undefined) => void;
  refreshMs?: number;
  retry?: Partial<typeof RETRY>;
}

interface Source {
  readonly backoff: Backoff;
  timeoutMs: number | undefined;
  keys: string | undefined;
  timer: NodeJS.Timeout | undefined;
  problem: string | undefined;
  /** Settles with the first attempt, however that ends. */
  first: Promise<void>;
}

export class JwksFetcher implements Closable {
  readonly #options: JwksFetcherOptions;
  readonly #sources = new Map<string, Source>();
  readonly #closing = new AbortController();
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  constructor(options: JwksFetcherOptions) {
    this.#options = options;
  }

  /** Says which sources are asked for; others are forgotten. */
  want(wanted: ReadonlyMap<string, WantedKeys>): void {
    if (this.#closing.signal.aborted) return;
    for (const [name, source] of this.#sources) {
      if (wanted.has(name)) continue;
      clearTimeout(source.timer);
      this.#sources.delete(name);
      this.#options.onKeys(name, undefined);
    }
    for (const [name, { timeoutMs }] of wanted) {
      const known = this.#sources.get(name);
      if (known) {
        known.timeoutMs = timeoutMs;
        continue;
      }
      const source: Source = { backoff: new Backoff({ ...RETRY, ...this.#options.retry }), timeoutMs, keys: undefined, timer: undefined, problem: undefined, first: Promise.resolve() };
      this.#sources.set(name, source);
      source.first = this.#refresh(name, source);
    }
  }

  /** Until each source has been asked once, or `limitMs` are over. */
  async settled(limitMs: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await Promise.race([
      Promise.all([...this.#sources.values()].map(({ first }) => first)),
      new Promise<void>((resolve) => {
        timer = setTimeout(resolve, limitMs);
      }),
    ]);
    clearTimeout(timer);
  }

  /** What is wrong with sources now, by source; those without keys are marked by it. */
  problems(): string[] {
    return [...this.#sources.values()].flatMap(({ problem, keys }) => (problem === undefined ? [] : [`${problem}; ${keys === undefined ? 'every token of the issuer is refused' : 'the last good keys stay'}`]));
  }

  async #refresh(name: string, source: Source): Promise<void> {
    const { logger, onKeys, refreshMs = REFRESH_MS } = this.#options;
    await this.#slot();
    let nextMs: number;
    try {
      const keys = await fetchKeys(name, { timeoutMs: source.timeoutMs, signal: this.#closing.signal });
      if (this.#sources.get(name) !== source) return;
      if (source.problem !== undefined) logger.info({ source: name }, 'keys of a token issuer are there again');
      source.problem = undefined;
      source.backoff.reset();
      nextMs = refreshMs;
      if (keys !== source.keys) {
        source.keys = keys;
        onKeys(name, keys);
      }
    } catch (error) {
      if (this.#closing.signal.aborted || this.#sources.get(name) !== source) return;
      const message = errorMessage(error);
      // Once a cause: a source that stays away does not fill the log.
      if (message !== source.problem) logger.warn({ source: name, lastGoodStays: source.keys !== undefined }, message);
      source.problem = message;
      nextMs = source.backoff.next();
    } finally {
      this.#running--;
      this.#waiting.shift()?.();
    }
    source.timer = setTimeout(() => void this.#refresh(name, source), nextMs);
    source.timer.unref();
  }

  async #slot(): Promise<void> {
    while (this.#running >= PARALLEL) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    this.#running++;
  }

  close(): void {
    this.#closing.abort();
    for (const { timer } of this.#sources.values()) clearTimeout(timer);
    this.#sources.clear();
  }
}

async function fetchKeys(source: string, limits: FetchLimits): Promise<string> {
  let uri = source;
  if (isDiscovery(source)) {
    const document = await fetchText(source, limits);
    const found = jwksUriOf(document);
    if (found === undefined) throw new Error(`fetching ${source}: found no jwks_uri in it`);
    uri = found;
  }
  const keys = usableJwks(await fetchText(uri, limits));
  if (keys === undefined) throw new Error(`fetching ${uri}: found no usable key, expected a JSON Web Key Set with keys of type RSA, EC, OKP or oct`);
  return keys;
}

function jwksUriOf(document: string): string | undefined {
  try {
    const uri = (JSON.parse(document) as { jwks_uri?: unknown }).jwks_uri;
    return typeof uri === 'string' ? uri : undefined;
  } catch {
    return undefined;
  }
}
