/**
 * Which destinations are reached through a waypoint, and where each waypoint is: what WDS says, as plain data. By ztunnel's
 * rules: a service's waypoint counts for its addresses, a workload's for its own; the waypoint's endpoints are the healthy
 * workloads behind the Service (or address) that WDS names, on a network of this node's, each at its own HBONE port.
 */
import { isIPv6 } from 'node:net';
import { isDeepStrictEqual } from 'node:util';
import { DEFAULT_TRUST_DOMAIN, spiffeId } from '../../common/identity/spiffe.js';
import { LoadBalancing_HealthPolicy, WorkloadStatus, type Address, type GatewayAddress, type Service, type Workload } from '../../proto/generated/istio/workload/workload.js';
import { HeadlessIndex } from './headless-index.js';
import { addressText } from '../workloads/address-text.js';
import { preferred, type Place } from '../workloads/preference.js';
import type { XdsResource } from '../xds/resource-type.js';

export interface Waypoint {
  /** `10.0.0.1:15008`, `[fd00::1]:15008`; none: connections end. */
  endpoints: string[];
  /** SPIFFE ids that its certificate may have. */
  peers: string[];
  /** Why it has no endpoints. */
  problem?: string;
}

export interface WaypointDestination {
  addresses: string[];
  /** Of a service; undefined for a workload, which has its waypoint on every port. */
  ports?: number[];
  /** Of a service. */
  hostname?: string;
  waypoint: string;
}

export interface WaypointTable {
  /** By name, `namespace/host:port` or `address:port`. */
  waypoints: Readonly<Record<string, Waypoint>>;
  destinations: readonly WaypointDestination[];
  /** Pods of other nodes that are their own waypoint, so to speak: they take HBONE, and headless services lead to them. */
  headless?: readonly string[];
}

export const NO_WAYPOINTS: WaypointTable = { waypoints: {}, destinations: [] };

type Addresses = ReadonlyMap<string, XdsResource<Address>>;

export function waypointName({ destination, hbone_mtls_port: port }: GatewayAddress): string {
  if (destination?.$case === 'hostname') return `${destination.value.namespace}/${destination.value.hostname}:${port}`;
  return destination ? hostPort(addressText(destination.value.address), port) : `:${port}`;
}

/** Keeps the table; looks through all addresses only after a change that may matter. */
export class WaypointIndex {
  #table: WaypointTable = NO_WAYPOINTS;
  readonly #headless: HeadlessIndex;
  /** Resources that have, or are part of, a waypoint. */
  readonly #concerned = new Set<string>();
  /** Services and addresses that are waypoints, by what others say of them. */
  readonly #wantedServices = new Set<string>();
  readonly #wantedAddresses = new Set<string>();

  constructor(readonly nodeName: string) {
    this.#headless = new HeadlessIndex(nodeName);
  }

  get table(): WaypointTable {
    return this.#table;
  }

