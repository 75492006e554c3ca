/** Whose pods a node agent serves: those of a lab's node, or of a node of a Kubernetes cluster. */
import { hostname } from 'node:os';
import { join } from 'node:path';
import { CniChain, instancePaths, KubernetesSource, LabelEvents, LabSource, PodPlaces, apiPods, podToken, setPodMetadata, type Check, type PodRecord, type WorkloadSource } from '../agent/index.js';
import { UnderpassError } from '../common/errors.js';
import type { WorkloadIdentity } from '../common/identity/spiffe.js';
import { KubeClient } from '../common/kube/client.js';
import { inClusterServer, readKubeconfig, type ApiServer } from '../common/kube/kubeconfig.js';
import { LabClient, labSocket, type LabInfo, type PodMetadataPatch } from '../common/lab-api.js';
import { logger } from '../common/log.js';
import { buildDir } from '../common/paths.js';
import { isUninstalled, parseDaemonSet } from './agent-pod.js';
import type { AgentCliOptions } from './agent-run.js';

export interface Home {
  nodeName: string;
  workloads: WorkloadSource;
  /** What the agent serves, if a lab, for later clean-ups. */
  labSocket?: string;
  netnsPath?: string;
  dnsServers?: readonly string[];
  /** What the node's proxies name as the cluster that they are in. */
  clusterId?: string;
  /** A token of an account that a pod of the node runs under, bound to that pod. */
  tokenOf?(identity: WorkloadIdentity, signal?: AbortSignal): Promise<string>;
  /** Whether an agent that is asked to end has been taken away for good; undefined: not known. */
  isUninstalled?(): Promise<boolean | undefined>;
  /** What compares what this puts on the node with what is there. */
  checks?: readonly Check[];
  /** When the agent answers. */
  start?(): void;
  close?(): void;
}

export interface Lab {
  socketPath: string;
  /** Absent while the lab does not answer. */
  info: LabInfo | undefined;
  problem: unknown;
}

/** Pods whose labels and annotations can be set, without an agent at work. */
export interface ToldPods {
  list(signal: AbortSignal): Promise<ToldPod[]>;
  tell(pod: ToldPod, patch: PodMetadataPatch, signal: AbortSignal): Promise<unknown>;
}

type ToldPod = Pick<PodRecord, 'uid' | 'name' | 'namespace' | 'labels' | 'annotations'>;

const LAB_TIMEOUT_MS = 5_000;
const FIELD_MANAGER = 'underpass-agent';
const MANIFEST = 'deploy/agent-rbac.yaml';

export async function findLab(options: AgentCliOptions): Promise<Lab> {
  const socketPath = options.labSocket ?? labSocket(options.lab, options.runDir);
  try {
    return { socketPath, info: await new LabClient(socketPath).info(AbortSignal.timeout(LAB_TIMEOUT_MS)), problem: undefined };
  } catch (problem) {
    return { socketPath, info: undefined, problem };
  }
}

/** The API server whose pods are asked for: the one that --kubeconfig names, else the one whose pod this is. Undefined: a lab's pods are. */
export async function apiServerOf({ kubeconfig, context, lab, labSocket: socket }: AgentCliOptions): Promise<ApiServer | undefined> {
  if (kubeconfig !== undefined) return readKubeconfig(kubeconfig, context);
  return lab === undefined && socket === undefined ? inClusterServer() : undefined;
}

export function labHome(options: AgentCliOptions, lab: Lab): Home {
  const nodeName = nodeOfLab(options, lab);
  const node = lab.info?.nodes.find(({ name }) => name === nodeName);
  return {
    nodeName,
    workloads: new LabSource(lab.socketPath, nodeName, logger('agent.workloads')),
    labSocket: lab.socketPath,
    ...(node ? { netnsPath: node.netns, dnsServers: node.dns } : {}),
    ...(lab.info ? { clusterId: lab.info.clusterId } : {}),
  };
}

/** @param server has this node's pods; DaemonSets give the node's name as NODE_NAME */
export function clusterHome(options: AgentCliOptions, server: ApiServer): Home {
  const nodeName = nodeOfCluster(options);
  const daemonSet = options.daemonset === undefined ? undefined : parseDaemonSet(options.daemonset);
  const client = new KubeClient(server, FIELD_MANAGER, MANIFEST);
  const { folder, cniSocket } = instancePaths(options);
  const labelledFile = join(folder, 'labelled');
  const { cniConfDir: configDir, cniBinDir: binDir, cniWhenAway: whenAway } = options;
  const chain = configDir === undefined ? undefined : new CniChain({ configDir, binDir, plugin: join(buildDir, 'underpass-cni'), socket: cniSocket, labelled: labelledFile, whenAway, logger: logger('agent.cni') });
  const ambientLabel = options.ambientLabel === true;
  const labels = new LabelEvents({ client, component: FIELD_MANAGER, defaults: { ambientLabel }, logger: logger('agent.workloads') });
  const workloads = new KubernetesSource({ client, nodeName, places: new PodPlaces(), labels, labelledFile, ambientLabel, logger: logger('agent.workloads') });
  return {
    nodeName,
    workloads,
    tokenOf: (identity, signal) => podToken(client, workloads.pods, identity, signal),
    ...(options.clusterId === undefined ? {} : { clusterId: options.clusterId }),
    ...(daemonSet ? { isUninstalled: () => isUninstalled(client, daemonSet, logger('agent')) } : {}),
    ...(chain ? { checks: [chain.check()] } : {}),
    start: () => chain?.start(),
    close: () => {
      chain?.close();
      labels.close();
      client.close();
    },
  };
}

export function podsOfLab(socketPath: string): ToldPods {
  const lab = new LabClient(socketPath);
  return {
    list: (signal) => lab.pods(undefined, signal),
    tell: ({ namespace, name }, patch, signal) => lab.label({ kind: 'Pod', namespace, name, ...patch }, signal),
  };
}

export function podsOfCluster(options: AgentCliOptions, server: ApiServer): ToldPods {
  const client = new KubeClient(server, FIELD_MANAGER);
  return { list: (signal) => apiPods(client, nodeOfCluster(options), signal), tell: (pod, patch, signal) => setPodMetadata(client, pod, patch, signal) };
}

function nodeOfCluster({ node }: AgentCliOptions): string {
  return node ?? process.env.NODE_NAME ?? hostname();
}

/** A lab that does not answer may come later, but then the node has to be named. */
function nodeOfLab(options: AgentCliOptions, lab: Lab): string {
  if (options.node !== undefined) return options.node;
  if (!lab.info) throw lab.problem;
  const { nodes } = lab.info;
  if (nodes.length > 1) {
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `the lab has several nodes: say which one by --node (${nodes.map((node) => node.name).join(', ')})`);
  }
  return nodes[0]?.name ?? hostname();
}
