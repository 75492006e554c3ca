/** What of a pod's HTTP the kernel repeats, and why not the rest; from the table that is in force. */
import { decodeAddress, encodeAddress } from '../dataplane/kernel-codec.js';
import type { Ejected } from '../dataplane/kernel-http-outliers.js';
import type { Finding, HttpTable } from './table.js';

export interface ExplainedHttp {
  /** Whether the kernel repeats anything of this pod's now. */
  isLive: boolean;
  /** Why not. */
  reason?: string;
  /** Routes of the host; empty where the port is Envoy's as a whole. */
  routes: ExplainedRoute[];
  /** Endpoints that are left out of the draw since they failed. */
  ejected: ExplainedEjection[];
}

export interface ExplainedEjection extends Ejected {
  cluster: string;
}

export interface ExplainedRoute {
  /** As the control plane calls it: virtual host, place, name. */
  name: string;
  isFast: boolean;
  /** Why it is Envoy's. */
  reason?: string;
  /** Share of the requests that are Envoy's to trace, of those that come without a trace context. */
  sampled?: number;
}

/** @param hostnames of the services that are asked for; none: any */
export function explainHttp(table: HttpTable, addresses: readonly string[], port: number, hostnames: readonly string[]): ExplainedRoute[] {
  const plain = addresses.map((address) => decodeAddress(encodeAddress(address)));
  const isOf = (address: string | undefined): boolean => address !== undefined && plain.includes(decodeAddress(encodeAddress(address)));
  const entry = table.ports.find((each) => each.port === port && isOf(each.address)) ?? table.ports.find((each) => each.port === port && each.address === undefined);
  const ofPort = table.findings.filter(({ kind, name }) => kind === 'port' && [...plain, '*'].some((address) => name === `${address}:${port}`));
  // Tables of routes that lead nowhere but to Envoy have no entry.
  const names = entry?.routes === undefined ? [String(port)] : [table.routes[entry.routes]!.name];
  const ofRoutes = table.findings.filter(({ kind, name }) => (kind === 'routes' && names.includes(name)) || ((kind === 'host' || kind === 'route') && names.some((routes) => name.startsWith(`${routes} `)) && (hostnames.length === 0 || hostnames.some((hostname) => isOfHost(name, hostname)))));
  const found = [...(entry?.routes === undefined ? ofPort : []), ...ofRoutes];
  return found.map(({ kind, name, class: taught, reason, sampled }: Finding) => ({ name: kind === 'port' ? name : name.slice(name.indexOf(' ') + 1), isFast: taught !== undefined, ...(reason === undefined ? {} : { reason }), ...(sampled === undefined ? {} : { sampled }) }));
}

/** @param hostnames none: any */
export function isClusterOf(cluster: string, port: number, hostnames: readonly string[]): boolean {
  const [, ofPort, , host] = cluster.split('|');
  return Number(ofPort) === port && (hostnames.length === 0 || hostnames.includes(host ?? ''));
}

/** A virtual host of a service is called by its name, with or without the port. */
function isOfHost(finding: string, hostname: string): boolean {
  const host = finding.split(' ')[1] ?? '';
  return host === hostname || host.startsWith(`${hostname}:`);
}
