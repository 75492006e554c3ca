/** A report as text for a terminal. */
import type { BenchReport, Ratio, Row } from './report.js';
import { sharesText } from './requests.js';
import { percent, significant, type Summary } from './statistics.js';
import { workloadById, WORKLOADS } from './workloads.js';
import type { CrossCheck } from './wrk.js';

const BOLD = '\u001b[1m';
const DIM = '\u001b[2m';
const GREEN = '\u001b[32m';
const RED = '\u001b[31m';
const RESET = '\u001b[0m';

function columns(lines: readonly (readonly string[])[]): string[] {
  const widths = (lines[0] ?? []).map((_, column) => Math.max(...lines.map((line) => (line[column] ?? '').length)));
  return lines.map((line) => line.map((text, column) => (column === 0 ? text.padEnd(widths[column] ?? 0) : text.padStart(widths[column] ?? 0))).join('  ').trimEnd());
}

function withSpread(summary: Summary): string {
  return `${significant(summary.median)} (${significant(summary.q1)}–${significant(summary.q3)})`;
}

export function mebibytes(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(0)} MiB`;
}

function rowCells(row: Row): string[] {
  const throughput = row.bitsPerSecond ? `${significant(row.bitsPerSecond.median / 1e9)} Gbit/s` : withSpread(row.requestsPerSecond);
  const latency = row.latency ? [row.latency.p50, row.latency.p90, row.latency.p99].map((summary) => significant(summary.median)) : ['', '', ''];
  const memory = row.memory.proxies === 0 ? '–' : `${mebibytes(row.memory.pssBytes)} in ${row.memory.proxies}`;
  return [row.title, throughput, withSpread(row.cpuUsecPerRequest), ...latency, memory, percent(row.bytes.shortCircuited), percent(row.bytes.tcp), row.failed === 0 ? '0' : String(row.failed)];
}

/** For each row in which the fast path has a part. */
export function shareLines(rows: readonly Row[]): string[] {
  return rows.flatMap(({ title, requestsBy }) => (requestsBy ? [`${title}: ${sharesText(requestsBy)}`] : []));
}

export function ratioText(ratio: Ratio): string[] {
  const times = (summary: Summary): string => `${summary.median.toFixed(2)} × (${summary.q1.toFixed(2)}–${summary.q3.toFixed(2)})`;
  const target = ratio.target === undefined ? '' : `target ${ratio.target.toFixed(2)}: ${ratio.reached ? 'reached' : 'not reached'}`;
  return [ratio.title, workloadById(ratio.workload).short, times(ratio.requestsPerSecond), times(ratio.cpu), ratio.p50 ? times(ratio.p50) : '', target];
}

export function crossCheckCells(checks: readonly CrossCheck[]): string[][] {
  return [['mode', 'requests/s', 'p50 µs under load', 'p90', 'p99', 'failed'], ...checks.map((check) => [check.title, ...[check.requestsPerSecond, check.p50, check.p90, check.p99].map(significant), String(check.failed)])];
}

export function renderTable(report: BenchReport, options: { colour: boolean }): string {
  const paint = (code: string, text: string): string => (options.colour ? code + text + RESET : text);
  const lines: string[] = [];
  lines.push(Object.entries(report.facts).map(([name, value]) => `${name}: ${value}`).join(', '));
  for (const placement of ['one-cpu', 'free'] as const) {
    for (const workload of WORKLOADS) {
      const rows = report.rows.filter((row) => row.placement === placement && row.workload === workload.id);
      if (rows.length === 0) continue;
      lines.push('', paint(BOLD, `${workload.title}, ${placement === 'free' ? 'all CPUs free' : 'all processes on one CPU'}`));
      const header = ['mode', workload.bulk ? 'throughput' : 'requests/s (quartiles)', workload.bulk ? 'CPU µs/64 KiB' : 'CPU µs/request', 'p50 µs', 'p90', 'p99', 'proxy memory', 'short-circuited', 'TCP', 'failed'];
      const [first = '', ...rest] = columns([header, ...rows.map(rowCells)]);
      lines.push(paint(DIM, first), ...rest, ...shareLines(rows));
    }
  }
  for (const placement of ['one-cpu', 'free'] as const) {
    const ratios = report.ratios.filter((ratio) => ratio.placement === placement);
    if (ratios.length === 0) continue;
    lines.push('', paint(BOLD, `Ratios, ${placement === 'free' ? 'all CPUs free' : 'on one CPU'}`));
    const [first = '', ...rest] = columns([['', '', 'requests/s', 'less CPU per request', 'shorter p50', ''], ...ratios.map(ratioText)]);
    lines.push(paint(DIM, first), ...rest.map((line, index) => (ratios[index]?.reached === undefined ? line : paint(ratios[index]?.reached ? GREEN : RED, line))));
  }
  if (report.crossCheck) lines.push('', paint(BOLD, 'Cross-check by wrk, all CPUs free'), ...columns(crossCheckCells(report.crossCheck)));
  lines.push('', ...report.notes.map((note) => `- ${note}`));
  return lines.join('\n') + '\n';
}
