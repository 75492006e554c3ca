import type { Command } from 'commander';
import type { AgentStatus } from '../agent/client.js';
import { formatError, type ValidationError } from '../common/kube/yaml.js';
import { addReachOptions, reachAgents, statuses, type ReachOptions } from './agents.js';
import { fastPathLine } from './fast-path.js';
import { outputOption, print, type Format } from './output.js';
import { summary } from './probation.js';
import { tableText } from './table.js';

export function configure(command: Command): void {
  addReachOptions(command)
    .addOption(outputOption())
    .option('-A, --all', 'pods that are not enrolled, too')
    .addHelpText('after', '\nOf a cluster -o json and -o yaml print {"nodes": [...]}, a status for each node.')
    .action(async (options: ReachOptions & { output: Format; all?: boolean }) => {
      const reach = await reachAgents(options);
      try {
        const nodes = (await statuses(reach)).map(({ status }) => status);
        print(options.output, reach.client ? { nodes } : nodes[0], () => nodes.map((status) => render(status, options.all ?? false)).join('\n'));
      } finally {
        reach.close();
      }
    });
}

export function render(status: AgentStatus, all: boolean): string {
  const pods = status.pods.filter((pod) => all || pod.mode !== 'off' || pod.state !== 'off' || pod.reason !== undefined);
  const rows = pods.map((pod) => [
    pod.namespace,
    pod.name,
    pod.mode,
    pod.state,
    pod.hooks === 'root' ? `${pod.way} (at the root)` : pod.way,
    status.acceleration.on || pod.acceleration === 'off' ? pod.acceleration : `${pod.acceleration} (off)`,
    syncOf(pod, status),
    pod.error ?? pod.reason ?? '',
  ]);
  const { proxy } = status;
  // Only an embedded control plane tells; a remote one has its own log.
  const problems = (status.controlPlane as { problems?: readonly ValidationError[] } | undefined)?.problems ?? [];
  const nacks = proxy.nacks.map(({ type, name, message, objects = [] }) => `               ${type} ${name}${objects.length > 0 ? ` (${objects.join(', ')})` : ''}: ${message}`);
  return tableText(['NAMESPACE', 'POD', 'MODE', 'STATE', 'WAY', 'ACCELERATION', 'SYNC', 'NOTE'], rows) + [
    ...(pods.length === 0 ? ['(no pod is enrolled: label a namespace underpass.io/mode=node)'] : []),
    '',
    `node           ${status.node}, instance ${status.instance}, process ${status.pid} since ${status.since}${status.ready ? '' : ' - not ready'}`,
    ...status.waiting.map(({ pid, since }) => `               process ${pid} waits since ${since} to take over when this one has ended`),
    ...status.notReady.map((reason) => `               missing: ${reason}`),
    `pods from      ${status.workloads.source} (${status.workloads.pods})${status.workloads.problem === undefined ? '' : ` - ${status.workloads.problem}`}`,
    `Envoy          ${proxy.envoy.pid === undefined ? 'not running' : `process ${proxy.envoy.pid}${proxy.envoy.version ? `, version ${/\d+\.\d+\.\d+/.exec(proxy.envoy.version)?.[0] ?? proxy.envoy.version}` : ''}${proxy.envoy.adopted ? ', taken over' : ''}${proxy.envoy.draining === undefined ? '' : `; process ${proxy.envoy.draining}, which it replaces, drains`}`}`,
    `control plane  ${proxy.controlPlane.connected ? 'connected' : 'not connected'}${proxy.controlPlane.address ? ` (${proxy.controlPlane.address})` : ''}${proxy.controlPlane.lastError && !proxy.controlPlane.connected ? ` - ${proxy.controlPlane.lastError}` : ''}`,
    ...certificateLines(proxy.certificates),
    `redirection    ${status.redirection.default}${status.redirection.bpfProblem === undefined ? '' : ` - no BPF: ${status.redirection.bpfProblem}`}`,
    ...rootLine(status.pods),
    `acceleration   ${status.acceleration.on ? 'on' : `off - ${status.acceleration.reason ?? ''}`}`,
    ...(status.httpFastPath ? [`HTTP fast path ${fastPathLine(status.httpFastPath)}`] : []),
    `probation      ${summary(status.probation)}`,
    ...(status.metrics ? [`metrics        http://${status.metrics.address}/metrics${status.metrics.problem === undefined ? '' : ` - nobody is served there: ${status.metrics.problem}`}`] : []),
    ...serviceLines(status.services),
    `rejected       ${nacks.length === 0 ? 'nothing' : `${nacks.length} resources keep their last good version`}`,
    ...nacks,
    ...consistencyLines(status.consistency),
    ...policyLines(status.policies),
    ...problems.map((problem, index) => `${index === 0 ? 'configuration  ' : '               '}${formatError(problem)}`),
    '',
  ].join('\n');
}

