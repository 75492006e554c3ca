/** What `underpass agent` and `underpass node` share: the options of a node agent, and its life from start to signal. */
import { once } from 'node:events';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { Option, type Command } from 'commander';
import { wholeNumber } from '../common/arguments.js';
import { Agent, CALLERS_HEAR_MS, DEFAULT_INSTANCE, LabSource, cleanup, instancePaths, realCleanupParts, realParts, silence, type NodeCaFactory } from '../agent/index.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import type { CertificateAuthority } from '../common/identity/ca.js';
import { TLS_MODE_LABEL } from '../common/identity/announcements.js';
import { LabClient, labSocket, type LabInfo } from '../common/lab-api.js';
import { logger } from '../common/log.js';
import { defaultBpffsDir, defaultRunDir } from '../common/paths.js';
import { sleep } from '../common/retry.js';
import { recordServes, servedLab } from './orphans.js';
import { followSignals } from './signals.js';

export interface AgentCliOptions {
  node?: string;
  lab?: string;
  labSocket?: string;
  runDir: string;
  bpffs: string;
  instance: string;
  redirection: 'auto' | 'bpf' | 'iptables';
  acceleration: 'off' | 'l4' | 'l7' | 'force';
  concurrency?: number;
  trustDomain?: string;
  flowLog?: boolean;
  httpFastPath: 'on' | 'off';
  cleanup?: boolean;
  cleanupOnExit?: boolean;
}

export function addInstanceOptions(command: Command): Command {
  return command
    .option('--run-dir <dir>', 'run-time state: sockets, last good xDS, pinned namespaces', defaultRunDir)
    .option('--instance <name>', 'which agent of this machine', DEFAULT_INSTANCE);
}

export function addAgentOptions(command: Command): Command {
  return addInstanceOptions(command)
    .option('--node <name>', 'the node whose pods to serve (default: the lab\'s only node)')
    .addOption(new Option('--lab <name>', 'take the pods from this lab').conflicts('labSocket'))
    .option('--lab-socket <path>', 'take the pods from the lab behind this socket')
    .option('--bpffs <dir>', 'where BPF links and maps are pinned', defaultBpffsDir)
    .addOption(new Option('--redirection <way>', 'for pods without a label of their own').choices(['auto', 'bpf', 'iptables']).default('auto'))
    .addOption(new Option('--acceleration <level>', 'for pods without a label of their own; l7: the HTTP fast path too').choices(['off', 'l4', 'l7', 'force']).default('l4'))
    .option('--concurrency <n>', 'worker threads of the shared Envoy (default: one a CPU)', wholeNumber(1, 1024))
    .option('--trust-domain <domain>', 'SPIFFE trust domain of the pods (default: what the control plane says of each)')
    .addOption(new Option('--http-fast-path <on|off>', 'at the start, for pods whose acceleration is l7; `underpass fast-path` switches it').choices(['on', 'off']).default('on'))
    .option('--flow-log', 'log a line for each connection of a local pod that ends')
    .option('--cleanup', 'remove all that this instance\'s agents ever pinned, mounted, attached or wrote, and exit')
    .option('--cleanup-on-exit', 'do that when the agent ends, instead of leaving Envoy and the kernel at work');
}

const LAB_TIMEOUT_MS = 5_000;

export interface Lab {
  socketPath: string;
  /** Absent while the lab does not answer. */
  info: LabInfo | undefined;
  problem: unknown;
}

export async function findLab(options: AgentCliOptions): Promise<Lab> {
  const socketPath = options.labSocket ?? labSocket(options.lab, options.runDir);
  try {
    return { socketPath, info: await new LabClient(socketPath).info(AbortSignal.timeout(LAB_TIMEOUT_MS)), problem: undefined };
  } catch (problem) {
    return { socketPath, info: undefined, problem };
  }
}

/** A lab that does not answer may come later, but then the node has to be named. */
export function nodeName(options: AgentCliOptions, lab: Lab): string {
  if (options.node !== undefined) return options.node;
  if (!lab.info) throw lab.problem;
  const { nodes } = lab.info;
  if (nodes.length > 1) {
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `the lab has several nodes: say which one by --node (${nodes.map((node) => node.name).join(', ')})`);
  }
  return nodes[0]?.name ?? hostname();
}

