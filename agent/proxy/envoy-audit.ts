/**
 * Compares what Envoy has with what it was sent. `/clusters` says which clusters there are and where they lead, for some 25 µs of its
 * main thread each; `/config_dump` has versions and contents, for half a millisecond each, so that is asked for page by page.
 *
 * A version is a hash of the content: one that is right and acknowledged has what was sent, unless somebody else than this agent sent
 * it. For that, how Envoy prints a resource is remembered when it is first seen under a version: another print under that version is a
 * drift. After a repair what Envoy prints then is remembered.
 */
import type { Check, Drift, DriftKind } from '../consistency/drift.js';
import type { SourcedResource } from '../consistency/object-status.js';
import { serviceIn } from '../consistency/objects.js';
import { hashBytes } from '../xds/resource-type.js';
import type { AdsServer } from './ads-server.js';
import { ConfigDump, type DumpPaths } from './config-dump.js';
import type { EnvoyAdmin } from './envoy-admin.js';
import { objectsOf } from './made-any.js';
import { podOfListener } from './pod-listener.js';
import { CDS, EDS, LDS, RDS, SDS, SHORT_NAMES, type Entry } from './snapshot.js';

export interface EnvoyAuditOptions {
  ads: Pick<AdsServer, 'idle' | 'entries' | 'status' | 'mayHold' | 'resend'>;
  admin: Pick<EnvoyAdmin, 'read' | 'listeners'>;
}

/** By type: what of `/config_dump` has it. */
const DUMPS: readonly { type: string; resource: string; paths: DumpPaths }[] = [
  { type: LDS, resource: 'dynamic_listeners', paths: { name: 'name', version: 'active_state.version_info', content: 'active_state.listener' } },
  { type: CDS, resource: 'dynamic_active_clusters', paths: { name: 'cluster.name', version: 'version_info', content: 'cluster' } },
  { type: RDS, resource: 'dynamic_route_configs', paths: { name: 'route_config.name', version: 'version_info', content: 'route_config' } },
  { type: SDS, resource: 'dynamic_active_secrets', paths: { name: 'name', version: 'version_info', content: undefined } },
];

/** Resources on a page: some 15 ms of Envoy's main thread. */
const PAGE = 32;
/** Envoy refuses regular expressions whose program has more than 100 steps. */
const MAX_PREFIX = 80;
const MAX_CLUSTERS_BYTES = 1 << 28;
const MAX_DUMP_BYTES = 1 << 28;

/** How things were printed under a version. */
class Prints {
  readonly #known = new Map<string, { version: string; print: string; isSettled: boolean }>();

  /** @param settles what is seen once may be on its way yet: it counts when it was seen twice */
  isAsBefore(key: string, version: string, print: string, settles = false): boolean {
    const known = this.#known.get(key);
    if (known?.version === version && known.print === print) known.isSettled = true;
    else if (known?.version === version && known.isSettled) return false;
    else this.#known.set(key, { version, print, isSettled: !settles });
    return true;
  }

  has(key: string, version: string): boolean {
    return this.#known.get(key)?.version === version;
  }

  forget(key: string): void {
    this.#known.delete(key);
  }

  keep(prefix: string, isWanted: (name: string) => boolean): void {
    for (const key of this.#known.keys()) if (key.startsWith(prefix) && !isWanted(key.slice(prefix.length))) this.#known.delete(key);
  }
}

export class EnvoyAudit {
  readonly #ads: EnvoyAuditOptions['ads'];
  readonly #admin: EnvoyAuditOptions['admin'];
  readonly #prints = new Prints();

  constructor({ ads, admin }: EnvoyAuditOptions) {
    this.#ads = ads;
    this.#admin = admin;
  }

  checks(): Check[] {
    return [{ name: 'Envoy clusters', parts: () => this.presence() }, { name: 'Envoy configuration', parts: () => this.contents() }];
  }

