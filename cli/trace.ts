/** `underpass trace`: connections' lives through the kernel's hooks, where a packet capture sees nothing. */
import { Option, type Command } from 'commander';
import { followAgent, instancePaths, type TraceLine } from '../agent/client.js';
import { addInstanceOptions } from './instance-options.js';
import { outputClosed } from './signals.js';

interface Options {
  runDir: string;
  instance: string;
  to?: string;
  output: 'table' | 'json';
}

export function configure(command: Command): void {
  addInstanceOptions(command)
    .argument('[pod]', 'connections that this pod opens or accepts, POD or NAMESPACE/POD; default: all of the node')
    .option('--to <address:port>', 'and that go to this address, this port, or both, as the client asked for it or as it was led')
    .addOption(new Option('-o, --output <format>', 'json: a line for each event').choices(['table', 'json']).default('table'))
    .action(async (pod: string | undefined, options: Options) => {
      const query = new URLSearchParams({ ...(pod === undefined ? {} : { pod }), ...(options.to === undefined ? {} : { to: options.to }) });
      if (options.output === 'table') process.stderr.write('tracing connections that open from now on; end with Ctrl-C\n');
      const print = (line: string): void => void process.stdout.write(options.output === 'json' ? `${line}\n` : row(JSON.parse(line) as TraceLine | { lost: number }));
      await followAgent(instancePaths(options).adminSocket, `/v1/trace?${query.toString()}`, print, outputClosed);
    });
}

function row(line: TraceLine | { lost: number }): string {
  if ('lost' in line) return `        ... ${line.lost} events were not shown: they came faster than this terminal takes them\n`;
  const { at_us: at, connection, who, local, remote, asked, pid, text, what } = line;
  const way = local === null && remote === null ? '' : `  ${local ?? '-'} -> ${remote ?? '-'}${asked !== null && asked !== remote && what === 'opened' ? ` (asked for ${asked})` : ''}${pid === null ? '' : `  process ${pid}`}`;
  return `${(at / 1_000).toFixed(3).padStart(12)} ms  ${(connection === null ? '-' : `#${connection}`).padEnd(5)}  ${(who ?? '-').padEnd(32)}  ${text}${way}\n`;
}
