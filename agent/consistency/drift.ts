/** Where what is in force differs from what the agent wants there. */

/** `wrong`: another content; `missing`; `orphaned`: of nothing that is wanted; `foreign`: not this agent's, and nothing that it may touch. */
export type DriftState = 'wrong' | 'missing' | 'orphaned' | 'foreign';

/** What of the kernel or of Envoy is looked at. */
export type DriftKind = 'pod' | 'address' | 'listener-port' | 'setting' | 'service' | 'policy' | 'http-table' | 'hook' | 'rule' | 'cni' | 'cds' | 'eds' | 'lds' | 'rds' | 'sds';

export interface Drift {
  kind: DriftKind;
  state: DriftState;
  /** Within its kind, e.g. `10.96.0.7:80`, or the name of an Envoy resource. */
  name: string;
  /** uid of the pod that it is a part of. */
  pod?: string;
  /** Of a network namespace whose pod is not known here. */
  netnsCookie?: bigint;
  /** Configuration objects that it comes from, as `Kind/name.namespace`, as far as whoever found it knows. */
  objects?: readonly string[];
  /** What was found instead, in a few words. */
  detail?: string;
  /** Makes it what it should be. Absent where that is not safe: `unsafe` says why. */
  repair?: () => void | Promise<void>;
  unsafe?: string;
}

/**
 * One look at all of a kind. It is asked for the next part again and again, with pauses: each part compares what it reads with what
 * is wanted at that moment, within one turn of the event loop, and says what is not so.
 */
export interface Check {
  readonly name: string;
  /** Nothing was read yet: the first round is to come soon. */
  isUrgent?(): boolean;
  parts(): Iterable<readonly Drift[]> | AsyncIterable<readonly Drift[]>;
}
