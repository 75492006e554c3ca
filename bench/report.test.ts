import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseAllDocuments } from 'yaml';
import { allowedCpus, lastCpu } from './affinity.js';
import { cpuPerRequest, total } from './cpu.js';
import { escape, renderHtml } from './html.js';
import { bytesBetween, parseLoadResult, type Site } from './load.js';
import { parseSmaps, readMemory } from './memory.js';
import { MODES, modeById, worldYaml } from './modes.js';
import { buildReport } from './report.js';
import { PLACEMENTS, type BenchOptions, type Cell, type Measurements, type Sample } from './runner.js';
import { COLLECTOR } from './traces.js';
import { renderTable } from './table.js';
import { parseWorkloads, WORKLOADS, workloadsOf } from './workloads.js';
import { parseWrk } from './wrk.js';

const options: BenchOptions = { modes: MODES, workloads: WORKLOADS, rounds: 3, durationS: 1, connections: 16 };

function sample(requestsPerSecond: number, more: Partial<Sample> = {}): Sample {
  return {
    requestsPerSecond,
    cpu: { client: 400_000 / requestsPerSecond, server: 600_000 / requestsPerSecond },
    cpuUsecPerRequest: 1e6 / requestsPerSecond,
    requests: requestsPerSecond,
    failed: 0,
    shares: { counted: false, shortCircuitedBytes: 0, tcpBytes: 0 },
    answers: {},
    foreignCpus: 0.5,
    latency: { p50: 10, p90: 20, p99: 90 },
    loadedLatency: { p50: 100, p90: 200, p99: 900 },
    ...more,
  };
}

/** Every mode at the rate given, with little noise. */
function measurements(rates: Record<string, number>, more: Partial<Sample> = {}): Measurements {
  const cells: Cell[] = [];
  for (const mode of MODES) {
    for (const workload of workloadsOf(mode, WORKLOADS)) {
      for (const placement of PLACEMENTS) {
        const rate = rates[mode.id] ?? 1000;
        const one = (factor: number): Sample => sample(rate * factor, workload.bulk ? { bitsPerSecond: rate * factor * 1e6, ...more } : more);
        const samples = [one(1), one(1.01), one(0.99)].map((value) => {
          if (workload.bulk) delete value.latency;
          return value;
        });
        cells.push({ mode: mode.id, workload: workload.id, placement, samples });
      }
    }
  }
  const memory = new Map(MODES.map(({ id }) => [id, { proxies: 1, rssBytes: 50 << 20, pssBytes: 40 << 20 }]));
  return { cells, memory, seconds: 42, cpus: '0-1', pinnedCpu: 1 };
}

const report = (rates: Record<string, number>, more: Partial<Sample> = {}) =>
  buildReport(measurements(rates, more), options, { quick: true, startedAt: new Date(0), facts: { kernel: 'Linux <6>', Envoy: '1.40.0' } });

