/** `underpass top`: services or workloads by their rate, from two readings of the agents' metrics. */
import { InvalidArgumentError, Option, type Command } from 'commander';
import { wholeNumber } from '../common/arguments.js';
import { addReachOptions, answered, askEach, reachAgents, type Reach, type ReachOptions } from './agents.js';
import { outputOption, paint, print, type Format } from './output.js';
import { whileWaiting } from './progress.js';
import { followSignals, outputClosed } from './signals.js';
import { tableText } from './table.js';

interface Options extends ReachOptions {
  by: 'service' | 'workload';
  interval: number;
  iterations?: number;
  namespace?: string;
  output: Format;
}

export interface Sample {
  name: string;
  labels: Readonly<Record<string, string>>;
  value: number;
}

export interface Row {
  name: string;
  /** Each second. */
  requests: number;
  /** Of requests, those answered with 5xx or by Envoy for want of an answer. */
  failed: number;
  /** Of all answers, in milliseconds; absent where none was timed. */
  meanMs?: number;
  connections: number;
  receivedBytes: number;
  sentBytes: number;
}

function seconds(text: string): number {
  const value = Number(text.replace(/s$/, ''));
  if (!(value >= 0.5 && value <= 3_600)) throw new InvalidArgumentError('expected seconds from 0.5 to 3600');
  return value;
}

export function configure(command: Command): void {
  addReachOptions(command)
    .addOption(new Option('--by <what>', 'what a row is').choices(['service', 'workload']).default('service'))
    .addOption(new Option('--interval <seconds>', 'between two readings').argParser(seconds).default(2))
    .option('--iterations <n>', 'end after so many tables (default: on a terminal none, elsewhere 1)', wholeNumber(1, 1_000_000))
    .option('-n, --namespace <name>', 'of this namespace alone')
    .addOption(outputOption())
    .addHelpText('after', '\nCounted where requests and connections arrive (reporter="destination"), and at their source for what leaves the mesh.\nRates are of the interval, means of its requests. Ctrl-C ends it.')
    .action(top);
}

async function top(options: Options): Promise<void> {
  const reach = await reachAgents(options);
  const signals = followSignals();
  const end = AbortSignal.any([signals.signal, outputClosed]);
  const isLive = process.stdout.isTTY === true && options.output === 'table' && options.iterations === undefined;
  const most = options.iterations ?? (isLive ? Infinity : 1);
  try {
    let before = await read(reach);
    let at = performance.now();
    for (let count = 0; count < most && !end.aborted; count++) {
      const pause = new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, options.interval * 1_000);
        end.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
      });
      await (isLive ? pause : whileWaiting('measuring', pause));
      if (end.aborted) break;
      const now = await read(reach);
      const rows = rowsOf(before, now, (performance.now() - at) / 1_000, options.by).filter(({ name }) => options.namespace === undefined || name.startsWith(`${options.namespace}/`));
      [before, at] = [now, performance.now()];
      if (isLive) process.stdout.write('\u001b[H\u001b[2J');
      print(options.output, rows, () => render(rows, options.by));
    }
  } finally {
    await signals.close();
    reach.close();
  }
}

/** By agent; one that did not answer has none, and in the next reading no rates. */
export async function read({ agents }: Pick<Reach, 'agents'>): Promise<Reading> {
  const texts = answered(agents, await askEach(agents, async (agent) => ({ agent, text: await agent.ask('/metrics') })));
  return new Map(texts.map(({ agent, text }) => [agent.place, new Map([...parseSamples(text)].map((sample) => [`${sample.name} ${JSON.stringify(sample.labels)}`, sample]))]));
}

/** The text format's samples, without their time stamps: https://prometheus.io/docs/instrumenting/exposition_formats/ */
export function* parseSamples(text: string): Generator<Sample> {
  for (const line of text.split('\n')) {
    const [, name, written, value] = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line) ?? [];
    if (name === undefined || line.startsWith('#')) continue;
    const labels: Record<string, string> = {};
    for (const [, key, text] of (written ?? '').matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g)) labels[key!] = text!.replace(/\\(.)/g, (_, escaped: string) => (escaped === 'n' ? '\n' : escaped));
    yield { name, labels, value: Number(value) };
  }
}

