/**
 * Takes an installation away. Nodes come first: each agent, asked to end while its DaemonSet is gone, cleans up; a pod of its
 * own does it where none did. Rights, control plane and namespaces go when the nodes are done.
 */
import { createHash } from 'node:crypto';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import { isRefusal, resourceOf, resourcePath, type KubeClient } from '../../common/kube/client.js';
import { reflect } from '../../common/kube/reflector.js';
import type { Condition, ConfigMap, KubeObject, Node, Pod } from '../../common/kube/types.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import { AGENT_MOUNTS, AGENT_SECURITY, AGENT_VOLUMES, CLEANUP_ARGS } from './agent-objects.js';
import { installed, isOurs, listed, named, present, removeObject } from './cluster.js';
import { AGENT, AGENT_NAMESPACE, ROOT_NAMESPACE } from './rbac.js';
import { DEFAULTS, type Values } from './settings.js';
import { evaluate } from './template.js';

interface AgentPod {
  node: string;
  isGone: boolean;
  /** Of its container; undefined until it has ended. */
  exitCode: number | undefined;
  /** It was ending while its DaemonSet was there, so that it had no reason to clean up. */
  endedBefore: boolean;
}
interface DaemonSet extends KubeObject {
  spec: { template: { spec: { containers: { name: string; image: string }[]; volumes: { name: string; hostPath?: { path: string } }[] } } };
}
type ContainerStatus = { name: string; state?: { terminated?: { exitCode: number; message?: string } } };

export interface NodesOptions {
  client: KubeClient;
  logger: Logger;
  timeoutMs: number;
  /** A pod cleans up on every node of the cluster, also where no agent is known. */
  everyNode: boolean;
  /** Image and paths, where there is no DaemonSet that says them. */
  values: Values;
  progress: (text: string) => void;
}

const LOOK_MS = 250;
const DAEMON_SET = resourceOf('apps/v1', 'DaemonSet');
const PODS = resourceOf('v1', 'Pod');
const CLEANUP_LABELS = { app: 'underpass-cleanup' };
const MAX_PARALLEL = 20;
/** By which the API server knows what pilot has written. */
const PILOT_MANAGER = 'underpass-pilot';

/**
 * Removes the agents, and all that they have left on their nodes.
 * @returns nodes that were cleaned up
 * @throws UnderpassError `UNDERPASS_NODES_LEFT` naming the nodes where that could not be done, and why
 */
export async function removeAgents(options: NodesOptions): Promise<string[]> {
  const { client, everyNode, values } = options;
  const daemonSet = await present<DaemonSet>(client, 'apps/v1', 'DaemonSet', { namespace: AGENT_NAMESPACE, name: AGENT });
  const agents = daemonSet ? await endAgents(options, daemonSet) : new Map<string, boolean>();
  const nodes = everyNode ? (await listed<Node>(client, 'v1', 'Node', {})).map(({ metadata }) => metadata.name) : [...agents.keys()];
  const unclean = nodes.filter((node) => agents.get(node) !== true);
  const problems = new Map<string, string>();
  for (let index = 0; index < unclean.length; index += MAX_PARALLEL) {
    await Promise.all(unclean.slice(index, index + MAX_PARALLEL).map(async (node) => {
      const problem = await cleanNode(options, node, cleanupPod(node, daemonSet, values)).catch((error: unknown) => errorMessage(error));
      if (problem !== undefined) problems.set(node, problem);
    }));
  }
  if (problems.size > 0) {
    throw new UnderpassError('UNDERPASS_NODES_LEFT', `cleaning up nodes: ${[...problems].map(([node, problem]) => `${node}: ${problem}`).join('; ')}`, {
      hint: 'all else is still installed, so that an agent whose node comes back cleans up there; then `underpass uninstall --every-node` again, or --abandon-nodes to leave these nodes as they are',
    });
  }
  return nodes;
}

