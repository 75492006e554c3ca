/**
 * Services and workloads as WDS tells of them, and what of them the connect hook may decide: a pure table, with no kernel and
 * no clock. What can't be decided here, for whatever reason, is the proxy's, and the reason is kept for whoever asks.
 */
import { isIPv6 } from 'node:net';
import { NumberedNames } from '../../common/numbered-names.js';
import { hasClientAffinity } from '../../common/xds/session-affinity.js';
import { LoadBalancing_HealthPolicy, WorkloadStatus, type Address, type Service, type Workload } from '../../proto/generated/istio/workload/workload.js';
import type { ServiceEndpoint, ServiceEntry, ServicePort } from '../dataplane/kernel-services.js';
import { parseEndpointId } from '../proxy/fold-endpoints.js';
import { waypointName } from '../proxy/waypoint-table.js';
import type { PortJudge } from '../proxy/plain-ports.js';
import { addressText } from '../workloads/address-text.js';
import { preferred } from '../workloads/preference.js';
import { NodePlace } from './node-place.js';

/** What is known of this node, apart from WDS. */
export interface NodeFacts {
  ports: PortJudge;
  /** Why connections to this address are not for the kernel to lead: it is no enrolled pod of this node, or has a say in who calls it. */
  obstacle(address: string, port: number): string | undefined;
}

export interface Decision extends ServicePort {
  service: string;
  /** undefined: the proxy's way, and `reason` says why. */
  entry: ServiceEntry | undefined;
  reason?: string;
}

interface Candidate extends ServiceEndpoint {
  workload: Workload;
}

export class ServiceIndex {
  readonly #services = new Set<string>();
  #workloads = 0;
  readonly #addressOf: (name: string) => Address | undefined;
  /** Service → its workloads, by the numbers of their uids. */
  readonly #members = new Map<string, number[]>();
  readonly #uids = new NumberedNames();
  readonly #byAddress = new Owners();
  /** VIP → services. */
  readonly #byVip = new Map<string, Few>();
  /** Host name → services, of several namespaces. */
  readonly #byHost = new Map<string, Few>();
  readonly #node: NodePlace;

  /** @param addressOf what WDS says now, by its name: a mesh has very many, which are not held here too */
  constructor(nodeName: string, addressOf: (name: string) => Address | undefined) {
    this.#addressOf = addressOf;
    this.#node = new NodePlace(nodeName);
  }

