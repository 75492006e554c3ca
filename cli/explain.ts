/** `underpass explain`: which way a pod's connection would take, and why, from the live maps. */
import { InvalidArgumentError, type Command } from 'commander';
import type { Explanation } from '../agent/client.js';
import { addReachOptions, findPod, reachAgents, statuses, type ReachOptions } from './agents.js';
import { outputOption, parseAnswer, print, type Format } from './output.js';
import { tableText } from './table.js';

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
  addReachOptions(command)
    .argument('<pod>', 'POD, NAMESPACE/POD or POD.NAMESPACE; or the name of a workload, for the first of its pods')
    .argument('<host:port>', 'an address, or a service\'s name as the pod would write it; IPv6 as [ADDRESS]:PORT', readTarget)
    .option('-n, --namespace <name>', 'the pod\'s namespace (default: all, where a name alone does not fit two pods)')
    .addOption(outputOption())
    .action(async (word: string, { host, port }: Target, options: ReachOptions & { namespace?: string; output: Format }) => {
      const reach = await reachAgents(options);
      try {
        const { agent, pod } = findPod(await statuses(reach), word, options.namespace);
        const query = new URLSearchParams({ pod: `${pod.namespace}/${pod.name}`, host, port: String(port) });
        const explanation = parseAnswer<Explanation>(await agent.ask(`/v1/explain?${query.toString()}`), 'the agent\'s explanation');
        print(options.output, explanation, () => render(explanation));
      } finally {
        reach.close();
      }
    });
}

export function readTarget(text: string): Target {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (!match || port < 1 || port > 65_535) throw new InvalidArgumentError('expected HOST:PORT, or [IPV6]:PORT, with a port from 1 to 65535');
  return { host: (match[1] ?? match[2]) as string, port };
}

function render({ pod, host, port, addresses, http }: Explanation): string {
  const lines: string[] = [];
  for (const { address, way, reasons, endpoints, destinations = [] } of addresses) {
    lines.push(`${pod} -> ${host === address ? '' : `${host} = `}${address.includes(':') ? `[${address}]` : address}:${port}`, `  ${WAYS[way]}`, ...reasons.map((reason) => `  because ${reason}`));
    if (endpoints) {
      const rows = endpoints.map((each) => [`  ${each.address}`, String(each.port), `${(each.share * 100).toFixed(1)} %`, each.leftOut ? 'left out: it did not answer' : '']);
      lines.push(tableText(['  ENDPOINT', 'PORT', 'SHARE', 'NOTE'], rows).trimEnd());
    }
    lines.push(...destinations.flatMap(destinationLines));
  }
  if (http) lines.push(...httpLines(http));
  return `${lines.join('\n')}\n`;
}

function httpLines({ isLive, reason, routes, ejected }: NonNullable<Explanation['http']>): string[] {
  return [
    `  HTTP fast path: ${isLive ? 'on' : `off, since ${reason ?? ''}`}`,
    ...routes.map(({ name, isFast, reason: why, sampled }) => `    ${name}: ${isFast ? `repeated by the kernel once Envoy has shown the way${sampled === undefined ? '' : `; traced, by Envoy, are ${+(sampled * 100).toFixed(2)} % and those that come as sampled`}` : `Envoy's: ${why ?? ''}`}`),
    ...ejected.map(({ cluster, address, port, forMs }) => `    ${address.includes(':') ? `[${address}]` : address}:${port} of ${cluster}: ejected since it failed, for ${(forMs / 1_000).toFixed(1)} s more`),
  ];
}

const ANSWERS: Record<Destination['policy']['answer'], string> = { none: 'no policy', allow: 'allowed', deny: 'denied', unknown: 'not known here' };

function destinationLines({ pod, address, port, policy, probation }: Destination): string[] {
  const [at, judge] = policy.judge === 'envoy' ? ['at L4 ', '; the node\'s Envoy judges, by these policies and by those of L7, which may say otherwise of a request'] : ['', ''];
  const lines = [`  ${pod} ${address.includes(':') ? `[${address}]` : address}:${port}`, `    ${at}${ANSWERS[policy.answer]}: ${policy.reason}${judge}`];
  if (!probation) return lines;
  const { listener, clients } = probation;
  lines.push(`    server: ${listener ? `${listener.verdict} (${listener.reason})` : 'nothing has answered there yet'}`);
  if (clients.length === 0) lines.push('    client: no program of the pod has been seen yet');
  return [...lines, ...clients.map((client) => `    client ${client.program ?? client.key}: ${client.verdict} (${client.reason})`)];
}
