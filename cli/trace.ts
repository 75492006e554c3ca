/** `underpass trace`: connections' lives through the kernel's hooks, where a packet capture sees nothing. */
import type { Command } from 'commander';
import type { TraceLine } from '../agent/client.js';
import { addReachOptions, type ReachOptions } from './agents.js';
import { followEach } from './follow.js';
import { outputOption, printed, type Format } from './output.js';

interface Options extends ReachOptions {
  to?: string;
  output: Format;
}

export function configure(command: Command): void {
  addReachOptions(command)
    .argument('[pod]', 'connections that this pod opens or accepts, POD or NAMESPACE/POD; default: all of the node')
    .option('--to <address:port>', 'and that go to this address, this port, or both, as the client asked for it or as it was led')
    .addOption(outputOption('json: a line for each event; yaml: a document for each'))
    .action(async (pod: string | undefined, options: Options) => {
      const query = new URLSearchParams({ ...(pod === undefined ? {} : { pod }), ...(options.to === undefined ? {} : { to: options.to }) });
      if (options.output === 'table') process.stderr.write('tracing connections that open from now on; end with Ctrl-C\n');
      const print = (line: string): void => void process.stdout.write(options.output !== 'table' ? printed(options.output, line) : row(JSON.parse(line) as TraceLine | { lost: number }));
      await followEach(options, `/v1/trace?${query.toString()}`, print, pod);
    });
}

function row(line: TraceLine | { lost: number }): string {
  if ('lost' in line) return `        ... ${line.lost} events were not shown: they came faster than this terminal takes them\n`;
  const { at_us: at, connection, who, local, remote, asked, pid, text, what } = line;
  const way = local === null && remote === null ? '' : `  ${local ?? '-'} -> ${remote ?? '-'}${asked !== null && asked !== remote && what === 'opened' ? ` (asked for ${asked})` : ''}${pid === null ? '' : `  process ${pid}`}`;
  return `${(at / 1_000).toFixed(3).padStart(12)} ms  ${(connection === null ? '-' : `#${connection}`).padEnd(5)}  ${(who ?? '-').padEnd(32)}  ${text}${way}\n`;
}
