/**
 * What folding asks of a class's state as a whole. A state's maps are made anew when something in them changes and never altered,
 * so that each is looked through once, and not at every publication.
 */
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { Facts, type XdsResource } from '../xds/resource-type.js';
import { routeNames } from '../xds/resource-types.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { calloutsOf, type Callouts } from './fold-callouts.js';
import { isInboundCluster } from './fold-inbound.js';
import { addressOf, addressesOf, isOutboundListener, isSocketOfItsOwn, passesThrough } from './fold-listeners.js';
import { inspectionOf } from './inspection.js';

export interface ListenerFacts {
  /** Of outbound listeners, each once. */
  ports: readonly number[];
  /** Tables of routes that captured connections ask for. */
  routeNames: readonly string[];
  /** Clusters that filters ask by connections of Envoy's own. */
  callouts: Callouts;
  /** Some requests or connections are logged, or traced. */
  isObserved: boolean;
  /** What matches no service may leave the mesh. */
  passesThrough: boolean;
}

const ofListeners = new WeakMap<SidecarState['listeners'], ListenerFacts>();
const inbound = new WeakMap<SidecarState['clusters'], readonly XdsResource<Cluster>[]>();

/** Of one listener. */
export const listenerFact = new Facts((listener: Listener) => ({
  isOutbound: isOutboundListener(listener),
  isSocketOfItsOwn: isSocketOfItsOwn(listener),
  ...addressOf(listener),
  addresses: addressesOf(listener),
  ownChains: listener.filter_chains.length,
  inspection: inspectionOf(listener),
  isCaptured: listener.bind_to_port === false,
  callouts: calloutsOf(listener),
  passesThrough: passesThrough([listener]),
}));

export function listenerFacts(listeners: SidecarState['listeners']): ListenerFacts {
  let found = ofListeners.get(listeners);
  if (!found) {
    const all = [...listeners.values()].map((resource) => ({ ...listenerFact.of(resource), resource }));
    found = {
      ports: [...new Set(all.flatMap(({ isOutbound, port }) => (isOutbound ? port : [])))],
      routeNames: [...new Set(all.flatMap(({ isCaptured, resource }) => (isCaptured ? routeNames.of(resource) : [])))],
      callouts: { names: new Set(all.flatMap(({ callouts }) => [...callouts.names])), tracers: new Map(all.flatMap(({ callouts }) => [...callouts.tracers])), logs: all.some(({ callouts }) => callouts.logs) },
      isObserved: all.some(({ callouts }) => callouts.tracers.size > 0 || callouts.logs),
      passesThrough: all.every(({ passesThrough: passes }) => passes),
    };
    ofListeners.set(listeners, found);
  }
  return found;
}

export function inboundClusters(clusters: SidecarState['clusters']): readonly XdsResource<Cluster>[] {
  let found = inbound.get(clusters);
  if (!found) inbound.set(clusters, (found = [...clusters.values()].filter(({ name }) => isInboundCluster(name))));
  return found;
}