/** @returns by node, whether its agent ended having cleaned up */
async function endAgents({ client, logger, timeoutMs, progress }: NodesOptions, daemonSet: DaemonSet): Promise<Map<string, boolean>> {
  const pods = new Map<string, AgentPod>();
  const stop = new AbortController();
  let isListed = false;
  let isRemoved = false;
  const take = (object: KubeObject): void => {
    const { metadata, spec, status } = object as Pod;
    const ended = ((status?.containerStatuses ?? []) as ContainerStatus[]).find(({ name }) => name === 'agent')?.state?.terminated;
    if (metadata.namespace === AGENT_NAMESPACE && spec.nodeName !== undefined) {
      const endedBefore = pods.get(metadata.uid!)?.endedBefore === true || (!isRemoved && metadata.deletionTimestamp !== undefined);
      pods.set(metadata.uid!, { node: spec.nodeName, isGone: false, exitCode: ended?.exitCode, endedBefore });
    }
  };
  const following = reflect({
    client, logger, signal: stop.signal, resources: [PODS], selectors: { labelSelector: `app=${AGENT}` },
    following: {
      begin: () => {
        for (const pod of pods.values()) pod.isGone = true;
        return { listed: take, complete: () => (isListed = true) };
      },
      changed: take,
      deleted: (object) => {
        take(object);
        const pod = pods.get(object.metadata.uid!);
        if (pod) pod.isGone = true;
      },
    },
  });
  try {
    const deadline = performance.now() + timeoutMs;
    while (!isListed && performance.now() < deadline) await sleep(LOOK_MS);
    isRemoved = true;
    await removeObject(client, daemonSet);
    const left = (): AgentPod[] => [...pods.values()].filter(({ isGone }) => !isGone);
    while (left().length > 0 && performance.now() < deadline) {
      progress(`agents end and clean up: ${pods.size - left().length} of ${pods.size}`);
      await sleep(LOOK_MS);
    }
    const clean = new Map<string, boolean>();
    // Of two of a node, while an upgrade was under way, one held it.
    for (const { node, isGone, exitCode, endedBefore } of pods.values()) clean.set(node, (clean.get(node) ?? true) && isGone && exitCode === 0 && !endedBefore);
    return clean;
  } finally {
    stop.abort();
    await following;
  }
}

function cleanupPod(node: string, daemonSet: DaemonSet | undefined, values: Values): KubeObject & { spec: object } {
  const given = daemonSet?.spec.template.spec;
  const image = given?.containers.find(({ name }) => name === 'agent')?.image ?? (values['image.digest'] === '' ? `${String(values['image.repository'])}:${String(values['image.tag'])}` : `${String(values['image.repository'])}@${String(values['image.digest'])}`);
  const volumes = evaluate(AGENT_VOLUMES, values) as { name: string }[];
  const template = { mounts: AGENT_MOUNTS, security: AGENT_SECURITY };
  const { mounts, security } = evaluate(template, DEFAULTS) as { mounts: object[]; security: object };
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: `underpass-cleanup-${createHash('sha256').update(node).digest('hex').slice(0, 12)}`, namespace: AGENT_NAMESPACE, labels: CLEANUP_LABELS },
    spec: {
      nodeName: node,
      serviceAccountName: AGENT,
      hostNetwork: true,
      hostPID: true,
      dnsPolicy: 'ClusterFirstWithHostNet',
      restartPolicy: 'Never',
      tolerations: [{ operator: 'Exists' }],
      containers: [{
        name: 'cleanup',
        image,
        args: CLEANUP_ARGS,
        env: [{ name: 'NODE_NAME', value: node }],
        securityContext: security,
        terminationMessagePolicy: 'FallbackToLogsOnError',
        volumeMounts: mounts,
      }],
      // Where the agent's paths are the node's own.
      volumes: volumes.map((volume) => given?.volumes.find(({ name, hostPath }) => hostPath && name === volume.name) ?? volume),
    },
  };
}

/** @returns why the node is not cleaned up; undefined: it is */
async function cleanNode({ client, timeoutMs, progress }: NodesOptions, node: string, pod: KubeObject): Promise<string | undefined> {
  const place = { namespace: AGENT_NAMESPACE, name: pod.metadata.name };
  const found = await present<Node & { status?: { conditions?: Condition[] } }>(client, 'v1', 'Node', { name: node });
  if (!found) return undefined;
  const ready = found.status?.conditions?.find(({ type }) => type === 'Ready');
  if (ready && ready.status !== 'True') return `the node does not answer (${ready.reason ?? 'not ready'})`;
  await removeObject(client, pod);
  progress(`cleaning up node ${node}`);
  const deadline = performance.now() + timeoutMs;
  try {
    for (let made = false; ; await sleep(LOOK_MS)) {
      if (!made) made = await client.create(PODS, pod).then(() => true, (error: unknown) => isRefusal(error, 409) ? false : Promise.reject(error as Error));
      const state = made ? await present<Pod>(client, 'v1', 'Pod', place) : undefined;
      if (state?.status?.phase === 'Succeeded') return undefined;
      if (state?.status?.phase === 'Failed') return ((state.status.containerStatuses ?? []) as ContainerStatus[])[0]?.state?.terminated?.message?.trim() || 'the clean-up failed';
      if (performance.now() > deadline) return `no end of the clean-up after ${timeoutMs / 1000} s`;
    }
  } finally {
    await client.request('DELETE', resourcePath(PODS, place), { body: { gracePeriodSeconds: 0 } }).catch(() => undefined);
  }
}