  /** @param names of what changed. The table is another object only when it says something else. */
  update(addresses: Addresses, names: readonly string[]): void {
    const before = this.#headless.addresses;
    let matters = false;
    // Each is decoded once, and none is held.
    const changed = function* (this: WaypointIndex): Iterable<[string, Address | undefined]> {
      for (const name of names) {
        const address = addresses.get(name)?.message;
        matters ||= this.#matters(name, address);
        yield [name, address];
      }
    };
    this.#headless.update(addresses, changed.call(this));
    if (!matters && this.#headless.addresses === before) return;
    const { waypoints, destinations } = matters ? this.#make(addresses) : this.#table;
    const table = { waypoints, destinations, ...(this.#headless.addresses.length > 0 ? { headless: this.#headless.addresses } : {}) };
    if (!isDeepStrictEqual(table, this.#table)) this.#table = table;
  }

  #matters(name: string, address: Address | undefined): boolean {
    if (this.#concerned.has(name)) return true;
    const type = address?.type;
    if (!type) return false;
    if (type.value.waypoint || this.#wantedServices.has(name)) return true;
    if (this.#wantedServices.size > 0 && type.$case === 'workload' && Object.keys(type.value.services).some((service) => this.#wantedServices.has(service))) return true;
    return this.#wantedAddresses.size > 0 && addressesOf(type.value).some((each) => this.#wantedAddresses.has(each));
  }

  #make(addresses: Addresses): WaypointTable {
    this.#concerned.clear();
    this.#wantedServices.clear();
    this.#wantedAddresses.clear();
    const wanted = new Map<string, GatewayAddress>();
    const targets: (Service | Workload)[] = [];
    const byAddress = new Map<string, Service | Workload>();
    let place: Place | undefined;
    /** Those that this node's workloads are on; while none is known, any may be. */
    const networks = new Set<string>();
    const isNear = (network: string): boolean => networks.size === 0 || networks.has(network);
    for (const [name, { message: { type } }] of addresses) {
      if (!type) continue;
      if (type.$case === 'workload' && type.value.node === this.nodeName && this.nodeName !== '') {
        place ??= type.value;
        networks.add(type.value.network);
      }
      const { waypoint } = type.value;
      if (!waypoint) continue;
      this.#concerned.add(name);
      targets.push(type.value);
      wanted.set(waypointName(waypoint), waypoint);
    }
    for (const { destination } of wanted.values()) {
      if (destination?.$case === 'hostname') this.#wantedServices.add(`${destination.value.namespace}/${destination.value.hostname}`);
      if (destination?.$case === 'address') this.#wantedAddresses.add(addressText(destination.value.address));
    }
    for (const name of this.#wantedServices) this.#concerned.add(name);
    for (const [name, { message: { type } }] of this.#wantedAddresses.size > 0 ? addresses : []) {
      for (const each of type ? addressesOf(type.value) : []) {
        if (!this.#wantedAddresses.has(each)) continue;
        byAddress.set(each, type!.value);
        this.#concerned.add(name);
        if (isService(type!.value)) this.#wantedServices.add(nameOf(type!.value));
      }
    }
    const members = new Map<string, Workload[]>();
    for (const [name, { message: { type } }] of this.#wantedServices.size > 0 ? addresses : []) {
      if (type?.$case !== 'workload') continue;
      for (const service of Object.keys(type.value.services)) {
        if (!this.#wantedServices.has(service)) continue;
        this.#concerned.add(name);
        members.set(service, [...(members.get(service) ?? []), type.value]);
      }
    }
    const sources = { addresses, byAddress, members, place, isNear };
    const waypoints = Object.fromEntries([...wanted].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, waypoint]) => [name, locate(waypoint, sources)]));
    const destinations = targets.flatMap((target): WaypointDestination[] => {
      const own = isService(target) ? target.addresses.filter(({ network }) => isNear(network)).map(({ address }) => addressText(address)) : isNear(target.network) ? target.addresses.map(addressText) : [];
      const of = { addresses: [...new Set(own)].sort(), waypoint: waypointName(target.waypoint!) };
      return isService(target) ? [{ ...of, ports: target.ports.map(({ service_port: port }) => port).sort((a, b) => a - b), hostname: target.hostname }] : own.length > 0 ? [of] : [];
    });
    const key = ({ waypoint, hostname = '', addresses: [first = ''] }: WaypointDestination): string => `${waypoint} ${hostname} ${first}`;
    return { waypoints, destinations: destinations.sort((a, b) => (key(a) < key(b) ? -1 : 1)) };
  }
}

interface Sources {
  addresses: Addresses;
  byAddress: ReadonlyMap<string, Service | Workload>;
  members: ReadonlyMap<string, Workload[]>;
  place: Place | undefined;
  isNear(network: string): boolean;
}

function locate({ destination, hbone_mtls_port: port }: GatewayAddress, { addresses, byAddress, members, place, isNear }: Sources): Waypoint {
  const named = destination?.$case === 'hostname' ? addresses.get(`${destination.value.namespace}/${destination.value.hostname}`)?.message.type?.value : destination?.$case === 'address' ? byAddress.get(addressText(destination.value.address)) : undefined;
  if (!named) return { endpoints: [], peers: [], problem: 'WDS knows no such service or workload' };
  const found = isService(named) ? behind(named, members.get(nameOf(named)) ?? [], port, place) : [{ workload: named, port }];
  if (typeof found === 'string') return { endpoints: [], peers: [], problem: found };
  const near = found.filter(({ workload }) => isNear(workload.network) && workload.addresses.length > 0);
  if (near.length === 0) return { endpoints: [], peers: [], problem: found.length > 0 ? 'it is on another network' : 'none of its workloads is healthy and has its HBONE port' };
  const identities = near.map(({ workload: { trust_domain, namespace, service_account } }) => spiffeId({ trustDomain: trust_domain || DEFAULT_TRUST_DOMAIN, namespace, serviceAccount: service_account || 'default' }));
  return {
    endpoints: [...new Set(near.map(({ workload, port: own }) => hostPort(ipv4First(workload), own)))].sort(),
    peers: [...new Set([...identities, ...(isService(named) ? named.subject_alt_names : [])])].sort(),
  };
}

function behind(service: Service, workloads: readonly Workload[], port: number, place: Place | undefined): { workload: Workload; port: number }[] | string {
  const everyone = service.load_balancing?.health_policy === LoadBalancing_HealthPolicy.ALLOW_ALL;
  const target = service.ports.find(({ service_port }) => service_port === port)?.target_port ?? 0;
  const found = workloads.flatMap((workload) => {
    const own = workload.services[nameOf(service)]?.ports.find(({ service_port }) => service_port === port)?.target_port || target || (workload.application_tunnel ? port : 0);
    const isUsable = own !== 0 && workload.capacity !== 0 && (everyone || workload.status === WorkloadStatus.HEALTHY);
    return isUsable ? [{ workload, port: own }] : [];
  });
  return preferred(service.load_balancing, found, place);
}

function isService(value: Service | Workload): value is Service {
  return 'hostname' in value && 'ports' in value;
}

function nameOf({ namespace, hostname }: Service): string {
  return `${namespace}/${hostname}`;
}

function addressesOf(value: Service | Workload): string[] {
  return isService(value) ? value.addresses.map(({ address }) => addressText(address)) : value.addresses.map(addressText);
}

function ipv4First({ addresses }: Workload): string {
  const all = addresses.map(addressText);
  return all.find((each) => !isIPv6(each)) ?? all[0]!;
}

function hostPort(address: string, port: number): string {
  return isIPv6(address) ? `[${address}]:${port}` : `${address}:${port}`;
}
