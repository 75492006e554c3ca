/**
 * Which internal listener classes hand plain TCP on to. There is a chain for each TCP service of a mesh, of most classes the same ones,
 * and Envoy takes longer for a thousand chains than for a hundred pods: classes whose chains are equal share a listener. A class has a
 * cluster of its own that leads there, so that none of its pods' chains changes, and no connection ends, when it moves to another.
 *
 * A class that comes to differ from the others moves to a listener of its own, which Envoy has before the class's cluster leads
 * there (`leadsTo`); the connections that it has stay where they are, as does the listener. What bears an account's identity is never
 * in a shared one: Envoy changes over class by class.
 */
import { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { encode, unpack } from '../../common/xds/any.js';
import { hashBytes } from '../xds/resource-type.js';
import type { FoldedListeners } from './fold-listeners.js';
import { inspectionCluster, inspectionName, internalListener } from './inspection.js';
import type { Entry } from './snapshot.js';

/** What a class hands on. */
export interface PlainChains {
  all: readonly FilterChain[];
  defaultChain: FilterChain;
  /** Those that say the same whoever calls; undefined where the default chain does not. */
  shared: readonly FilterChain[] | undefined;
}

interface PlainClass {
  key: string;
  plain: PlainChains;
}

interface Given {
  /** By class: the group whose listener it shares, named by the class that came first. */
  groups: ReadonlyMap<string, string>;
  /** By group: its content. */
  hashes: ReadonlyMap<string, string>;
  /** Classes that have had a listener of their own keep it: it has their connections. */
  owners: ReadonlySet<string>;
}

const OWN = '/own';

interface Content {
  chains: readonly FilterChain[];
  defaultChain: Uint8Array;
  hash: string;
}

export interface PlainEntries {
  clusters: readonly Entry[];
  listeners: readonly Entry[];
  /** Listeners that exist only because classes do not agree. */
  split: readonly string[];
}

/** Clusters that a chain leads to by itself; undefined for one that has HTTP, tunnels or does something else. */
const targets = new WeakMap<FilterChain, { clusters: readonly string[] | undefined }>();

/** @param ofAccounts clusters that bear an account's identity */
export function plainChains({ inspected: { plain: all }, defaultChain }: FoldedListeners, ofAccounts: ReadonlySet<string>): PlainChains {
  const isForAll = (chain: FilterChain): boolean => targetsOf(chain)?.every((name) => !ofAccounts.has(name)) === true;
  const shared = isForAll(defaultChain) ? all.filter(isForAll) : undefined;
  return { all, defaultChain, shared: shared?.length === all.length ? all : shared };
}

function targetsOf(chain: FilterChain): readonly string[] | undefined {
  let found = targets.get(chain);
  if (!found) targets.set(chain, (found = { clusters: readTargets(chain) }));
  return found.clusters;
}

function readTargets({ filters }: FilterChain): readonly string[] | undefined {
  const configs = filters.map(({ config_type }) => (config_type?.$case === 'typed_config' ? config_type.value : undefined));
  const tcp = unpack(TcpProxy, configs.at(-1));
  if (!tcp || tcp.tunneling_config || configs.some((config) => unpack(HttpConnectionManager, config))) return undefined;
  const specifier = tcp.cluster_specifier;
  return specifier?.$case === 'weighted_clusters' ? specifier.value.clusters.map(({ name }) => name) : specifier?.$case === 'cluster' ? [specifier.value] : undefined;
}

export class PlainListeners {
  /** Of an agent before this one, as long as the class was not seen. */
  readonly #former: Map<string, string>;
  /** What Envoy was given. */
  #given: Given = { groups: new Map(), hashes: new Map(), owners: new Set() };
  #next: Given = this.#given;
  #contents: Content[] = [];
  #entries = new Map<string, { hash: string; entry: Entry }>();
  #last: { of: readonly PlainClass[]; given: Given; result: PlainEntries } | undefined;

  /** @param former what `given` of a former agent was, whose Envoy may be taken over */
  constructor(former: Readonly<Record<string, string>> = {}) {
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
  entries(classes: readonly PlainClass[]): PlainEntries {
    const last = this.#last;
    if (last?.given === this.#given && last.of.length === classes.length && classes.every(({ key, plain }, index) => last.of[index]!.key === key && last.of[index]!.plain === plain)) return last.result;
    const contents: Content[] = [];
    const hashOf = (chains: readonly FilterChain[], defaultChain: FilterChain): string => {
      const ending = encode(FilterChain, defaultChain);
      const isSame = (each: Content): boolean => each.chains.length === chains.length && chains.every((chain, index) => chain === each.chains[index]) && Buffer.compare(each.defaultChain, ending) === 0;
      let found = contents.find(isSame) ?? this.#contents.find(isSame);
      if (!found) found = { chains, defaultChain: ending, hash: hashBytes(ending, ...chains.map((chain) => encode(FilterChain, chain))) };
      if (!contents.includes(found)) contents.push(found);
      return found.hash;
    };
    const sharing = classes.flatMap(({ key, plain: { shared, defaultChain } }) => (shared ? { key, chains: shared, defaultChain, hash: hashOf(shared, defaultChain) } : []));
    this.#contents = contents;
    const owners = new Set(classes.flatMap(({ key, plain: { all, shared } }) => (shared !== all || this.#given.owners.has(key) || this.#former.get(key)?.endsWith(OWN) ? key : [])));
    this.#next = { ...this.#assign(sharing), owners };
    const entries = new Map<string, { hash: string; entry: Entry }>();
    for (const { key, chains, defaultChain, hash } of sharing) {
      const group = this.#next.groups.get(key)!;
      if (entries.has(group)) continue;
      const known = this.#entries.get(group);
      entries.set(group, known?.hash === hash ? known : { hash, entry: internalListener(inspectionName(group, 'plain'), 'plain', chains, defaultChain, []) });
    }
    this.#entries = entries;
    const clusters: Entry[] = [];
    const own: Entry[] = [];
    for (const { key, plain: { all, defaultChain } } of classes) {
      const isOwn = owners.has(key);
      if (isOwn) own.push(internalListener(`${inspectionName(key, 'plain')}${OWN}`, 'plain', all, defaultChain, []));
      clusters.push(inspectionCluster(key, 'plain', isOwn ? own.at(-1)!.name : inspectionName(this.#next.groups.get(key)!, 'plain')));
    }
    const result = { clusters, listeners: [...[...entries.values()].map(({ entry }) => entry), ...own], split: [...this.#next.hashes.keys()].slice(1).map((group) => inspectionName(group, 'plain')) };
    this.#last = { of: classes, given: this.#given, result };
    return result;
  }

  /** Who had a listener and asks for what is in it stays; where nobody does it is changed in place for those who agree. */
  #assign(classes: readonly { key: string; hash: string }[]): Omit<Given, 'owners'> {
    const members = new Map<string, { key: string; hash: string }[]>();
    for (const each of classes) {
      const group = this.#given.groups.get(each.key) ?? this.#former.get(each.key)?.replace(OWN, '');
      if (group !== undefined) members.set(group, [...(members.get(group) ?? []), each]);
    }
    const groups = new Map<string, string>();
    const hashes = new Map<string, string>();
    for (const [group, own] of members) {
      const before = this.#given.hashes.get(group);
      const hash = own.some((each) => each.hash === before) ? before! : mostCommon(own.map((each) => each.hash));
      hashes.set(group, hash);
      for (const each of own) if (each.hash === hash) groups.set(each.key, group);
    }
    const formerGroups = new Set([...this.#former.values()].map((group) => group.replace(OWN, '')));
    for (const { key, hash } of classes) {
      if (groups.has(key)) continue;
      let group = [...hashes].find(([, content]) => content === hash)?.[0];
      for (let turn = 1; group === undefined; turn++) {
        const candidate = turn === 1 ? key : `${key}~${turn}`;
        if (!hashes.has(candidate) && !this.#given.hashes.has(candidate) && !formerGroups.has(candidate)) group = candidate;
      }
      hashes.set(group, hash);
      groups.set(key, group);
    }
    return { groups, hashes };
  }
}

function mostCommon(hashes: readonly string[]): string {
  const counts = new Map<string, number>();
  for (const hash of hashes) counts.set(hash, (counts.get(hash) ?? 0) + 1);
  return [...counts].reduce((best, each) => (each[1] > best[1] ? each : best))[0];
}
