/**
 * Label values that are no plain words, from where they come (what a control plane says of workloads and services), as Prometheus has
 * read them: none is changed, none hides another series, and none makes a scrape fail.
 */
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, test } from 'node:test';
import { MetricsListener } from '../../agent/admin/metrics-listener.js';
import type { FlowEntry, Flows, FlowSide } from '../../agent/dataplane/kernel-flows.js';
import { addFlowMetrics } from '../../agent/telemetry/flow-metrics.js';
import { FlowSeriesSource } from '../../agent/telemetry/flow-series.js';
import { CONTENT_TYPES, PrometheusText, type MetricsPage } from '../../agent/telemetry/prometheus.js';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { Address, Service, Workload } from '../../proto/generated/istio/workload/workload.js';
import { Prometheus } from './prometheus.js';

const HARD = ['a "quoted" name', 'back\\slash', 'ends in one\\', 'new\nline', '\\n is no new line', '} 5\nevil_series 1', 'a{b="c"} 1 # {d="e"} 2', 'ü, 日本語, 🙂', 'carriage\rreturn\ttab', '\u0000 and \u007f', '# EOF', "it's, = and ;"];
/** Of text that is no UTF-8: half a character, a character that is none, and a surrogate. */
const NO_UTF8 = [Buffer.from([0x61, 0xc3]), Buffer.from([0xff, 0x61]), Buffer.from([0xed, 0xa0, 0x80])];

const side: FlowSide = { opened: 1n, closed: 1n, denied: 0n, failed: 0n, received: 5n, sent: 7n, rttSumUs: 20n, rtt: [0n, 1n, 0n] };

/** Each text is one workload's name, and its service's. */
function pageOf(texts: readonly (string | Buffer)[]): MetricsPage {
  const addresses = new Map<string, { message: Address }>();
  const entries: FlowEntry[] = texts.map((text, index) => {
    const address = Buffer.from([10, 0, 0, index + 1]);
    const vip = Buffer.from([10, 96, 0, index + 1]);
    const name = typeof text === 'string' ? text : 'PLACE';
    const workload = Workload.encode(Workload.fromPartial({ uid: `${index}`, name: 'w', namespace: 'shop', addresses: [address], workload_name: name, canonical_name: name, cluster_id: name, locality: { region: name, zone: '', subzone: '' } })).finish();
    const service = Service.encode(Service.fromPartial({ name: 's', namespace: 'shop', hostname: name, addresses: [{ network: '', address: vip }] })).finish();
    const bytes = (message: Uint8Array): Uint8Array => (typeof text === 'string' ? message : patched(message, text));
    addresses.set(`w${index}`, { message: Address.fromPartial({ type: { $case: 'workload', value: Workload.decode(bytes(workload)) } }) });
    addresses.set(`s${index}`, { message: Address.fromPartial({ type: { $case: 'service', value: Service.decode(bytes(service)) } }) });
    return { id: `${index}`, key: { client: 0n, server: BigInt(index + 1), peer: '192.0.2.1', service: { address: [...vip].join('.'), port: 80 }, endpointPort: 80 }, source: { ...side, opened: 0n }, destination: side };
  });
  const flows: Flows = { rttBoundsUs: [16, 32], settle: () => undefined, entries: () => entries, take: () => undefined, retired: () => new Map(), retire: () => true, dropRetired: () => undefined };
  const source = new FlowSeriesSource({ flows, pods: () => texts.map((_, index) => ({ netnsCookie: BigInt(index + 1), addresses: [`10.0.0.${index + 1}`] })), workloads: { addresses: new Map([...addresses, ['peer', { message: Address.fromPartial({ type: { $case: 'workload', value: Workload.fromPartial({ uid: 'peer', addresses: [Buffer.from([192, 0, 2, 1])] }) } }) }]]), synced: true, revision: 1 } });
  const text = new PrometheusText();
  addFlowMetrics(text, { kernel: source.report(), envoy: undefined });
  return text;
}

/** `PLACE` in a message, with bytes of the same number in its place. */
function patched(message: Uint8Array, text: Buffer): Uint8Array {
  const whole = Buffer.from(message);
  const bytes = Buffer.concat([text, Buffer.alloc(5 - text.length, 'x')]);
  for (let at = whole.indexOf('PLACE'); at >= 0; at = whole.indexOf('PLACE', at + 1)) bytes.copy(whole, at);
  return whole;
}

const pages: Record<string, MetricsPage> = { hard: pageOf(HARD), 'no utf-8': pageOf(NO_UTF8) };
/** Prometheus asks for OpenMetrics, and takes what it gets. */
const listeners = Object.entries(pages).map(([name, page]) => ({ name, listener: new MetricsListener({ host: '127.0.0.1', port: 0 }, () => Promise.resolve(page), logger('test').child({}, { level: 'silent' })) }));
const servers = Object.entries(pages).map(([name, page]) => ({ name: `${name}, as text`, server: createServer((_, response) => response.setHeader('content-type', CONTENT_TYPES.text).end([...page.pieces('text')].join(''))).listen(0, '127.0.0.1') }));
let prometheus: Prometheus;
before(async () => {
  await waitFor('the listeners', () => listeners.every(({ listener }) => listener.status.problem === undefined) && servers.every(({ server }) => server.listening), { everyMs: 10 });
  prometheus = await Prometheus.start({
    intervalMs: 2_000,
    targets: [...listeners.map(({ name, listener }) => ({ job: name, address: listener.status.address })), ...servers.map(({ name, server }) => ({ job: name, address: `127.0.0.1:${(server.address() as AddressInfo).port}` }))],
  });
  await prometheus.scraped();
});
after(async () => {
  await (prometheus as Prometheus | undefined)?.stop();
  for (const { listener } of listeners) await listener.close();
  for (const { server } of servers) {
    server.closeAllConnections();
    server.close();
  }
});

/** Of each series of a job. */
async function read(job: string, label: string): Promise<string[]> {
  // A scrape that is late on a busy machine leaves a gap.
  return (await prometheus.query(`last_over_time(istio_tcp_sent_bytes_total{job="${job}"}[1h])`)).map(({ metric }) => metric[label] ?? '').sort();
}

for (const format of ['hard', 'hard, as text']) {
  test(`quotes, backslashes, line ends and the like come to Prometheus as they are (${format})`, async () => {
    for (const label of ['destination_workload', 'destination_service', 'destination_cluster', 'destination_region', 'destination_app']) assert.deepEqual(await read(format, label), [...HARD].sort(), label);
    assert.deepEqual(await prometheus.query(`last_over_time({job="${format}",__name__="evil_series"}[1h])`), []);
  });
}

for (const format of ['no utf-8', 'no utf-8, as text']) {
  test(`what is no UTF-8 is told with the replacement character, and the scrape goes on (${format})`, async () => {
    const found = await read(format, 'destination_workload');
    assert.equal(found.length, NO_UTF8.length);
    for (const value of found) assert.match(value, /\ufffd/);
  });
}
