/**
 * How endpoints are reached from a client's network: those of its own by address, those of others through their network's
 * east-west gateways, which find the endpoints by the SNI of the client's mutual TLS. Shares of requests stay what they are.
 */
import type { NetworkGateway } from '../model/clusters.js';
import type { Endpoint, MeshService, Model } from '../model/model.js';
import type { Whereabouts } from './locality.js';

export interface Reached {
  endpoint: Endpoint;
  /** The port to connect to. */
  port: number;
  weight: number;
  /** The endpoint stands for all that are behind this gateway. */
  gateway?: NetworkGateway;
}

/** Whether one reaches the other by address. */
export const inNetwork = (a: string, b: string): boolean => a === '' || b === '' || a === b;

/** What of the client decides; the empty string: it gets what everybody gets. */
export function networkKey(model: Model, service: MeshService, client: () => Whereabouts, isGateway: boolean): string {
  const { clusters } = model;
  return `${isGateway || clusters.severalNetworks ? client().network : ''} ${clusters.several && clusters.isLocal(service.host) ? client().cluster : ''}`.trim();
}

/**
 * @param endpoints of one port, each with the number to connect to and whether it takes the mesh's mutual TLS, or HBONE where a gateway passes that on
 * @param isGateway of the client's own: what comes through it from other networks ends in its own, encrypted by workloads, and it does not look into it
 */
export function reach(model: Model, service: MeshService, endpoints: readonly { endpoint: Endpoint; port: number; mutual: boolean }[], client: Whereabouts, isGateway: boolean): Reached[] {
  const { clusters } = model;
  const isLocal = clusters.several && clusters.isLocal(service.host);
  const reached: Reached[] = [];
  /** By locality, network and cluster: what is behind the same gateways. */
  const behind = new Map<string, { gateways: readonly NetworkGateway[]; first: Endpoint; weight: number }>();
  for (const { endpoint, port, mutual } of endpoints) {
    const { network, cluster, locality, weight } = endpoint;
    if (isLocal && cluster !== client.cluster) continue;
    const near = inNetwork(network, client.network);
    if (isGateway) {
      if (near && mutual) reached.push({ endpoint, port, weight });
      continue;
    }
    const gateways = near || !clusters.severalNetworks || service.external ? [] : clusters.gateways(network, cluster);
    if (gateways.length === 0) {
      reached.push({ endpoint, port, weight });
      continue;
    }
    // Without mutual TLS there is no SNI to go by; the gateway hands nothing to what is not ready.
    if (!mutual || endpoint.ready === false) continue;
    const key = `${locality.region}/${locality.zone}/${locality.subzone} ${network} ${cluster}`;
    const known = behind.get(key);
    if (known) known.weight += weight;
    else behind.set(key, { gateways, first: endpoint, weight });
  }
  if (behind.size === 0) return reached;
  // Several gateways share what is behind them: in whole numbers only if all weights grow.
  const scale = [...behind.values()].reduce((all, { gateways }) => lcm(all, gateways.length), 1);
  for (const item of reached) item.weight *= scale;
  for (const { gateways, first, weight } of behind.values()) {
    for (const gateway of gateways) {
      const { address, port = 0 } = gateway;
      const endpoint: Endpoint = { ...first, address, pod: undefined, workloadName: undefined, labels: {}, serviceAccount: undefined, ready: true, weight: (weight * scale) / gateways.length };
      reached.push({ endpoint, port, weight: endpoint.weight, gateway });
    }
  }
  return reached;
}

function lcm(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y > 0) [x, y] = [y, x % y];
  return (a / x) * b;
}
