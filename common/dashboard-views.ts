/** What `underpass dashboard` gives its pages beside the graph. Types alone: pages in a browser have them too. */

export interface PodView {
  namespace: string;
  name: string;
  addresses: string[];
  mode: string;
  state: string;
  way: string;
  acceleration: string;
  /** As `underpass ps` has it. */
  sync: string;
  note: string;
}

export interface ProgramView {
  /** `namespace/pod` */
  pod: string;
  kind: string;
  what: string;
  verdict: string;
  reason: string;
}

export interface DriftView {
  kind: string;
  name: string;
  state: string;
  objects: readonly string[];
  since: string;
  times: number;
  repair: string;
  detail: string;
}

export interface NodeView {
  node: string;
  /** The agent did not answer: nothing but this is known. */
  problem?: string;
  ready: boolean;
  notReady: string[];
  /** Name and value, in order. */
  facts: [string, string][];
  selfTest: { name: string; ok: boolean }[];
  nacks: { type: string; name: string; message: string; objects: readonly string[] }[];
  drifting: DriftView[];
  recent: DriftView[];
  pods: PodView[];
  programs: ProgramView[];
}

export interface ObjectResourceView {
  type: string;
  name: string;
  version: string;
  acked: boolean;
  readBack: boolean;
  nack?: string;
}

export interface ObjectOnNode {
  node: string;
  /** `ABSENT`: nothing of it is in any resource of the node. */
  state: 'IN FORCE' | 'ACKED' | 'PENDING' | 'STALE' | 'DRIFT' | 'NACK' | 'ABSENT';
  resources: number;
  acked: number;
  readBack: number;
  since?: string;
}

export interface ObjectView {
  /** `Kind/name.namespace` */
  object: string;
  nodes: ObjectOnNode[];
}

/** Of one object. */
export interface ObjectDetail extends ObjectView {
  resources: (ObjectResourceView & { node: string })[];
}

export interface About {
  version: string;
  /** Whom it asks, in words. */
  place: string;
  everySeconds: number;
  /** Of the benchmark; absent: there is none. */
  report?: string;
}
