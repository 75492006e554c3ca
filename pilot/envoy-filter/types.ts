/** EnvoyFilter as users write it, and compiled. Names are Istio's. */
import type { ReflectMessage } from '@bufbuild/protobuf/reflect';

export type ApplyTo =
  | 'LISTENER' | 'FILTER_CHAIN' | 'NETWORK_FILTER' | 'HTTP_FILTER' | 'LISTENER_FILTER'
  | 'ROUTE_CONFIGURATION' | 'VIRTUAL_HOST' | 'HTTP_ROUTE' | 'CLUSTER' | 'EXTENSION_CONFIG' | 'BOOTSTRAP';

export type Operation = 'ADD' | 'REMOVE' | 'MERGE' | 'INSERT_BEFORE' | 'INSERT_AFTER' | 'INSERT_FIRST' | 'REPLACE';
export type FilterClass = 'AUTHN' | 'AUTHZ' | 'STATS';
export type PatchContext = 'SIDECAR_INBOUND' | 'SIDECAR_OUTBOUND' | 'GATEWAY';

export interface ListenerMatch {
  portNumber?: number;
  portName?: string;
  name?: string;
  listenerFilter?: string;
  filterChain?: {
    name?: string;
    sni?: string;
    transportProtocol?: string;
    applicationProtocols?: string;
    destinationPort?: number;
    filter?: { name?: string; subFilter?: { name?: string } };
  };
}

export interface RouteConfigurationMatch {
  portNumber?: number;
  portName?: string;
  gateway?: string;
  name?: string;
  vhost?: { name?: string; domainName?: string; route?: { name?: string; action?: 'ANY' | 'ROUTE' | 'REDIRECT' | 'DIRECT_RESPONSE' } };
}

export interface ClusterMatch {
  portNumber?: number;
  service?: string;
  subset?: string;
  name?: string;
}

export interface WrittenPatch {
  applyTo: ApplyTo;
  match?: {
    context?: 'ANY' | PatchContext;
    proxy?: { proxyVersion?: string; metadata?: Record<string, string> };
    listener?: ListenerMatch;
    routeConfiguration?: RouteConfigurationMatch;
    cluster?: ClusterMatch;
  };
  patch: { operation?: Operation | 'INVALID'; value?: unknown; filterClass?: FilterClass | 'UNSPECIFIED' };
}

export interface CompiledPatch {
  applyTo: ApplyTo;
  operation: Operation;
  filterClass: FilterClass | undefined;
  contexts: ReadonlySet<PatchContext>;
  proxyVersion: RegExp | undefined;
  proxyMetadata: Readonly<Record<string, string>>;
  listener: ListenerMatch;
  route: RouteConfigurationMatch;
  cluster: ClusterMatch;
  /** Absent for REMOVE. */
  value: ReflectMessage | undefined;
}
