/** `underpass explain`: which way a pod's connection would take, and why, from the live maps. */
import { InvalidArgumentError, type Command } from 'commander';
import type { Explanation } from '../agent/client.js';
import { addReachOptions, findPod, reachAgents, statuses, type ReachOptions } from './agents.js';
import { readConfig, readHosts } from './envoy/config.js';
import type { ShownRequest } from './envoy/match.js';
import { explainRequest, type RequestExplanation } from './envoy/route.js';
import { outputOption, paint, parseAnswer, print, type Format } from './output.js';
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
    .option('--http <request>', 'and what becomes of this request, as \'GET /path?query\'', readRequestLine)
    .option('-H, --header <name: value>', 'of the request; may be given several times. Without a Host it is the destination as it was written', readHeader, [])
    .addOption(outputOption())
    .addHelpText('after', HELP)
    .action(async (word: string, { host, port }: Target, options: ReachOptions & { namespace?: string; output: Format; http?: RequestLine; header: [string, string][] }) => {
      const reach = await reachAgents(options);
      try {
        const { agent, pod, status } = findPod(await statuses(reach), word, options.namespace);
        const query = new URLSearchParams({ pod: `${pod.namespace}/${pod.name}`, host, port: String(port) });
        const explanation = parseAnswer<Explanation>(await agent.ask(`/v1/explain?${query.toString()}`), 'the agent\'s explanation');
        const request = options.http && toRequest(options.http, options.header, { host, port });
        const explained = request && explanation.addresses.some(({ way }) => way === 'envoy') ? explainRequest(await readConfig(agent), await readHosts(agent), pod, explanation.addresses.map(({ address }) => address), port, request, status.pods) : undefined;
        print(options.output, explained ? { ...explanation, request: explained } : explanation, () => `${render(explanation)}${explained ? renderRequest(explained) : request ? NO_PROXY : ''}`);
      } finally {
        reach.close();
      }
    });
}

const HELP = `
With --http: the route table, virtual host and route of the pod's own Envoy configuration that the request takes, the clusters
and endpoints with their shares of requests, and which policy of the server lets it in or refuses it. What hangs on something
that is not known here (a JSON Web Token's claims, an external authorizer, a pod of another node) is said to be so.
Examples:
  underpass explain shop/client nginx:80
  underpass explain shop/client nginx:80 --http 'GET /cart' -H 'user: jesse'`;
const NO_PROXY = '  HTTP: no proxy reads it on this way, so that no route applies\n';

interface RequestLine { method: string; target: string }

function readRequestLine(text: string): RequestLine {
  const [, method, target] = /^([A-Za-z]+) (\/\S*|\*)$/.exec(text) ?? [];
  if (method === undefined || target === undefined) throw new InvalidArgumentError('expected a method and a path, e.g. \'GET /\'');
  return { method: method.toUpperCase(), target };
}

function readHeader(text: string, before: [string, string][]): [string, string][] {
  const [, name, value] = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):\s*(.*)$/.exec(text) ?? [];
  if (name === undefined) throw new InvalidArgumentError('expected NAME: VALUE');
  return [...before, [name.toLowerCase(), value!]];
}

function toRequest({ method, target }: RequestLine, headers: [string, string][], { host, port }: Target): ShownRequest {
  const named = headers.find(([name]) => name === 'host')?.[1];
  return { method, target, host: named ?? `${host.includes(':') ? `[${host}]` : host}${port === 80 ? '' : `:${port}`}`, headers: headers.filter(([name]) => name !== 'host') };
}

const VERDICTS: Record<RequestExplanation['verdict'], { style: 'good' | 'bad' | 'warning'; text: string }> = {
  allow: { style: 'good', text: 'allowed' },
  deny: { style: 'bad', text: 'denied (403)' },
  mixed: { style: 'warning', text: 'allowed or denied, by the endpoint that is drawn' },
  unknown: { style: 'warning', text: 'not known here' },
  'not-routed': { style: 'bad', text: 'not forwarded' },
  'answered-by-envoy': { style: 'good', text: 'answered by Envoy itself' },
};

function renderRequest({ request, listener, routeTable, virtualHost, route, clusters, endpoints, verdict, reason }: RequestExplanation): string {
  const lines = [`  ${request.method} ${request.target} to ${request.host}`];
  if (listener !== undefined) lines.push(`    listener     ${listener}`);
  if (routeTable !== undefined) lines.push(`    route table  ${routeTable}`);
  if (virtualHost !== undefined) lines.push(`    host         ${virtualHost}`);
  if (route) lines.push(`    route        ${route.index + 1} of ${route.of}${route.name === '' ? '' : ` "${route.name}"`}, ${route.config === undefined ? 'of no rule that anybody wrote: the service\'s own' : `of ${route.config}`}: ${route.action}${route.rewrite === undefined ? '' : `, path rewritten to ${route.rewrite}`}`);
  for (const { host, subset, share, lbPolicy, outlierDetection, config, mtls } of clusters) lines.push(`    cluster      ${(share * 100).toFixed(0)} % ${host}${subset === '' ? '' : `, subset ${subset}`}: ${lbPolicy}${outlierDetection ? ', outlier detection' : ''}${mtls ? ', mutual TLS where the endpoint takes it' : ''}${config === undefined ? '' : `, by ${config}`}`);
  if (endpoints.length > 0) {
    const rows = endpoints.map(({ pod, address, port, share, health, locality, policy }) => [`    ${pod ?? ''}`, `${address.includes(':') ? `[${address}]` : address}:${port}`, `${(share * 100).toFixed(1)} %`, health === 'healthy' ? health : paint('warning', health), locality, policy ? `${policy.answer}: ${policy.reason}` : 'no policy that Envoy judges']);
    lines.push(tableText(['    POD', 'ENDPOINT', 'SHARE', 'HEALTH', 'LOCALITY', 'POLICY'], rows).trimEnd());
  }
  return `${lines.join('\n')}\n    ${paint(VERDICTS[verdict].style, VERDICTS[verdict].text)}: ${reason}\n`;
}

export function readTarget(text: string): Target {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:\s]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (!match || port < 1 || port > 65_535) throw new InvalidArgumentError('expected HOST:PORT, or [IPV6]:PORT, with a port from 1 to 65535');
  return { host: (match[1] ?? match[2]) as string, port };
}

function render({ pod, host, port, hooks, addresses, http }: Explanation): string {
  const lines: string[] = hooks === 'root' ? [`${pod} has no cgroup v2 directory: it is told by its network namespace, by hooks at the root of the hierarchy`] : [];
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
