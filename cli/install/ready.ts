/** Waits until what was installed runs, and says what is missing. */
import type { KubeClient } from '../../common/kube/client.js';
import type { KubeObject, Pod } from '../../common/kube/types.js';
import { sleep } from '../../common/retry.js';
import { UnderpassError } from '../../common/errors.js';
import { listed, named, present } from './cluster.js';

interface Workload extends KubeObject {
  spec: { replicas?: number; selector: { matchLabels: Record<string, string> } };
  status?: { observedGeneration?: number; desiredNumberScheduled?: number; updatedNumberScheduled?: number; numberAvailable?: number; updatedReplicas?: number; availableReplicas?: number; replicas?: number };
}
interface ContainerStatus {
  name: string;
  state?: { waiting?: { reason?: string; message?: string }; terminated?: { reason?: string; message?: string } };
}

const LOOK_MS = 500;

/** How far a DaemonSet or Deployment is. */
export function progressOf({ kind, metadata, spec, status = {} }: Workload): { ready: number; wanted: number; isDone: boolean } {
  const isSeen = (status.observedGeneration ?? 0) >= (metadata.generation ?? 1);
  if (kind === 'DaemonSet') {
    const { desiredNumberScheduled: wanted = 0, updatedNumberScheduled: updated = 0, numberAvailable: available = 0 } = status;
    return { ready: isSeen ? Math.min(updated, available) : 0, wanted, isDone: isSeen && updated >= wanted && available >= wanted };
  }
  const { replicas: wanted = 1 } = spec;
  const { updatedReplicas: updated = 0, availableReplicas: available = 0, replicas: all = 0 } = status;
  return { ready: isSeen ? Math.min(updated, available) : 0, wanted, isDone: isSeen && updated >= wanted && available >= wanted && all <= updated };
}

/** @throws UnderpassError `UNDERPASS_NOT_READY` with what each workload lacks, and a reason of its pods where there is one */
export async function waitUntilReady(client: KubeClient, objects: readonly KubeObject[], timeoutMs: number, progress: (text: string) => void): Promise<void> {
  const wanted = objects.filter(({ kind }) => kind === 'DaemonSet' || kind === 'Deployment');
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const states = await Promise.all(wanted.map(async (object) => {
      const found = await present<Workload>(client, object.apiVersion, object.kind, { ...(object.metadata.namespace === undefined ? {} : { namespace: object.metadata.namespace }), name: object.metadata.name });
      return { object, found, state: found ? progressOf({ ...found, kind: object.kind }) : { ready: 0, wanted: 1, isDone: false } };
    }));
    if (states.every(({ state }) => state.isDone)) return;
    progress(states.map(({ object, state }) => `${object.metadata.name} ${state.ready} of ${state.wanted} ready`).join(', '));
    if (performance.now() > deadline) {
      const missing = await Promise.all(states.filter(({ state }) => !state.isDone).map(async ({ object, found, state }) => `${named(object)}: ${state.ready} of ${state.wanted} ready${found ? await reasonOf(client, found) : ', it is gone'}`));
      throw new UnderpassError('UNDERPASS_NOT_READY', `waiting for what was installed: not so after ${timeoutMs / 1000} s: ${missing.join('; ')}`, { hint: 'it is installed and goes on starting; `kubectl -n underpass-system describe pods` and the pods\' logs say more' });
    }
    await sleep(LOOK_MS);
  }
}

/** Of the first pod that says why it does not start. */
async function reasonOf(client: KubeClient, { metadata, spec }: Workload): Promise<string> {
  const labelSelector = Object.entries(spec.selector.matchLabels).map(([key, label]) => `${key}=${label}`).join(',');
  const pods = await listed<Pod>(client, 'v1', 'Pod', { labelSelector }, metadata.namespace).catch(() => []);
  for (const pod of pods) {
    for (const { name, state } of (pod.status?.containerStatuses ?? []) as ContainerStatus[]) {
      const { reason, message } = state?.waiting ?? state?.terminated ?? {};
      if (reason !== undefined && reason !== 'ContainerCreating') return ` (pod ${pod.metadata.name}, container ${name}: ${reason}${message === undefined ? '' : `: ${message}`})`;
    }
    const unscheduled = pod.status?.conditions?.find(({ type, status }) => type === 'PodScheduled' && status === 'False');
    if (unscheduled) return ` (pod ${pod.metadata.name}: ${unscheduled.message ?? unscheduled.reason ?? 'not scheduled'})`;
  }
  return pods.length === 0 ? ' (it has no pods)' : '';
}
