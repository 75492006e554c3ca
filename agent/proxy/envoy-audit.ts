/**
 * Compares what Envoy has with what it was sent. `/clusters` says which clusters there are and where they lead, `/config_dump` has
 * versions and contents, for half a millisecond of its main thread each, so that is asked for page by page, and slowly. With a mask it
 * says versions alone and when each was taken, for a tenth of that: what is there in its version and has not been taken anew since it
 * was looked at has the content of then.
 *
 * A version is a hash of the content: one that is right and acknowledged has what was sent, unless somebody else than this agent sent
 * it. For that, how Envoy prints a resource is remembered when it is first seen under a version: another print under that version is a
 * drift. After a repair what Envoy prints then is remembered.
 */
import { sleep } from '../../common/retry.js';
import type { Check, Drift, DriftKind } from '../consistency/drift.js';
import type { SourcedResource } from '../consistency/object-status.js';
import { serviceIn } from '../consistency/objects.js';
import { hashBytes } from '../xds/resource-type.js';
import type { AdsServer } from './ads-server.js';
import { ConfigDump, type DumpedResource, type DumpPaths } from './config-dump.js';
import type { EnvoyAdmin } from './envoy-admin.js';
import { objectsOf } from './made-any.js';
import { podOfListener } from './pod-listener.js';
import { Prints, recallPrints, writePrints } from './prints.js';
import { CDS, EDS, LDS, RDS, SDS, SHORT_NAMES, type Entry } from './snapshot.js';

export interface EnvoyAuditOptions {
  ads: Pick<AdsServer, 'idle' | 'entries' | 'status' | 'mayHold' | 'resend' | 'takeAckedAt'>;
  admin: Pick<EnvoyAdmin, 'read' | 'listeners'>;
  /** Envoy's process: another one has taken all anew. */
  envoy?: () => string | undefined;
  /** Where what was seen is kept for the next agent; absent: nowhere. */
  file?: string;
}

/** By type: what of `/config_dump` has it. */
const DUMPS: readonly { type: string; resource: string; paths: DumpPaths }[] = [
  { type: LDS, resource: 'dynamic_listeners', paths: { name: 'name', version: 'active_state.version_info', content: 'active_state.listener' } },
  { type: CDS, resource: 'dynamic_active_clusters', paths: { name: 'cluster.name', version: 'version_info', content: 'cluster' } },
  { type: RDS, resource: 'dynamic_route_configs', paths: { name: 'route_config.name', version: 'version_info', content: 'route_config' } },
  { type: SDS, resource: 'dynamic_active_secrets', paths: { name: 'name', version: 'version_info', content: undefined } },
];

/** Of each, versions alone, and when Envoy took them. Names of clusters and tables are within what is left out; a version is a hash of the content, which has the name. */
const OF_OTHERS = { mask: 'version_info,last_updated', key: 'version_info', time: 'last_updated' };
const VERSIONS: Readonly<Record<string, typeof OF_OTHERS>> = { [LDS]: { mask: 'name,active_state.last_updated', key: 'name', time: 'active_state.last_updated' }, [CDS]: OF_OTHERS, [RDS]: OF_OTHERS, [SDS]: OF_OTHERS };
const WARMING = { mask: 'name,warming_state.version_info', key: 'name', time: 'warming_state.version_info' };

/** Resources on a page: some 15 ms of Envoy's main thread. */
const PAGE = 32;
/** The same, of versions alone: 17 µs each. */
const VERSIONS_PAGE = 8_192;
/** Assignments whose endpoints are asked for one by one; of more all are read. */
const MOST_ASKED = 256;
const OTHER_ENDPOINTS = 'other endpoints than it was seen with under this version';
/** Envoy refuses regular expressions whose program has more than 100 steps. */
const MAX_PREFIX = 80;
/** After this the first reading takes its time like all others. */
const URGENT_MS = 60_000;
/** From one writing of what was seen to the next. */
const SAVE_MS = 30_000;
const [SENT_AGAIN_TRIES, SENT_AGAIN_MS] = [100, 50];
const MAX_CLUSTERS_BYTES = 1 << 28;
const MAX_DUMP_BYTES = 1 << 28;

export class EnvoyAudit {
  readonly #ads: EnvoyAuditOptions['ads'];
  readonly #admin: EnvoyAuditOptions['admin'];
  readonly #process: () => string | undefined;
  readonly #file: string | undefined;
  readonly #prints = new Prints();
  /** As prints: the time at which Envoy took it. */
  #taken = new Prints();
  #takenBy: string | undefined;
  #followedMs = -Infinity;
  #written = { changes: 0, atMs: -Infinity };
  /** By check, for which process all was read once. */
  readonly #readOf = new Map<string, string | undefined>();
  /** Versions that nobody wants, when it was last looked at what they are of. */
  #strangers = '';