  /** What Envoy is to have, and whether it has it by its word and by what was read back. */
  *resources(): Generator<SourcedResource> {
    for (const type of [CDS, EDS, LDS, RDS]) {
      for (const [name, entry] of this.#ads.entries(type)) {
        const { acked, nack } = this.#ads.status(type, name);
        const kind = SHORT_NAMES[type]!;
        yield { type: kind, name, version: entry.version, acked, readBack: acked && this.#prints.has(`${kind} ${name}`, entry.version), ...(nack === undefined ? {} : { nack }), objects: type === EDS ? serviceIn(name) : objectsOfEntry(name, entry) };
      }
    }
  }

  /** Which clusters and listeners there are, and the endpoints of the former. */
  async *presence(): AsyncGenerator<Drift[]> {
    const [clusters, endpoints] = [this.#inForce(CDS), this.#inForce(EDS)];
    if (!clusters || !endpoints) return;
    const found = await this.#clusters();
    yield this.#present(CDS, clusters, [...found.keys()]);
    const drifts: Drift[] = [];
    for (const [name, print] of found) {
      const [needed] = clusters.get(name)?.needs ?? [];
      const version = needed === undefined ? undefined : endpoints.get(needed)?.version;
      if (needed === undefined || version === undefined || !this.#isInForce(EDS, needed, version)) continue;
      if (!this.#prints.isAsBefore(`EDS ${needed}`, version, print, true)) drifts.push(this.#drift(EDS, 'wrong', needed, 'other endpoints than it was seen with under this version'));
    }
    this.#prints.keep('EDS ', (name) => endpoints.has(name));
    yield this.#ads.idle ? drifts : [];
    const listeners = this.#inForce(LDS);
    if (listeners) yield this.#present(LDS, listeners, (await this.#admin.listeners()).map(({ name }) => name));
  }

  /** Versions and contents. */
  async *contents(): AsyncGenerator<Drift[]> {
    for (const { type, resource, paths } of DUMPS) {
      const wanted = this.#inForce(type);
      if (!wanted) return;
      for (const { prefix, names } of pages([...wanted.keys()].sort())) {
        const dump = new ConfigDump(paths);
        await this.#admin.read(`/config_dump?resource=${resource}&name_regex=${encodeURIComponent(`${prefix.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')}.*`)}`, (text) => dump.write(text), { maxBytes: MAX_DUMP_BYTES });
        const found = new Map(dump.end().map((item) => [item.name, item]));
        if (!this.#ads.idle) return;
        yield names.flatMap((name) => {
          const { version } = wanted.get(name)!;
          const [item, kind] = [found.get(name), SHORT_NAMES[type]!];
          if (!this.#isInForce(type, name, version)) return [];
          if (item?.version === undefined) return this.#drift(type, 'missing', name, item ? 'it still warms up' : undefined);
          if (item.version !== version) return this.#drift(type, 'wrong', name, `version ${item.version} instead of ${version}`);
          return this.#prints.isAsBefore(`${kind} ${name}`, version, item.content ?? '') ? [] : this.#drift(type, 'wrong', name, 'another content under this version');
        });
      }
      this.#prints.keep(`${SHORT_NAMES[type]} `, (name) => wanted.has(name));
    }
  }

  /** What Envoy has acknowledged as it is wanted; undefined while something is under way, or no Envoy is there. */
  #inForce(type: string): ReadonlyMap<string, Entry> | undefined {
    return this.#ads.idle ? new Map([...this.#ads.entries(type)].filter(([name]) => this.#ads.status(type, name).acked)) : undefined;
  }

  #isInForce(type: string, name: string, version: string): boolean {
    return this.#ads.entries(type).get(name)?.version === version && this.#ads.status(type, name).acked;
  }

  #present(type: string, wanted: ReadonlyMap<string, Entry>, found: readonly string[]): Drift[] {
    if (!this.#ads.idle) return [];
    const present = new Set(found);
    return [
      ...[...wanted].filter(([name, { version }]) => !present.has(name) && this.#isInForce(type, name, version)).map(([name]) => this.#drift(type, 'missing', name, type === LDS ? 'it does not listen' : undefined)),
      ...found.filter((name) => !this.#ads.entries(type).has(name) && !this.#ads.mayHold(type, name)).map((name) => this.#drift(type, 'orphaned', name)),
    ];
  }

  #drift(type: string, state: Drift['state'], name: string, detail?: string): Drift {
    const pod = type === LDS ? podOfListener(name) : undefined;
    const repair = (): void => {
      this.#prints.forget(`${SHORT_NAMES[type]} ${name}`);
      this.#ads.resend(type, [name]);
    };
    return { kind: SHORT_NAMES[type]!.toLowerCase() as DriftKind, state, name, repair, objects: objectsOfEntry(name, this.#ads.entries(type).get(name)), ...(detail === undefined ? {} : { detail }), ...(pod === undefined ? {} : { pod }) };
  }

  /** By name, those that came by xDS: a hash of their hosts and weights. */
  async #clusters(): Promise<Map<string, string>> {
    const found = new Map<string, string>();
    let rest = '';
    let current: { name: string; hosts: string[] } | undefined;
    const end = (): void => {
      // The answer of a big mesh has a hundred megabytes, and a part of a text keeps all of it.
      if (current) found.set(ownText(current.name), hashBytes(current.hosts.sort().join()));
      current = undefined;
    };
    await this.#admin.read('/clusters', (more) => {
      const text = rest + more;
      const until = text.lastIndexOf('\n') + 1;
      // A cluster's lines stand together; of them these are few, and the first kind comes before the second.
      for (const line of linesWith(text, ['::added_via_api::true\n', '::weight::'], until)) {
        const at = line.indexOf('::');
        const name = line.slice(0, at);
        if (line.startsWith('::added_via_api::', at)) {
          end();
          current = { name, hosts: [] };
        } else if (current?.name === name) current.hosts.push(line.slice(at));
      }
      rest = ownText(text.slice(until));
      current = current && { name: ownText(current.name), hosts: current.hosts.map(ownText) };
    }, { maxBytes: MAX_CLUSTERS_BYTES });
    end();
    return found;
  }
}

/** A copy that stands by itself. */
function ownText(text: string): string {
  return Buffer.from(text, 'utf8').toString('utf8');
}

/** Those that have one of `some` in them, in order. */
function* linesWith(text: string, some: readonly string[], end: number): Generator<string> {
  const next = some.map((what) => text.indexOf(what));
  for (;;) {
    let first = -1;
    for (const [index, at] of next.entries()) if (at >= 0 && at < end && (first < 0 || at < next[first]!)) first = index;
    if (first < 0) return;
    const at = next[first]!;
    yield text.slice(text.lastIndexOf('\n', at) + 1, text.indexOf('\n', at));
    next[first] = text.indexOf(some[first]!, at + 1);
  }
}

/** `Kind/name.namespace` of what a resource of Envoy comes from. */
export function objectsOfEntry(name: string, entry: Entry | undefined): string[] {
  return [...new Set([...serviceIn(name), ...(entry ? objectsOf(entry.any) : [])])];
}

/** Names in groups that no more than a page begin alike. @param names sorted */
export function* pages(names: readonly string[]): Generator<{ prefix: string; names: readonly string[] }> {
  const [first, last] = [names[0], names.at(-1)];
  if (first === undefined || last === undefined) return;
  let common = 0;
  while (common < Math.min(first.length, MAX_PREFIX) && first[common] === last[common]) common++;
  if (names.length <= PAGE || common >= MAX_PREFIX) return yield { prefix: first.slice(0, common), names };
  for (let from = 0; from < names.length;) {
    let to = from + 1;
    while (to < names.length && names[to]![common] === names[from]![common]) to++;
    const part = names.slice(from, to);
    // The name that the others begin with is asked for along with them.
    yield* part.length === 1 ? [{ prefix: part[0]!.slice(0, MAX_PREFIX), names: part }] : pages(part);
    from = to;
  }
}
