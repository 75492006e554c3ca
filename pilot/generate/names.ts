/** Istio's names of clusters: `direction|port|subset|host`. */

export function clusterName(port: number, subset: string, host: string): string {
  return `outbound|${port}|${subset}|${host}`;
}

export function inboundClusterName(port: number): string {
  return `inbound|${port}||`;
}

/** Istio's names for where tunnels end, and for the listener within Envoy that they lead to. */
export const CONNECT_TERMINATE = 'connect_terminate';
export const MAIN_INTERNAL = 'main_internal';

/** Of a sidecar. */
export function isInboundListener(name: string): boolean {
  return name === 'virtualInbound' || name.startsWith('inbound') || name === MAIN_INTERNAL || name === CONNECT_TERMINATE;
}

/** What the SNI of every client's cluster begins with. */
export const SNI_PREFIX = 'outbound_.';

/** The SNI of a client's cluster, where the separators of a cluster's name are no host name's characters. */
export function clusterSni(port: number, subset: string, host: string): string {
  return `${SNI_PREFIX}${port}_.${subset}_.${host}`;
}

/** Of an east-west gateway's HBONE listener: where what came for that host and port goes on. */
export function hboneClusterName(port: number, host: string): string {
  return `inbound-vip|${port}|tcp|${host}`;
}

export interface ClusterKey {
  /** Of an east-west gateway: what passes through is the workloads' mutual TLS, found by its SNI, or their HBONE. */
  passes?: 'sni' | 'hbone';
  port: number;
  subset: string;
  host: string;
}

const SNI = /^outbound_\.(\d+)_\.(.*?)_\.(.+)$/;

/** Of all forms: an east-west gateway asks for endpoints by names of its own. */
export function parseClusterName(name: string): ClusterKey | undefined {
  const sni = SNI.exec(name);
  if (sni) return { port: Number(sni[1]), subset: sni[2]!, host: sni[3]!, passes: 'sni' };
  const [direction, port, subset, host] = name.split('|');
  if (subset === undefined || !host || !/^\d+$/.test(port!)) return undefined;
  if (direction === 'inbound-vip') return { port: Number(port), subset: '', host, passes: 'hbone' };
  if (direction !== 'outbound') return undefined;
  return { port: Number(port), subset, host };
}
