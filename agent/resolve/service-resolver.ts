/**
 * Keeps the connect hook's services what WDS, the control plane's listeners and the node's pods make of them. One endpoint's
 * change is one service's: it is in the kernel within the turn of the event loop in which it arrived.
 */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import type { Change } from '../xds/delta-stream.js';
import type { XdsResource } from '../xds/resource-type.js';
import type { Address, Service, Workload } from '../../proto/generated/istio/workload/workload.js';
import type { KernelPod } from '../dataplane/kernel.js';
import type { LiveService, ServiceChange, ServicePort, ServiceTableStatus } from '../dataplane/kernel-services.js';
import type { PortJudge } from '../proxy/plain-ports.js';
import { ServiceIndex, type Decision, type NodeFacts } from './service-index.js';

/** What the kernel offers for it. */
export interface ServiceSink {
  apply(changes: Iterable<ServiceChange>): number;
  retryRefused(): number;
  ports(): ServicePort[];
  /** Pods, by netns cookie, for which no service is decided. */
  setForeign(cookies: ReadonlySet<bigint>): void;
  isForeign(cookie: bigint): boolean;
  live(port: ServicePort): LiveService | undefined;
  readonly status: ServiceTableStatus;
}

/** Of pods that have a say in who calls them. */
export interface InboundJudge {
  /** What comes to the pod is led to the proxy, also when nothing asks for that any more. */
  isRedirected(uid: string): boolean;
  /** The kernel says it at connect(). */
  isJudged(uid: string, port: number): boolean;
  /** Why the proxy has to. */
  whyProxy(uid: string, port: number): string | undefined;
}

type Addresses = ReadonlyMap<string, XdsResource<Address>>;

export type WorkloadChange = Pick<Change, 'updated' | 'removed'> & { type: { shortName: string }; replaced: ReadonlyMap<string, Pick<XdsResource<unknown>, 'message'>> };

export interface ServiceResolverOptions {
  nodeName: string;
  table: ServiceSink;
  /** The pods as the kernel has them. */
  pods: () => readonly KernelPod[];
  /** Absent: always the proxy. */
  judge?: InboundJudge;
  logger: Logger;
}

export interface ResolverStatus extends ServiceTableStatus {
  /** Of WDS. */
  known: { services: number; workloads: number };
  /** How long it took to make the table what it should be when all was heard for the first time, in milliseconds. */
  firstSyncMs?: number;
}

interface Standing {
  uid: string;
  /** It has a say in who calls it. */
  isBehind: boolean;
  obstacle: string | undefined;
}

/** How often services that found no room are tried again, and said so. */
const RETRY_MS = 60_000;

export class ServiceResolver implements Closable {
  readonly #options: ServiceResolverOptions;
  readonly #index: ServiceIndex;
  readonly #timer: NodeJS.Timeout;
  #addresses: Addresses = new Map();
  #heard = false;
  #ports: PortJudge | undefined;
  #behind: ReadonlySet<string> = new Set();
  /** Address → the pod that has it, and why it is not to be led to. */
  #pods = new Map<string, Standing>();
  /** Service → the addresses and ports that it was given an entry for. */
  readonly #given = new Map<string, readonly ServicePort[]>();
  /** Pods that are on another network than services are decided for, as the kernel knows them. */
  #foreign: ReadonlySet<bigint> | undefined;
  #synced = false;
  #firstSyncMs: number | undefined;
  #failed = false;
  #lastWarnedMs = -Infinity;

  constructor(options: ServiceResolverOptions) {
    this.#options = options;
    this.#index = new ServiceIndex(options.nodeName, (name) => this.#addresses.get(name)?.message);
    this.#timer = setInterval(() => this.#retry(), RETRY_MS);
    this.#timer.unref();
  }