export async function cleanInstance(options: AgentCliOptions): Promise<void> {
  const labSocket = servedLab(instancePaths(options).folder);
  const withdrawAnnouncements = labSocket === undefined ? {} : { withdrawAnnouncements: (uids: ReadonlySet<string>) => silencePods(labSocket, uids) };
  await cleanup({ runDir: options.runDir, bpffsDir: options.bpffs, instance: options.instance, ...withdrawAnnouncements, logger: logger('agent.cleanup') }, realCleanupParts);
}

/**
 * Of pods that will take neither mutual TLS nor HBONE any more; those of a lab that is gone went with it. One that can't be
 * told of leaves the others their time.
 */
export async function silencePods(labSocket: string, uids: ReadonlySet<string>): Promise<void> {
  const lab = new LabClient(labSocket);
  const patches = (await lab.pods(undefined, AbortSignal.timeout(LAB_TIMEOUT_MS)).catch(() => [])).flatMap((pod) => {
    const patch = uids.has(pod.uid) ? silence(pod) : undefined;
    return patch ? [{ kind: 'Pod' as const, namespace: pod.namespace, name: pod.name, ...patch }] : [];
  });
  if (patches.length === 0) return;
  const outcomes = await Promise.allSettled(patches.map((patch) => lab.label(patch, AbortSignal.timeout(LAB_TIMEOUT_MS))));
  await sleep(CALLERS_HEAR_MS);
  const problems = outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? errorMessage(outcome.reason) : []));
  if (problems.length > 0) throw new Error([...new Set(problems)].join('; '));
}

export interface RunOptions {
  purpose: string;
  discoveryAddress: string;
  lab: Lab;
  /** Signs the certificates of the pods' service accounts. */
  ca: NodeCaFactory | undefined;
  /** What runs in the same process; started when the instance is held, stopped after the agent. */
  companion?: { start(): Promise<void>; stop(): Promise<void>; status(): unknown };
}

/** Runs an agent until SIGINT or SIGTERM. */
export async function runAgent(options: AgentCliOptions, run: RunOptions): Promise<void> {
  const log = logger('agent');
  const name = nodeName(options, run.lab);
  const { companion } = run;
  const node = run.lab.info?.nodes.find((item) => item.name === name);
  const agent = new Agent(
    {
      nodeName: name,
      workloads: new LabSource(run.lab.socketPath, name, logger('agent.workloads')),
      discoveryAddress: run.discoveryAddress,
      runDir: options.runDir,
      bpffsDir: options.bpffs,
      instance: options.instance,
      defaults: { acceleration: options.acceleration, redirection: options.redirection },
      purpose: run.purpose,
      ...(options.concurrency === undefined ? {} : { concurrency: options.concurrency }),
      ...(node ? { netnsPath: node.netns, dnsServers: node.dns } : {}),
      ...(run.lab.info ? { clusterId: run.lab.info.clusterId } : {}),
      ...(options.trustDomain === undefined ? {} : { trustDomain: options.trustDomain }),
      ...(options.flowLog ? { flowLog: true } : {}),
      httpFastPath: options.httpFastPath === 'on',
      ...(run.ca === undefined ? {} : { ca: run.ca }),
      ...(companion ? { controlPlaneStatus: () => companion.status() } : {}),
    },
    realParts,
  );
  const signals = followSignals();
  let held = false;
  try {
    agent.prepare();
    held = true;
    recordServes(agent.folder, { labSocket: run.lab.socketPath, bpffsDir: options.bpffs });
    await companion?.start();
    await agent.start();
    if (!signals.signal.aborted) await Promise.race([once(signals.signal, 'abort'), agent.failed]);
    log.info(options.cleanupOnExit ? 'ending and cleaning up' : 'ending; Envoy and the kernel go on');
  } finally {
    try {
      await agent.stop({ keepEnvoy: !options.cleanupOnExit });
      await companion?.stop();
      if (options.cleanupOnExit && held) await cleanInstance(options);
    } finally {
      await signals.close();
    }
  }
}

/** The CA that sidecars of the lab have their certificates from; undefined while the lab does not answer. */
export async function labCa({ socketPath, info }: Lab): Promise<CertificateAuthority | undefined> {
  if (!info) return undefined;
  // Certificates are for those who sign: `ps` and the like do without.
  const { CertificateAuthority: authority } = await import('../common/identity/ca.js');
  return authority.from(await new LabClient(socketPath).ca(AbortSignal.timeout(LAB_TIMEOUT_MS)), `lab ${socketPath}`);
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
