/** The CLI's commands: one file each, loaded only when it is asked for, so that `underpass --help` starts fast. */
import { existsSync } from 'node:fs';
import { Command } from 'commander';
import { UnderpassError } from '../common/errors.js';
import { VERSION } from '../common/version.js';

/** What each command's file exports: adds its options, arguments and action. */
export interface CommandModule {
  configure(command: Command): void;
}

export interface CommandEntry {
  name: string;
  alias?: string;
  summary: string;
  load: () => Promise<CommandModule>;
}

export const commands: readonly CommandEntry[] = [
  { name: 'doctor', summary: 'what this kernel and machine can do, and what a no costs', load: () => import('./doctor.js') },
  { name: 'demo', summary: 'the whole way once: routing, live toggles, restart and benchmark on this machine', load: () => import('./demo.js') },
  { name: 'bench', summary: 'latency, throughput and CPU of each mode, compared in one run', load: () => import('./bench.js') },
  { name: 'node', summary: 'the node agent, with the control plane in the same process if asked', load: () => import('./node.js') },
  { name: 'agent', summary: 'the node agent alone, or --cleanup of all it ever made', load: () => import('./agent.js') },
  { name: 'pilot', summary: 'the control plane alone', load: () => import('./pilot.js') },
  { name: 'install', summary: 'puts Underpass on a Kubernetes cluster, or prints the objects', load: () => import('./install.js') },
  { name: 'uninstall', summary: 'takes it away again, and leaves the nodes as they were', load: () => import('./uninstall.js') },
  { name: 'validate', summary: 'checks Kubernetes and Istio YAML: file, line, field, expectation', load: () => import('./validate.js') },
  { name: 'analyze', summary: 'what of the written configuration will not do what was meant, by Istio\'s codes', load: () => import('./analyze.js') },
  { name: 'lab', summary: 'nodes and pods on this machine out of plain Kubernetes YAML', load: () => import('./lab.js') },
  { name: 'label', summary: 'sets or removes labels of a namespace or pod, e.g. underpass.io/mode=node', load: () => import('./label.js') },
  { name: 'explain', summary: 'which way a pod\'s connection would take, and why', load: () => import('./explain.js') },
  { name: 'proxy-config', alias: 'pc', summary: 'what the shared Envoy has for a pod: listeners, routes, clusters, endpoints, secrets, log levels', load: () => import('./proxy-config.js') },
  { name: 'describe', summary: 'what applies to a pod or a service: routes, policies, mutual TLS, way, gateways', load: () => import('./describe.js') },
  { name: 'flows', summary: 'requests and connections of this node as they end, whichever way they take', load: () => import('./flows.js') },
  { name: 'trace', summary: 'connections\' lives through the kernel\'s hooks, as they go', load: () => import('./trace.js') },
  { name: 'capture', summary: 'what the short-circuited sockets of a pod send, for Wireshark', load: () => import('./capture.js') },
  { name: 'ps', summary: 'pods, their mode and way, and who is in sync', load: () => import('./ps.js') },
  { name: 'wait', summary: 'until agents are ready or in sync, or a pod is enrolled, on every node', load: () => import('./wait.js') },
  { name: 'config-status', summary: 'which configuration objects are in force on which nodes, in which version', load: () => import('./config-status.js') },
  { name: 'fast-path', summary: 'the HTTP fast path of this node: how it is, and its switch', load: () => import('./fast-path.js') },
  { name: 'probation', summary: 'which programs were seen to be event-driven, and so are short-circuited', load: () => import('./probation.js') },
  { name: 'top', summary: 'services or workloads by their rate, live', load: () => import('./top.js') },
  { name: 'dashboard', summary: 'the mesh in a browser: live service graph, nodes, configuration; or the cluster\'s Grafana, Prometheus, Jaeger', load: () => import('./dashboard.js') },
  { name: 'bug-report', summary: 'an archive of state and configuration for whoever looks into a problem, without secrets', load: () => import('./bug-report.js') },
  { name: 'version', summary: 'of this program, the agents, their Envoys and kernels', load: () => import('./version.js') },
  { name: 'completion', summary: 'prints a script that completes commands, options and pods\' names in a shell', load: () => import('./completion.js') },
  { name: 'request', summary: 'an answer of the agent\'s admin API as it is', load: () => import('./request.js') },
];

/** @param wanted which commands are to have their options: by name or alias, or all */
export async function buildProgram(wanted: string | 'all' | undefined): Promise<Command> {
  const program = new Command('underpass')
    .description('A service mesh without sidecars: the kernel moves the bytes, one Envoy per node decides.')
    .version(VERSION)
    .showHelpAfterError('(see --help)')
    .exitOverride();
  for (const { name, alias, summary, load } of commands) {
    const isLeftOut = !existsSync(new URL(`./${name}.js`, import.meta.url));
    const command = program.command(name, { hidden: isLeftOut }).description(summary);
    if (alias !== undefined) command.alias(alias);
    command.exitOverride().showHelpAfterError();
    if (wanted === undefined || (wanted !== 'all' && name !== wanted && alias !== wanted)) continue;
    if (!isLeftOut) (await load()).configure(command);
    else command.helpOption(false).allowUnknownOption().allowExcessArguments().action(() => {
      throw new UnderpassError('UNDERPASS_COMMAND_LEFT_OUT', `underpass ${name}: the image is without this command`, { hint: 'it runs on a developer\'s machine, from a checkout' });
    });
  }
  return program;
}