test('buildReport: a row for each mode, workload and placement; ratios against their targets on one CPU only', () => {
  const { rows, ratios } = report({ 'tcp-no-mesh': 1000, 'tcp-short-circuited': 1700, sidecars: 1000, 'shared-bpf': 1300, 'fast-path': 7500, 'no-mesh': 5000, 'sidecars-short-circuited': 1200, 'nodes-http-hbone': 1400, 'nodes-tcp-hbone': 1400 });
  assert.equal(rows.length, 6 * 9 * 2 + 4 * 4 * 2 + 3 * 2 + 3 * 2 * 2);
  assert.deepEqual(new Set(rows.map(({ mode }) => mode)), new Set(MODES.map(({ id }) => id)));
  const onOne = (id: string) => ratios.filter((ratio) => ratio.id === id && ratio.placement === 'one-cpu');
  assert.deepEqual(onOne('tcp-short-circuited').map(({ reached, workload }) => [workload, reached]), [['tcp-64', true], ['tcp-16k', true]]);
  assert.deepEqual(onOne('shared-bpf').map(({ reached }) => reached), [false]);
  assert.deepEqual([...onOne('fast-path'), ...onOne('fast-path-sidecars')].map(({ reached }) => reached), [true, true]);
  assert.deepEqual(onOne('sidecars-short-circuited').map(({ reached }) => reached), [true]);
  assert.ok(Math.abs((onOne('shared-bpf')[0]?.requestsPerSecond.median ?? 0) - 1.3) < 1e-9);
  assert.deepEqual(onOne('hbone-http').map(({ reached, p50 }) => [reached, p50?.median]), [[false, 1]], 'p50 is no shorter');
  assert.deepEqual(onOne('hbone-tcp').map(({ reached, p50 }) => [reached, p50?.median]), [[false, 1], [true, undefined]]);
  const heads = ratios.find(({ id, placement }) => id === 'fast-path-heads' && placement === 'one-cpu');
  assert.deepEqual([heads?.workload, heads?.toWorkload, heads?.requestsPerSecond.median], ['http-differing-heads', 'http', 1]);
  assert.deepEqual(onOne('fast-path-loads').map(({ workload, target }) => [workload, target]), WORKLOADS.filter(({ extra }) => extra).map(({ id }) => [id, undefined]), 'a promise is made of the main row alone');
  assert.ok(ratios.filter(({ placement }) => placement === 'free').every(({ reached, target }) => reached === undefined && target === undefined));
});

test('buildReport: shares of bytes add up to one, and uncounted traffic is TCP', () => {
  const counted = report({}, { shares: { counted: true, shortCircuitedBytes: 300, tcpBytes: 100 } }).rows;
  assert.ok(counted.every(({ bytes }) => bytes.counted && bytes.shortCircuited === 0.75 && bytes.tcp === 0.25));
  assert.ok(report({}).rows.every(({ bytes }) => !bytes.counted && bytes.shortCircuited === 0 && bytes.tcp === 1));
});

test('buildReport: says when the machine was busy with something else', () => {
  assert.ok(report({}).notes.some((note) => note.includes('0.50 CPUs were busy with something else')));
  assert.ok(!report({}, { foreignCpus: 0.02 }).notes.some((note) => note.includes('not quiet')));
});

test('buildReport: failed requests are told in notes with their first reason', () => {
  const { rows, notes } = report({}, { failed: 2, firstFailure: 'connect: refused' });
  assert.equal(rows[0]?.failed, 6);
  assert.ok(notes.some((note) => note.includes('6 failed requests, first: connect: refused')));
});

test('renderTable: names every mode, and has colours only when asked', () => {
  const text = renderTable(report({}), { colour: false });
  for (const { title } of MODES) assert.ok(text.includes(title), title);
  assert.ok(!text.includes('\u001b'));
  assert.ok(renderTable(report({}), { colour: true }).includes('\u001b[1m'));
  assert.match(text, /target 1\.35: not reached/);
});

