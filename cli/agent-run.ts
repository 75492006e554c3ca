/** What `underpass agent` and `underpass node` share: the options of a node agent, and its life from start to signal. */
import { once } from 'node:events';
import { join } from 'node:path';
import { Option, type Command } from 'commander';
import { socketAddress, wholeNumber, type SocketAddress } from '../common/arguments.js';
import { Agent, CALLERS_HEAR_MS, cleanup, DEFAULT_ACCESS_LOG_RATE, instancePaths, realCleanupParts, realParts, removeCniPlugin, silence, WHEN_AWAY, type DiscoveryTls, type NodeCaFactory } from '../agent/index.js';
import { errorMessage } from '../common/errors.js';
import { keepHeapSmall } from '../common/heap.js';
import type { CertificateAuthority } from '../common/identity/ca.js';
import { TLS_MODE_LABEL } from '../common/identity/announcements.js';
import { LabClient } from '../common/lab-api.js';
import { keepLogTail, logger } from '../common/log.js';
import { defaultBpffsDir } from '../common/paths.js';
import { sleep } from '../common/retry.js';
import { ProbeFile, readiness } from './agent-pod.js';
import type { HostedDashboard } from './dashboard/hosted.js';
import { apiServerOf, podsOfCluster, podsOfLab, type Home, type Lab, type ToldPods } from './agent-home.js';
import { recordServes, servedLab } from './orphans.js';
import { addInstanceOptions } from './instance-options.js';
import { followSignals } from './signals.js';

export interface AgentCliOptions {
  node?: string;
  lab?: string;
  labSocket?: string;
  kubeconfig?: string;
  context?: string;
  clusterId?: string;
  ambientLabel?: boolean;
  cniConfDir?: string;
  cniBinDir: string;
  cniWhenAway: (typeof WHEN_AWAY)[number];
  runDir: string;
  bpffs: string;
  instance: string;
  redirection: 'auto' | 'bpf' | 'iptables';
  acceleration: 'off' | 'l4' | 'l7' | 'force';
  concurrency?: number;
  envoyLauncher?: string;
  trustDomain?: string;
  flowLog?: boolean;
  accessLogRate?: number;
  metricsAddress?: SocketAddress;
  dashboardPort?: number;
  httpFastPath: 'on' | 'off';
  cleanup?: boolean;
  cleanupOnExit?: boolean;
  daemonset?: string;
  readyFile?: string;
  aliveFile?: string;
}

export function addAgentOptions(command: Command): Command {
  return addInstanceOptions(command)
    .option('--node <name>', 'the node whose pods to serve (default: the lab\'s only node; in a cluster $NODE_NAME, else the host\'s name)')
    .addOption(new Option('--lab <name>', 'take the pods from this lab').conflicts('labSocket'))
    .option('--lab-socket <path>', 'take the pods from the lab behind this socket')
    .addOption(new Option('--kubeconfig <file>', 'take the pods from the API server that this file leads to (default: without a lab, that of the cluster that this is a pod of)').conflicts(['lab', 'labSocket']))
    .option('--context <name>', 'of the kubeconfig (default: its current one)')
    .option('--cluster-id <name>', 'with Kubernetes: what proxies name as the cluster that they are in (default Kubernetes)')
    .option('--ambient-label', "Istio's label istio.io/dataplane-mode enrols too: ambient as underpass.io/mode=node does, none of a pod as off; of both on one object underpass.io/mode counts")
    .option('--cni-conf-dir <dir>', "with Kubernetes: put a plugin into the node's CNI configuration in this folder, as /etc/cni/net.d, by which pods are enrolled before their programs start")
    .option('--cni-bin-dir <dir>', 'where the container runtime finds CNI plugins', '/opt/cni/bin')
    .addOption(new Option('--cni-when-away <what>', 'what becomes of new pods while no agent answers').choices(WHEN_AWAY).default('wait-labelled'))
    .option('--bpffs <dir>', 'where BPF links and maps are pinned', defaultBpffsDir)
    .addOption(new Option('--redirection <way>', 'for pods without a label of their own').choices(['auto', 'bpf', 'iptables']).default('auto'))
    .addOption(new Option('--acceleration <level>', 'for pods without a label of their own; l7: the HTTP fast path too').choices(['off', 'l4', 'l7', 'force']).default('l4'))
    .option('--concurrency <n>', 'worker threads of the shared Envoy (default: one a CPU)', wholeNumber(1, 1024))
    .option('--envoy-launcher <socket>', 'where underpass-launcher listens, which starts the shared Envoy in a container of its own (default: the agent starts it)')
    .option('--trust-domain <domain>', 'SPIFFE trust domain of the pods (default: what the control plane says of each)')
    .addOption(new Option('--http-fast-path <on|off>', 'at the start, for pods whose acceleration is l7; `underpass fast-path` switches it').choices(['on', 'off']).default('on'))
    .option('--flow-log', 'log a line for each connection of a local pod that ends')
    .option('--access-log-rate <lines>', `lines of access logs that Envoy writes in a second, of all pods together; what is over it is left out and counted; default ${DEFAULT_ACCESS_LOG_RATE}`, wholeNumber(1, 10_000_000))
    .option('--metrics-address <address:port>', 'serve GET /metrics here too, over plain HTTP to whoever reaches it, and nothing else; IPv6 in brackets, port 0 for any (default: on the admin socket alone)', socketAddress)
    .option('--dashboard-port <port>', 'serve the pages of `underpass dashboard`, of this node, on 127.0.0.1, read-only and to who has the token that `underpass dashboard --of-agent` tells; 0 for any (default: nowhere)', wholeNumber(0, 65_535))
    .option('--cleanup', 'remove all that this instance\'s agents ever pinned, mounted, attached or wrote, and exit')
    .option('--cleanup-on-exit', 'do that when the agent ends, instead of leaving Envoy and the kernel at work')
    .option('--daemonset <namespace/name>', 'with Kubernetes: what this agent is a pod of; when it is asked to end and that is gone, or going, it cleans up')
    .option('--ready-file <path>', 'a file that is there while the agent is ready, or waits for another one to end, for probes; written anew every second')
    .option('--alive-file <path>', 'a file that is written anew every second, for probes: an agent that hangs does not');
}