  get size(): { services: number; workloads: number } {
    return { services: this.#services.size, workloads: this.#workloads };
  }

  serviceNames(): Iterable<string> {
    return this.#services;
  }

  /** Services that have this address, or this host name in full or shortened as seen from a namespace. */
  find(host: string, namespace: string): Service[] {
    const byVip = this.#servicesOf(all(this.#byVip.get(host)));
    if (byVip.length > 0) return byVip;
    const name = host.replace(/\.$/, '').toLowerCase();
    const [first = '', second, ...rest] = name.split('.');
    const short = second === undefined || rest.length === 0 || (rest.length === 1 && rest[0] === 'svc');
    return this.#servicesOf(this.#services).filter((service) => service.hostname.toLowerCase() === name || (short && service.name === first && service.namespace === (second ?? namespace)));
  }

  /** Services that lead to one of these addresses. */
  servicesAt(addresses: Iterable<string>): Set<string> {
    const names = new Set<string>();
    for (const address of addresses) this.#affectOwners(address, names);
    return names;
  }

  /** Services with one of these host names or addresses of their own. */
  servicesCalled(names: Iterable<string>): Set<string> {
    const found = new Set<string>();
    for (const each of names) for (const index of [this.#byHost, this.#byVip]) for (const name of all(index.get(each))) found.add(name);
    return found;
  }

  /** Takes up what is said of a name now. @param old what was said of it before @returns names of services whose decisions may be others now; `all`: those of every service */
  update(name: string, old: Address | undefined): Set<string> | 'all' {
    const affected = new Set<string>();
    const before = this.#node.key;
    const [was, is] = [old?.type, this.#addressOf(name)?.type];
    if (was?.$case === 'workload') this.#dropWorkload(name, was.value, affected);
    if (was?.$case === 'service') this.#dropService(name, was.value, affected);
    if (is?.$case === 'workload') this.#putWorkload(name, is.value, affected);
    else if (is?.$case === 'service') this.#putService(name, is.value, affected);
    return before === this.#node.key ? affected : 'all';
  }

  /** Of each of its addresses and ports; none for a service that is unknown or headless. */
  decide(name: string, facts: NodeFacts): Decision[] {
    const service = this.#serviceOf(name);
    if (!service) return [];
    return this.vips(service).flatMap((address) => service.ports.map(({ service_port: port }) => {
      const found = this.#decide(name, service, address, port, facts);
      return typeof found === 'string' ? { service: name, address, port, entry: undefined, reason: found } : { service: name, address, port, entry: found };
    }));
  }

  /** The one that services are decided for: most of this node's pods are on it. */
  get network(): string {
    return this.#node.network;
  }

  /** Of the pod with these addresses; undefined when that is not known. */
  networkOf(addresses: readonly string[]): string | undefined {
    for (const address of addresses) {
      const workload = this.workloadOf(address);
      if (workload) return workload.network;
    }
    return undefined;
  }

  /** All pods of the node are on one. */
  get isOneNetwork(): boolean {
    return this.#node.isOneNetwork;
  }

  /** The kernel has one table for all pods of the node: to this one an address in it may mean something else. */
  isForeign(addresses: readonly string[]): boolean {
    return !this.isOneNetwork && this.networkOf(addresses) !== this.network;
  }

  /** Its addresses on that network. */
  vips({ addresses }: Service, own = this.network): string[] {
    return [...new Set(addresses.filter(({ network }) => network === own).map(({ address }) => addressText(address)))];
  }

  /** Those of its endpoints at this address and port that are reachable by their own address, wherever they are. */
  endpoints(name: string, address: string, port: number): { address: string; port: number }[] {
    const service = this.#serviceOf(name);
    return service ? this.#candidates(name, service, address, port).map(({ address: own, port: target }) => ({ address: own, port: target })) : [];
  }

  /** What is known of an address that is no service's. */
  workloadOf(address: string): Workload | undefined {
    const owner = this.#byAddress.of(address);
    return typeof owner === 'number' ? this.#workloadOf(owner) : undefined;
  }

  /** Of services and workloads that have the address. */
  namesAt(address: string): string[] {
    const owner = this.#byAddress.of(address);
    const workloads = owner === undefined ? [] : typeof owner === 'number' ? [owner] : [...owner];
    return [...workloads.map((number) => this.#uids.text(number)), ...all(this.#byVip.get(address))];
  }

  #serviceOf(name: string): Service | undefined {
    const type = this.#addressOf(name)?.type;
    return type?.$case === 'service' ? type.value : undefined;
  }

  #servicesOf(names: Iterable<string>): Service[] {
    return [...names].flatMap((name) => this.#serviceOf(name) ?? []);
  }

  /** @param number of its uid */
  #workloadOf(number: number): Workload | undefined {
    const type = this.#uids.has(number) ? this.#addressOf(this.#uids.text(number))?.type : undefined;
    return type?.$case === 'workload' ? type.value : undefined;
  }

  #decide(name: string, service: Service, address: string, port: number, facts: NodeFacts): ServiceEntry | string {
    if (service.waypoint) return `it has a waypoint, ${waypointName(service.waypoint)}`;
    const twins = all(this.#byVip.get(address)).filter((other) => other !== name && this.#serviceOf(other)?.ports.some((each) => each.service_port === port));
    if (twins.length > 0) return `${twins[0]} has the same address and port`;
    const candidates = this.#candidates(name, service, address, port);
    const chosen = preferred(service.load_balancing, candidates, this.#node.place, this.#node.disagreement);
    if (typeof chosen === 'string') return chosen;
    for (const { workload, address: own, port: at } of chosen) {
      const reason = this.#obstacle(own, at, workload, facts);
      if (reason !== undefined) return `endpoint ${own} (${workload.namespace}/${workload.name}): ${reason}`;
    }
    const verdict = facts.ports.judge(address, port, service.hostname);
    if (verdict.reason !== undefined) return verdict.reason;
    for (const assignment of verdict.assignments) {
      if (!assignment) {
        if (chosen.length === 0) return 'its endpoints have not been heard of yet';
        continue;
      }
      for (const item of assignment.message.endpoints.flatMap(({ lb_endpoints }) => lb_endpoints)) {
        if (chosen.length === 0) return 'a proxy knows endpoints of it that the list of workloads has not';
        const known = endpointAddress(item.host_identifier);
        const owner = known === undefined ? undefined : this.workloadOf(known);
        if (!owner?.services[name]) return 'a proxy knows endpoints of it that the list of workloads has not';
      }
    }
    return { kind: verdict.kind, ...(hasClientAffinity(service.extensions) ? { affinity: true } : {}), endpoints: chosen.map(({ address: own, port: target, weight }) => ({ address: own, port: target, weight })) };
  }

  #obstacle(address: string, port: number, workload: Workload, facts: NodeFacts): string | undefined {
    if (typeof this.#byAddress.of(address) !== 'number') return 'two workloads have this address';
    if (workload.application_tunnel) return 'it takes connections in a tunnel';
    return facts.obstacle(address, port);
  }

  /** All that could be drawn but for locality: of the address's family, with a port, weight and health. */
  #candidates(name: string, service: Service, vip: string, port: number): Candidate[] {
    const everyone = service.load_balancing?.health_policy === LoadBalancing_HealthPolicy.ALLOW_ALL;
    const target = service.ports.find((each) => each.service_port === port)?.target_port ?? 0;
    const found: Candidate[] = [];
    for (const number of new Set(this.#members.get(name))) {
      const workload = this.#workloadOf(number);
      const ports = workload?.services[name]?.ports;
      if (!workload || !ports) continue;
      const own = ports.find((each) => each.service_port === port)?.target_port || target;
      const weight = workload.capacity ?? 1;
      if (own === 0 || weight === 0 || (!everyone && workload.status !== WorkloadStatus.HEALTHY)) continue;
      const address = workload.addresses.map(addressText).find((each) => isIPv6(each) === isIPv6(vip));
      if (address !== undefined) found.push({ address, port: own, weight, workload });
    }
    return found;
  }

  #putWorkload(uid: string, workload: Workload, affected: Set<string>): void {
    this.#workloads++;
    this.#node.set(uid, workload);
    const number = this.#uids.add(uid);
    for (const name of Object.keys(workload.services)) {
      const members = this.#members.get(name);
      if (members) members.push(number);
      else this.#members.set(name, [number]);
      affected.add(name);
    }
    for (const address of workload.addresses.map(addressText)) {
      this.#byAddress.add(address, number);
      this.#affectOwners(address, affected);
    }
  }

  #dropWorkload(uid: string, workload: Workload, affected: Set<string>): void {
    this.#workloads--;
    this.#node.delete(uid);
    const number = this.#uids.find(uid);
    if (number === undefined) return;
    for (const name of Object.keys(workload.services)) {
      affected.add(name);
      const left = (this.#members.get(name) ?? []).filter((each) => each !== number);
      if (left.length > 0) this.#members.set(name, left);
      else this.#members.delete(name);
    }
    for (const address of workload.addresses.map(addressText)) {
      this.#byAddress.drop(address, number);
      this.#affectOwners(address, affected);
    }
    this.#uids.remove(number);
  }

  /** Whoever shares an address is concerned by its getting or losing another owner. */
  #affectOwners(address: string, affected: Set<string>): void {
    const owner = this.#byAddress.of(address);
    for (const number of owner === undefined ? [] : typeof owner === 'number' ? [owner] : owner) {
      for (const name of Object.keys(this.#workloadOf(number)?.services ?? {})) affected.add(name);
    }
  }

  #putService(name: string, service: Service, affected: Set<string>): void {
    this.#services.add(name);
    for (const { address } of service.addresses) add(this.#byVip, addressText(address), name);
    add(this.#byHost, service.hostname, name);
    this.#affectTwins(service, affected);
    affected.add(name);
  }

  #dropService(name: string, service: Service, affected: Set<string>): void {
    this.#affectTwins(service, affected);
    this.#services.delete(name);
    for (const { address } of service.addresses) drop(this.#byVip, addressText(address), name);
    drop(this.#byHost, service.hostname, name);
    affected.add(name);
  }

  #affectTwins({ addresses }: Service, affected: Set<string>): void {
    for (const { address } of addresses) for (const name of all(this.#byVip.get(addressText(address)))) affected.add(name);
  }
}

/** Who has an address, of workloads by number: as a rule one, and more are a conflict. */
class Owners {
  readonly #addresses = new NumberedNames();
  /** By the address's number, where it has one. */
  #owners: Int32Array = new Int32Array(64);
  readonly #several = new Map<number, Set<number>>();

  of(address: string): number | ReadonlySet<number> | undefined {
    const at = this.#addresses.find(address);
    if (at === undefined) return undefined;
    return this.#several.get(at) ?? this.#owners[at]!;
  }

  add(address: string, owner: number): void {
    const known = this.of(address);
    if (known === owner) return;
    const at = this.#addresses.add(address);
    if (at >= this.#owners.length) {
      const before = this.#owners;
      this.#owners = new Int32Array(before.length * 2);
      this.#owners.set(before);
    }
    if (known === undefined) this.#owners[at] = owner;
    else this.#several.set(at, new Set([...(typeof known === 'number' ? [known] : known), owner]));
  }

  drop(address: string, owner: number): void {
    const at = this.#addresses.find(address);
    if (at === undefined) return;
    const several = this.#several.get(at);
    if (!several) return this.#owners[at] === owner ? this.#addresses.remove(at) : undefined;
    several.delete(owner);
    const [only] = several;
    if (several.size !== 1) return;
    this.#owners[at] = only!;
    this.#several.delete(at);
  }
}

function endpointAddress(host: { $case: string; value: unknown } | undefined): string | undefined {
  const address = host?.$case === 'endpoint' ? (host.value as { address?: { address?: { $case: string; value: { address?: string; endpoint_id?: string } } } }).address?.address : undefined;
  if (address?.$case === 'socket_address') return address.value.address;
  return address?.$case === 'envoy_internal_address' ? parseEndpointId(address.value.endpoint_id ?? '')?.address : undefined;
}

/** As a rule it is one: a set for each takes more than all names. */
type Few = string | Set<string>;

function all(some: Few | undefined): readonly string[] {
  return some === undefined ? [] : typeof some === 'string' ? [some] : [...some];
}

function add(index: Map<string, Few>, key: string, value: string): void {
  const found = index.get(key);
  if (typeof found === 'object') found.add(value);
  else if (found !== value) index.set(key, found === undefined ? value : new Set([found, value]));
}

function drop(index: Map<string, Few>, key: string, value: string): void {
  const found = index.get(key);
  if (found === value) index.delete(key);
  if (typeof found !== 'object') return;
  found.delete(value);
  const [only] = found;
  if (found.size === 1) index.set(key, only!);
}
