/** A log line for each connection of a local pod that ended or was denied: who, whom, which way, how much. */
import type { Logger } from '../../common/log.js';
import type { FlowRecord } from '../dataplane/kernel-flows.js';

/** A pod of this node. */
export interface NamedPod {
  netnsCookie: bigint;
  name: string;
  namespace: string;
}

export interface FlowLogOptions {
  logger: Logger;
  podOf: (netnsCookie: bigint) => NamedPod | undefined;
  linesPerSecond: number;
  /** Milliseconds. */
  now?: () => number;
}

export const DEFAULT_FLOW_LINES_PER_SECOND = 1_000;

export class FlowLog {
  readonly #options: FlowLogOptions;
  readonly #now: () => number;
  #tokens: number;
  #at: number;
  #lost = 0n;

  constructor(options: FlowLogOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#tokens = options.linesPerSecond;
    this.#at = this.#now();
  }

  /** Records for which there was no line. */
  get lost(): bigint {
    return this.#lost;
  }

  write(record: FlowRecord): void {
    if (!this.#take()) {
      this.#lost++;
      return;
    }
    const { logger, podOf } = this.#options;
    const { key, client, endpoint, way, reason, received, sent, moved, durationMs, rttUs } = record;
    const end = (cookie: bigint): Record<string, string> => {
      const pod = podOf(cookie);
      return pod ? { pod: pod.name, namespace: pod.namespace } : {};
    };
    const isDenied = way === 'denied';
    logger.info({
      verdict: isDenied ? 'denied' : 'allowed',
      ...(isDenied ? {} : { way }),
      ...(reason === undefined ? {} : { reason }),
      source: { ...end(key.client), address: client.address, ...(client.port === 0 ? {} : { port: client.port }) },
      ...(way === 'proxy' ? {} : { destination: { ...end(key.server), address: endpoint, port: key.endpointPort } }),
      ...(key.service ? { service: key.service } : {}),
      ...(isDenied ? {} : { bytesReceived: Number(received), bytesSent: Number(sent), bytesMoved: Number(moved), durationMs: Math.round(durationMs * 1000) / 1000, rttUs }),
    }, isDenied ? 'connection denied' : 'connection ended');
  }

  #take(): boolean {
    const { linesPerSecond } = this.#options;
    const now = this.#now();
    this.#tokens = Math.min(linesPerSecond, this.#tokens + ((now - this.#at) / 1000) * linesPerSecond);
    this.#at = now;
    if (this.#tokens < 1) return false;
    this.#tokens--;
    return true;
  }
}
