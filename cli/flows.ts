/** `underpass flows`: the requests and connections of this node's pods as they end, whichever way they took. */
import { Option, type Command } from 'commander';
import { FLOW_VERDICTS, FLOW_WAYS, FLOWS_KEPT, followAgent, instancePaths, type Flow } from '../agent/client.js';
import { addInstanceOptions } from './instance-options.js';
import { FlowTable } from './flow-table.js';
import { readWhole } from './numbers.js';
import { hasColour } from './output.js';
import { outputClosed } from './signals.js';

interface Options {
  runDir: string;
  instance: string;
  follow?: boolean;
  from?: string;
  to?: string;
  verdict?: string;
  way?: string;
  last?: number;
  output: 'table' | 'json';
}

export function configure(command: Command): void {
  addInstanceOptions(command)
    .option('-f, --follow', 'go on with those that end from now on; kernel and Envoy tell of them only while somebody follows')
    .option('--from <who>', 'of this pod, workload, namespace, NAMESPACE/POD or address')
    .option('--to <who>', 'to this one')
    .addOption(new Option('--verdict <verdict>', 'with this end').choices(FLOW_VERDICTS))
    .addOption(new Option('--way <way>', 'by this way').choices(FLOW_WAYS))
    .option('--last <n>', `the newest n of the last ${FLOWS_KEPT} that were told to anybody; default: all, with -f none`, readWhole)
    .addOption(new Option('-o, --output <format>', 'json: a line for each, with the keys of Istio\'s access logs').choices(['table', 'json']).default('table'))
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
    if (options.output === 'json') return void process.stdout.write(`${line}\n`);
    const flow = JSON.parse(line) as Flow | { lost: number };
    if ('lost' in flow) return void process.stderr.write(`${flow.lost} flows were not shown: they came faster than this terminal takes them\n`);
    if (!isAny) process.stdout.write(table.header());
    isAny = true;
    process.stdout.write(table.row(flow));
  };
  await followAgent(instancePaths(options).adminSocket, `/v1/flows?${query.toString()}`, print, outputClosed);
  if (!isAny && !options.follow && options.output === 'table') process.stderr.write('no flow is known: kernel and Envoy tell of them while somebody follows, by `underpass flows -f`\n');
}
