/** `underpass explain`: which way a pod's connection would take, and why, from the live maps. */
import { InvalidArgumentError, Option, type Command } from 'commander';
import { askAgent, instancePaths, type Explanation } from '../agent/index.js';
import { addInstanceOptions } from './agent-run.js';
import { printTable } from './table.js';

const WAYS: Record<Explanation['addresses'][number]['way'], string> = {
  endpoint: 'to an endpoint, without a proxy',
  pod: 'to the pod, without a proxy',
  envoy: 'through the node\'s Envoy',
  waypoint: 'through the node\'s Envoy to the destination\'s waypoint',
  sidecar: 'through the pod\'s own sidecar',
  refused: 'refused (ECONNREFUSED)',
  untouched: 'untouched, as without a mesh',
};

type Destination = NonNullable<Explanation['addresses'][number]['destinations']>[number];

interface Target {
  host: string;
  port: number;
}

export function configure(command: Command): void {
  addInstanceOptions(command)
    .argument('<pod>', 'POD of the namespace, or NAMESPACE/POD; or the name of a workload, for the first of its pods')
    .argument('<host:port>', 'an address, or a service\'s name as the pod would write it; IPv6 as [ADDRESS]:PORT', readTarget)
    .option('-n, --namespace <name>', 'the pod\'s namespace', 'default')
    .addOption(new Option('-o, --output <format>', 'how to print').choices(['table', 'json']).default('table'))
    .action(async (pod: string, { host, port }: Target, options: { runDir: string; instance: string; namespace: string; output: 'table' | 'json' }) => {
      const query = new URLSearchParams({ pod: pod.includes('/') ? pod : `${options.namespace}/${pod}`, host, port: String(port) });
      const text = await askAgent(instancePaths(options).adminSocket, `/v1/explain?${query.toString()}`);
      if (options.output === 'json') process.stdout.write(text);
      else render(JSON.parse(text) as Explanation);
    });
}

export function readTarget(text: string): Target {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (!match || port < 1 || port > 65_535) throw new InvalidArgumentError('expected HOST:PORT, or [IPV6]:PORT, with a port from 1 to 65535');
  return { host: (match[1] ?? match[2]) as string, port };
}

function render({ pod, host, port, addresses, http }: Explanation): void {
  for (const { address, way, reasons, endpoints, destinations = [] } of addresses) {
    process.stdout.write(`${pod} -> ${host === address ? '' : `${host} = `}${address.includes(':') ? `[${address}]` : address}:${port}\n  ${WAYS[way]}\n`);
    for (const reason of reasons) process.stdout.write(`  because ${reason}\n`);
    if (endpoints) {
      const rows = endpoints.map((each) => [`  ${each.address}`, String(each.port), `${(each.share * 100).toFixed(1)} %`, each.leftOut ? 'left out: it did not answer' : '']);
      printTable(['  ENDPOINT', 'PORT', 'SHARE', 'NOTE'], rows);
    }
    for (const destination of destinations) renderDestination(destination);
  }
  if (http) renderHttp(http);
}

function renderHttp({ isLive, reason, routes, ejected }: NonNullable<Explanation['http']>): void {
  process.stdout.write(`  HTTP fast path: ${isLive ? 'on' : `off, since ${reason ?? ''}`}\n`);
  for (const { name, isFast, reason: why, sampled } of routes) process.stdout.write(`    ${name}: ${isFast ? `repeated by the kernel once Envoy has shown the way${sampled === undefined ? '' : `; traced, by Envoy, are ${+(sampled * 100).toFixed(2)} % and those that come as sampled`}` : `Envoy's: ${why ?? ''}`}\n`);
  for (const { cluster, address, port, forMs } of ejected) process.stdout.write(`    ${address.includes(':') ? `[${address}]` : address}:${port} of ${cluster}: ejected since it failed, for ${(forMs / 1_000).toFixed(1)} s more\n`);
}

const ANSWERS: Record<Destination['policy']['answer'], string> = { none: 'no policy', allow: 'allowed', deny: 'denied', unknown: 'not known here' };

function renderDestination({ pod, address, port, policy, probation }: Destination): void {
  const [at, judge] = policy.judge === 'envoy' ? ['at L4 ', '; the node\'s Envoy judges, by these policies and by those of L7, which may say otherwise of a request'] : ['', ''];
  process.stdout.write(`  ${pod} ${address.includes(':') ? `[${address}]` : address}:${port}\n    ${at}${ANSWERS[policy.answer]}: ${policy.reason}${judge}\n`);
  if (!probation) return;
  const { listener, clients } = probation;
  process.stdout.write(`    server: ${listener ? `${listener.verdict} (${listener.reason})` : 'nothing has answered there yet'}\n`);
  if (clients.length === 0) process.stdout.write('    client: no program of the pod has been seen yet\n');
  for (const client of clients) process.stdout.write(`    client ${client.program ?? client.key}: ${client.verdict} (${client.reason})\n`);
}