  constructor({ ads, admin, envoy = () => undefined, file }: EnvoyAuditOptions) {
    this.#file = file;
    this.#ads = ads;
    this.#admin = admin;
    this.#process = envoy;
  }

  checks(): Check[] {
    // In a mesh that changes all the time a round may never come to its end.
    const isUnread = (check: string) => (): boolean => {
      const process = this.#process();
      return process !== undefined && (process !== this.#takenBy || performance.now() - this.#followedMs < URGENT_MS) && (!this.#readOf.has(check) || this.#readOf.get(check) !== process);
    };
    return [
      { name: 'Envoy versions', parts: () => this.versions() },
      { name: 'Envoy clusters', parts: () => this.presence(), isUrgent: isUnread('clusters') },
      { name: 'Envoy configuration', parts: () => this.contents(), isUrgent: isUnread('configuration') },
    ];
  }

  /** What a former agent saw of this Envoy counts here, too. */
  #follow(): void {
    const process = this.#process();
    if (process === this.#takenBy) return;
    [this.#takenBy, this.#taken, this.#followedMs] = [process, new Prints(), performance.now()];
    if (process !== undefined && this.#file !== undefined) recallPrints(this.#file, process, { prints: this.#prints, taken: this.#taken });
  }

  #save(): void {
    const changes = this.#prints.changes + this.#taken.changes;
    const now = performance.now();
    if (this.#file === undefined || this.#takenBy === undefined || changes === this.#written.changes || now - this.#written.atMs < SAVE_MS) return;
    this.#written = { changes, atMs: now };
    writePrints(this.#file, this.#takenBy, { prints: this.#prints, taken: this.#taken });
  }

  /** What Envoy is to have, and whether it has it by its word and by what was read back. */
  *resources(): Generator<SourcedResource> {
    for (const type of [CDS, EDS, LDS, RDS]) {
      for (const [name, entry] of this.#ads.entries(type)) {
        const { acked, nack } = this.#ads.status(type, name);
        const kind = SHORT_NAMES[type]!;
        yield { type: kind, name, version: entry.version, acked, readBack: acked && [this.#prints, this.#taken].some((known) => known.has(`${kind} ${name}`, entry.version)), ...(nack === undefined ? {} : { nack }), objects: type === EDS ? serviceIn(name) : objectsOfEntry(name, entry) };
      }
    }
  }

  /** Which clusters and listeners there are, and the endpoints of the former. */
  async *presence(): AsyncGenerator<Drift[]> {
    const process = this.#process();
    this.#follow();
    const [clusters, endpoints] = [this.#inForce(CDS), this.#inForce(EDS)];
    if (!clusters || !endpoints) return;
    const found = await this.#clusters();
    yield this.#present(CDS, clusters, [...found.keys()]);
    const drifts: Drift[] = [];
    for (const [name, print] of found) {
      const [needed] = clusters.get(name)?.needs ?? [];
      const version = needed === undefined ? undefined : endpoints.get(needed)?.version;
      if (needed === undefined || version === undefined || !this.#isInForce(EDS, needed, version)) continue;
      if (!this.#prints.isAsBefore(`EDS ${needed}`, version, print, true)) drifts.push(this.#drift(EDS, 'wrong', needed, OTHER_ENDPOINTS));
    }
    this.#prints.keep('EDS ', (name) => endpoints.has(name));
    yield this.#ads.idle ? drifts : [];
    const listeners = this.#inForce(LDS);
    if (listeners) yield this.#present(LDS, listeners, (await this.#admin.listeners()).map(({ name }) => name));
    this.#readOf.set('clusters', process);
  }

  /** Versions of all; contents of what has another one, or was taken anew under the one that it has; endpoints of what was updated. */
  async *versions(): AsyncGenerator<Drift[]> {
    this.#follow();
    const strangers: string[] = [];
    for (const dump of DUMPS) {
      const wanted = this.#inForce(dump.type);
      if (!wanted) return;
      const all = [...pages([...wanted.keys()].sort(), VERSIONS_PAGE)];
      // In one page is also what nobody wants, whatever its name.
      for (const page of all.length > 1 ? all : [{ prefix: '', names: [...wanted.keys()] }]) {
        const found = new Map((await this.#dump(dump, page.prefix, VERSIONS[dump.type])).map(({ version: key = '', name: time = '' }) => [key, time]));
        if (!this.#ads.idle) return;
        yield [];
        yield* this.#suspected(dump, wanted, page.names, found);
        if (all.length <= 1) strangers.push(...strangersIn(found, keysOf(this.#ads.entries(dump.type), dump.type)));
      }
      this.#taken.keep(`${SHORT_NAMES[dump.type]!} `, (name) => wanted.has(name));
    }
    yield* this.#updated();
    // Names are what costs; a version that stays unknown was refused, or is of what Envoy keeps until others have let go of it.
    const seen = strangers.sort().join();
    if (seen !== this.#strangers && seen !== '') yield* this.presence();
    this.#strangers = seen;
    this.#save();
  }

  async *#suspected(dump: (typeof DUMPS)[number], wanted: ReadonlyMap<string, Entry>, names: readonly string[], found: ReadonlyMap<string, string>): AsyncGenerator<Drift[]> {
    const keyOf = (name: string): string => `${SHORT_NAMES[dump.type]!} ${name}`;
    const timeOf = (name: string): string | undefined => found.get(dump.type === LDS ? name : wanted.get(name)!.version);
    const suspects = names.filter((name) => {
      const [{ version }, at] = [wanted.get(name)!, timeOf(name)];
      return this.#isInForce(dump.type, name, version) && (at === undefined || this.#isTakenAnew(dump.type, name, version, at));
    });
    for (const page of pages(suspects.sort())) {
      const unread = page.names.filter((name) => timeOf(name) !== undefined && !this.#prints.has(keyOf(name), wanted.get(name)!.version));
      const drifts = await this.#compared(dump, wanted, page);
      if (!drifts) return;
      const unknown = unread.filter((name) => !drifts.some((drift) => drift.name === name));
      if (unknown.length > 0) drifts.push(...(await this.#sentAgain(dump, wanted, { prefix: page.prefix, names: unknown })));
      const isWrong = new Set(drifts.map(({ name }) => name));
      for (const name of page.names) if (!isWrong.has(name) && !unknown.includes(name) && timeOf(name) !== undefined) this.#taken.note(keyOf(name), wanted.get(name)!.version, timeOf(name)!);
      yield drifts;
    }
  }

  /** By the time at which Envoy took it: another one than before or, of what was not seen yet, later than it answered for it. */
  #isTakenAnew(type: string, name: string, version: string, at: string): boolean {
    const key = `${SHORT_NAMES[type]!} ${name}`;
    const ackedAt = this.#ads.takeAckedAt(type, name);
    if (this.#taken.has(key, version)) return !this.#taken.isAsBefore(key, version, at);
    if (ackedAt !== undefined && Date.parse(at) > ackedAt) return true;
    this.#taken.note(key, version, at);
    return false;
  }

  /**
   * What was taken anew before its content was ever read: nobody knows what it should print. The agent sends its own once more, and
   * what Envoy prints then tells whether it had that before.
   */
  async #sentAgain(dump: (typeof DUMPS)[number], wanted: ReadonlyMap<string, Entry>, { prefix, names }: Page): Promise<Drift[]> {
    const { type } = dump;
    const keyOf = (name: string): string => `${SHORT_NAMES[type]!} ${name}`;
    const before = new Map(names.map((name) => [name, this.#prints.printOf(keyOf(name))]));
    const drifts = names.map((name) => this.#drift(type, 'wrong', name, 'another content under this version, since before it was first read'));
    for (const { repair } of drifts) await repair?.();
    const isTaken = (): boolean => this.#ads.idle && names.every((name) => this.#isInForce(type, name, wanted.get(name)!.version));
    for (let tries = 0; tries < SENT_AGAIN_TRIES && !isTaken(); tries++) await sleep(SENT_AGAIN_MS);
    if (!isTaken()) return [];
    const after = new Map((await this.#dump(dump, prefix)).map((item) => [item.name, item.content ?? '']));
    if (!isTaken()) return [];
    for (const name of names) if (after.has(name)) this.#prints.note(keyOf(name), wanted.get(name)!.version, after.get(name)!);
    return drifts.filter(({ name }) => after.get(name) !== before.get(name)).map((drift) => ({ ...drift, repair: () => undefined }));
  }

  /** Endpoints of clusters that have had an update under the version that they have. */
  async *#updated(): AsyncGenerator<Drift[]> {
    const [clusters, endpoints] = [this.#inForce(CDS), this.#inForce(EDS)];
    if (!clusters || !endpoints) return;
    const counts = await this.#updates();
    const suspects = new Map<string, { key: string; version: string; count: string }[]>();
    for (const [name, { needs: [needed] }] of clusters) {
      const [version, count] = [needed === undefined ? undefined : endpoints.get(needed)?.version, counts.get(statName(name))];
      if (needed === undefined || version === undefined || count === undefined || !this.#isInForce(EDS, needed, version)) continue;
      const key = `updates ${name}`;
      if (!this.#taken.isAsBefore(key, version, count)) suspects.set(needed, [...(suspects.get(needed) ?? []), { key, version, count }]);
    }
    this.#taken.keep('updates ', (name) => clusters.has(name));
    yield [];
    const note = (name: string): void => suspects.get(name)?.forEach(({ key, version, count }) => this.#taken.note(key, version, count));
    if (suspects.size > MOST_ASKED) {
      for (const name of suspects.keys()) note(name);
      return yield* this.presence();
    }
    for (const { prefix, names } of pages([...suspects.keys()].sort())) {
      const found = await this.#endpoints(prefix);
      if (!this.#ads.idle) return;
      yield names.flatMap((name) => {
        const version = endpoints.get(name)!.version;
        if (!this.#isInForce(EDS, name, version)) return [];
        const isAsBefore = (found.get(name) ?? []).every((hosts) => this.#prints.isAsBefore(`EDS ${name}`, version, printOf(hosts), true));
        if (isAsBefore) note(name);
        return isAsBefore ? [] : this.#drift(EDS, 'wrong', name, OTHER_ENDPOINTS);
      });
    }
  }

  /** Versions and contents. */
  async *contents(): AsyncGenerator<Drift[]> {
    const process = this.#process();
    this.#follow();
    for (const dump of DUMPS) {
      const wanted = this.#inForce(dump.type);
      if (!wanted) return;
      for (const page of pages([...wanted.keys()].sort())) {
        const drifts = await this.#compared(dump, wanted, page);
        if (!drifts) return;
        yield drifts;
      }
      this.#prints.keep(`${SHORT_NAMES[dump.type]} `, (name) => wanted.has(name));
    }
    this.#readOf.set('configuration', process);
    this.#prints.letGo();
  }

  /** @param versions alone: what there is has its time for its name, and what it is known by for its version */
  async #dump({ resource, paths }: (typeof DUMPS)[number], prefix: string, versions?: { mask: string; key: string; time: string }): Promise<readonly DumpedResource[]> {
    const dump = new ConfigDump(versions ? { name: versions.time, version: versions.key, content: undefined } : paths);
    await this.#admin.read(dumpPath(resource, prefix, versions?.mask), (text) => dump.write(text), { maxBytes: MAX_DUMP_BYTES });
    return dump.end();
  }

  /** By the name of the assignment, for each cluster that has it, as `#clusters`. */
  async #endpoints(prefix: string): Promise<Map<string, string[][]>> {
    interface Address { socket_address?: { address: string; port_value?: number }; envoy_internal_address?: { server_listener_name?: string; endpoint_id?: string }; pipe?: { path: string } }
    interface Assigned { endpoint_config?: { cluster_name?: string; endpoints?: { lb_endpoints?: { endpoint?: { address?: Address }; load_balancing_weight?: number }[] }[] } }
    const text = ({ socket_address: socket, envoy_internal_address: internal, pipe }: Address = {}): string => (socket ? `${socket.address.includes(':') ? `[${socket.address}]` : socket.address}:${socket.port_value ?? 0}` : internal ? `envoy://${internal.server_listener_name ?? ''}/${internal.endpoint_id ?? ''}` : (pipe?.path ?? ''));
    const found = new Map<string, string[][]>();
    const pieces: string[] = [];
    await this.#admin.read(dumpPath('dynamic_endpoint_configs&include_eds', prefix), (piece) => pieces.push(piece), { maxBytes: MAX_DUMP_BYTES });
    const { configs = [] } = JSON.parse(pieces.join('')) as { configs?: Assigned[] };
    for (const { endpoint_config: { cluster_name: name = '', endpoints = [] } = {} } of configs) {
      const hosts = endpoints.flatMap(({ lb_endpoints = [] }) => lb_endpoints.map(({ endpoint, load_balancing_weight: weight = 1 }) => `::${text(endpoint?.address)}::weight::${weight}`));
      found.set(name, [...(found.get(name) ?? []), hosts]);
    }
    return found;
  }

  /** How often each cluster's endpoints were updated, by the cluster's name as statistics have it. */
  async #updates(): Promise<Map<string, string>> {
    const counts = new Map<string, string>();
    let rest = '';
    await this.#admin.read('/stats?type=Counters&usedonly&filter=%5C.update_success%24', (more) => {
      const lines = (rest + more).split('\n');
      rest = ownText(lines.pop()!);
      for (const line of lines) {
        const [, name, count] = /^cluster\.(.*)\.update_success: (\d+)$/.exec(line) ?? [];
        if (name !== undefined && count !== undefined) counts.set(ownText(name), ownText(count));
      }
    }, { maxBytes: MAX_CLUSTERS_BYTES });
    return counts;
  }

  /** @returns undefined: meanwhile something is under way */
  async #compared(dump: (typeof DUMPS)[number], wanted: ReadonlyMap<string, Entry>, { prefix, names }: Page): Promise<Drift[] | undefined> {
    const { type } = dump;
    const found = new Map((await this.#dump(dump, prefix)).map((item) => [item.name, item]));
    // Where only filter chains changed Envoy puts them into the listener that it has, which goes on with the version that it had.
    const isInPlace = type === LDS && names.some((name) => found.has(name) && found.get(name)!.version !== wanted.get(name)!.version);
    const warming = new Set(isInPlace ? (await this.#dump(dump, prefix, WARMING)).flatMap(({ name: time, version: key }) => (time === undefined ? [] : key)) : []);
    if (!this.#ads.idle) return undefined;
    return names.flatMap((name) => {
      const { version } = wanted.get(name)!;
      const [item, kind] = [found.get(name), SHORT_NAMES[type]!];
      if (!this.#isInForce(type, name, version)) return [];
      if (item?.version === undefined) return this.#drift(type, 'missing', name, item ? 'it still warms up' : undefined);
      if (item.version !== version && (!isInPlace || warming.has(name))) return this.#drift(type, 'wrong', name, `version ${item.version} instead of ${version}`);
      return this.#prints.isAsBefore(`${kind} ${name}`, version, item.content ?? '') ? [] : this.#drift(type, 'wrong', name, 'another content under this version');
    });
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
      for (const known of [this.#prints, this.#taken]) known.forget(`${SHORT_NAMES[type]} ${name}`);
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
      if (current) found.set(ownText(current.name), printOf(current.hosts));
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

function dumpPath(resource: string, prefix: string, mask?: string): string {
  const regex = prefix === '' ? '' : `&name_regex=${encodeURIComponent(`${prefix.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')}.*`)}`;
  return `/config_dump?resource=${resource}${regex}${mask === undefined ? '' : `&mask=${encodeURIComponent(mask)}`}`;
}

const printOf = (hosts: string[]): string => hashBytes(hosts.sort().join());

/** Envoy's statistics have no colons in what is between dots. */
const statName = (cluster: string): string => cluster.replaceAll(':', '_');

const keysOf = (entries: ReadonlyMap<string, Entry>, type: string): ReadonlySet<string> => new Set(type === LDS ? entries.keys() : [...entries.values()].map(({ version }) => version));

/** What is nothing that is wanted, but for what may be there in place of what is not in force. */
function strangersIn(found: ReadonlyMap<string, string>, wanted: ReadonlySet<string>): string[] {
  const unknown = [...found.keys()].filter((key) => !wanted.has(key));
  const absent = [...wanted].filter((key) => !found.has(key)).length;
  return unknown.length > absent ? unknown : [];
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

export interface Page {
  prefix: string;
  names: readonly string[];
}

/** Names in groups that no more than a page begin alike. @param names sorted */
export function* pages(names: readonly string[], most = PAGE): Generator<Page> {
  const [first, last] = [names[0], names.at(-1)];
  if (first === undefined || last === undefined) return;
  let common = 0;
  while (common < Math.min(first.length, MAX_PREFIX) && first[common] === last[common]) common++;
  if (names.length <= most || common >= MAX_PREFIX) return yield { prefix: first.slice(0, common), names };
  for (let from = 0; from < names.length;) {
    let to = from + 1;
    while (to < names.length && names[to]![common] === names[from]![common]) to++;
    const part = names.slice(from, to);
    // The name that the others begin with is asked for along with them.
    yield* part.length === 1 ? [{ prefix: part[0]!.slice(0, MAX_PREFIX), names: part }] : pages(part, most);
    from = to;
  }
}
