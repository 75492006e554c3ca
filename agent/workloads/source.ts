import type { PodRecord } from '../../common/lab-api.js';

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
  /** Sets labels of a pod for all to see; a null value removes one. Absent where nobody may. */
  setPodLabels?(pod: PodRecord, labels: Record<string, string | null>): Promise<void>;
}
