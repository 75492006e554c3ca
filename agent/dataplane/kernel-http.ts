/**
 * The tables of the HTTP fast path in the kernel's maps (bpf/http-structs.h, bpf/http-maps.h). A table is written into free places,
 * rows before what leads to them, and is in use when a pod is pointed at it; what it had is handed out again after a rest.
 */
import { UnderpassError } from '../../common/errors.js';
import type { BpfMap, BpfObject } from '../../native/index.js';
import { HTTP_METHODS } from '../http/limits.js';
import { ENVOY, type ClassIndex, type HeaderTest, type HttpClass, type HttpCluster, type HttpEndpoint, type HttpRule, type HttpTable, type Judgement, type RuleList } from '../http/table.js';
import { aliasTable } from './alias-table.js';
import type { Drift } from '../consistency/drift.js';
import { orphanedEntries, runsOf, WrittenTable } from './kernel-http-audit.js';
import { encodeAddress, StructCodec, u32 } from './kernel-codec.js';
import { HttpOutliers, type OutliersStatus, type WatchedBy } from './kernel-http-outliers.js';
import { HttpServices } from './kernel-http-totals.js';
import { SlotRanges } from './slot-ranges.js';

type StructName = 'http_port_key' | 'http_port' | 'http_host_key' | 'http_list' | 'http_rule' | 'http_condition' | 'http_class' | 'http_split' | 'http_cluster' | 'http_endpoint' | 'http_load';

/** A program that walks a table takes microseconds; it may be preempted. */
const GRACE_MS = 1_000;
/** Exchanges that are under way count in their load's row to the end. */
const LOAD_GRACE_MS = 60_000;
/** Envoy's, or none. */
const NOWHERE = 0xffff_ffff;
const ANY_ADDRESS = Buffer.alloc(16);

const ARRAYS = { rules: 'http_rules', virtualHosts: 'http_vhosts', policies: 'http_policies', classes: 'http_classes', clusters: 'http_clusters', endpoints: 'http_endpoints' } as const;
const HASHES = { ports: 'http_ports', hosts: 'http_hosts' } as const;
type ArrayName = keyof typeof ARRAYS;
type HashName = keyof typeof HASHES;
type Constants = 'method' | 'path' | 'value' | 'judgement' | 'flag' | 'balance' | 'trace';

export type HttpTablesStatus = Record<ArrayName | HashName | 'loads', { used: number; size: number }> & {
  tables: number;
  /** Tables that found no room: all of their pods' requests are Envoy's. */
  refused: number;
  outliers: OutliersStatus;
};

interface Range {
  array: ArrayName;
  first: number;
  count: number;
}

interface Written extends WatchedBy {
  id: number;
  /** Once it is. */
  table?: WrittenTable;
  ranges: Range[];
  ports: Buffer[];
  hosts: Buffer[];
  /** Endpoints' keys, one for each use. */
  loads: string[];
  /** Keys in `http_services`. */
  services: Set<number>;
}

/** Rows of one array, by place. */
type Rows = Map<number, Buffer>;

export class HttpTables {
  /** What classes call the services that they lead to. */
  readonly services: HttpServices;
  readonly outliers: HttpOutliers;
  readonly #maps: Record<ArrayName | HashName, BpfMap>;
  readonly #slots: Record<ArrayName, SlotRanges>;
  readonly #loadSlots: SlotRanges;
  readonly #codecs: Record<'portKey' | 'port' | 'hostKey' | 'list' | 'rule' | 'condition' | 'class' | 'split' | 'cluster' | 'endpoint', StructCodec>;
  readonly #constants: Record<Constants, Record<string, number>>;
  /** By endpoint: its row, and how many rows count there. */
  readonly #loads = new Map<string, { index: number; uses: number }>();
  readonly #written = new Map<string, Written>();
  #counts: Record<HashName, number> = { ports: 0, hosts: 0 };
  #nextTable = 1;
  #nextRoutes = 1;
  #nextGeneration = 1;
  #isStarted = false;
  #refused = 0;

