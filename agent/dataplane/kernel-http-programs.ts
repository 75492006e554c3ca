/**
 * The programs of the HTTP fast path. The verifier takes longer for them than for all others together, and most nodes have no pod
 * that wants them, so they are loaded for the first one that does. Until then messages of such connections are moved to Envoy.
 */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { KernelError, type BpfMap, type BpfObject } from '../../native/index.js';
import { u32 } from './kernel-codec.js';

export const HTTP_PROGRAMS = ['http_client', 'http_downstream', 'http_upstream', 'http_server', 'http_pipelined'] as const;

/** Gives an object with these programs alone, and the maps of all others. */
export interface LoadHttpPrograms {
  /** Blocks for as long as the verifier takes. */
  now(): BpfObject;
  later(): Promise<BpfObject>;
}

export class HttpPrograms implements Closable {
  readonly #load: LoadHttpPrograms;
  readonly #programs: BpfMap;
  readonly #logger: Logger;
  #object: BpfObject | undefined;
  #problem: string | undefined;
  #loading: Promise<void> | undefined;
  #closed = false;

  /** @param programs the map that holds them, by enum http_role */
  constructor(load: LoadHttpPrograms, programs: BpfMap, logger: Logger) {
    this.#load = load;
    this.#programs = programs;
    this.#logger = logger;
  }

  /** Why they are not there, though they were wanted. */
  get problem(): string | undefined {
    return this.#problem;
  }

  get isLoading(): boolean {
    return this.#loading !== undefined;
  }

  /** Ids of those that serve now, this agent's or a former one's. */
  get ids(): number[] {
    return HTTP_PROGRAMS.flatMap((_, role) => this.#programs.get(u32(role))?.readUInt32LE() ?? []);
  }

  /** Gives what a former agent's programs served this version; without those nothing is loaded. */
  adopt(): void {
    if (this.ids.length > 0) this.ensure();
  }

  /** Loads them now, which blocks for as long as the verifier takes, half a second of CPU: before an agent serves. */
  ensure(): void {
    if (this.#isDone) return;
    const before = performance.now();
    try {
      this.#loaded(this.#load.now(), before);
    } catch (error) {
      this.#refused(error);
    }
  }

  /**
   * Loads them beside all else. Resolves once they serve, or are refused; what the kernel refuses once it is not asked again.
   * @throws what is no refusal of the kernel's
   */
  async want(): Promise<void> {
    if (this.#isDone || this.#closed) return;
    this.#loading ??= this.#loadLater().finally(() => (this.#loading = undefined));
    await this.#loading;
  }

  get #isDone(): boolean {
    return this.#object !== undefined || this.#problem !== undefined;
  }

  async #loadLater(): Promise<void> {
    const before = performance.now();
    try {
      this.#loaded(await this.#load.later(), before);
    } catch (error) {
      this.#refused(error);
    }
  }

  #loaded(object: BpfObject, before: number): void {
    this.#object = object;
    this.#logger.info({ tookMs: Math.round(performance.now() - before) }, 'the programs of the HTTP fast path are loaded');
  }

  #refused(error: unknown): void {
    if (!(error instanceof KernelError)) throw error;
    this.#problem = errorMessage(error);
    this.#logger.warn({ reason: this.#problem }, "this kernel refuses the HTTP fast path's programs: all requests go through Envoy");
  }

  /** After what is being loaded, lest it is put beside the programs of a next agent. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#loading?.catch(() => undefined);
    this.#object?.close();
    this.#object = undefined;
  }
}
