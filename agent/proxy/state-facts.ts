/**
 * What folding asks of a class's state as a whole. A state's maps are made anew when something in them changes and never altered,
 * so that each is looked through once, and not at every publication.
 */
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { XdsResource } from '../xds/resource-type.js';
import { routeNames } from '../xds/resource-types.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { calloutClusters } from './fold-callouts.js';
import { isInboundCluster } from './fold-inbound.js';
import { isOutboundListener, listenerPort, passesThrough } from './fold-listeners.js';

export interface ListenerFacts {
  /** Of outbound listeners, each once. */
  ports: readonly number[];
  /** Tables of routes that captured connections ask for. */
  routeNames: readonly string[];
  /** Clusters that filters ask by connections of Envoy's own. */
  callouts: ReadonlySet<string>;
  /** What matches no service may leave the mesh. */
  passesThrough: boolean;
}

const ofListeners = new WeakMap<SidecarState['listeners'], ListenerFacts>();
const inbound = new WeakMap<SidecarState['clusters'], readonly XdsResource<Cluster>[]>();

export function listenerFacts(listeners: SidecarState['listeners']): ListenerFacts {
  let facts = ofListeners.get(listeners);
  if (!facts) {
    const messages = [...listeners.values()].map(({ message }) => message);
    facts = {
      ports: [...new Set(messages.filter(isOutboundListener).map(listenerPort))],
      routeNames: [...new Set(messages.flatMap((message) => (message.bind_to_port === false ? routeNames(message) : [])))],
      callouts: new Set(messages.flatMap((message) => [...calloutClusters(message)])),
      passesThrough: passesThrough(messages),
    };
    ofListeners.set(listeners, facts);
  }
  return facts;
}

export function inboundClusters(clusters: SidecarState['clusters']): readonly XdsResource<Cluster>[] {
  let found = inbound.get(clusters);
  if (!found) inbound.set(clusters, (found = [...clusters.values()].filter(({ name }) => isInboundCluster(name))));
  return found;
}
