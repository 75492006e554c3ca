/** Istio's names of clusters: `direction|port|subset|host`. */

export function clusterName(port: number, subset: string, host: string): string {
  return `outbound|${port}|${subset}|${host}`;
}

export function inboundClusterName(port: number): string {
  return `inbound|${port}||`;
}

/** The SNI of a client's cluster, where the separators of a cluster's name are no host name's characters. */
export function clusterSni(port: number, subset: string, host: string): string {
  return `outbound_.${port}_.${subset}_.${host}`;
}

export interface ClusterKey {
  /** Of an east-west gateway, named by the SNI that leads to it: TLS passes through. */
  sniDnat?: boolean;
  port: number;
  subset: string;
  host: string;
}

const SNI = /^outbound_\.(\d+)_\.(.*?)_\.(.+)$/;

/** Of both forms: an east-west gateway asks for endpoints by the SNI's. */
export function parseClusterName(name: string): ClusterKey | undefined {
  const sni = SNI.exec(name);
  if (sni) return { port: Number(sni[1]), subset: sni[2]!, host: sni[3]!, sniDnat: true };
  const [direction, port, subset, host] = name.split('|');
  if (direction !== 'outbound' || subset === undefined || !host || !/^\d+$/.test(port!)) return undefined;
  return { port: Number(port), subset, host };
}
