/** What an agent says of its node's traffic, who spoke with whom by which way, and what `underpass dashboard` makes of that. Types alone: pages in a browser have them too. */

/**
 * `kernel`: TCP between two sockets that no proxy sees; `fast-path`: HTTP that the kernel repeats; `envoy`: through the node's Envoy;
 * `hbone`: through it and a tunnel of mutual TLS to another node; `sidecar`: through pods' own Envoys.
 */
export type TrafficWay = 'kernel' | 'fast-path' | 'envoy' | 'hbone' | 'sidecar';
export type TrafficProtocol = 'http' | 'grpc' | 'tcp';

/**
 * What an end is where Istio's labels have `unknown` for its workload. `service`: what was asked for, of which no workload answered
 * (a fault, an answer of Envoy's own, no endpoint), or none is known to the control plane; `account`: one of several workloads with
 * this service account; `outside`: nothing that the control plane knows.
 */
export type OtherEnd = 'service' | 'account' | 'outside';

export interface TrafficEnd {
  /** Absent: it is a workload. */
  what?: OtherEnd;
  namespace: string;
  /** Or the name of what it is. */
  workload: string;
  /** The canonical service. */
  app: string;
}

/** Counted up since the series began. */
export interface TrafficTotals {
  /** Requests, or connections that were opened. */
  count: number;
  /** Of requests: 5xx, no answer, or a gRPC status that is not 0. Of connections: denied, or never established. */
  failed: number;
  /** Bytes that the server received, and that it sent. */
  received: number;
  sent: number;
  /** Durations of requests, or round-trip times of connections, by bucket, not cumulative: `TrafficReport` has the bounds. Empty: nobody measures. */
  times: number[];
}

export interface TrafficEdge {
  reporter: 'source' | 'destination';
  way: TrafficWay;
  protocol: TrafficProtocol;
  source: TrafficEnd;
  destination: TrafficEnd;
  /** That was asked for. */
  service: { namespace: string; name: string };
  totals: TrafficTotals;
}

/** What `/v1/traffic` answers. */
export interface TrafficReport {
  node: string;
  /** Upper bounds of all buckets but the last, in milliseconds. */
  requestBoundsMs: readonly number[];
  roundTripBoundsMs: readonly number[];
  edges: TrafficEdge[];
}

/** An edge of the graph: means of the time that was looked at. */
export interface GraphEdge {
  /** Indexes of `Graph.ends`. */
  from: number;
  to: number;
  /** `namespace/name` that was asked for; empty: none is known. */
  service: string;
  protocol: TrafficProtocol;
  way: TrafficWay;
  /** Requests or connections each second, and the share of them that failed, 0 to 1. */
  rate: number;
  failed: number;
  /** Bytes each second. */
  received: number;
  sent: number;
  /** Milliseconds; of TCP round-trip times. Absent: nothing was measured. */
  p50?: number;
  p99?: number;
  /** Ever since the series began. */
  total: number;
}

export interface Graph {
  /** When the newest of it was read, ISO 8601. */
  at: string;
  /** Seconds that rates are means of; 0: there is only one reading yet. */
  seconds: number;
  nodes: { node: string; problem?: string }[];
  ends: TrafficEnd[];
  edges: GraphEdge[];
}
