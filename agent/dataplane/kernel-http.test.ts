/** Tables of the HTTP fast path in real maps: what is read there, with the layouts of bpf/http-structs.h, is what was compiled. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { projectRoot } from '../../common/paths.js';
import { BpfObject, type BpfMap } from '../../native/index.js';
import type { Drift } from '../consistency/drift.js';
import * as limits from '../http/limits.js';
import { ENVOY, type HttpRule, type HttpTable } from '../http/table.js';
import { decodeAddress, encodeAddress, StructCodec, u32 } from './kernel-codec.js';
import { HttpTables } from './kernel-http.js';

const NOWHERE = 0xffff_ffff;
const ANY = { kind: 'any', value: '', inverted: false } as const;

type Name = { index: number; generation: number };

/** Two hosts, a header match before a canary of two clusters, an address of its own, and a policy. */
function example(names: readonly [Name, Name], addresses: readonly [string, string, string] = ['10.244.0.5', '10.244.0.6', 'fd00::7']): HttpTable {
  const [one, two, three] = addresses;
  const endpoint = (address: string, weight: number, more: object = {}) => ({ address, port: 8080, weight, policy: 'open' as const, teachable: true, text: `${`x-e: ${address}`.padEnd(158)}\r\n`, ...more });
  const rule = <Verdict>(verdict: Verdict, more: Partial<HttpRule<Verdict>> = {}): HttpRule<Verdict> => ({ path: ANY, methods: undefined, headers: [], verdict, ...more });
  const text = (value: number): string => `${`x-w: ${value}`.padEnd(30)}\r\n`;
  return {
    ports: [{ address: undefined, port: 80, routes: 0 }, { address: '10.96.0.7', port: 80, routes: undefined }, { address: 'fd00::1', port: 8080, routes: 1 }],
    routes: [{ name: '80', hosts: [{ host: 'web', virtualHost: 0 }, { host: 'web:80', virtualHost: 0 }, { host: '*', virtualHost: 1 }] }, { name: '8080', hosts: [{ host: 'web', virtualHost: 1 }] }],
    virtualHosts: [
      {
        rules: [
          rule(1, { path: { kind: 'separated', value: '/api', inverted: false }, methods: ['GET', 'HEAD'], headers: [{ name: 'x_team', kind: 'exact', value: 'a', inverted: true }, { name: '', kind: 'prefix', value: 'web', inverted: false }] }),
          rule(ENVOY, { path: { kind: 'exact', value: '/odd', inverted: false } }), rule(0),
        ],
        otherwise: ENVOY,
      },
      { rules: [rule(0)], otherwise: ENVOY },
    ],
    classes: [{ ...names[0], splits: [{ until: 90, cluster: 0, text: text(0) }, { until: 100, cluster: 1, text: text(90) }] }, { ...names[1], splits: [{ until: 1, cluster: 1, text: text(0) }] }],
    clusters: [{ name: 'v1', balance: 'least-request', endpoints: [endpoint(one, 1), endpoint(two, 3, { policy: 0 })] }, { name: 'v2', balance: 'random', endpoints: [endpoint(one, 1), endpoint(three, 1, { policy: 'envoy', teachable: false })] }],
    policies: [{ rules: [rule('envoy', { path: { kind: 'prefix', value: '/admin', inverted: false } }), rule('allowed', { methods: ['GET'] })], otherwise: 'envoy' }],
    findings: [],
    classOf: () => undefined,
  };
}

/** The maps, as programs read them. */
class Maps {
  constructor(readonly object: BpfObject) {}

  codec(name: string): StructCodec {
    return new StructCodec(this.object, name);
  }

  row(map: string, index: number): Buffer {
    return this.object.map(map).get(u32(index))!;
  }

  /** Index in http_vhosts; undefined: none. */
  host(table: number, address: string, port: number, host: string): number | undefined {
    const [portKey, portValue, hostKey] = [this.codec('http_port_key'), this.codec('http_port'), this.codec('http_host_key')];
    const ports = this.object.map('http_ports');
    const found = ports.get(portKey.encode({ table, port, address: encodeAddress(address) })) ?? ports.get(portKey.encode({ table, port }));
    if (!found) return undefined;
    const routes = portValue.number(found, 'routes');
    const hosts = this.object.map('http_hosts');
    return (hosts.get(hostKey.encode({ routes, host: Buffer.from(host) })) ?? hosts.get(hostKey.encode({ routes, host: Buffer.from('*') })))?.readUInt32LE();
  }

