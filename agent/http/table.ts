/**
 * The tables of the fast path as data: what one config class's pods may do without Envoy. compile.ts makes them,
 * dataplane/kernel-http.ts writes them into the kernel's maps (bpf/http-structs.h has the meaning of each part), interpret.ts
 * says what the kernel makes of them.
 */
import type { HttpMethod } from './limits.js';

export type PathKind = 'any' | 'exact' | 'prefix' | 'separated';

/** Of the path, without the query. */
export interface PathTest {
  kind: PathKind;
  value: string;
  inverted: boolean;
}

/** An absent header fulfils an inverted condition. A header that comes twice leads to Envoy. */
export interface HeaderTest {
  /** In small letters; '' for the host, whose letters are compared as small ones. */
  name: string;
  kind: 'present' | 'exact' | 'prefix';
  value: string;
  inverted: boolean;
}

/** All that is asked has to hold. */
export interface HttpRule<Verdict> {
  path: PathTest;
  /** undefined: any. */
  methods: readonly HttpMethod[] | undefined;
  headers: readonly HeaderTest[];
  verdict: Verdict;
}

/** The first rule that holds counts. */
export interface RuleList<Verdict> {
  rules: readonly HttpRule<Verdict>[];
  otherwise: Verdict;
}

/** Index in `classes`; ENVOY: Envoy's, which draws. */
export type ClassIndex = number;
export const ENVOY = -1;

export type Judgement = 'allowed' | 'envoy';

export interface HttpSplit {
  /** A draw below this, and not below the one before, is this one's. */
  until: number;
  /** Index in `clusters`. */
  cluster: number;
  /** A header line for Envoy's weighted clusters. */
  text: string;
}

/** How a class's requests are traced. */
export interface HttpTrace {
  /** What its tracer reads, and tells: headers of B3, or of W3C's trace context. */
  kind: 'b3' | 'w3c';
  /** Share of the requests that say nothing of being traced, below 1. */
  sampled: number;
}

export interface HttpClass {
  index: number;
  generation: number;
  splits: readonly HttpSplit[];
  trace?: HttpTrace;
}

export interface HttpEndpoint {
  address: string;
  port: number;
  /** Index in `policies`; `open`: always allowed; `envoy`: never here. */
  policy: number | 'open' | 'envoy';
  /** Above 0; shares are proportional to it. */
  weight: number;
  teachable: boolean;
  /** A header line for Envoy's load balancing. */
  text: string;
}

/** As Istio's labels call it. */
export interface HttpService {
  hostname: string;
  name: string;
  namespace: string;
}

/** Envoy's outlier detection, of what the kernel does as Envoy does; 0 of a threshold: nobody is ejected for it. */
export interface OutlierDetection {
  consecutive5xx: number;
  consecutiveGatewayFailure: number;
  intervalMs: number;
  baseEjectionMs: number;
  maxEjectionMs: number;
  /** Of `hosts`. */
  maxEjectionPercent: number;
  /** One may be out whatever the percentage says. */
  alwaysEjectOneHost: boolean;
  /** Endpoints of the cluster, in all priorities. */
  hosts: number;
  /** While no more are out than this, the others share what comes. */
  spare: number;
  /** From so many on all are drawn, ejected or not; between the two the requests are Envoy's. */
  panic: number;
}

export interface HttpCluster {
  name: string;
  /** Undefined: the control plane does not say. */
  service?: HttpService;
  balance: 'least-request' | 'random';
  /** Undefined: none of them is ever ejected. */
  outlierDetection?: OutlierDetection;
  endpoints: readonly HttpEndpoint[];
}

export interface HttpPort {
  /** That was asked for; undefined: any that has no entry of its own. */
  address: string | undefined;
  port: number;
  /** Index in `routes`; undefined: Envoy's. */
  routes: number | undefined;
}

export interface HttpRoutes {
  name: string;
  /** In small letters, with a port where requests may have one; `*` for any other. Index in `virtualHosts`. */
  hosts: readonly { host: string; virtualHost: number }[];
}

/** What became of a route, a port, a host or an endpoint; `reason` is why it is Envoy's. */
export interface Finding {
  kind: 'port' | 'routes' | 'host' | 'route' | 'endpoint';
  /** As it is called: `10.96.0.1:80`, `80 reviews.default.svc.cluster.local:80 #2 canary`, … */
  name: string;
  /** As Envoy is taught it. */
  class?: string;
  /** Share of the class's requests that are Envoy's to trace. */
  sampled?: number;
  reason?: string;
}

export interface HttpTable {
  ports: readonly HttpPort[];
  routes: readonly HttpRoutes[];
  virtualHosts: readonly RuleList<ClassIndex>[];
  classes: readonly HttpClass[];
  clusters: readonly HttpCluster[];
  policies: readonly RuleList<Judgement>[];
  findings: readonly Finding[];
  /** Its classes are traced. */
  isTraced?: boolean;
  /** The class of a route, by the control plane's names, see names.ts. */
  classOf(routeConfigName: string, virtualHostName: string, routeIndex: number): string | undefined;
}

/** `IIIIIIIIGGGGGGGG`. */
export function className({ index, generation }: Pick<HttpClass, 'index' | 'generation'>): string {
  return [index, generation].map((part) => part.toString(16).padStart(8, '0')).join('');
}
