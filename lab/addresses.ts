/**
 * Address plan, the one of most clusters: pods 10.244.0.0/16 with a /24 a node, services 10.96.0.0/16, load balancers
 * 172.18.255.0/24, IPv6 beside each. Labs that are clusters of one mesh count on: the second's nodes from 50, its services
 * are 10.97.0.0/16, its load balancers 172.18.254.0/24.
 */
import { UnderpassError } from '../common/errors.js';

export interface DualAddress {
  ipv4: string;
  ipv6: string;
}

const MAX_NODES = 250;
export const NODES_PER_CLUSTER = 50;
export const MAX_CLUSTERS = MAX_NODES / NODES_PER_CLUSTER;
const MAX_PODS_PER_NODE = 250;

export interface NodeAddresses {
  /** Position of the node, from 0. */
  index: number;
  node: DualAddress;
  /** The bridge's address: gateway and DNS server of the node's pods. */
  bridge: DualAddress;
  podCidrs: DualAddress;
}

export function nodeAddresses(index: number): NodeAddresses {
  if (index >= MAX_NODES)
    throw new UnderpassError('UNDERPASS_LAB_ADDRESSES', `numbering node ${index + 1}: a lab has ${MAX_NODES} at most`);
  // From 1: a zero group would make addresses whose canonical form differs from how they were written.
  const hex = (index + 1).toString(16);
  return {
    index,
    node: { ipv4: `172.18.0.${index + 2}`, ipv6: `fd00:172:18::${(index + 2).toString(16)}` },
    bridge: { ipv4: `10.244.${index}.1`, ipv6: `fd00:10:244:${hex}::1` },
    podCidrs: { ipv4: `10.244.${index}.0/24`, ipv6: `fd00:10:244:${hex}::/64` },
  };
}

/** An IPv4 address of its node that a pod is to have. */
export const IP_ANNOTATION = 'lab.underpass.io/ip';

/** Hands out a node's pod addresses round robin, so that a new pod does not get the address of one that just went. */
export class PodAddresses {
  readonly #used = new Set<number>();
  #last = 1;

  constructor(readonly node: NodeAddresses) {}

  /** @param wanted its IPv4 address, if that is not to be any */
  allocate(wanted?: string): DualAddress & { host: number } {
    if (wanted !== undefined) return this.#take(wanted);
    for (let tries = 0; tries < MAX_PODS_PER_NODE; tries++) {
      this.#last = this.#last >= 1 + MAX_PODS_PER_NODE ? 2 : this.#last + 1;
      if (this.#used.has(this.#last)) continue;
      return this.#give(this.#last);
    }
    throw new UnderpassError(
      'UNDERPASS_LAB_ADDRESSES',
      `addressing a pod on node ${this.node.index + 1}: its ${MAX_PODS_PER_NODE} addresses are in use`,
    );
  }

  #take(wanted: string): DualAddress & { host: number } {
    const { index, podCidrs } = this.node;
    const [, node, last] = /^10\.244\.(\d+)\.(\d+)$/.exec(wanted) ?? [];
    const host = Number(last);
    if (Number(node) !== index || !(host >= 2 && host <= 1 + MAX_PODS_PER_NODE)) throw new UnderpassError('UNDERPASS_LAB_ADDRESSES', `${IP_ANNOTATION}: found ${wanted}, expected an address of the pod's node: ${podCidrs.ipv4}, from 2 to ${1 + MAX_PODS_PER_NODE}`);
    if (this.#used.has(host)) throw new UnderpassError('UNDERPASS_LAB_ADDRESSES', `${IP_ANNOTATION}: ${wanted} is another pod's`);
    return this.#give(host);
  }

  #give(host: number): DualAddress & { host: number } {
    this.#used.add(host);
    const { index } = this.node;
    return { host, ipv4: `10.244.${index}.${host}`, ipv6: `fd00:10:244:${(index + 1).toString(16)}::${host.toString(16)}` };
  }

  release(host: number): void {
    this.#used.delete(host);
  }
}

/** Cluster IPs: a service keeps its own for as long as the lab lives, a given `clusterIP` is honoured. */
export class ServiceAddresses {
  readonly #byService = new Map<string, DualAddress>();
  readonly #taken = new Set<string>();
  #last = 10;

  constructor(readonly numbered: (number: number) => DualAddress = clusterIp(0)) {}

  /** @param given the service's own clusterIPs */
  allocate(service: string, given: readonly string[]): DualAddress {
    const known = this.#byService.get(service);
    const ipv4 = given.find((ip) => ip.includes('.'));
    const ipv6 = given.find((ip) => ip.includes(':'));
    if (known && (!ipv4 || ipv4 === known.ipv4) && (!ipv6 || ipv6 === known.ipv6)) return known;
    if (known) this.release(service);
    let next = this.#next();
    while (this.#taken.has(next.ipv4) || this.#taken.has(next.ipv6)) next = this.#next();
    const address = { ipv4: ipv4 ?? next.ipv4, ipv6: ipv6 ?? next.ipv6 };
    this.#byService.set(service, address);
    this.#taken.add(address.ipv4).add(address.ipv6);
    return address;
  }

  release(service: string): void {
    const address = this.#byService.get(service);
    if (!address) return;
    this.#byService.delete(service);
    this.#taken.delete(address.ipv4);
    this.#taken.delete(address.ipv6);
  }

  #next(): DualAddress {
    this.#last = (this.#last + 1) & 0xffff;
    return this.numbered(this.#last);
  }
}

/** @param cluster position of the lab among those of its mesh, from 0 */
export function clusterIp(cluster: number): (number: number) => DualAddress {
  return (number) => ({ ipv4: `10.${96 + cluster}.${number >> 8}.${number & 255}`, ipv6: `fd00:10:${96 + cluster}::${number.toString(16)}` });
}

/** Beside the nodes' own addresses, where a load balancer of such a cluster takes them from. */
export function loadBalancerIp(cluster: number): (number: number) => DualAddress {
  const last = 255 - cluster;
  return (number) => ({ ipv4: `172.18.${last}.${number & 255}`, ipv6: `fd00:172:18:${last.toString(16)}::${number.toString(16)}` });
}

export function loadBalancerCidrs(cluster: number): DualAddress {
  const last = 255 - cluster;
  return { ipv4: `172.18.${last}.0/24`, ipv6: `fd00:172:18:${last.toString(16)}::/64` };
}
