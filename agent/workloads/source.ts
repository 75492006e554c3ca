import type { PodMetadataPatch, PodRecord } from '../../common/lab-api.js';

export type { PodRecord };

/** Where the node's pods come from: the lab, or a Kubernetes API. */
export interface WorkloadSource {
  /** For the log and the status: `lab /run/…/lab.sock`. */
  readonly description: string;
  /** Why the newest set may be out of date, if it may; undefined while connected. */
  readonly problem: string | undefined;
  /**
   * The full current set of this node's pods, first when it is known, then after every change. A slow reader misses
   * sets in between, never the newest. Reconnects by itself; ends when the signal aborts.
   */
  watch(signal: AbortSignal): AsyncIterable<readonly PodRecord[]>;
  /** Sets labels and annotations of a pod for all to see. Absent where nobody may. */
  setPodMetadata?(pod: PodRecord, patch: PodMetadataPatch): Promise<void>;
}
