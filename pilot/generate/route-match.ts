/** What of a VirtualService applies to a client in the mesh, and where its destinations lead. */
import type { Destination, VirtualService } from '../../common/kube/types.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { clusterName } from './names.js';

/** Without gateways, or with the reserved name `mesh`, a VirtualService is for workloads; else for gateways only. */
export function appliesToMesh(gateways: readonly string[] | undefined): boolean {
  return !gateways?.length || gateways.includes('mesh');
}

export interface SourceMatch {
  sourceLabels?: Record<string, string>;
  sourceNamespace?: string;
  gateways?: string[];
}

/** The conditions on the client are decided here, once a client, not in Envoy once a request. */
export function sourceMatches(match: SourceMatch, { labels, namespace }: Proxy): boolean {
  if (match.gateways?.length && !match.gateways.includes('mesh')) return false;
  if (match.sourceNamespace && match.sourceNamespace !== namespace) return false;
  return Object.entries(match.sourceLabels ?? {}).every(([key, value]) => labels[key] === value);
}

/** The cluster of a destination; without a port the service's only one, else the port that the client dialled. */
export function destinationCluster(model: Model, owner: VirtualService, destination: Destination, listenPort: number): string {
  const host = model.resolve(destination.host, owner);
  const ports = model.services.get(host)?.ports ?? [];
  const port = destination.port?.number ?? (ports.length === 1 ? ports[0]!.port : listenPort);
  return clusterName(port, destination.subset ?? '', host);
}