  list(map: 'http_vhosts' | 'http_policies', index: number): { rules: Buffer[]; otherwise: number } {
    const list = this.codec('http_list');
    const row = this.row(map, index);
    const [first, count] = [list.number(row, 'first'), list.number(row, 'count')];
    return { rules: Array.from({ length: count }, (_, at) => this.row('http_rules', first + at)), otherwise: list.number(row, 'otherwise') };
  }

  verdicts(map: 'http_vhosts' | 'http_policies', index: number): number[] {
    const { rules, otherwise } = this.list(map, index);
    return [...rules.map((rule) => this.codec('http_rule').number(rule, 'verdict')), otherwise];
  }

  endpoints(cluster: number): { address: string; port: number; load: number; policy: number; teachable: number; text: string; share: number }[] {
    const [clusters, endpoint] = [this.codec('http_cluster'), this.codec('http_endpoint')];
    const row = this.row('http_clusters', cluster);
    const [first, count] = [clusters.number(row, 'first'), clusters.number(row, 'count')];
    const rows = Array.from({ length: count }, (_, at) => this.row('http_endpoints', first + at));
    const shares = new Array<number>(count).fill(0);
    rows.forEach((each, at) => {
      const keep = endpoint.number(each, 'keep');
      const own = keep === NOWHERE ? 1 : keep / 2 ** 32;
      shares[at]! += own / count;
      shares[endpoint.number(each, 'alias')]! += (1 - own) / count;
    });
    return rows.map((each, at) => ({
      address: decodeAddress(endpoint.bytes(each, 'address')), port: endpoint.bytes(each, 'port').readUInt16BE(), load: endpoint.number(each, 'load'), policy: endpoint.number(each, 'policy'),
      teachable: endpoint.number(each, 'teachable'), text: endpoint.bytes(each, 'text').toString('latin1'), share: Number(shares[at]!.toFixed(6)),
    }));
  }
}

