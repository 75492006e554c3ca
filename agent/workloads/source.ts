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
  /**
   * A pod of which nothing runs yet has its network. Resolves when `watch` has told of it, if anybody asks for it.
   * @returns what is known of it; undefined: it is no pod of this node
   */
  admit?(pod: StartingPod, signal: AbortSignal): Promise<PodRecord | undefined>;
  /** Sets labels and annotations of a pod for all to see. Absent where nobody may. */
  setPodMetadata?(pod: PodRecord, patch: PodMetadataPatch): Promise<void>;
}

/** As a container runtime knows it. */
export interface StartingPod {
  namespace: string;
  name: string;
  /** Absent where the runtime does not say. */
  uid?: string;
  netns: string;
  ips: readonly string[];
}
