// The comparison over the real thing, as short as it gets: rows, counts and shares are checked, never speeds.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { MODES, type BenchReport } from '../bench/index.js';
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

test('underpass bench: a row for each mode, requests counted, none failed, shares of bytes that add up, nothing left', async () => {
  const html = join(folder, 'report.html');
  const child = spawn(underpass, ['bench', '--rounds', '1', '--duration', '0.1', '--connections', '4', '-o', 'json', '--html', html], { stdio: ['ignore', 'pipe', 'inherit'], timeout: 240_000 });
  let stdout = '';
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
  const [code] = (await once(child, 'close')) as [number];
  assert.equal(code, 0);
  const report = JSON.parse(stdout) as BenchReport;
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
  assert.deepEqual(leftovers(child.pid), []);
});

test('underpass bench: wrong modes are named, with those that there are', async () => {
  const { stderr } = await run(underpass, ['bench', '--modes', 'fastest'], { okCodes: [1] });
  assert.match(stderr, /there is no mode "fastest"/);
  assert.match(stderr, /shared-bpf/);
});
