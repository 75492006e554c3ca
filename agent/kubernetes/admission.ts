/** A pod that starts in the mesh is enrolled before any of its programs runs. */
import type { PodRecord, StartingPod, WorkloadSource } from '../workloads/source.js';
import { enrolmentOf, type EnrolmentDefaults } from '../workloads/enrolment.js';

export interface AdmissionOptions {
  workloads: Required<Pick<WorkloadSource, 'admit'>>;
  defaults: EnrolmentDefaults;
  /** Resolves when all is in place for the pod. */
  whenEnrolled: (uid: string, signal: AbortSignal) => Promise<void>;
  /** Beyond it the pod is refused, and kubelet tries again. */
  timeoutMs?: number;
}

const TIMEOUT_MS = 20_000;

/** @returns whether the pod is the mesh's; rejects when it is, and could not be enrolled */
export async function admitPod(pod: StartingPod, signal: AbortSignal, { workloads, defaults, whenEnrolled, timeoutMs = TIMEOUT_MS }: AdmissionOptions): Promise<boolean> {
  const limit = AbortSignal.timeout(timeoutMs);
  const either = AbortSignal.any([signal, limit]);
  const record = await workloads.admit(pod, either);
  if (!record || !isWanted(record, defaults)) return false;
  try {
    await whenEnrolled(record.uid, either);
  } catch (error) {
    if (!limit.aborted) throw error;
    throw new Error(`pod ${pod.namespace}/${pod.name}: not enrolled after ${timeoutMs} ms`, { cause: error });
  }
  return true;
}

/** A pod with a sidecar captures by what its own init container sets up. */
function isWanted(record: PodRecord, defaults: EnrolmentDefaults): boolean {
  return enrolmentOf(record, defaults).mode === 'node';
}
