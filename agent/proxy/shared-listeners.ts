/**
 * Which internal listeners classes hand connections on to. There is a chain for each TCP service of a mesh, of most classes the same
 * ones, and Envoy takes longer for a thousand chains than for a hundred pods: classes whose chains of a kind are equal share a listener.
 * A class has a cluster of its own that leads there, so that none of its pods' chains changes, and no connection ends, when it moves to
 * another.
 *
 * A class that comes to differ from the others moves to a listener of its own, which Envoy has before the class's cluster leads
 * there (`leadsTo`); the connections that it has stay where they are, as does the listener. What bears an account's identity is never
 * in a shared one: Envoy changes over class by class.
 */
import { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { encode, typeUrl, unpack } from '../../common/xds/any.js';
import { hashBytes } from '../xds/resource-type.js';
import { referredBy, type FoldedListeners } from './fold-listeners.js';
import { inspectionCluster, inspectionName, internalListener, type InspectionKind } from './inspection.js';
import { groupsOf, type Groups } from './shared-groups.js';
import type { Entry } from './snapshot.js';

/** What a class hands on, of one kind. */
export interface HandedOn {
  all: readonly FilterChain[];
  defaultChain: FilterChain;
  /** Those that say the same whoever calls; undefined where the default chain does not. */
  shared: readonly FilterChain[] | undefined;
}

interface HandingClass {
  key: string;
  chains: HandedOn;
}

interface Given extends Groups {
  /** Classes that have had a listener of their own keep it: it has their connections. */
  owners: ReadonlySet<string>;
}

const OWN = '/own';

interface Content {
  chains: readonly FilterChain[];
  defaultChain: Uint8Array;
  hash: string;
}

export interface SharedEntries {
  clusters: readonly Entry[];
  listeners: readonly Entry[];
  /** Listeners that exist only because classes do not agree. */
  split: readonly string[];
}

/** How a chain ends: clusters that it passes connections on to, or HTTP; undefined for one that tunnels, or does something else. */
const ends = new WeakMap<FilterChain, { at: readonly string[] | 'http' | undefined }>();

/**
 * @param clusters that bear an account's identity
 * @param routes tables that lead to such
 */
export function handedOn({ inspected, defaultChain }: Pick<FoldedListeners, 'inspected' | 'defaultChain'>, clusters: ReadonlySet<string>, routes: ReadonlySet<string>): Record<InspectionKind, HandedOn> {
  const isForAll = (chain: FilterChain): boolean => {
    const end = endOf(chain);
    if (end !== 'http') return end?.every((name) => !clusters.has(name)) === true;
    if (clusters.size + routes.size === 0) return true;
    const names = referredBy(chain);
    return [...names.clusters].every((name) => !clusters.has(name)) && [...names.routes].every((name) => !routes.has(name));
  };
  const endsForAll = isForAll(defaultChain);
  const of = (all: readonly FilterChain[]): HandedOn => {
    const shared = endsForAll ? all.filter(isForAll) : undefined;
    return { all, defaultChain, shared: shared?.length === all.length ? all : shared };
  };
  return { http: of(inspected.http), unknown: of(inspected.unknown), plain: of(inspected.plain) };
}

function endOf(chain: FilterChain): readonly string[] | 'http' | undefined {
  let found = ends.get(chain);
  if (!found) ends.set(chain, (found = { at: readEnd(chain) }));
  return found.at;
}

function readEnd({ filters }: FilterChain): readonly string[] | 'http' | undefined {
  const configs = filters.map(({ config_type }) => (config_type?.$case === 'typed_config' ? config_type.value : undefined));
  if (configs.at(-1)?.type_url === typeUrl(HttpConnectionManager)) return 'http';
  const tcp = unpack(TcpProxy, configs.at(-1));
  if (!tcp || tcp.tunneling_config || configs.some((config) => config?.type_url === typeUrl(HttpConnectionManager))) return undefined;
  const specifier = tcp.cluster_specifier;
  return specifier?.$case === 'weighted_clusters' ? specifier.value.clusters.map(({ name }) => name) : specifier?.$case === 'cluster' ? [specifier.value] : undefined;
}

/** Tables that a listener is not ready without. */
function routesOf(chains: readonly FilterChain[]): string[] {
  return [...new Set(chains.flatMap((chain) => (endOf(chain) === 'http' ? [...referredBy(chain).routes] : [])))];
}

/** Of one kind. */
export class SharedListeners {
  /** Of an agent before this one, as long as the class was not seen. */
  readonly #former: Map<string, string>;
  /** What Envoy was given. */
  #given: Given = { groups: new Map(), hashes: new Map(), owners: new Set() };
  #next: Given = this.#given;
  #contents: Content[] = [];
  #entries = new Map<string, { hash: string; entry: Entry }>();
  #last: { of: readonly HandingClass[]; given: Given; result: SharedEntries } | undefined;

  /** @param former what `given` of a former agent was, whose Envoy may be taken over */
  constructor(readonly kind: InspectionKind, former: Readonly<Record<string, string>> = {}) {
    this.#former = new Map(Object.entries(former));
  }

  /** To be kept for the next agent. */
  get given(): Record<string, string> {
    const { groups, owners } = this.#given;
    return Object.fromEntries([...groups].map(([key, group]) => [key, `${group}${owners.has(key) ? OWN : ''}`]));
  }

  /** What was last asked for is what Envoy is given. */
  commit(): void {
    this.#given = this.#next;
    for (const key of this.#given.groups.keys()) this.#former.delete(key);
    if (this.#last) this.#last.given = this.#given;
  }

  /** @param classes in order of seniority */
  entries(classes: readonly HandingClass[]): SharedEntries {
    const last = this.#last;
    if (last?.given === this.#given && last.of.length === classes.length && classes.every(({ key, chains }, index) => last.of[index]!.key === key && last.of[index]!.chains === chains)) return last.result;
    const contents: Content[] = [];
    const hashOf = (chains: readonly FilterChain[], defaultChain: FilterChain): string => {
      const ending = encode(FilterChain, defaultChain);
      const isSame = (each: Content): boolean => each.chains.length === chains.length && chains.every((chain, index) => chain === each.chains[index]) && Buffer.compare(each.defaultChain, ending) === 0;
      let found = contents.find(isSame) ?? this.#contents.find(isSame);
      if (!found) found = { chains, defaultChain: ending, hash: hashBytes(ending, ...chains.map((chain) => encode(FilterChain, chain))) };
      if (!contents.includes(found)) contents.push(found);
      return found.hash;
    };
    const sharing = classes.flatMap(({ key, chains: { shared, defaultChain } }) => (shared ? { key, chains: shared, defaultChain, hash: hashOf(shared, defaultChain) } : []));
    this.#contents = contents;
    const owners = new Set(classes.flatMap(({ key, chains: { all, shared } }) => (shared !== all || this.#given.owners.has(key) || this.#former.get(key)?.endsWith(OWN) ? key : [])));
    const formerGroups = new Set([...this.#former.values()].map((group) => group.replace(OWN, '')));
    this.#next = { ...groupsOf(sharing, { given: this.#given, formerOf: (key) => this.#former.get(key)?.replace(OWN, ''), isTaken: (group) => formerGroups.has(group), nameOf: (key, turn) => (turn === 1 ? key : `${key}~${turn}`) }), owners };
    const entries = new Map<string, { hash: string; entry: Entry }>();
    for (const { key, chains, defaultChain, hash } of sharing) {
      const group = this.#next.groups.get(key)!;
      if (entries.has(group)) continue;
      const known = this.#entries.get(group);
      entries.set(group, known?.hash === hash ? known : { hash, entry: internalListener(inspectionName(group, this.kind), this.kind, chains, defaultChain, routesOf(chains)) });
    }
    this.#entries = entries;
    const clusters: Entry[] = [];
    const own: Entry[] = [];
    for (const { key, chains: { all, defaultChain } } of classes) {
      const isOwn = owners.has(key);
      if (isOwn) own.push(internalListener(`${inspectionName(key, this.kind)}${OWN}`, this.kind, all, defaultChain, routesOf(all)));
      clusters.push(inspectionCluster(key, this.kind, isOwn ? own.at(-1)!.name : inspectionName(this.#next.groups.get(key)!, this.kind)));
    }
    const result = { clusters, listeners: [...[...entries.values()].map(({ entry }) => entry), ...own], split: [...this.#next.hashes.keys()].slice(1).map((group) => inspectionName(group, this.kind)) };
    this.#last = { of: classes, given: this.#given, result };
    return result;
  }
}
