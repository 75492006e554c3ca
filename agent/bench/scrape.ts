/**
 * `make bench-scrape`: what a scrape takes at size, of time, CPU and of everybody else's turns. The kernel's tables and what the control
 * plane says are plain data of this process; all behind them is the agent's: labels, sums, text, gzip, the listener, and curl as the reader.
 *   node dist/agent/bench/scrape.js [series [scrapes]]    default: 10000 20
 */
import { readFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { logger } from '../../common/log.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { MetricsListener } from '../admin/metrics-listener.js';
import { addFlowMetricsInTurns } from '../telemetry/flow-metrics.js';
import { addHttpMetricsInTurns } from '../telemetry/http-metrics.js';
import { PrometheusText, type MetricsPage } from '../telemetry/prometheus.js';
import { inTurns } from '../telemetry/turns.js';
import { ScrapedNode } from '../testing/scraped-node.js';

const wanted = Number(process.argv[2] ?? 10_000);
const scrapes = Number(process.argv[3] ?? 20);
const quiet = logger('bench').child({}, { level: 'error' });

/** CPU time of the thread that runs JavaScript, in milliseconds. */
const threadMs = (): number => Number(readFileSync('/proc/self/schedstat', 'utf8').split(' ')[0]) / 1e6;

/** The longest turn by its CPU time, which other work on the machine does not make longer. */
function watchTurns(): () => number {
  let longest = 0;
  let last = threadMs();
  let isOver = false;
  const look = (): void => {
    const now = threadMs();
    longest = Math.max(longest, now - last);
    last = now;
    if (!isOver) setImmediate(look);
  };
  setImmediate(look);
  return () => {
    isOver = true;
    return longest;
  };
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;

async function measure(name: string, node: ScrapedNode, page: () => Promise<MetricsPage>): Promise<void> {
  const listener = new MetricsListener({ host: '127.0.0.1', port: 0 }, page, quiet, { ageMs: 1 });
  await waitFor('the listener', () => listener.status.problem === undefined, { timeoutMs: 10_000, everyMs: 5 });
  const rows: { wallMs: number; cpuMs: number; heldMs: number; turnMs: number; bytes: number }[] = [];
  const ask = (): Promise<string> => run('curl', ['-s', '--compressed', '-o', '/dev/null', '-w', '%{time_total} %{size_download}', `http://${listener.status.address}/metrics`], { timeoutMs: 60_000 }).then(({ stdout }) => stdout);
  for (let scrape = 0; scrape < scrapes + 2; scrape++) {
    await sleep(50);
    const held = monitorEventLoopDelay({ resolution: 1 });
    const cpu = process.cpuUsage();
    held.enable();
    const [seconds = 0, bytes = 0] = (await ask()).split(' ').map(Number);
    held.disable();
    const { user, system } = process.cpuUsage(cpu);
    // Once more: looking at each turn costs CPU itself.
    await sleep(50);
    const endTurns = watchTurns();
    await ask();
    const turnMs = endTurns();
    // The first ones find cold code.
    if (scrape >= 2) rows.push({ wallMs: seconds * 1e3, cpuMs: (user + system) / 1e3, heldMs: Math.max(0, held.max / 1e6 - 1), turnMs, bytes });
  }
  const of = (key: keyof (typeof rows)[number]): number => median(rows.map((row) => row[key]));
  const most = (key: keyof (typeof rows)[number]): number => Math.max(...rows.map((row) => row[key]));
  process.stdout.write(`${name}: ${of('wallMs').toFixed(0)} ms (at most ${most('wallMs').toFixed(0)}), ${of('cpuMs').toFixed(0)} ms of CPU, a turn of at most ${most('turnMs').toFixed(0)} ms of CPU (median ${of('turnMs').toFixed(0)}), others held up for at most ${most('heldMs').toFixed(0)} ms (median ${of('heldMs').toFixed(0)}), ${(of('bytes') / 1e3).toFixed(0)} kB on the wire, ${node.description}\n`);
  await listener.close();
}

process.stdout.write(`${scrapes} scrapes each, of ${wanted} series and a few\n`);
// Four counters and a histogram of 18 lines, and two reporters of each.
const tcp = ScrapedNode.ofConnections(Math.ceil(wanted / 44));
await measure('TCP without a proxy', tcp, async () => {
  const text = new PrometheusText();
  await addFlowMetricsInTurns(text, { kernel: await inTurns(tcp.flows.reporting()), envoy: undefined });
  return text;
});
// A counter and three histograms of 22 lines, and two reporters.
const http = ScrapedNode.ofRequests(Math.ceil(wanted / 134));
await measure('HTTP', http, async () => {
  const text = new PrometheusText();
  await addHttpMetricsInTurns(text, { kernel: await inTurns(http.requests.reporting()), envoy: undefined, messages: undefined });
  return text;
});