  constructor(object: BpfObject, now?: () => number) {
    this.services = new HttpServices(object);
    this.outliers = new HttpOutliers(object, now);
    const map = (name: string): BpfMap => object.map(name);
    this.#maps = {
      rules: map(ARRAYS.rules), virtualHosts: map(ARRAYS.virtualHosts), policies: map(ARRAYS.policies), classes: map(ARRAYS.classes), clusters: map(ARRAYS.clusters), endpoints: map(ARRAYS.endpoints),
      ports: map(HASHES.ports), hosts: map(HASHES.hosts),
    };
    const codec = (name: StructName, of?: ArrayName | HashName, part: 'key' | 'value' = 'value'): StructCodec => {
      const made = new StructCodec(object, name);
      return of ? made.check(this.#maps[of], part) : made;
    };
    this.#codecs = {
      portKey: codec('http_port_key', 'ports', 'key'), port: codec('http_port', 'ports'), hostKey: codec('http_host_key', 'hosts', 'key'), list: codec('http_list', 'virtualHosts').check(this.#maps.policies, 'value'),
      rule: codec('http_rule', 'rules'), condition: codec('http_condition'), class: codec('http_class', 'classes'), split: codec('http_split'), cluster: codec('http_cluster', 'clusters'), endpoint: codec('http_endpoint', 'endpoints'),
    };
    const values = (name: string): Record<string, number> => object.enumValues(name);
    this.#constants = { method: values('http_method'), path: values('http_path_kind'), value: values('http_value_kind'), judgement: values('http_judgement'), flag: values('http_class_flag'), balance: values('http_balance'), trace: values('http_trace') };
    const slots = (name: ArrayName): SlotRanges => new SlotRanges(this.#maps[name].maxEntries, GRACE_MS, now);
    this.#slots = { rules: slots('rules'), virtualHosts: slots('virtualHosts'), policies: slots('policies'), classes: slots('classes'), clusters: slots('clusters'), endpoints: slots('endpoints') };
    // Policy 0 is none.
    this.#slots.policies.claim(0, 1);
    this.#loadSlots = new SlotRanges(map('http_loads').maxEntries, LOAD_GRACE_MS, now);
  }

  /** A class's index, and a generation that no class of this node ever had; undefined when there are as many as the map holds. */
  takeName(): { index: number; generation: number } | undefined {
    this.#start();
    const index = this.#slots.classes.take(1);
    return index === undefined ? undefined : { index, generation: this.#nextGeneration++ };
  }

  /** Gives back the names of a table that is not going to be written. */
  discard({ classes }: Pick<HttpTable, 'classes'>): void {
    for (const { index } of classes) this.#slots.classes.give(index, 1);
  }

  /**
   * Writes a class's table; the one that it had is freed. A table is written once.
   * @returns the number by which pods are pointed at it
   * @throws UnderpassError `UNDERPASS_HTTP_TABLES_FULL` when there is no room, its names then being given back; KernelError
   */
  write(classKey: string, table: HttpTable): number {
    this.#start();
    const written: Written = { id: this.#nextTable++, ranges: table.classes.map(({ index }) => ({ array: 'classes', first: index, count: 1 })), ports: [], hosts: [], loads: [], services: new Set(), detectors: [], monitors: [] };
    this.outliers.forget();
    try {
      this.#write(classKey, table, written);
    } catch (error) {
      this.#free(written);
      this.#refused++;
      throw error;
    }
    const before = this.#written.get(classKey);
    this.#written.set(classKey, written);
    if (before) this.#free(before);
    return written.id;
  }

  /** Frees the tables of all other classes. */
  keep(classKeys: ReadonlySet<string>): void {
    for (const [key, written] of this.#written) {
      if (classKeys.has(key)) continue;
      this.#written.delete(key);
      this.#free(written);
    }
  }

  get status(): HttpTablesStatus {
    const of = (name: ArrayName): { used: number; size: number } => ({ used: this.#slots[name].used, size: this.#slots[name].size });
    const count = (name: HashName): { used: number; size: number } => ({ used: this.#counts[name], size: this.#maps[name].maxEntries });
    return {
      tables: this.#written.size, refused: this.#refused, ports: count('ports'), hosts: count('hosts'), rules: of('rules'), virtualHosts: of('virtualHosts'), policies: of('policies'), classes: of('classes'),
      clusters: of('clusters'), endpoints: of('endpoints'), loads: { used: this.#loadSlots.used, size: this.#loadSlots.size }, outliers: this.outliers.status,
    };
  }

  /** Of what a former agent left nothing is led to any more, and no number of its is given again. */
  #start(): void {
    if (this.#isStarted) return;
    this.#isStarted = true;
    const { portKey, port, hostKey, class: class_ } = this.#codecs;
    for (const [key, value] of this.#maps.ports.entries()) {
      this.#nextTable = Math.max(this.#nextTable, portKey.number(key, 'table') + 1);
      this.#nextRoutes = Math.max(this.#nextRoutes, port.number(value, 'routes') + 1);
      this.#maps.ports.delete(key);
    }
    for (const [key] of this.#maps.hosts.entries()) {
      this.#nextRoutes = Math.max(this.#nextRoutes, hostKey.number(key, 'routes') + 1);
      this.#maps.hosts.delete(key);
    }
    for (const [, value] of this.#maps.classes.entries()) this.#nextGeneration = Math.max(this.#nextGeneration, class_.number(value, 'generation') + 1);
    // Sockets remember tables by number, and of one that was freed nothing is left but its classes' rows.
    this.#nextTable = Math.max(this.#nextTable, this.#nextGeneration);
  }

  #write(classKey: string, table: HttpTable, written: Written): void {
    const rows: Record<ArrayName, Rows> = { rules: new Map(), virtualHosts: new Map(), policies: new Map(), classes: new Map(), clusters: new Map(), endpoints: new Map() };
    const { class: class_ } = this.#codecs;
    const classVerdict = (verdict: ClassIndex): number => (verdict === ENVOY ? NOWHERE : table.classes[verdict]!.index);
    const policies = this.#lists('policies', table.policies, (verdict) => this.#judgement(verdict), rows, written);
    const virtualHosts = this.#lists('virtualHosts', table.virtualHosts, classVerdict, rows, written);
    const clusters = this.#take(written, 'clusters', table.clusters.length);
    table.clusters.forEach((cluster, at) => rows.clusters.set(clusters + at, this.#cluster(classKey, cluster, clusters + at, policies, rows, written)));
    for (const each of table.classes) rows.classes.set(each.index, class_.encode(this.#class(each, clusters, table, written)));
    const routes = table.routes.map(() => this.#nextRoutes++);
    const hosts = table.routes.flatMap((each, at) => each.hosts.map(({ host, virtualHost }) => ({ key: this.#codecs.hostKey.encode({ routes: routes[at]!, host: Buffer.from(host) }), value: u32(virtualHosts + virtualHost) })));
    const ports = table.ports.map(({ address, port, routes: index }) => ({
      key: this.#codecs.portKey.encode({ table: written.id, port, address: address === undefined ? ANY_ADDRESS : encodeAddress(address) }),
      // Of table 0 there are no hosts.
      value: this.#codecs.port.encode({ routes: index === undefined ? 0 : routes[index]! }),
    }));
    for (const [name, { length }] of [['hosts', hosts], ['ports', ports]] as const) if (this.#counts[name] + length > this.#maps[name].maxEntries) throw full(HASHES[name]);
    for (const name of ['rules', 'policies', 'virtualHosts', 'endpoints', 'clusters', 'classes'] as const) this.#setRows(name, rows[name]);
    this.#setAll('hosts', hosts, written);
    this.#setAll('ports', ports, written);
    written.table = new WrittenTable([
      ...(Object.keys(ARRAYS) as ArrayName[]).flatMap((name) => [...runsOf(this.#maps[name], rows[name])]),
      ...([['hosts', hosts], ['ports', ports]] as const).map(([name, entries]) => ({ map: this.#maps[name], keys: entries.map(({ key }) => key), values: entries.map(({ value }) => value) })),
    ]);
  }

  /** Compares the maps with what was written: parts as those of a Check. */
  *audit(): Generator<Drift[]> {
    if (!this.#isStarted) return;
    const { class: class_ } = this.#codecs;
    const mask = (map: BpfMap, row: Buffer): void => void (map === this.#maps.classes && class_.bytes(row, 'envoy_until_ns').fill(0));
    for (const [key, written] of [...this.#written]) yield* written.table?.audit(key, mask, () => this.#written.get(key) === written) ?? [];
    for (const name of ['ports', 'hosts'] as const) yield* orphanedEntries(this.#maps[name], this.#counts[name], () => [...this.#written.values()].flatMap(({ table }) => table ?? []));
  }

  /** @returns the place of the first list */
  #lists<Verdict>(name: 'policies' | 'virtualHosts', lists: readonly RuleList<Verdict>[], verdictOf: (verdict: Verdict) => number, rows: Record<ArrayName, Rows>, written: Written): number {
    const first = this.#take(written, name, lists.length);
    lists.forEach(({ rules, otherwise }, at) => {
      const place = this.#take(written, 'rules', rules.length);
      rules.forEach((rule, offset) => rows.rules.set(place + offset, this.#rule(rule, verdictOf(rule.verdict))));
      rows[name].set(first + at, this.#codecs.list.encode({ first: place, count: rules.length, otherwise: verdictOf(otherwise) }));
    });
    return first;
  }

  #cluster(classKey: string, cluster: HttpCluster, row: number, policies: number, rows: Record<ArrayName, Rows>, written: Written): Buffer {
    const { balance, endpoints, outlierDetection } = cluster;
    const watched = outlierDetection && this.outliers.watch(classKey, cluster, outlierDetection, row, written);
    const first = this.#take(written, 'endpoints', endpoints.length);
    const table = aliasTable(endpoints.map(({ weight }) => weight));
    endpoints.forEach((endpoint, at) => {
      const { threshold, alias } = table[at]!;
      // Taken while a number is below it, and not up to it; the largest means always.
      const keep = Math.min(threshold + 1, 0xffff_ffff);
      rows.endpoints.set(first + at, this.#codecs.endpoint.encode({
        address: encodeAddress(endpoint.address), port: swapped(endpoint.port), load: this.#load(endpoint, written), policy: placeOf(endpoint.policy, policies), keep, alias, teachable: Number(endpoint.teachable), monitor: watched?.monitors[at] ?? 0, text: Buffer.from(endpoint.text, 'latin1'),
      }));
    });
    return this.#codecs.cluster.encode({
      first, count: endpoints.length, balance: this.#constant('balance', balance === 'random' ? 'HTTP_RANDOM' : 'HTTP_LEAST_REQUEST'), detector: watched?.detector ?? 0, spare: outlierDetection?.spare ?? 0,
      panic: Math.min(outlierDetection?.panic ?? NOWHERE, NOWHERE),
    });
  }

  #class({ generation, splits, trace }: HttpClass, clusters: number, table: HttpTable, written: Written): Record<string, number | Buffer> {
    const encoded = splits.map(({ until, cluster, text }) => this.#codecs.split.encode({ until, cluster: clusters + cluster, service: this.#service(table.clusters[cluster]!, written), text: Buffer.from(text, 'latin1') }));
    return {
      generation, flags: this.#constant('flag', 'HTTP_CLASS_FAST'), splits_used: splits.length, total: splits.at(-1)!.until, splits: Buffer.concat(encoded),
      ...(trace && { trace: this.#constant('trace', `HTTP_TRACE_${trace.kind.toUpperCase()}`), sampled: Math.round(trace.sampled * 2 ** 32) }),
    };
  }

  #rule({ path, methods = [], headers }: HttpRule<unknown>, verdict: number): Buffer {
    const bits = methods.reduce((sum, method) => sum | (1 << this.#constant('method', `HTTP_${method}`)), 0);
    return this.#codecs.rule.encode({
      path_kind: this.#constant('path', `HTTP_PATH_${path.kind.toUpperCase()}`), path_length: path.value.length, path_inverted: Number(path.inverted), path: Buffer.from(path.value, 'latin1'),
      methods: methods.length === HTTP_METHODS.length ? 0 : bits, verdict, conditions_used: headers.length, conditions: Buffer.concat(headers.map((header) => this.#condition(header))),
    });
  }

  #condition({ name, kind, value, inverted }: HeaderTest): Buffer {
    return this.#codecs.condition.encode({
      kind: this.#constant('value', `HTTP_VALUE_${kind.toUpperCase()}`), inverted: Number(inverted), name_length: name.length, value_length: value.length,
      name: Buffer.from(name, 'latin1').map((byte) => byte | 0x20) as Buffer, value: Buffer.from(value, 'latin1'),
    });
  }

  #load({ address, port }: HttpEndpoint, written: Written): number {
    const key = `${address} ${port}`;
    let load = this.#loads.get(key);
    if (!load) {
      const index = this.#loadSlots.take(1);
      if (index === undefined) throw full('http_loads');
      this.#loads.set(key, (load = { index, uses: 0 }));
    }
    load.uses++;
    written.loads.push(key);
    return load.index;
  }

  #service({ service }: HttpCluster, written: Written): number {
    const key = this.services.keyOf(service, () => [...written.services, ...[...this.#written.values()].flatMap(({ services }) => [...services])]);
    written.services.add(key);
    return key;
  }

  #take(written: Written, array: ArrayName, count: number): number {
    if (count === 0) return 0;
    const first = this.#slots[array].take(count);
    if (first === undefined) throw full(ARRAYS[array]);
    written.ranges.push({ array, first, count });
    return first;
  }

  #setRows(name: ArrayName, rows: Rows): void {
    if (rows.size > 0) this.#maps[name].setMany(Buffer.concat([...rows.keys()].map(u32)), Buffer.concat([...rows.values()]));
  }

  #setAll(name: HashName, entries: readonly { key: Buffer; value: Buffer }[], written: Written): void {
    if (entries.length === 0) return;
    written[name] = entries.map(({ key }) => key);
    this.#counts[name] += entries.length;
    this.#maps[name].setMany(Buffer.concat(written[name]), Buffer.concat(entries.map(({ value }) => value)));
  }

  /** What leads to it goes first. */
  #free(written: Written): void {
    const { ranges, ports, hosts, loads } = written;
    for (const [name, keys] of [['ports', ports], ['hosts', hosts]] as const) {
      for (const key of keys) this.#maps[name].delete(key);
      this.#counts[name] -= keys.length;
    }
    for (const { array, first, count } of ranges) this.#slots[array].give(first, count);
    this.outliers.release(written);
    for (const key of loads) {
      const load = this.#loads.get(key)!;
      if (--load.uses > 0) continue;
      this.#loads.delete(key);
      this.#loadSlots.give(load.index, 1);
    }
  }

  #judgement(verdict: Judgement): number {
    return this.#constant('judgement', verdict === 'allowed' ? 'HTTP_ALLOWED' : 'HTTP_TO_ENVOY');
  }

  #constant(of: Constants, name: string): number {
    const value = this.#constants[of][name];
    if (value === undefined) throw new UnderpassError('UNDERPASS_KERNEL_LAYOUT', `reading the BPF object's constants: no ${name}`);
    return value;
  }
}

function full(map: string): UnderpassError {
  return new UnderpassError('UNDERPASS_HTTP_TABLES_FULL', `writing a table of the HTTP fast path: no room in ${map}`);
}

function placeOf(policy: HttpEndpoint['policy'], policies: number): number {
  return policy === 'open' ? 0 : policy === 'envoy' ? NOWHERE : policies + policy;
}

function swapped(port: number): number {
  return ((port & 0xff) << 8) | (port >> 8);
}