  get status(): ResolverStatus {
    return { ...this.#options.table.status, known: this.#index.size, ...(this.#firstSyncMs === undefined ? {} : { firstSyncMs: this.#firstSyncMs }) };
  }

  /** @param complete whether the control plane has answered in full; before that nothing is decided */
  workloadsChanged(addresses: Addresses, change: WorkloadChange, complete: boolean): void {
    this.#addresses = addresses;
    let affected: Set<string> | 'all' = new Set<string>();
    // Policies come on the same stream.
    for (const name of change.type.shortName === 'WDS' ? [...change.removed, ...change.updated] : []) {
      const found = this.#index.update(name, change.replaced.get(name)?.message as Address | undefined);
      if (found === 'all' || affected === 'all') affected = 'all';
      else for (const each of found) affected.add(each);
    }
    const first = complete && !this.#heard;
    this.#heard ||= complete;
    const release = this.#setForeign();
    if (first || affected === 'all') this.#decideAll();
    else if (this.#synced) this.#decide(affected);
    release();
  }

  /** @param behind uids of pods that have a say in who calls them, or of which that is not known */
  portsChanged(ports: PortJudge, behind: ReadonlySet<string>): void {
    const [before, pods] = [this.#ports, this.#pods];
    this.#ports = ports;
    this.#behind = behind;
    this.#pods = this.#standings();
    const changed = this.#synced && !this.#failed && before ? ports.changedSince?.(before) : undefined;
    if (changed) this.#decide(new Set([...this.#index.servicesAt(moved(pods, this.#pods)), ...this.#index.servicesCalled(changed)]));
    else this.#decideAll();
  }

  /** Decides again for the services of pods that came, went or stand otherwise. */
  podsChanged(): void {
    const [before, now] = [this.#pods, this.#standings()];
    this.#pods = now;
    const changed = moved(before, now);
    this.#setForeign()();
    if (this.#synced && changed.length > 0) this.#decide(this.#index.servicesAt(changed));
  }

  /** Why no service is decided for the pod. */
  whyForeign({ netnsCookie, addresses }: KernelPod): string | undefined {
    if (!this.#options.table.isForeign(netnsCookie)) return undefined;
    const own = this.#index.networkOf(addresses);
    return `the pod is on the network ${quoted(own)}; services are decided at connect() for those on ${quoted(this.#index.network)}, as most of this node's pods are`;
  }

  /** Those that are foreign now are so before anything is decided; the rest when what is returned is called, after that. */
  #setForeign(): () => void {
    const { table, pods, logger } = this.#options;
    if (!this.#heard || (this.#foreign?.size === 0 && this.#index.isOneNetwork)) return () => undefined;
    const now = new Set(pods().flatMap((pod) => (this.#index.isForeign(pod.addresses) ? pod.netnsCookie : [])));
    if (now.size === this.#foreign?.size && [...now].every((cookie) => this.#foreign!.has(cookie))) return () => undefined;
    const set = (cookies: ReadonlySet<bigint>): void => {
      table.setForeign(cookies);
      this.#foreign = cookies;
    };
    if (now.size > 0) logger.warn({ pods: now.size, network: this.#index.network }, 'pods of this node are on another network than most: what they open to services is Envoy\'s');
    const either = new Set([...(this.#foreign ?? []), ...now]);
    if (either.size !== this.#foreign?.size) set(either);
    return () => (either.size === now.size ? undefined : set(now));
  }

  /** Decides again for services of the node's pods: what the judge says of some has changed. */
  judgedChanged(): void {
    if (this.#synced) this.#decide(this.#index.servicesAt(this.#pods.keys()));
  }

  /** What was decided of a host and port, and why; and what is known of an address that is a pod's. */
  decisions(host: string, port: number, namespace: string): { decisions: Decision[]; services: Service[]; workload: Workload | undefined } {
    const services = this.#index.find(host, namespace);
    const facts = this.#facts();
    const decisions = services.flatMap((service) => (facts ? this.#index.decide(`${service.namespace}/${service.hostname}`, facts) : [])).filter((each) => each.port === port);
    return { decisions, services, workload: this.#index.workloadOf(host) };
  }

  /** All that the services with this address and port can lead to. */
  endpoints(services: readonly Service[], address: string, port: number): { address: string; port: number }[] {
    return services.flatMap(({ namespace, hostname }) => this.#index.endpoints(`${namespace}/${hostname}`, address, port));
  }

  /** Of services and workloads, as WDS names them, that have the address. */
  namesAt(address: string): string[] {
    return this.#index.namesAt(address);
  }

  /** Whether the proxies have a service, a headless one as a rule, for a pod's own address and port. */
  isNamed(address: string, port: number): boolean {
    return this.#ports?.isNamed?.(address, port) ?? false;
  }

  /** Its addresses on the network of the pod with these addresses; without any there, on that of most. */
  vips(service: Service, pod: readonly string[]): string[] {
    const own = this.#index.vips(service, this.#index.networkOf(pod));
    return own.length > 0 ? own : this.#index.vips(service);
  }

  live(port: ServicePort): LiveService | undefined {
    return this.#options.table.live(port);
  }

  /** Services, as `namespace/hostname`, that have an entry for the address and port. */
  servicesAt(address: string, port: number): string[] {
    return [...this.#given].flatMap(([name, ports]) => (ports.some((each) => each.port === port && each.address === address) ? name : []));
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #standings(): Map<string, Standing> {
    return new Map(this.#options.pods().flatMap((pod) => pod.addresses.map((address) => [address, this.#standingOf(pod)] as const)));
  }

  #standingOf({ uid, mode, capture, redirected }: KernelPod): Standing {
    const obstacle = mode !== 'node' ? 'it keeps its own sidecar' : !capture && !redirected ? 'it is leaving the mesh' : undefined;
    return { uid, isBehind: this.#behind.has(uid), obstacle };
  }

  #obstacle(address: string, port: number): string | undefined {
    const standing = this.#pods.get(address);
    if (!standing) return 'no enrolled pod of this node';
    const { uid, isBehind, obstacle } = standing;
    const { judge } = this.#options;
    if (obstacle !== undefined || judge?.isJudged(uid, port)) return obstacle;
    if (!isBehind) return judge?.isRedirected(uid) ? 'its callers are led to Envoy for a moment yet' : undefined;
    const why = judge?.whyProxy(uid, port);
    return `its policy has a say in who calls it${why === undefined ? '' : `, and not the kernel's alone: ${why}`}`;
  }

  #facts(): NodeFacts | undefined {
    const ports = this.#ports;
    if (!ports || !this.#heard) return undefined;
    return { ports, obstacle: (address, port) => this.#obstacle(address, port) };
  }

  #decideAll(): void {
    if (!this.#facts()) return;
    const startedMs = performance.now();
    const gone = new Set(this.#given.keys());
    for (const name of this.#index.serviceNames()) gone.delete(name);
    const names = [...this.#index.serviceNames(), ...gone];
    if (!this.#decide(names)) return;
    if (!this.#synced) {
      // What a former agent left and nobody gives an entry any more.
      const given = new Set([...this.#given.values()].flat().map(({ address, port }) => `${address} ${port}`));
      this.#apply(this.#options.table.ports().filter(({ address, port }) => !given.has(`${address} ${port}`)).map((port) => ({ ...port, entry: undefined })));
      this.#synced = true;
      this.#firstSyncMs = performance.now() - startedMs;
      this.#options.logger.info({ ...this.status }, 'services are decided at connect()');
    }
  }

  #decide(names: Iterable<string>): boolean {
    const facts = this.#facts();
    if (!facts) return false;
    const changes: ServiceChange[] = [];
    const given = new Map<string, readonly ServicePort[]>();
    for (const name of names) {
      const entries = this.#index.decide(name, facts).filter(({ entry }) => entry);
      const before = this.#given.get(name) ?? [];
      changes.push(...before.filter((old) => !entries.some(({ address, port }) => address === old.address && port === old.port)).map(({ address, port }) => ({ address, port, entry: undefined })));
      changes.push(...entries.map(({ address, port, entry }) => ({ address, port, entry })));
      given.set(name, entries.map(({ address, port }) => ({ address, port })));
    }
    // An address may go from one service to another: what is taken away must not come last.
    changes.sort((a, b) => Number(a.entry !== undefined) - Number(b.entry !== undefined));
    if (!this.#apply(changes)) return false;
    for (const [name, ports] of given) {
      if (ports.length > 0) this.#given.set(name, ports);
      else this.#given.delete(name);
    }
    return true;
  }

  #apply(changes: readonly ServiceChange[]): boolean {
    try {
      const refused = this.#options.table.apply(changes);
      if (refused > 0) this.#warnRefused();
      this.#failed = false;
      return true;
    } catch (error) {
      this.#options.logger.error({ reason: errorMessage(error) }, 'the kernel did not take changes of services; they are tried again');
      this.#failed = true;
      return false;
    }
  }

  #retry(): void {
    if (this.#failed) return this.#decideAll();
    try {
      if (this.#options.table.retryRefused() > 0) this.#warnRefused();
    } catch (error) {
      this.#options.logger.error({ reason: errorMessage(error) }, 'the kernel did not take services that had found no room');
    }
  }

  #warnRefused(): void {
    if (performance.now() - this.#lastWarnedMs < RETRY_MS) return;
    this.#lastWarnedMs = performance.now();
    this.#options.logger.warn({ ...this.#options.table.status }, 'the kernel has no room for all services; those without an entry go through Envoy');
  }
}

/** Addresses that stand otherwise than before. */
function moved(before: ReadonlyMap<string, Standing>, now: ReadonlyMap<string, Standing>): string[] {
  return [...new Set([...before.keys(), ...now.keys()])].filter((address) => !sameStanding(before.get(address), now.get(address)));
}

function quoted(network: string | undefined): string {
  return network === undefined ? '(unknown)' : `"${network}"`;
}

function sameStanding(a: Standing | undefined, b: Standing | undefined): boolean {
  return a?.uid === b?.uid && a?.isBehind === b?.isBehind && a?.obstacle === b?.obstacle;
}