/** All but the agents and the namespaces. @returns names of what went */
export async function removeRest(client: KubeClient, progress: (text: string) => void): Promise<string[]> {
  const objects = await installed(client);
  const ca = { namespace: ROOT_NAMESPACE, name: 'underpass-ca' };
  // The last to go, so that its key does not stay where pilot went before: by other values, or an uninstall that was interrupted.
  const hadPilot = objects.some(({ kind, metadata }) => kind === 'Deployment' && metadata.name === 'underpass-pilot') || (await present(client, 'v1', 'Secret', ca)) !== undefined;
  for (const object of objects) {
    progress(`removing ${named(object)}`);
    await removeObject(client, object);
  }
  if (!hadPilot) return objects.map(named);
  const written: KubeObject[] = (await listed<ConfigMap & { metadata: { managedFields?: { manager?: string }[] } }>(client, 'v1', 'ConfigMap', { labelSelector: 'istio.io/config=true' })).filter(({ metadata }) => metadata.name === 'istio-ca-root-cert' && metadata.managedFields?.every(({ manager }) => manager === PILOT_MANAGER));
  written.push({ apiVersion: 'coordination.k8s.io/v1', kind: 'Lease', metadata: { namespace: ROOT_NAMESPACE, name: 'underpass-pilot' } });
  written.push({ apiVersion: 'v1', kind: 'Secret', metadata: ca });
  for (const object of written) await removeObject(client, object);
  return [...objects, ...written].map(named);
}

/** What any namespace has, or what goes with something that went. */
const OF_NOBODY = new Set(['Event', 'Endpoints', 'EndpointSlice', 'PodMetrics', 'ConfigMap kube-root-ca.crt', 'ConfigMap istio-ca-root-cert', 'ServiceAccount default', 'Lease underpass-pilot']);

/**
 * Namespaces that were made by an installation, unless somebody else's objects are in them.
 * @returns names of those that went, and what is in those that stay
 */
export async function removeNamespaces(client: KubeClient): Promise<{ removed: string[]; kept: Map<string, string[]> }> {
  const removed: string[] = [];
  const kept = new Map<string, string[]>();
  for (const name of [AGENT_NAMESPACE, ROOT_NAMESPACE]) {
    const namespace = await present(client, 'v1', 'Namespace', { name });
    if (!namespace || !isOurs(namespace)) continue;
    const others = await othersIn(client, name);
    if (others.length > 0) kept.set(name, others);
    else {
      await removeObject(client, { apiVersion: 'v1', kind: 'Namespace', metadata: { name } });
      removed.push(name);
    }
  }
  return { removed, kept };
}

interface ApiResource {
  name: string;
  kind: string;
  namespaced: boolean;
  verbs: string[];
}

async function othersIn(client: KubeClient, namespace: string): Promise<string[]> {
  const { groups } = await client.request<{ groups: { preferredVersion: { groupVersion: string } }[] }>('GET', '/apis');
  const found = new Set<string>();
  for (const apiVersion of ['v1', ...groups.map(({ preferredVersion }) => preferredVersion.groupVersion)]) {
    const { resources } = await client.request<{ resources: ApiResource[] }>('GET', `/${apiVersion.includes('/') ? 'apis' : 'api'}/${apiVersion}`).catch(() => ({ resources: [] }));
    for (const { name: plural, kind, namespaced, verbs } of resources) {
      if (!namespaced || !verbs.includes('list') || plural.includes('/') || OF_NOBODY.has(kind)) continue;
      const { items = [] } = await client.request<{ items?: (KubeObject & { type?: string })[] }>('GET', resourcePath({ apiVersion, kind, plural }, { namespace }));
      for (const { metadata, type } of items) {
        const isOf = (metadata.ownerReferences ?? []).length > 0 || metadata.deletionTimestamp !== undefined || type === 'kubernetes.io/service-account-token';
        if (!isOf && !OF_NOBODY.has(`${kind} ${metadata.name}`)) found.add(`${kind} ${metadata.name}`);
      }
    }
  }
  return [...found].sort();
}
