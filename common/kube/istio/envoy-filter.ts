/** Istio's EnvoyFilter and ProxyConfig in full. */
import type { KubeObject } from '../object.js';
import type { PolicyTargetReference, WorkloadSelector } from './selectors.js';

export type EnvoyFilterApplyTo =
  | 'LISTENER' | 'FILTER_CHAIN' | 'NETWORK_FILTER' | 'HTTP_FILTER' | 'ROUTE_CONFIGURATION' | 'VIRTUAL_HOST'
  | 'HTTP_ROUTE' | 'CLUSTER' | 'EXTENSION_CONFIG' | 'BOOTSTRAP' | 'LISTENER_FILTER';

export type EnvoyFilterOperation =
  | 'MERGE' | 'ADD' | 'REMOVE' | 'INSERT_BEFORE' | 'INSERT_AFTER' | 'INSERT_FIRST' | 'REPLACE' | 'MERGE_AND_REPLACE_LIST';

export interface EnvoyListenerMatch {
  portNumber?: number;
  portName?: string;
  name?: string;
  listenerFilter?: string;
  filterChain?: {
    name?: string;
    sni?: string;
    transportProtocol?: string;
    /** Comma-separated. */
    applicationProtocols?: string;
    destinationPort?: number;
    filter?: { name?: string; subFilter?: { name?: string } };
  };
}

export interface EnvoyRouteConfigurationMatch {
  portNumber?: number;
  portName?: string;
  /** `namespace/name` of an Istio Gateway. */
  gateway?: string;
  name?: string;
  vhost?: { name?: string; domainName?: string; route?: { name?: string; action?: 'ANY' | 'ROUTE' | 'REDIRECT' | 'DIRECT_RESPONSE' } };
}

export interface EnvoyClusterMatch {
  portNumber?: number;
  service?: string;
  subset?: string;
  name?: string;
}

export interface EnvoyFilterPatch {
  applyTo?: EnvoyFilterApplyTo;
  match?: {
    context?: 'ANY' | 'SIDECAR_INBOUND' | 'SIDECAR_OUTBOUND' | 'GATEWAY' | 'WAYPOINT';
    proxy?: { proxyVersion?: string; metadata?: Record<string, string> };
    /** At most one of the four. */
    listener?: EnvoyListenerMatch;
    routeConfiguration?: EnvoyRouteConfigurationMatch;
    cluster?: EnvoyClusterMatch;
    waypoint?: { portNumber?: number; route?: { name?: string }; filter?: { name?: string; subFilter?: { name?: string } } };
  };
  patch?: { operation?: EnvoyFilterOperation; value?: Record<string, unknown>; filterClass?: 'UNSPECIFIED' | 'AUTHN' | 'AUTHZ' | 'STATS' };
}

export interface EnvoyFilter extends KubeObject {
  kind: 'EnvoyFilter';
  spec: { workloadSelector?: { labels?: Record<string, string> }; targetRefs?: PolicyTargetReference[]; configPatches?: EnvoyFilterPatch[]; priority?: number };
}

export interface ProxyConfig extends KubeObject {
  kind: 'ProxyConfig';
  spec: { selector?: WorkloadSelector; concurrency?: number; environmentVariables?: Record<string, string>; image?: { imageType?: string } };
}
