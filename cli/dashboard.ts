/** `underpass dashboard`: the mesh in a browser, or a way to the cluster's Grafana, Prometheus or Jaeger. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Argument, type Command } from 'commander';
import { wholeNumber } from '../common/arguments.js';
import type { About } from '../common/dashboard-views.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { isRefusal } from '../common/kube/client.js';
import { forwardPort } from '../common/kube/port-forward.js';
import { ClosableStore } from '../common/lifecycle.js';
import { projectRoot } from '../common/paths.js';
import { VERSION } from '../common/version.js';
import { addReachOptions, answered, apiServer, askEach, reachAgents, type ReachOptions } from './agents.js';
import { ADDONS, findAddon, type Addon } from './dashboard/addons.js';
import { openBrowser } from './dashboard/browser.js';
import { Collector } from './dashboard/collector.js';
import { dashboardFiles } from './dashboard/files.js';
import { dashboardRoutes } from './dashboard/routes.js';
import { DashboardServer } from './dashboard/server.js';
import { AGENT_NAMESPACE } from './install/rbac.js';
import { parseAnswer } from './output.js';
import { followSignals, outputClosed } from './signals.js';

interface Options extends ReachOptions {
  port?: number;
  browser: boolean;
  report?: string;
  ofAgent?: boolean;
  namespace?: string;
}

/** Of an agent behind a socket; in a cluster each question is a program that is started in a container. */
const SOCKET_EVERY_MS = 1_000;
const CLUSTER_EVERY_MS = 5_000;

export function configure(command: Command): void {
  addReachOptions(command)
    .addArgument(new Argument('[what]', 'whose').choices(['ours', ...Object.keys(ADDONS)]).default('ours'))
    .option('--port <port>', 'on 127.0.0.1 (default: any that is free)', wholeNumber(1, 65_535))
    .option('--no-browser', 'print the address, and open nothing')
    .option('--report <file>', 'ours: the benchmark\'s, as `underpass bench --html FILE` writes it (default: docs/results/bench.html)')
    .option('--of-agent', 'ours: print where the agents serve it themselves (`underpass agent --dashboard-port`), with the token, and end')
    .option('-n, --namespace <name>', 'of the others: where it runs (default: looked for in all)')
    .addHelpText('after', `
Ours shows the live service graph, workloads, nodes, configuration objects on each node, and the benchmark's report. It is read-only,
serves 127.0.0.1 alone, and says nothing of the mesh without the token that is in the address. The others are reached through
the API server, which needs list of pods, and get and create of pods/portforward. Ctrl-C ends it.`)
    .action((what: string, options: Options) => (what !== 'ours' ? other(what as Addon, options) : options.ofAgent ? ofAgents(options) : ours(options)));
}

async function ours(options: Options): Promise<void> {
  const store = new ClosableStore();
  const signals = store.add(followSignals());
  try {
    const reportFile = options.report ?? join(projectRoot, 'docs', 'results', 'bench.html');
    if (options.report !== undefined && !existsSync(reportFile)) throw new UnderpassError('UNDERPASS_BAD_OPTION', `--report ${options.report}: there is no such file`);
    const files = dashboardFiles();
    const reach = await reachAgents(options);
    store.defer(() => reach.close());
    const everyMs = reach.client ? CLUSTER_EVERY_MS : SOCKET_EVERY_MS;
    const about: About = { version: VERSION, place: reach.client ? `${reach.agents.length} agents of ${reach.client.server.url.host}` : reach.agents[0]!.place, everySeconds: everyMs / 1_000, ...(existsSync(reportFile) ? { report: reportFile } : {}) };
    const collector = store.add(new Collector({ agents: reach.agents, everyMs }));
    const server = store.add(await DashboardServer.listen({ port: options.port ?? 0, files, api: dashboardRoutes(collector, about) }));
    await show(server.address, options, store, signals.signal);
  } finally {
    await store.close();
  }
}

/** An agent listens on its own node's 127.0.0.1: from elsewhere its port is forwarded. */
async function ofAgents(options: Options): Promise<void> {
  const reach = await reachAgents(options);
  try {
    const answers = answered(reach.agents, await askEach(reach.agents, async (agent) => ({ agent, ...parseAnswer<{ address: string }>(await agent.ask('/v1/dashboard'), 'where the agent serves the dashboard') })));
    for (const { agent, address } of answers) {
      if (reach.client) process.stderr.write(`node ${agent.node ?? ''}: kubectl port-forward -n ${AGENT_NAMESPACE} ${agent.place.replace(`${AGENT_NAMESPACE}/`, '').replace(' ', '/')} ${new URL(address).port}\n`);
      process.stdout.write(`${address}\n`);
    }
  } finally {
    reach.close();
  }
}

async function other(addon: Addon, options: Options): Promise<void> {
  const store = new ClosableStore();
  const signals = store.add(followSignals());
  try {
    const client = await apiServer(options);
    store.defer(() => client.close());
    const { namespace, pod } = await findAddon(client, addon, options.namespace);
    const { port } = ADDONS[addon];
    const forwarded = store.add(await forwardPort(client.server, {
      namespace, pod, port, listen: options.port ?? 0, onProblem: (reason) => process.stderr.write(`forwarding to ${namespace}/${pod}: ${reason}\n`),
    }).catch((cause: unknown) => {
      const hint = isRefusal(cause, 401, 403) ? 'it needs get and create of pods/portforward' : `kubectl port-forward -n ${namespace} ${pod} ${port} does the same`;
      throw new UnderpassError(isRefusal(cause, 401, 403) ? 'UNDERPASS_NO_PERMISSION' : 'UNDERPASS_API_SERVER_UNREACHABLE', `forwarding a port to ${namespace}/${pod}: ${errorMessage(cause)}`, { cause, hint });
    }));
    process.stderr.write(`${addon} is pod ${namespace}/${pod}\n`);
    await show(`http://127.0.0.1:${forwarded.port}/`, options, store, signals.signal);
  } finally {
    await store.close();
  }
}

/** Until Ctrl-C, or until nobody reads what is printed. */
async function show(address: string, { browser }: Options, store: ClosableStore, signal: AbortSignal): Promise<void> {
  process.stdout.write(`${address}\n`);
  if (browser) store.defer(openBrowser(address));
  const end = AbortSignal.any([signal, outputClosed]);
  if (!end.aborted) await new Promise<void>((resolve) => end.addEventListener('abort', () => resolve(), { once: true }));
}
