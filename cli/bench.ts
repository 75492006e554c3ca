/** `underpass bench`: every claim as a row on the user's own node. */
import { writeFileSync } from 'node:fs';
import { InvalidArgumentError, Option, type Command } from 'commander';
import { wholeNumber } from '../common/arguments.js';
import { parseWorkloads, renderHtml, renderTable, WORKLOADS } from '../bench/index.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { DEFAULT_CONNECTIONS, DEFAULT_DURATION_S, DEFAULT_PROXY_WORKERS, DEFAULT_ROUNDS, isLeftBehind, leftBehind, parseModes, QUICK_DURATION_S, runBench } from './bench/run.js';
import { ProgressLine } from './progress.js';
import { followSignals } from './signals.js';

interface Options {
  quick?: boolean;
  rounds: number;
  duration?: number;
  connections: number;
  proxyWorkers: number;
  output: 'table' | 'json';
  html?: string;
  modes?: string;
  loads?: string;
  crossCheck?: boolean;
}

export function configure(command: Command): void {
  command
    .option('--quick', `short rounds (${QUICK_DURATION_S} s a load), for a first impression`)
    .option('--rounds <n>', 'interleaved rounds; medians are taken over them', wholeNumber(1, 1000), DEFAULT_ROUNDS)
    .option('--duration <seconds>', `measured time of each load (default: ${DEFAULT_DURATION_S})`, seconds)
    .option('--connections <n>', 'for throughput and CPU; latency is measured with one', wholeNumber(1, 10_000), DEFAULT_CONNECTIONS)
    .option('--proxy-workers <n>', 'worker threads of every Envoy, the shared one and the sidecars alike', wholeNumber(1, 64), DEFAULT_PROXY_WORKERS)
    .option('--modes <ids>', 'only these, separated by commas')
    .option('--loads <ids>', 'what is asked, separated by commas; all for everything (default: http and the TCP loads)')
    .option('--cross-check', 'measure the HTTP modes by wrk, too')
    .option('--html <file>', 'also write the report as one HTML file with plots')
    .addOption(new Option('-o, --output <format>', 'how to print').choices(['table', 'json']).default('table'))
    .addHelpText('after', `\nLoads:\n${WORKLOADS.map(({ id, title }) => `  ${id.padEnd(26)}${title}`).join('\n')}\n\nMakes pods of its own on this machine, an agent and a control plane for them, and removes all of it at the end.\nExit codes: 0 measured, 1 could not be measured, 3 measured, but requests failed, 130 interrupted.`)
    .action(bench);
}

function seconds(text: string): number {
  const value = Number(text);
  if (!(value >= 0.05 && value <= 3600)) throw new InvalidArgumentError('expected seconds from 0.05 to 3600');
  return value;
}

async function bench(options: Options): Promise<void> {
  const quick = options.quick ?? false;
  const [modes, workloads] = [parseModes(options.modes), parseWorkloads(options.loads)];
  const signals = followSignals();
  const progress = new ProgressLine();
  try {
    const report = await runBench(
      { quick, modes, workloads, rounds: options.rounds, durationS: options.duration ?? (quick ? QUICK_DURATION_S : DEFAULT_DURATION_S), connections: options.connections, proxyWorkers: options.proxyWorkers, crossCheck: options.crossCheck ?? false },
      { signal: signals.signal, onProgress: (text, done, of) => progress.show(of > 1 ? `[${Math.floor((100 * done) / of)} %] ${text}` : text) },
    );
    progress.clear();
    if (options.html !== undefined) {
      try {
        writeFileSync(options.html, renderHtml(report));
      } catch (cause) {
        throw new UnderpassError('UNDERPASS_BENCH_REPORT', `writing the report to ${options.html}: ${errorMessage(cause)}`, { cause });
      }
    }
    process.stdout.write(options.output === 'json' ? JSON.stringify(report, undefined, 2) + '\n' : renderTable(report, { colour: process.stdout.isTTY === true && !process.env['NO_COLOR'] }));
    if (report.leftBehind !== undefined) throw leftBehind(report.leftBehind);
    if (report.rows.some(({ failed }) => failed > 0)) process.exitCode = 3;
  } catch (error) {
    progress.clear();
    if (!signals.signal.aborted || isLeftBehind(error)) throw error;
    process.stderr.write('underpass: interrupted; everything was removed\n');
    process.exitCode = 130;
  } finally {
    signals.close();
  }
}
