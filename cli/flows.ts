/** `underpass flows`: the requests and connections of nodes' pods as they end, whichever way they took. */
import { Option, type Command } from 'commander';
import { FLOW_VERDICTS, FLOW_WAYS, FLOWS_KEPT, type Flow } from '../agent/client.js';
import { addReachOptions, type ReachOptions } from './agents.js';
import { FlowTable } from './flow-table.js';
import { followEach } from './follow.js';
import { readWhole } from './numbers.js';
import { hasColour, outputOption, printed, type Format } from './output.js';

interface Options extends ReachOptions {
  follow?: boolean;
  from?: string;
  to?: string;
  verdict?: string;
  way?: string;
  last?: number;
  output: Format;
}

export function configure(command: Command): void {
  addReachOptions(command)
    .option('-f, --follow', 'go on with those that end from now on; kernel and Envoy tell of them only while somebody follows')
    .option('--from <who>', 'of this pod, workload, namespace, NAMESPACE/POD or address')
    .option('--to <who>', 'to this one')
    .addOption(new Option('--verdict <verdict>', 'with this end').choices(FLOW_VERDICTS))
    .addOption(new Option('--way <way>', 'by this way').choices(FLOW_WAYS))
    .option('--last <n>', `the newest n of the last ${FLOWS_KEPT} that were told to anybody, of each node; default: all, with -f none`, readWhole)
    .addOption(outputOption('json: a line for each, with the keys of Istio\'s access logs; yaml: a document for each'))
    .action(flows);
}

async function flows(options: Options): Promise<void> {
  const query = new URLSearchParams();
  for (const key of ['from', 'to', 'verdict', 'way'] as const) if (options[key] !== undefined) query.set(key, options[key]);
  if (options.follow) query.set('follow', 'true');
  if (options.last !== undefined) query.set('last', String(options.last));
  const table = new FlowTable({ colours: hasColour() });
  let isAny = false;
  const print = (line: string): void => {
    if (options.output !== 'table') return void process.stdout.write(printed(options.output, line));
    const flow = JSON.parse(line) as Flow | { lost: number };
    if ('lost' in flow) return void process.stderr.write(`${flow.lost} flows were not shown: they came faster than this terminal takes them\n`);
    if (!isAny) process.stdout.write(table.header());
    isAny = true;
    process.stdout.write(table.row(flow));
  };
  await followEach(options, `/v1/flows?${query.toString()}`, print);
  if (!isAny && !options.follow && options.output === 'table') process.stderr.write('no flow is known: kernel and Envoy tell of them while somebody follows, by `underpass flows -f`\n');
}
