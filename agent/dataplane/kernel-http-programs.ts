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

export class HttpPrograms implements Closable {
  readonly #load: () => BpfObject;
  readonly #programs: BpfMap;
  readonly #logger: Logger;
  #object: BpfObject | undefined;
  #problem: string | undefined;

  /**
   * @param load gives an object with these programs alone, and the maps of all others
   * @param programs the map that holds them, by enum http_role
   */
  constructor(load: () => BpfObject, programs: BpfMap, logger: Logger) {
    this.#load = load;
    this.#programs = programs;
    this.#logger = logger;
  }

  /** Why they are not there, though they were wanted. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /** Ids of those that serve now, this agent's or a former one's. */
  get ids(): number[] {
    return HTTP_PROGRAMS.flatMap((_, role) => this.#programs.get(u32(role))?.readUInt32LE() ?? []);
  }

  /** Gives what a former agent's programs served this version; without those nothing is loaded. */
  adopt(): void {
    if (this.ids.length > 0) this.ensure();
  }

  /** Blocks for as long as the verifier takes, seconds. What the kernel refuses once it is not asked again. */
  ensure(): void {
    if (this.#object !== undefined || this.#problem !== undefined) return;
    const before = performance.now();
    try {
      this.#object = this.#load();
      this.#logger.info({ tookMs: Math.round(performance.now() - before) }, 'the programs of the HTTP fast path are loaded');
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      this.#problem = errorMessage(error);
      this.#logger.warn({ reason: this.#problem }, "this kernel refuses the HTTP fast path's programs: all requests go through Envoy");
    }
  }

  close(): void {
    this.#object?.close();
    this.#object = undefined;
  }
}
