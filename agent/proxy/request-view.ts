/** What makes labels of the keys that Envoy counts requests by, as the proxy knows it, and where those counts are to be had. */
import { serviceOf } from '../http/compile-cluster.js';
import type { HttpService } from '../http/table.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import type { EnvoyAdmin } from './envoy-admin.js';
import type { Envoy } from './envoy.js';
import { overridesOf, type MetricOverrides } from './metric-overrides.js';
import type { ProxyPod } from './proxy-pod.js';

export interface CountedPod {
  uid: string;
  netnsPath: string;
  addresses: readonly string[];
}

export interface RequestView {
  /** Of Envoy's process: another one begins to count at nothing. Undefined: there is none at the time. */
  readonly envoy: string | undefined;
  /** Asks it. */
  read: EnvoyAdmin['read'];
  pods(): readonly CountedPod[];
  /** @param cluster by its name in Envoy @param uid of the pod whose inbound side has it */
  serviceOf(cluster: string, uid?: string): HttpService | undefined;
  /** What Telemetry says of a pod's metrics. */
  overridesOf?(uid: string, reporter: 'source' | 'destination'): MetricOverrides | undefined;
}

/**
 * @param envoy undefined until pods are known, whose requests it has counted
 * @param statesOf of a pod's class, or of all
 */
export function proxyRequests(envoy: () => Envoy | undefined, pods: () => ReadonlyMap<string, ProxyPod>, statesOf: (pod: ProxyPod | undefined) => readonly SidecarState[]): RequestView {
  return {
    get envoy() {
      return envoy()?.identity;
    },
    read: async (path, onText, options) => envoy()?.admin.read(path, onText, options),
    pods: () => [...pods().values()].map(({ uid, netnsPath, ips }) => ({ uid, netnsPath, addresses: ips })),
    overridesOf: (uid, reporter) => (pods().has(uid) ? overridesOf(statesOf(pods().get(uid)), reporter) : undefined),
    serviceOf: (cluster, uid) => serviceOfCluster(cluster, uid === undefined ? statesOf(undefined) : pods().has(uid) ? statesOf(pods().get(uid)) : []),
  };
}

const PASSING = new Set(['PassthroughCluster', 'BlackHoleCluster', 'InboundPassthroughCluster']);

/** @param states of classes that may have it */
export function serviceOfCluster(cluster: string, states: Iterable<SidecarState>): HttpService | undefined {
  const name = /^(?:pod\/[^/]+\/)?([^~]*)/.exec(cluster)![1]!;
  // As Istio names them.
  if (PASSING.has(name)) return { hostname: '', name, namespace: '' };
  for (const { clusters } of states) {
    const found = clusters.get(name)?.message;
    if (found) return serviceOf(name, { cluster: found, assignment: undefined });
  }
  return serviceOf(name, undefined);
}