const TOLD_TIMEOUT_MS = 5_000;
/** Of the agent's own log that `underpass bug-report` has: hours of an agent to which little happens. */
const LOG_TAIL_BYTES = 256 << 10;

export async function cleanInstance(options: AgentCliOptions): Promise<void> {
  const labSocket = servedLab(instancePaths(options).folder);
  const server = labSocket === undefined ? await apiServerOf(options) : undefined;
  const pods = labSocket !== undefined ? podsOfLab(labSocket) : server && podsOfCluster(options, server);
  if (options.cniConfDir !== undefined) removeCniPlugin({ configDir: options.cniConfDir, binDir: options.cniBinDir });
  const withdrawAnnouncements = pods ? { withdrawAnnouncements: (uids: ReadonlySet<string>) => silencePods(pods, uids) } : {};
  await cleanup({ runDir: options.runDir, bpffsDir: options.bpffs, instance: options.instance, ...withdrawAnnouncements, logger: logger('agent.cleanup') }, realCleanupParts);
}

/**
 * Of pods that will take neither mutual TLS nor HBONE any more; those of a lab that is gone went with it. One that can't be
 * told of leaves the others their time.
 */
export async function silencePods(pods: ToldPods, uids: ReadonlySet<string>): Promise<void> {
  const patches = (await pods.list(AbortSignal.timeout(TOLD_TIMEOUT_MS)).catch(() => [])).flatMap((pod) => {
    const patch = uids.has(pod.uid) ? silence(pod) : undefined;
    return patch ? [{ pod, patch }] : [];
  });
  if (patches.length === 0) return;
  const outcomes = await Promise.allSettled(patches.map(({ pod, patch }) => pods.tell(pod, patch, AbortSignal.timeout(TOLD_TIMEOUT_MS))));
  await sleep(CALLERS_HEAR_MS);
  const problems = outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? errorMessage(outcome.reason) : []));
  if (problems.length > 0) throw new Error([...new Set(problems)].join('; '));
}

export interface RunOptions {
  purpose: string;
  discoveryAddress: string;
  /** How the control plane is known, and knows this agent; default: neither is. */
  discoveryTls?: DiscoveryTls;
  home: Home;
  /** While another agent has the instance, rather than end. */
  waits?: boolean;
  /** Signs the certificates of the pods' service accounts. */
  ca: NodeCaFactory | undefined;
  /** What runs in the same process; started when the instance is held, stopped after the agent. */
  companion?: { start(): Promise<void>; stop(): Promise<void>; status(): unknown };
}

