/** The report as one HTML file that needs nothing else: inline style, inline SVG, no script; readable in light and dark. */
import type { BenchReport, Row } from './report.js';
import type { Placement } from './runner.js';
import { percent, significant, type Summary } from './statistics.js';
import { crossCheckCells, mebibytes, ratioText, shareLines } from './table.js';
import { WORKLOADS, type Workload } from './workloads.js';

export function escape(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

const STYLE = `
:root { color-scheme: light dark; --ink: #1c2230; --soft: #5b6475; --line: #d9dee7; --page: #fff; --panel: #f6f8fb;
  --base: #8a94a6; --sidecar: #c0703a; --ours: #1f7a8c; --good: #1b7f4b; --bad: #b3372f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --soft: #9aa4b8; --line: #333b4d; --page: #12161f; --panel: #1a202c;
  --base: #7d879b; --sidecar: #e0935c; --ours: #4fb3c8; --good: #58c48b; --bad: #ef7d74; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto; max-width: 62rem; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p, li { max-width: 50rem; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
figure { margin: .5rem 0 1.2rem; background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--ink); font: 13px system-ui, sans-serif; } svg .soft { fill: var(--soft); font-size: 12px; }
svg .axis { stroke: var(--line); } svg .spread { stroke: var(--ink); stroke-width: 1.5; opacity: .65; }
.base { fill: var(--base); } .sidecar { fill: var(--sidecar); } .ours { fill: var(--ours); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--soft); font-weight: 500; } .reached { color: var(--good); } .missed { color: var(--bad); }
`;

function colourOf(row: Row): string {
  if (['no-mesh', 'tcp-no-mesh', 'nodes-http', 'nodes-tcp'].includes(row.mode)) return 'base';
  return ['sidecars', 'nodes-http-sidecars', 'nodes-tcp-sidecars'].includes(row.mode) ? 'sidecar' : 'ours';
}

const LABEL_WIDTH = 190;
const WIDTH = 860;
const BAR_HEIGHT = 20;
const ROW_HEIGHT = 32;

/** A round number at or above the greatest value, and four steps to it. */
function scaleOf(greatest: number): { max: number; ticks: number[] } {
  const size = 10 ** Math.floor(Math.log10(greatest || 1));
  const max = ([1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((factor) => factor * size >= greatest) ?? 10) * size;
  return { max, ticks: [0, 0.25, 0.5, 0.75, 1].map((share) => share * max) };
}

interface Bar {
  label: string;
  css: string;
  summary: Summary;
  title: string;
}

/** Horizontal bars from zero; the thin line goes from the first to the third quartile. */
function bars(entries: readonly Bar[], caption: string): string {
  const { max, ticks } = scaleOf(Math.max(...entries.map(({ summary }) => summary.q3)));
  const x = (value: number): number => LABEL_WIDTH + (value / max) * (WIDTH - LABEL_WIDTH - 90);
  const height = entries.length * ROW_HEIGHT + 26;
  const parts = [`<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escape(caption)}">`];
  for (const tick of ticks) {
    parts.push(`<line class="axis" x1="${x(tick).toFixed(1)}" x2="${x(tick).toFixed(1)}" y1="0" y2="${height - 22}"/>`);
    parts.push(`<text class="soft" x="${x(tick).toFixed(1)}" y="${height - 6}" text-anchor="middle">${escape(tick === 0 ? '0' : significant(tick))}</text>`);
  }
  entries.forEach(({ label, css, summary, title }, index) => {
    const y = index * ROW_HEIGHT + 5;
    const middle = y + BAR_HEIGHT / 2;
    parts.push(`<text x="${LABEL_WIDTH - 10}" y="${middle + 4}" text-anchor="end">${escape(label)}</text>`);
    parts.push(`<rect class="${css}" x="${LABEL_WIDTH}" y="${y}" width="${Math.max(1, x(summary.median) - LABEL_WIDTH).toFixed(1)}" height="${BAR_HEIGHT}" rx="2"><title>${escape(title)}</title></rect>`);
    parts.push(`<line class="spread" x1="${x(summary.q1).toFixed(1)}" x2="${x(summary.q3).toFixed(1)}" y1="${middle}" y2="${middle}"/>`);
    for (const edge of [summary.q1, summary.q3]) parts.push(`<line class="spread" x1="${x(edge).toFixed(1)}" x2="${x(edge).toFixed(1)}" y1="${middle - 4}" y2="${middle + 4}"/>`);
    parts.push(`<text x="${(x(Math.max(summary.median, summary.q3)) + 8).toFixed(1)}" y="${middle + 4}">${escape(significant(summary.median))}</text>`);
  });
  return `<figure>${parts.join('')}</svg><figcaption>${escape(caption)}</figcaption></figure>`;
}

/** p50, p90 and p99 of each mode on one logarithmic axis. */
function latencies(rows: readonly Row[], caption: string): string {
  const shown = rows.flatMap((row) => (row.latency ? [{ row, values: [row.latency.p50.median, row.latency.p90.median, row.latency.p99.median] as const }] : []));
  if (shown.length === 0) return '';
  const [low, high] = [Math.min(...shown.map(({ values }) => values[0])), Math.max(...shown.map(({ values }) => values[2]))];
  const [from, to] = [Math.log10(low * 0.8), Math.log10(high * 1.25)];
  const x = (value: number): number => LABEL_WIDTH + ((Math.log10(value) - from) / (to - from || 1)) * (WIDTH - LABEL_WIDTH - 40);
  const height = shown.length * ROW_HEIGHT + 26;
  const parts = [`<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escape(caption)}">`];
  const ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000].filter((tick) => Math.log10(tick) >= from && Math.log10(tick) <= to);
  for (const tick of ticks) {
    parts.push(`<line class="axis" x1="${x(tick).toFixed(1)}" x2="${x(tick).toFixed(1)}" y1="0" y2="${height - 22}"/>`);
    parts.push(`<text class="soft" x="${x(tick).toFixed(1)}" y="${height - 6}" text-anchor="middle">${tick >= 1000 ? `${tick / 1000} ms` : `${tick} µs`}</text>`);
  }
  shown.forEach(({ row, values }, index) => {
    const middle = index * ROW_HEIGHT + 15;
    parts.push(`<text x="${LABEL_WIDTH - 10}" y="${middle + 4}" text-anchor="end">${escape(row.title)}</text>`);
    parts.push(`<line class="spread" x1="${x(values[0]).toFixed(1)}" x2="${x(values[2]).toFixed(1)}" y1="${middle}" y2="${middle}"/>`);
    values.forEach((value, which) => {
      const name = ['p50', 'p90', 'p99'][which] as string;
      parts.push(`<circle class="${colourOf(row)}" cx="${x(value).toFixed(1)}" cy="${middle}" r="${[7, 5, 4][which] as number}"><title>${name} ${escape(significant(value))} µs</title></circle>`);
    });
  });
  return `<figure>${parts.join('')}</svg><figcaption>${escape(caption)}</figcaption></figure>`;
}

function rowsTable(rows: readonly Row[], bulk: boolean): string {
  const header = ['mode', bulk ? 'Gbit/s' : 'requests/s', 'quartiles', bulk ? 'CPU µs/64 KiB' : 'CPU µs/request', 'client', 'servers', 'proxies', ...(bulk ? [] : ['p50 µs', 'p90 µs', 'p99 µs', 'p99 under load']), 'proxy memory (PSS)', 'short-circuited', 'TCP', 'failed'];
  const lines = rows.map((row) => {
    const rate = row.bitsPerSecond ?? row.requestsPerSecond;
    const unit = row.bitsPerSecond ? 1e9 : 1;
    const latency = row.latency ? [row.latency.p50, row.latency.p90, row.latency.p99, row.loadedLatency?.p99].map((summary) => (summary ? significant(summary.median) : '')) : [];
    const proxies = (row.cpuByUser.sidecars ?? 0) + (row.cpuByUser['shared proxy'] ?? 0);
    return [
      row.title,
      significant(rate.median / unit),
      `${significant(rate.q1 / unit)}–${significant(rate.q3 / unit)}`,
      significant(row.cpuUsecPerRequest.median),
      significant(row.cpuByUser.client ?? 0),
      significant(row.cpuByUser.server ?? 0),
      proxies === 0 ? '–' : significant(proxies),
      ...latency,
      row.memory.proxies === 0 ? '–' : `${mebibytes(row.memory.pssBytes)} in ${row.memory.proxies}`,
      percent(row.bytes.shortCircuited),
      percent(row.bytes.tcp),
      String(row.failed),
    ];
  });
  return table(header, lines);
}

function table(header: readonly string[], lines: readonly (readonly string[])[], classes: readonly string[] = []): string {
  const cells = (tag: string, texts: readonly string[]): string => texts.map((text) => `<${tag}>${escape(text)}</${tag}>`).join('');
  return `<div class="wide"><table><thead><tr>${cells('th', header)}</tr></thead><tbody>${lines.map((line, index) => `<tr${classes[index] ? ` class="${classes[index]}"` : ''}>${cells('td', line)}</tr>`).join('')}</tbody></table></div>`;
}

function section(report: BenchReport, workload: Workload, placement: Placement): string {
  const rows = report.rows.filter((row) => row.workload === workload.id && row.placement === placement);
  if (rows.length === 0) return '';
  const where = placement === 'free' ? 'all CPUs free' : 'all processes on one CPU';
  const parts = [`<h3>${escape(workload.title)}: ${where}</h3>`];
  const rate = (row: Row): Summary => (row.bitsPerSecond ? scaled(row.bitsPerSecond, 1e-9) : row.requestsPerSecond);
  const unit = workload.bulk ? 'Gbit/s' : 'Requests per second';
  parts.push(bars(rows.map((row) => ({ label: row.title, css: colourOf(row), summary: rate(row), title: `${significant(rate(row).median)}, ${row.rounds} rounds` })), `${unit}, ${where}; more is better`));
  parts.push(bars(rows.map((row) => ({ label: row.title, css: colourOf(row), summary: row.cpuUsecPerRequest, title: Object.entries(row.cpuByUser).map(([user, value]) => `${user} ${significant(value)}`).join(', ') })), `CPU time in µs per ${workload.bulk ? '64 KiB' : 'request'}, all processes; less is better`));
  if (!workload.bulk) parts.push(latencies(rows, 'Latency with one connection: p50 (large), p90 and p99 (small); further left is better'));
  parts.push(rowsTable(rows, workload.bulk === true), ...shareLines(rows).map((line) => `<p>${escape(line)}.</p>`));
  return parts.join('\n');
}

function scaled(summary: Summary, factor: number): Summary {
  return { ...summary, median: summary.median * factor, q1: summary.q1 * factor, q3: summary.q3 * factor, min: summary.min * factor, max: summary.max * factor };
}

export function renderHtml(report: BenchReport): string {
  const ratios = (placement: Placement): string => {
    const found = report.ratios.filter((ratio) => ratio.placement === placement);
    if (found.length === 0) return '';
    const classes = found.map(({ reached }) => (reached === undefined ? '' : reached ? 'reached' : 'missed'));
    return `<h3>${placement === 'free' ? 'All CPUs free' : 'All processes on one CPU'}</h3>` + table(['', '', 'requests/s', 'less CPU per request', 'shorter p50', ''], found.map(ratioText), classes);
  };
  const workloads = (protocol: Workload['protocol']): string =>
    WORKLOADS.filter((workload) => workload.protocol === protocol).flatMap((workload) => [section(report, workload, 'one-cpu'), section(report, workload, 'free')]).join('\n');
  const [checkHeader = [], ...checkLines] = crossCheckCells(report.crossCheck ?? []);
  const checks = checkLines.length === 0 ? '' : `<h3>Cross-check by wrk, all CPUs free</h3>${table(checkHeader, checkLines)}`;
  const { options } = report;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Underpass bench</title><style>${STYLE}</style></head>
<body>
<h1>Underpass bench</h1>
<p class="soft">${escape(report.startedAt)}, ${options.rounds} rounds of ${options.durationS} s a load${options.quick ? ' (quick)' : ''}, ${Math.round(report.seconds)} s in all. ${escape(Object.entries(report.facts).map(([name, value]) => `${name}: ${value}`).join(', '))}.</p>
<h2>Ratios</h2>
${ratios('one-cpu')}
${ratios('free')}
<h2>HTTP</h2>
${workloads('http')}
${checks}
<h2>Plain TCP</h2>
${workloads('tcp')}
<h2>The modes</h2>
<ul>${report.modes.map((mode) => `<li><b>${escape(mode.title)}</b>: ${escape(mode.description)}.</li>`).join('\n')}</ul>
<h2>What the figures are about</h2>
<ul>${report.notes.map((note) => `<li>${escape(note)}</li>`).join('\n')}</ul>
</body></html>
`;
}