const KEPT = /^istio_(?:requests_total|request_duration_milliseconds_(?:sum|count)|tcp_(?:connections_opened|received_bytes|sent_bytes)_total)$/;

/** Samples of agents by their places, and by name and labels. */
export type Reading = ReadonlyMap<string, ReadonlyMap<string, Sample>>;

/** What is in both, each sample with its value of before; what is new of an agent begins at nothing. */
function* changes(before: Reading, now: Reading): Generator<[Sample, number]> {
  for (const [place, samples] of now) {
    const former = before.get(place);
    if (former) for (const [key, sample] of samples) yield [sample, former.get(key)?.value ?? 0];
  }
}

/** @param passed seconds between the two */
export function rowsOf(before: Reading, now: Reading, passed: number, by: Options['by']): Row[] {
  interface Sums { requests: number; failed: number; ms: number; timed: number; connections: number; received: number; sent: number }
  const sums = new Map<string, Sums>();
  for (const [{ name, labels, value }, former] of changes(before, now)) {
    if (!KEPT.test(name)) continue;
    // An agent that was started anew counts from nothing.
    const delta = value >= former ? value - former : value;
    if (!(delta > 0)) continue;
    const row = rowName(labels, by);
    if (row === undefined) continue;
    const sum = sums.get(row) ?? { requests: 0, failed: 0, ms: 0, timed: 0, connections: 0, received: 0, sent: 0 };
    sums.set(row, sum);
    if (name === 'istio_requests_total') {
      sum.requests += delta;
      if (/^5|^0$/.test(labels['response_code'] ?? '')) sum.failed += delta;
    } else if (name.endsWith('_sum')) sum.ms += delta;
    else if (name.endsWith('_count')) sum.timed += delta;
    else if (name.endsWith('opened_total')) sum.connections += delta;
    else if (name.endsWith('received_bytes_total')) sum.received += delta;
    else sum.sent += delta;
  }
  return [...sums]
    .map(([name, sum]): Row => ({ name, requests: sum.requests / passed, failed: sum.requests === 0 ? 0 : sum.failed / sum.requests, ...(sum.timed === 0 ? {} : { meanMs: sum.ms / sum.timed }), connections: sum.connections / passed, receivedBytes: sum.received / passed, sentBytes: sum.sent / passed }))
    .sort((a, b) => b.requests - a.requests || b.connections - a.connections || b.sentBytes - a.sentBytes || a.name.localeCompare(b.name));
}

/** Each request once: at its destination, or at its source where that is not in the mesh. */
function rowName(labels: Readonly<Record<string, string>>, by: Options['by']): string | undefined {
  const known = (text: string | undefined): string => (text === undefined || text === 'unknown' ? '' : text);
  const isInside = known(labels['destination_workload']) !== '';
  if (labels['reporter'] !== (isInside ? 'destination' : 'source')) return undefined;
  const service = known(labels['destination_service_name']) || known(labels['destination_service']);
  const workload = known(labels['destination_workload']);
  const name = by === 'workload' ? workload || service : service || workload;
  if (name === '') return undefined;
  const namespace = known(by === 'workload' ? labels['destination_workload_namespace'] : labels['destination_service_namespace']) || known(labels['destination_workload_namespace']);
  return namespace === '' ? name : `${namespace}/${name}`;
}

function bytes(value: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${value.toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`;
}

function render(rows: readonly Row[], by: string): string {
  if (rows.length === 0) return '(nothing was requested or connected in the interval)\n';
  return tableText([by.toUpperCase(), 'REQUESTS/S', 'FAILED', 'MEAN MS', 'CONNECTIONS/S', 'RECEIVED/S', 'SENT/S'], rows.map(({ name, requests, failed, meanMs, connections, receivedBytes, sentBytes }) => [name, requests.toFixed(1), failed === 0 ? '0 %' : paint('bad', `${(failed * 100).toFixed(1)} %`), meanMs === undefined ? '-' : meanMs.toFixed(1), connections.toFixed(1), bytes(receivedBytes), bytes(sentBytes)]));
}