/** Runs an agent until SIGINT or SIGTERM. */
export async function runAgent(options: AgentCliOptions, run: RunOptions): Promise<void> {
  keepHeapSmall();
  const logTail = keepLogTail(LOG_TAIL_BYTES);
  const log = logger('agent');
  const { companion, home } = run;
  const { nodeName, workloads, netnsPath, dnsServers, clusterId, checks } = home;
  let dashboard: HostedDashboard | undefined;
  const agent = new Agent(
    {
      nodeName,
      workloads,
      discoveryAddress: run.discoveryAddress,
      ...(run.discoveryTls ? { discoveryTls: run.discoveryTls } : {}),
      runDir: options.runDir,
      bpffsDir: options.bpffs,
      instance: options.instance,
      defaults: { acceleration: options.acceleration, redirection: options.redirection, ...(options.ambientLabel ? { ambientLabel: true } : {}) },
      purpose: run.purpose,
      ...(options.concurrency === undefined ? {} : { concurrency: options.concurrency }),
      ...(options.envoyLauncher === undefined ? {} : { envoyLauncher: options.envoyLauncher }),
      ...(netnsPath === undefined ? {} : { netnsPath }),
      ...(dnsServers === undefined ? {} : { dnsServers }),
      ...(checks ? { checks } : {}),
      ...(clusterId === undefined ? {} : { clusterId }),
      ...(options.trustDomain === undefined ? {} : { trustDomain: options.trustDomain }),
      ...(options.flowLog ? { flowLog: true } : {}),
      ...(options.accessLogRate === undefined ? {} : { accessLogRate: options.accessLogRate }),
      ...(options.metricsAddress ? { metricsAddress: options.metricsAddress } : {}),
      httpFastPath: options.httpFastPath === 'on',
      ...(run.ca === undefined ? {} : { ca: run.ca }),
      ...(companion ? { controlPlaneStatus: () => companion.status() } : {}),
      routes: {
        '/v1/log': () => ({ contentType: 'application/x-ndjson', body: logTail.lines.join('') }),
        '/v1/dashboard': (query) => dashboard?.routes['/v1/dashboard']?.(query) ?? { status: 404, body: { message: 'this agent serves no dashboard: it was started without --dashboard-port' } },
      },
    },
    realParts,
  );
  const signals = followSignals();
  const readyFile = options.readyFile === undefined ? undefined : new ProbeFile(options.readyFile, readiness(agent), log);
  const aliveFile = options.aliveFile === undefined ? undefined : new ProbeFile(options.aliveFile, () => true, log);
  let held = false;
  let cleans = options.cleanupOnExit === true;
  try {
    if (run.waits) await agent.waitForInstance(signals.signal);
    else agent.prepare();
    held = true;
    if (home.labSocket !== undefined) recordServes(agent.folder, { labSocket: home.labSocket, bpffsDir: options.bpffs });
    await companion?.start();
    await agent.start();
    home.start?.();
    if (options.dashboardPort !== undefined) {
      // Where there is none, its modules need no memory.
      const { HostedDashboard: Hosted } = await import('./dashboard/hosted.js');
      dashboard = new Hosted({ port: options.dashboardPort, node: nodeName, adminSocket: instancePaths(options).adminSocket, logger: logger('agent.dashboard') });
    }
    if (!signals.signal.aborted) await Promise.race([once(signals.signal, 'abort'), agent.failed]);
    if (signals.signal.aborted && home.isUninstalled) {
      const isUninstalled = await home.isUninstalled();
      // `underpass uninstall` takes 0 for a node that is as it was.
      if (isUninstalled === undefined) process.exitCode = 1;
      cleans ||= isUninstalled === true;
    }
    log.info(cleans ? 'ending and cleaning up' : 'ending; Envoy and the kernel go on');
  } catch (error) {
    // Told to end before its turn came.
    if (held || !signals.signal.aborted) throw error;
  } finally {
    readyFile?.close();
    aliveFile?.close();
    try {
      await dashboard?.close();
      await agent.stop({ keepEnvoy: !cleans });
      await companion?.stop();
      // Before the clean-up: it keeps the CNI plugin in its place.
      home.close?.();
      if (cleans && held) await cleanInstance(options);
    } finally {
      home.close?.();
      await signals.close();
    }
  }
}

/** The CA that sidecars of the lab have their certificates from; undefined while the lab does not answer. */
export async function labCa({ socketPath, info }: Lab): Promise<CertificateAuthority | undefined> {
  if (!info) return undefined;
  // Certificates are for those who sign: `ps` and the like do without.
  const { CertificateAuthority: authority } = await import('../common/identity/ca.js');
  return authority.from(await new LabClient(socketPath).ca(AbortSignal.timeout(TOLD_TIMEOUT_MS)), `lab ${socketPath}`);
}

/** A CA of this very process. */
export function localCa(description: string, ca: () => CertificateAuthority): NodeCaFactory {
  return () => ({
    description,
    get rootPem() {
      return ca().rootPem;
    },
    issue: (identity) => ca().issue(identity),
    onRootChange: (listener) => ca().onChange(listener),
    close: () => undefined,
  });
}

/** Where the embedded control plane listens for the agent beside it. */
export function embeddedPilotSocket(options: AgentCliOptions): string {
  return join(instancePaths(options).folder, 'pilot.sock');
}