describe('tables of the HTTP fast path', () => {
  let object: BpfObject;
  let maps: Maps;
  let nowMs = 0;
  let tables: HttpTables;
  const names = (): [Name, Name] => [tables.takeName()!, tables.takeName()!];
  const open = (): HttpTables => (tables = new HttpTables(object, () => nowMs));

  before(() => {
    object = BpfObject.open({ pinDir: null, programs: [], maxEntries: { http_rules: 24, http_vhosts: 8, http_policies: 8, http_classes: 6, http_clusters: 8, http_endpoints: 16, http_loads: 5, http_hosts: 9, http_ports: 9, http_services: 3 } });
    maps = new Maps(object);
  });
  after(() => object.close());

  it('limits of the compiler are those of the structs', () => {
    const header = readFileSync(join(projectRoot, 'bpf', 'http-structs.h'), 'utf8');
    for (const [name, value] of Object.entries(limits)) if (typeof value === 'number') assert.equal(new RegExp(`#define ${name} (\\d+)`).exec(header)?.[1], String(value), name);
    const methods = object.enumValues('http_method');
    assert.deepEqual(limits.HTTP_METHODS.map((method) => methods[`HTTP_${method}`]), limits.HTTP_METHODS.map((_, at) => at + 1));
  });

  it('what is written is read back', () => {
    open();
    const [first, second] = names();
    assert.ok(second.generation > first.generation && second.index !== first.index);
    const id = tables.write('a', example([first, second]));
    assert.ok(id > 0);

    const host = maps.host(id, '10.96.0.1', 80, 'web')!;
    assert.equal(maps.host(id, '10.96.0.1', 80, 'web:80'), host);
    const other = maps.host(id, '10.96.0.1', 80, 'elsewhere')!;
    assert.notEqual(other, host);
    assert.equal(maps.host(id, 'fd00::1', 8080, 'web'), other);
    for (const [address, port, name] of [['10.96.0.7', 80, 'web'], ['10.96.0.1', 8080, 'web'], ['fd00::1', 8080, 'elsewhere']] as const) assert.equal(maps.host(id, address, port, name), undefined);
    assert.equal(maps.host(id + 1, '10.96.0.1', 80, 'web'), undefined);

    assert.deepEqual(maps.verdicts('http_vhosts', host), [second.index, NOWHERE, first.index, NOWHERE]);
    const [rule] = maps.list('http_vhosts', host).rules;
    const [rules, condition] = [maps.codec('http_rule'), maps.codec('http_condition')];
    const number = (field: string): number => rules.number(rule!, field);
    assert.deepEqual(['path_kind', 'path_length', 'path_inverted', 'methods', 'conditions_used'].map(number), [3, 4, 0, (1 << 1) | (1 << 2), 2]);
    assert.equal(rules.bytes(rule!, 'path').toString().replaceAll('\0', ''), '/api');
    const conditions = [0, 1].map((at) => rules.bytes(rule!, 'conditions').subarray(at * condition.sizeBytes, (at + 1) * condition.sizeBytes));
    assert.deepEqual(conditions.map((each) => ['kind', 'inverted', 'name_length', 'value_length'].map((field) => condition.number(each, field))), [[1, 1, 6, 1], [2, 0, 0, 3]]);
    assert.equal(condition.bytes(conditions[0]!, 'name').toString('latin1').replaceAll('\0', ''), 'x\x7fteam');
    assert.equal(condition.bytes(conditions[1]!, 'value').toString().replaceAll('\0', ''), 'web');

    const [classes, split] = [maps.codec('http_class'), maps.codec('http_split')];
    const row = maps.row('http_classes', first.index);
    assert.deepEqual(['generation', 'flags', 'splits_used', 'total'].map((field) => classes.number(row, field)), [first.generation, 1, 2, 100]);
    const splits = [0, 1].map((at) => classes.bytes(row, 'splits').subarray(at * split.sizeBytes, (at + 1) * split.sizeBytes));
    assert.deepEqual(splits.map((each) => [split.number(each, 'until'), split.bytes(each, 'text').toString()]), [[90, `${'x-w: 0'.padEnd(30)}\r\n`], [100, `${'x-w: 90'.padEnd(30)}\r\n`]]);
    const [v1, v2] = splits.map((each) => maps.endpoints(split.number(each, 'cluster')));
    assert.deepEqual(v1!.map(({ address, port, share, teachable }) => [address, port, share, teachable]), [['10.244.0.5', 8080, 0.25, 1], ['10.244.0.6', 8080, 0.75, 1]]);
    assert.deepEqual(v2!.map(({ address, share, policy, teachable }) => [address, share, policy, teachable]), [['10.244.0.5', 0.5, 0, 1], ['fd00::7', 0.5, NOWHERE, 0]]);
    assert.equal(v1![0]!.text, `${'x-e: 10.244.0.5'.padEnd(158)}\r\n`);
    assert.equal(v1![0]!.load, v2![0]!.load, 'one endpoint, one count');
    assert.equal(new Set([...v1!, ...v2!].map(({ load }) => load)).size, 3);
    assert.equal(v1![0]!.policy, 0);
    assert.ok(v1![1]!.policy > 0);
    assert.deepEqual(maps.verdicts('http_policies', v1![1]!.policy), [2, 1, 2]);
  });

  it('a new table of a class takes the place of the one before, whose places rest', () => {
    const before = tables.status;
    const id = tables.write('a', example(names()));
    assert.deepEqual(tables.status, before);
    assert.notEqual(maps.host(id, '10.96.0.1', 80, 'web'), undefined);
    assert.equal(object.map('http_ports').entries().length, 3);
    assert.equal(object.map('http_hosts').entries().length, 4);
    // Four names of six have been given, and two of them rest.
    assert.ok(tables.takeName() && tables.takeName());
    assert.equal(tables.takeName(), undefined);
    nowMs += 2_000;
    const again = tables.takeName()!;
    assert.ok(again.generation > 6, 'another generation of an index that was used');
    tables.discard({ classes: [{ ...again, splits: [] }] });
  });

  it('what is full is told, nothing of it stays, and it goes when there is room', () => {
    tables.keep(new Set());
    nowMs += 100_000;
    open();
    tables.write('a', example(names()));
    assert.throws(() => tables.write('b', example(names(), ['10.244.0.8', '10.244.0.9', '10.244.0.10'])), /no room in http_loads/);
    const { refused, tables: count, loads, endpoints } = tables.status;
    assert.deepEqual([refused, count, loads.used, endpoints.used], [1, 1, 3, 4]);
    assert.equal(object.map('http_hosts').entries().length, 4);
    nowMs += 2_000;
    tables.write('b', example(names()));
    nowMs += 2_000;
    assert.throws(() => tables.write('c', example(names())), /no room in http_hosts/);
    assert.deepEqual([tables.status.tables, tables.status.hosts.used, object.map('http_hosts').entries().length], [2, 8, 8]);
    tables.keep(new Set(['b']));
    nowMs += 2_000;
    const id = tables.write('c', example(names()));
    assert.notEqual(maps.host(id, '10.96.0.1', 80, 'web'), undefined);
    tables.keep(new Set());
    assert.deepEqual([object.map('http_hosts').entries().length, object.map('http_ports').entries().length, tables.status.rules.used, tables.status.classes.used, tables.status.loads.used], [0, 0, 0, 0, 0]);
    assert.equal(tables.status.policies.used, 1, 'the one that is none');
  });

  it('another agent begins anew: nothing leads to what was left, and no number comes again', () => {
    open();
    const given = names();
    const former = tables.write('a', example(given));
    open();
    const own = names();
    assert.ok(Math.min(...own.map(({ generation }) => generation)) > Math.max(...given.map(({ generation }) => generation)));
    assert.equal(maps.host(former, '10.96.0.1', 80, 'web'), undefined);
    const second = tables.write('a', example(own));
    assert.ok(second > former);
    tables.keep(new Set());
    open();
    assert.ok(tables.write('a', example(names())) > second, 'of a table that was freed');
  });

  it('services have keys that outlive classes and agents; one without a class that counts nothing gives its own away when there is no room', () => {
    const service = (name: string) => ({ hostname: `${name}.shop.svc.cluster.local`, name, namespace: 'shop' });
    const keyOf = (name: string, inUse: number[] = []): number => tables.services.keyOf(service(name), () => inUse);
    open();
    const [one, two] = [keyOf('one'), keyOf('two')];
    assert.ok(one > 0 && two > one);
    assert.equal(tables.services.keyOf(undefined, () => []), 0);
    open();
    assert.deepEqual([keyOf('one'), tables.services.of(two)], [one, service('two')]);
    const three = keyOf('three');
    assert.equal(keyOf('four', [one, two, three]), 0, 'no room');
    const total = maps.codec('http_total_key').encode({ client: 1n, server: 2n, service: two });
    object.map('http_totals').set(total, Buffer.alloc(object.map('http_totals').valueSize));
    const four = keyOf('four', [one]);
    assert.ok(four > three);
    assert.deepEqual([tables.services.of(one), tables.services.of(two), tables.services.of(three)], [service('one'), service('two'), undefined]);
    assert.equal(keyOf('four'), four);
    object.map('http_totals').delete(total);
    const table = example(names());
    table.clusters.forEach((cluster, at) => Object.assign(cluster, at === 0 ? { service: service('one') } : {}));
    const written = tables.write('services', table);
    const splits = maps.row('http_classes', table.classes[0]!.index);
    const [split, class_] = [maps.codec('http_split'), maps.codec('http_class')];
    const rows = class_.bytes(splits, 'splits');
    assert.deepEqual([0, 1].map((at) => split.number(rows.subarray(at * split.sizeBytes), 'service')), [one, 0]);
    assert.ok(written > 0);
  });

  it('audit: rows and entries that somebody else changed, took away or added are found, and repaired', () => {
    open();
    nowMs += 600_000;
    const key = 'shop/default';
    const table = example(names());
    tables.write(key, table);
    const audit = (): Drift[] => [...tables.audit()].flat();
    const found = (): string[] => audit().map(({ kind, state, name }) => `${kind} ${state} ${name}`).sort();
    assert.deepEqual(found(), []);
    assert.deepEqual(found(), [], 'deflated by now');

    const [rules, classes, hosts, ports] = ['http_rules', 'http_classes', 'http_hosts', 'http_ports'].map((name) => object.map(name)) as [BpfMap, BpfMap, BpfMap, BpfMap];
    const class_ = maps.codec('http_class');
    const { index } = table.classes[0]!;
    const row = maps.row('http_classes', index);
    // What programs write there is theirs.
    class_.bytes(row, 'envoy_until_ns').writeBigUInt64LE(77n);
    classes.set(u32(index), row);
    assert.deepEqual(found(), []);
    class_.bytes(row, 'splits_used').writeUInt32LE(0);
    classes.set(u32(index), row);
    const list = maps.row('http_vhosts', hosts.entries()[0]![1].readUInt32LE());
    const place = maps.codec('http_list').number(list, 'first');
    const rule = maps.row('http_rules', place);
    rules.set(u32(place), Buffer.alloc(rule.length, 0xff));
    const [[host, leadsTo]] = hosts.entries() as [[Buffer, Buffer]];
    hosts.delete(host);
    const [[port, value]] = ports.entries() as [[Buffer, Buffer]];
    ports.set(Buffer.from(port).fill(0xee), value);
    const before_ = audit();
    assert.deepEqual(before_.map(({ kind, state, name }) => `${kind} ${state} ${name}`).sort(), [
      `http-table missing ${key} http_hosts ${host.toString('hex')}`,
      `http-table orphaned http_ports ${Buffer.from(port).fill(0xee).toString('hex')}`,
      `http-table wrong ${key} http_classes ${index}`,
      `http-table wrong ${key} http_rules ${place}`,
    ]);
    for (const { repair } of before_) void repair!();
    assert.deepEqual(found(), []);
    assert.deepEqual([maps.row('http_rules', place), hosts.get(host)], [rule, leadsTo]);
    // A table that is gone is nobody's, and nothing of it is missed.
    tables.keep(new Set());
    assert.deepEqual(found(), []);
  });
});
