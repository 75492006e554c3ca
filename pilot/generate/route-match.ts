/** What of a VirtualService applies to a client in the mesh, and where its destinations lead. */
import type { Destination, VirtualService } from '../../common/kube/types.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
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

/** What of a client the VirtualServices that it sees ask for: clients with the same key get the same routes. */
export function sourceKey({ namespace, labels }: Proxy, { visibility }: Scope): string {
  const keys = visibility.sourceLabelKeys;
  return `${visibility.sourceNamespaceMatters ? namespace : ''} ${keys.length === 0 ? '' : JSON.stringify(keys.map((key) => labels[key] ?? null))}`;
}

/** The cluster of a destination; without a port the service's only one, else the port that the client dialled. */
export function destinationCluster(scope: Scope, owner: VirtualService, destination: Destination, listenPort: number): string {
  const host = scope.model.resolve(destination.host, owner);
  const ports = scope.service(host)?.ports ?? [];
  const port = destination.port?.number ?? (ports.length === 1 ? ports[0]!.port : listenPort);
  return clusterName(port, destination.subset ?? '', host);
}
