import { errorMessage } from '../../common/errors.js';
import { LabClient, type PodMetadataPatch, type PodRecord } from '../../common/lab-api.js';
import type { Logger } from '../../common/log.js';
import { newest } from './newest.js';
import type { WorkloadSource } from './source.js';

/** The pods of one node of a lab. When the lab goes away its last set stays in force. */
export class LabSource implements WorkloadSource {
  readonly #client: LabClient;
  #problem: string | undefined = 'not connected yet';

  constructor(readonly socketPath: string, readonly nodeName: string, readonly logger: Logger) {
    this.#client = new LabClient(socketPath);
  }

  get description(): string {
    return `lab ${this.socketPath}`;
  }

  get problem(): string | undefined {
    return this.#problem;
  }

  watch(signal: AbortSignal): AsyncIterable<readonly PodRecord[]> {
    return newest(this.#sets(signal));
  }

  setPodMetadata({ namespace, name }: PodRecord, patch: PodMetadataPatch): Promise<void> {
    return this.#client.label({ kind: 'Pod', namespace, name, ...patch });
  }

  async *#sets(signal: AbortSignal): AsyncGenerator<readonly PodRecord[], void> {
    const onError = (error: unknown): void => {
      // Once a loss, not once an attempt.
      if (this.#problem === undefined) {
        this.logger.warn({ lab: this.socketPath, reason: errorMessage(error) }, 'lost the lab; its last pods stay in force');
      }
      this.#problem = errorMessage(error);
    };
    for await (const pods of this.#client.watchPods(this.nodeName, signal, { onError })) {
      if (this.#problem !== undefined) this.logger.info({ lab: this.socketPath, pods: pods.length }, 'pods are known');
      this.#problem = undefined;
      yield pods;
    }
  }
}
