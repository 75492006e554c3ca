import { Argument, type Command } from 'commander';
import { askAgent, instancePaths, type AgentFastPathStatus } from '../agent/client.js';
import { requestsBetween } from '../bench/requests.js';
import { addInstanceOptions } from './instance-options.js';
import { outputOption, parseAnswer, print, type Format } from './output.js';

export function configure(command: Command): void {
  addInstanceOptions(command)
    .addArgument(new Argument('[state]', 'switches it, until the agent ends; without: says how it is').choices(['on', 'off']))
    .addOption(outputOption())
    .addHelpText('after', '\nOff, all requests go through Envoy; nothing that is under way is cut. For a namespace or a pod:\nunderpass label NAMESPACE underpass.io/acceleration=l4. See docs/http-fast-path.md.')
    .action(async (state: 'on' | 'off' | undefined, options: { runDir: string; instance: string; output: Format }) => {
      const { adminSocket } = instancePaths(options);
      const text = await askAgent(adminSocket, `/v1/http-fast-path${state === undefined ? '' : `?on=${state === 'on'}`}`, { method: state === undefined ? 'GET' : 'POST' });
      const status = parseAnswer<AgentFastPathStatus>(text, 'the state of the HTTP fast path');
      const { node = {} } = parseAnswer<{ node?: Record<string, number> }>(await askAgent(adminSocket, '/v1/counters'), 'the node\'s counters');
      print(options.output, status, () => `${render(status, node)}\n`);
    });
}

/** `on, 4 pods live, 1 waiting for Envoy; 2 classes` */
export function fastPathLine({ on, reason, pods, classes }: AgentFastPathStatus): string {
  return `${on ? 'on' : `off - ${reason ?? ''}`}; ${pods.live} pods live, ${pods.suspended} waiting for Envoy; ${classes} ${classes === 1 ? 'table' : 'tables'}`;
}

/** `12777 without Envoy; through it: not learnt yet 8` */
function requestsText(counters: Readonly<Record<string, number>>): string {
  const { fast, envoy } = requestsBetween(0, {}, counters) ?? { fast: 0, envoy: {} };
  const reasons = Object.entries(envoy).sort(([, a], [, b]) => b - a).map(([reason, count]) => `${reason} ${count}`);
  return `${fast} without Envoy${reasons.length > 0 ? `; through it: ${reasons.join(', ')}` : ''}`;
}

function render(status: AgentFastPathStatus, counters: Readonly<Record<string, number>>): string {
  const { clientsEnded, clientsReset, serversReset, failed } = status.endings;
  return [
    `HTTP fast path ${fastPathLine(status)}`,
    ...(status.on && status.classes === 0 ? ['               no pod has a route that the kernel may repeat yet: `underpass probation` and `underpass explain POD HOST:PORT` say why'] : []),
    `requests       ${requestsText(counters)}`,
    `ended          ${clientsEnded} clients as their server did, ${clientsReset} reset in the middle of an answer, ${serversReset} servers whose client went${failed > 0 ? `; ${failed} could not be` : ''}`,
    `changes        ${status.cutDrains} did not wait for all that was under way${status.lostEnds > 0 ? `; ${status.lostEnds} ends of connections were lost` : ''}`,
    `upstream       ${status.upstreams.open} connections that are one client's alone, ${status.upstreams.most} at one server; ${status.upstreamsEnded} ended as their client was gone`,
    ...status.tables.outliers.clusters.flatMap(({ cluster, ejected }) => ejected.map(({ address, port, forMs }) => `ejected        ${address.includes(':') ? `[${address}]` : address}:${port} of ${cluster}, for ${(forMs / 1_000).toFixed(1)} s more`)),
    ...status.problems.map(({ class: key, reason }) => `Envoy's        ${key}: ${reason}`),
  ].join('\n');
}
