// The comparison over the real thing, as short as it gets: rows, counts and shares are checked, never speeds.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { MODES, WORKLOADS, type BenchReport } from '../bench/index.js';
import { cgroup2Root } from '../common/cgroup.js';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';

const underpass = join(projectRoot, 'bin', 'underpass');
const folder = mkdtempSync(join(tmpdir(), `up-bench-${process.pid}-`));
after(() => rmSync(folder, { recursive: true }));

/** What a run of bench leaves if it leaves anything; others at the same time have other names. */
function leftovers(pid: number | undefined): string[] {
  const names = (path: string): string[] => (existsSync(path) ? readdirSync(path).map((name) => `${path}/${name}`) : []);
  return ['/run/netns', '/run/underpass', '/run/underpass/lab', '/sys/fs/bpf/underpass', cgroup2Root(), tmpdir()].flatMap(names).filter((name) => name.includes(`bench-${pid}`) && !name.startsWith(folder));
}

async function bench(...args: string[]): Promise<{ report: BenchReport; pid: number | undefined }> {
  const child = spawn(underpass, ['bench', '--rounds', '1', '--duration', '0.1', '--connections', '4', '-o', 'json', ...args], { stdio: ['ignore', 'pipe', 'inherit'], timeout: 240_000 });
  let stdout = '';
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
  const [code] = (await once(child, 'close')) as [number];
  assert.equal(code, 0);
  return { report: JSON.parse(stdout) as BenchReport, pid: child.pid };
}

test('underpass bench: a row for each mode, requests counted, none failed, shares of bytes that add up, nothing left', async () => {
  const html = join(folder, 'report.html');
  const { report, pid } = await bench('--html', html);
  for (const { id, protocol, betweenNodes } of MODES) {
    const rows = report.rows.filter(({ mode }) => mode === id);
    assert.equal(rows.length, protocol === 'http' ? 2 : betweenNodes ? 4 : 8, id);
    for (const row of rows) {
      const where = `${id} ${row.workload} ${row.placement}`;
      assert.equal(row.failed, 0, `${where}: ${row.firstFailure}`);
      assert.ok(row.requests > 0 && row.cpuUsecPerRequest.median > 0, where);
      assert.ok(Math.abs(row.bytes.shortCircuited + row.bytes.tcp - 1) < 1e-9, where);
      assert.ok(row.workload === 'tcp-bulk' ? (row.bitsPerSecond?.median ?? 0) > 0 : row.latency && row.latency.p50.median <= row.latency.p99.median, where);
    }
  }
  const shares = (mode: string, workload: string) => report.rows.filter((row) => row.mode === mode && row.workload === workload).map(({ bytes }) => bytes);
  for (const mode of ['no-mesh', 'sidecars']) for (const bytes of shares(mode, 'http')) assert.deepEqual(bytes, { shortCircuited: 0, tcp: 1, counted: false }, mode);
  if (report.facts['acceleration'] === 'on') {
    for (const mode of ['shared-bpf', 'fast-path', 'sidecars-short-circuited']) for (const bytes of shares(mode, 'http')) assert.ok(bytes.counted && bytes.shortCircuited > 0.5, `${mode}: ${JSON.stringify(bytes)}`);
    for (const mode of ['tcp-short-circuited', 'tcp-service', 'tcp-policy']) for (const bytes of shares(mode, 'tcp-64')) assert.ok(bytes.shortCircuited > 0.5, JSON.stringify(bytes));
  }
  const sidecars = report.rows.find(({ mode }) => mode === 'sidecars');
  assert.equal(sidecars?.memory.proxies, 3);
  assert.ok((sidecars?.cpuByUser.sidecars ?? 0) > 0);
  assert.equal(report.rows.find(({ mode }) => mode === 'shared-bpf')?.memory.proxies, 1);
  for (const mode of ['nodes-http-hbone', 'nodes-tcp-hbone']) {
    const row = report.rows.find((item) => item.mode === mode);
    assert.ok(row?.memory.proxies === 2 && (row.cpuByUser['shared proxy'] ?? 0) > 0, mode);
  }
  assert.match(readFileSync(html, 'utf8'), /^<!doctype html>/);
  assert.deepEqual(leftovers(pid), []);
});

test('underpass bench --loads: of each load the share that is promised is fast, and every request that is not has its reason', async (context) => {
  const { report, pid } = await bench('--modes', 'fast-path', '--loads', WORKLOADS.filter(({ protocol }) => protocol === 'http').map(({ id }) => id).join(','));
  if (report.facts['acceleration'] !== 'on') return context.skip('short-circuits are off here');
  const promised: Record<string, [number, number]> = {
    'http': [0.95, 1], 'http-differing-heads': [0.95, 1], 'http-post': [0.95, 1], 'http-16k': [0.95, 1], 'http-256k': [0.95, 1], 'http-256-connections': [0.95, 1],
    // Of each 200 requests two or more have to be learnt from; a tenth of the mix is Envoy's; one of a hundred is drawn to be traced.
    'http-256-new-connections': [0.85, 1], 'http-mix': [0.8, 0.95], 'http-tracing': [0.9, 1],
  };
  assert.deepEqual(report.rows.map(({ workload }) => workload), Object.keys(promised).flatMap((id) => [id, id]));
  for (const { workload, placement, failed, firstFailure, requests, requestsBy } of report.rows) {
    const where = `${workload} ${placement}: ${requests} requests, ${JSON.stringify(requestsBy)}`;
    assert.equal(failed, 0, `${where}: ${firstFailure}`);
    assert.ok(requests > 0 && requestsBy, where);
    const { fast, envoy } = requestsBy;
    assert.ok(Math.abs(fast + Object.values(envoy).reduce((sum, share) => sum + share, 0) - 1) < 1e-9, where);
    // An agent that had no turn for a second takes the fast path away, here as anywhere.
    const off = envoy['the fast path was off for a moment'] ?? 0;
    const [least, most] = promised[workload] as [number, number];
    assert.ok(fast + off >= least && fast <= most, where);
    if (workload === 'http-mix') assert.ok(Math.abs((envoy["its route is Envoy's"] ?? 0) - 0.1) < 0.05 + off, where);
    if (workload === 'http-tracing') assert.ok((envoy['it was drawn for tracing'] ?? 0) < 0.05, where);
    assert.equal(envoy["its connection is Envoy's for good"], undefined, `no request is beyond the kernel's counters: ${where}`);
  }
  assert.ok((report.traces ?? 0) > 0, 'a request is traced');
  assert.deepEqual(leftovers(pid), []);
});

test('underpass bench: loads that are not there, or that no chosen mode has, are named', async () => {
  const unknown = await run(underpass, ['bench', '--loads', 'http-512k'], { okCodes: [1] });
  assert.match(unknown.stderr, /there is no load "http-512k"/);
  assert.match(unknown.stderr, /http-256k/);
  const none = await run(underpass, ['bench', '--modes', 'no-mesh', '--loads', 'tcp-64'], { okCodes: [1] });
  assert.match(none.stderr, /--modes no-mesh: none of them has a load tcp-64/);
});

test('underpass bench: wrong modes are named, with those that there are', async () => {
  const { stderr } = await run(underpass, ['bench', '--modes', 'fastest'], { okCodes: [1] });
  assert.match(stderr, /there is no mode "fastest"/);
  assert.match(stderr, /shared-bpf/);
});
