/** Places of outlier detection in real maps: what was counted and ejected stays with its cluster and endpoint, over tables and agents. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { BpfObject } from '../../native/index.js';
import type { HttpTable, OutlierDetection } from '../http/table.js';
import { StructCodec, u32 } from './kernel-codec.js';
import { HttpTables } from './kernel-http.js';

const DETECTION: OutlierDetection = { consecutive5xx: 5, consecutiveGatewayFailure: 0, intervalMs: 10_000, baseEjectionMs: 30_000, maxEjectionMs: 300_000, maxEjectionPercent: 10, alwaysEjectOneHost: false, hosts: 2, spare: 1, panic: Infinity };

describe('places of outlier detection', () => {
  let object: BpfObject;
  let nowMs = 0;
  let tables: HttpTables;
  const open = (): HttpTables => (tables = new HttpTables(object, () => nowMs));
  const codec = (name: string): StructCodec => new StructCodec(object, name);
  const table = (addresses: readonly string[], changes: Partial<OutlierDetection> = {}, name = 'outbound|80||web'): HttpTable => ({
    ports: [], routes: [], virtualHosts: [], policies: [], findings: [], classOf: () => undefined,
    classes: [{ ...tables.takeName()!, splits: [{ until: 1, cluster: 0, text: '' }] }],
    clusters: [{ name, balance: 'random', outlierDetection: { ...DETECTION, hosts: addresses.length, ...changes }, endpoints: addresses.map((address) => ({ address, port: 80, policy: 'open', weight: 1, teachable: true, text: '' })) }],
  });
  /** Writes it, and says which places its rows have. */
  const write = (key: string, written: HttpTable): { detector: number; monitors: number[] } => {
    tables.write(key, written);
    const [classes, split, clusters, endpoint] = [codec('http_class'), codec('http_split'), codec('http_cluster'), codec('http_endpoint')];
    const row = object.map('http_clusters').get(u32(split.number(classes.bytes(object.map('http_classes').get(u32(written.classes[0]!.index))!, 'splits'), 'cluster')))!;
    const first = clusters.number(row, 'first');
    return { detector: clusters.number(row, 'detector'), monitors: Array.from({ length: clusters.number(row, 'count') }, (_, at) => endpoint.number(object.map('http_endpoints').get(u32(first + at))!, 'monitor')) };
  };
  /** As the programs would. */
  const eject = ({ detector, monitors }: { detector: number; monitors: number[] }, at: number): void => {
    const [monitor, ejections] = [codec('http_monitor'), codec('http_ejections')];
    const row = object.map('http_monitors').get(u32(monitors[at]!))!;
    object.map('http_monitors').set(u32(monitors[at]!), monitor.encode({ key: monitor.bigint(row, 'key'), detector, out_until_ns: process.hrtime.bigint() + 60_000_000_000n, ejected: 1, times: 2, failures: 5 }));
    object.map('http_ejections').set(u32(detector), ejections.encode({ out: 1, by_5xx: 2n }));
  };
  const ejected = (): string[] => tables.outliers.status.clusters.flatMap((each) => each.ejected.map(({ address }) => `${each.class} ${each.cluster} ${address}`));

  before(() => (object = BpfObject.open({ pinDir: null, programs: [], maxEntries: { http_detectors: 4, http_ejections: 4, http_monitors: 6 } })));
  after(() => object.close());
  beforeEach(() => {
    // Long enough for all to be forgotten, and handed out again.
    tables?.keep(new Set());
    for (let i = 0; i < 2; i++) {
      nowMs += 120_000;
      tables?.outliers.forget();
    }
    open();
  });

  it('settings are written as programs read them, and 0 means that nobody is ejected', () => {
    const { detector, monitors } = write('a', table(['10.0.0.1', '10.0.0.2']));
    const [layout, row] = [codec('http_detector'), object.map('http_detectors').get(u32(detector))!];
    assert.deepEqual(['interval_ns', 'base_ns', 'longest_ns'].map((field) => layout.bigint(row, field)), [10_000_000_000n, 30_000_000_000n, 300_000_000_000n]);
    assert.deepEqual(['consecutive_5xx', 'consecutive_gateway', 'most_percent', 'always_one', 'hosts'].map((field) => layout.number(row, field)), [5, 0, 10, 0, 2]);
    assert.ok(detector > 0 && monitors.every((index) => index > 0) && new Set(monitors).size === 2);
    const { outlierDetection: _none, ...cluster } = table(['10.0.0.1']).clusters[0]!;
    assert.deepEqual(write('b', { ...table(['10.0.0.1']), clusters: [cluster] }), { detector: 0, monitors: [0] });
  });

  it('another table of the class, with other endpoints as well, and another agent go on with what was ejected', () => {
    const first = write('a', table(['10.0.0.1', '10.0.0.2']));
    eject(first, 1);
    const second = write('a', table(['10.0.0.3', '10.0.0.2']));
    assert.deepEqual([second.detector, second.monitors[1]], [first.detector, first.monitors[1]]);
    assert.deepEqual([ejected(), tables.outliers.status.clusters[0]!.ejections], [['a outbound|80||web 10.0.0.2'], { consecutive5xx: 2, consecutiveGatewayFailure: 0 }]);
    open();
    nowMs += 1_000;
    const third = write('a', table(['10.0.0.3', '10.0.0.2']));
    assert.deepEqual(third, second);
    const { cluster, address, times } = tables.outliers.ejection(third.monitors[1]!)!;
    assert.deepEqual([ejected(), cluster, address, times], [['a outbound|80||web 10.0.0.2'], 'outbound|80||web', '10.0.0.2', 2]);
  });

  it('other settings, another cluster and another class begin anew', () => {
    const first = write('a', table(['10.0.0.1']));
    eject(first, 0);
    const changed = write('a', table(['10.0.0.1'], { consecutive5xx: 6 }));
    assert.notEqual(changed.detector, first.detector);
    assert.deepEqual(ejected(), ['a outbound|80||web 10.0.0.1'], 'of the former settings, for a minute');
    assert.notEqual(write('b', table(['10.0.0.1'], { consecutive5xx: 6 })).detector, changed.detector);
  });

  it('what no table has for a minute is forgotten, and its place is another\'s', () => {
    eject(write('a', table(['10.0.0.1', '10.0.0.2'])), 0);
    tables.keep(new Set());
    nowMs += 59_000;
    write('a', table(['10.0.0.1', '10.0.0.2']));
    assert.deepEqual(ejected(), ['a outbound|80||web 10.0.0.1'], 'it came back in time');
    tables.keep(new Set());
    for (let i = 0; i < 2; i++) {
      nowMs += 61_000;
      tables.outliers.forget();
    }
    const { detector } = write('a', table(['10.0.0.1', '10.0.0.2']));
    assert.deepEqual([ejected(), codec('http_ejections').bigint(object.map('http_ejections').get(u32(detector))!, 'by_5xx')], [[], 0n]);
  });

  it('without room the table is refused, and holds no place', () => {
    write('a', table(['10.0.0.1', '10.0.0.2', '10.0.0.3', '10.0.0.4']));
    assert.throws(() => tables.write('b', table(['10.0.0.1', '10.0.0.2'])), { code: 'UNDERPASS_HTTP_TABLES_FULL', message: /http_monitors/ });
    for (let i = 0; i < 2; i++) {
      nowMs += 61_000;
      tables.outliers.forget();
    }
    assert.deepEqual([tables.outliers.status.detectors.used, tables.outliers.status.endpoints.used], [2, 5], 'with the place that is none');
  });
});