test('renderHtml: one file that asks nobody for anything, with everything escaped and plots for each mode', () => {
  const html = renderHtml(report({}));
  assert.ok(!/(https?:)?\/\/|<script|<link|@import|url\(/.test(html), 'nothing is loaded from elsewhere');
  assert.ok(html.includes('Linux &#60;6&#62;') && !html.includes('<6>'));
  assert.ok((html.match(/<svg /g)?.length ?? 0) >= 12);
  assert.ok(html.includes('prefers-color-scheme: dark'));
  assert.ok(!/NaN|undefined|Infinity/.test(html));
  for (const { title, description } of MODES) assert.ok(html.includes(escape(title)) && html.includes(escape(description)));
  // Each element that is opened is closed: a table cut in half would still show something.
  for (const tag of ['svg', 'table', 'figure', 'tr', 'ul', 'h2', 'body']) assert.equal(html.match(new RegExp(`<${tag}[ >]`, 'g'))?.length, html.match(new RegExp(`</${tag}>`, 'g'))?.length, tag);
});

test('worldYaml: a namespace with a client for each mode; routes where a Service is asked', () => {
  const documents = parseAllDocuments(worldYaml(MODES, parseWorkloads(undefined))).map((document) => document.toJS() as { kind: string; metadata: { name: string; namespace?: string; annotations?: Record<string, string> }; spec?: { nodeName?: string } });
  for (const mode of MODES) {
    const own = documents.filter(({ metadata }) => metadata.namespace === mode.namespace);
    const nodeOf = (wanted: (name: string) => boolean) => [...new Set(own.flatMap(({ kind, metadata, spec }) => (kind === 'Pod' && wanted(metadata.name) ? [spec?.nodeName] : [])))];
    assert.deepEqual(nodeOf((name) => name === 'client'), ['node-1'], mode.id);
    assert.deepEqual(nodeOf((name) => name !== 'client'), [mode.betweenNodes ? 'node-2' : 'node-1'], mode.id);
    assert.equal(own.some(({ kind }) => kind === 'VirtualService'), mode.target === 'service' && mode.protocol === 'http', mode.id);
    assert.equal(own.some(({ kind }) => kind === 'Service'), mode.target === 'service', mode.id);
    assert.equal(own.some(({ metadata }) => metadata.annotations?.['lab.underpass.io/service-proxy'] === 'none'), mode.target === 'pod' || ['tcp-service', 'tcp-policy'].includes(mode.id), mode.id);
  }
  assert.equal(modeById('shared-bpf')?.namespaceLabels['underpass.io/redirection'], 'bpf');
  assert.equal(modeById('nothing'), undefined);
});

test('worldYaml: a mix and tracing have namespaces of their own, and the main load\'s has neither', () => {
  const documents = parseAllDocuments(worldYaml([modeById('no-mesh'), modeById('fast-path')].flatMap((mode) => mode ?? []), WORKLOADS)).map((document) => document.toJS() as { kind: string; metadata: { name: string; namespace?: string }; spec?: { http?: { name: string }[]; rules?: unknown } });
  const kinds = (namespace: string) => documents.filter(({ metadata }) => metadata.namespace === namespace).map(({ kind }) => kind);
  const routes = (namespace: string) => documents.find(({ kind, metadata }) => kind === 'VirtualService' && metadata.namespace === namespace)?.spec?.http?.map(({ name }) => name);
  assert.deepEqual(documents.filter(({ kind }) => kind === 'Namespace').map(({ metadata }) => metadata.name), ['no-mesh', 'fast-path', 'fast-path-mixed', 'fast-path-traced', COLLECTOR.namespace]);
  assert.deepEqual([routes('fast-path'), routes('fast-path-mixed'), routes('fast-path-traced')], [['jesse', 'canary'], ['jesse', 'rewritten', 'canary'], ['jesse', 'canary']]);
  assert.ok(kinds('fast-path-traced').includes('Telemetry') && !kinds('fast-path').includes('Telemetry'));
  const policy = documents.find(({ kind, metadata }) => kind === 'AuthorizationPolicy' && metadata.namespace === 'fast-path-mixed');
  assert.match(JSON.stringify(policy), /ns\/fast-path-mixed\/sa\/default/);
});

test('parseWorkloads: without a choice as ever, all, or those that are named; others are refused with those that there are', () => {
  assert.deepEqual(parseWorkloads(undefined).map(({ id }) => id), ['http', 'tcp-64', 'tcp-16k', 'tcp-bulk', 'tcp-connect']);
  assert.deepEqual(parseWorkloads('all'), WORKLOADS);
  assert.deepEqual(parseWorkloads('http-mix, http').map(({ id }) => id), ['http', 'http-mix']);
  assert.throws(() => parseWorkloads('http,htttp'), ({ message, hint }: { message: string; hint: string }) => message.includes('"htttp"') && hint.includes('http-256-new-connections'));
});

test('buildReport: requests are told apart by who had them, in words, on the terminal and in the page', () => {
  const mixed = report({}, { requestsBy: { fast: 1795, envoy: { 'its route is Envoy\'s': 202, 'not learnt yet': 3 } } });
  const { requestsBy } = mixed.rows[0] ?? {};
  assert.ok(requestsBy && Math.abs(requestsBy.fast + Object.values(requestsBy.envoy).reduce((sum, share) => sum + share, 0) - 1) < 1e-9);
  const text = 'HTTP fast path: fast 89.8 %; through Envoy: its route is Envoy\'s 10.1 %, not learnt yet 0.15 %';
  assert.ok(renderTable(mixed, { colour: false }).includes(text));
  assert.ok(renderHtml(mixed).includes(escape(text)));
  assert.ok(!renderTable(report({}), { colour: false }).includes('through Envoy:'));
});

test('parseLoadResult: takes the final line, and refuses output without one', () => {
  assert.equal(parseLoadResult('{"final":false,"requests":1}\n{"final":true,"requests":7}\n').requests, 7);
  assert.throws(() => parseLoadResult('{"final":false}\n'), /without a result/);
});

test('cpuPerRequest: time of each cgroup goes to its user', () => {
  const perUser = cpuPerRequest(new Map([['/a', 'client'], ['/b', 'server'], ['/c', 'server']] as const), { '/a': 100, '/b': 200, '/c': 50, '/other': 1e9 }, 10);
  assert.deepEqual(perUser, { client: 10, server: 25 });
  assert.equal(total(perUser), 35);
});

test('bytesBetween: differences of the mode\'s own pods only', () => {
  const pod = (uid: string) => ({ uid, namespace: 'n', name: uid, ip: '', cgroup: '', hasSidecar: false });
  const site = { client: pod('c'), servers: [pod('s')] } as unknown as Site;
  const before = new Map([['c', { shortCircuited: 10, tcp: 5 }]]);
  const after = new Map([['c', { shortCircuited: 110, tcp: 5 }], ['s', { shortCircuited: 0, tcp: 20 }], ['other', { shortCircuited: 1e9, tcp: 1e9 }]]);
  assert.deepEqual(bytesBetween(site, before, after), { counted: true, shortCircuitedBytes: 100, tcpBytes: 20 });
  assert.deepEqual(bytesBetween(site, new Map(), new Map()), { counted: false, shortCircuitedBytes: 0, tcpBytes: 0 });
});

test('parseSmaps: reads what the kernel writes for this very process', () => {
  const memory = readMemory(process.pid);
  assert.ok(memory && memory.pssBytes > 1 << 20 && memory.rssBytes >= memory.pssBytes);
  assert.equal(readMemory(2 ** 22 + 1), undefined);
  assert.deepEqual(parseSmaps('Rss:     12 kB\nPss:      3 kB\nPss_Dirty:  9 kB\n'), { rssBytes: 12 << 10, pssBytes: 3 << 10 });
});

test('allowedCpus: a list that taskset takes', () => {
  assert.match(allowedCpus(), /^\d+([,-]\d+)*$/);
  assert.equal(lastCpu('0-3'), 3);
  assert.equal(lastCpu('0,2,5'), 5);
  assert.equal(lastCpu('7'), 7);
});

test('parseWrk: units, errors, and output that is not wrk\'s', () => {
  const text = `Running 2s test @ http://nginx/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.79ms    2.40ms  51.62ms   94.13%
    Req/Sec    10.90k     1.76k   13.92k    76.19%
  Latency Distribution
     50%  950.00us
     75%    1.80ms
     90%    3.30ms
     99%    1.02s
  22794 requests in 2.10s, 5.11MB read
  Socket errors: connect 1, read 2, write 0, timeout 4
  Non-2xx or 3xx responses: 10
Requests/sec:  10853.66
Transfer/sec:      2.43MB
`;
  assert.deepEqual(parseWrk(text), { requestsPerSecond: 10853.66, p50: 950, p90: 3300, p99: 1_020_000, failed: 17 });
  assert.throws(() => parseWrk('unable to connect'), /no Requests/);
  const checked = { ...report({}), crossCheck: [{ mode: 'no-mesh' as const, title: 'no mesh', ...parseWrk(text) }] };
  assert.match(renderTable(checked, { colour: false }), /Cross-check by wrk[\s\S]*no mesh +10\.9 k +950 +3300/);
  assert.match(renderHtml(checked), /Cross-check by wrk/);
});