/** Of what Envoy refused of the pod, what drifts, and whether its control plane is there. */
export function syncOf(pod: AgentStatus['pods'][number], { proxy, consistency }: AgentStatus): string {
  const name = `Pod/${pod.name}.${pod.namespace}`;
  const drifts = Object.values(consistency ?? {}).flatMap(({ drifting }) => drifting).filter(({ objects, repair }) => repair !== 'done' && objects.includes(name));
  const nacks = proxy.nacks.filter((nack) => nack.name.startsWith(`pod/${pod.uid}/`));
  const stale = proxy.classes.find(({ pods }) => pods.includes(pod.uid));
  const found = [
    ...new Set(nacks.map(({ type }) => `NACK ${type}`)),
    ...new Set(drifts.map(({ kind }) => `DRIFT ${kind}`)),
    ...(stale?.stale ? [`STALE${stale.since === undefined ? '' : ` since ${stale.since}`}`] : []),
  ];
  if (found.length > 0) return found.join(', ');
  return pod.settled ? 'in sync' : pod.drainingConnections !== undefined ? `${pod.drainingConnections} connections left` : 'changing';
}

/** Of what others attached beside the agent's; all of it by -o json. */
const MOST_FOREIGN = 5;

/** What is not as it should be, what was lately, and when it was looked at. */
function consistencyLines(consistency: AgentStatus['consistency']): string[] {
  const all = Object.entries(consistency ?? {});
  if (all.length === 0) return [];
  const line = ({ kind, name, state, objects, detail, since, times, repair, reason }: (typeof all)[number][1]['drifting'][number]): string =>
    `${kind} ${name}${objects.length > 0 ? ` (${objects.join(', ')})` : ''}: ${state}${detail === undefined ? '' : `, ${detail}`}, since ${since}${times > 1 ? `, ${times} times` : ''}; ${repair === 'done' ? 'repaired, to be looked at again' : repair}${reason === undefined ? '' : `: ${reason}`}`;
  const looked = all.map(([name, { endedAt, tookMs }]) => `${name} ${endedAt === undefined ? 'not yet' : `until ${endedAt} within ${((tookMs ?? 0) / 1_000).toFixed(1)} s`}`).join(', ');
  return [
    `compared       ${looked}`,
    ...all.flatMap(([, { drifting }]) => drifting).map((each) => `               ${line(each)}`),
    ...all.flatMap(([, { foreign = [] }]) => foreign).slice(0, MOST_FOREIGN).map(({ kind, name, objects, reason }) => `               beside: ${kind} ${name}${objects.length > 0 ? ` (${objects.join(', ')})` : ''}: ${reason ?? ''}`),
    ...all.flatMap(([, { problems }]) => problems).map(({ check, reason }) => `               ${check} can't be compared: ${reason}`),
  ];
}

function rootLine(pods: AgentStatus['pods']): string[] {
  const { length } = pods.filter(({ hooks }) => hooks === 'root');
  return length === 0 ? [] : [`               ${length} ${length === 1 ? 'pod has' : 'pods have'} no cgroup v2 directory: hooks at the root of the hierarchy tell them by their network namespaces`];
}

/** What is wrong, and who decides which ports' callers. */
function policyLines(policies: AgentStatus['policies']): string[] {
  const lines = (policies?.unreadable ?? []).map(({ pod, reasons }) => `${pod} lets nobody new in without Envoy: ${reasons.join('; ')}`);
  if (policies?.problem !== undefined) lines.push(policies.problem);
  for (const { pod, kernel, envoy } of policies?.inbound ?? []) {
    const rest = Object.entries(envoy).map(([port, why]) => `${port} by Envoy, since ${why}`);
    if (kernel.length + rest.length > 0) lines.push(`${pod}: ${[...(kernel.length > 0 ? [`${kernel.join(', ')} by the kernel for pods of this node`] : []), ...rest].join('; ')}`);
  }
  return lines.map((line, index) => `${index === 0 ? 'policies       ' : '               '}${line}`);
}

function serviceLines(services: AgentStatus['services']): string[] {
  if (!services) return [];
  return [`services       ${services.services} addresses and ports decided at connect()${services.refused === 0 ? '' : `, no room for ${services.refused} more, which go through Envoy`}`];
}

function certificateLines(certificates: AgentStatus['proxy']['certificates']): string[] {
  if (!certificates) return ['certificates   none: no CA is named, so there is no mutual TLS'];
  const { ca, problem, identities } = certificates;
  const valid = identities.filter(({ notAfter, expired }) => notAfter !== undefined && !expired);
  const expired = identities.filter((identity) => identity.expired);
  return [`certificates   ${valid.length} of ${identities.length} from ${ca}${expired.length === 0 ? '' : `, ${expired.map(({ id, notAfter }) => `that of ${id} expired at ${notAfter}`).join(', ')}: its new connections are refused`}${problem === undefined ? '' : ` - ${problem}`}`];
}
