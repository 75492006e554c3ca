/**
 * Status of Istio's objects in the cluster: whether pilot has taken them over. One that is held back has the condition
 * PassedAnalysis with status False, Istio's own name for it, and what is wrong in its message; once it is mended it is True.
 * An object that never was held back is not written to, so a mesh without mistakes costs no request.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Condition, KubeObject } from '../../common/kube/types.js';
import { objectKey } from '../../common/kube/types.js';
import type { LoadedObject, ValidationError } from '../../common/kube/yaml.js';
import type { StatusUpdate } from './gateway-status.js';

const TYPE = 'PassedAnalysis';
/** Of PeerAuthentication, Telemetry and WasmPlugin the API server itself refuses whatever pilot would. */
export const STATUS_KINDS: readonly string[] = ['Gateway', 'VirtualService', 'DestinationRule', 'ServiceEntry', 'WorkloadEntry', 'WorkloadGroup', 'Sidecar', 'EnvoyFilter', 'AuthorizationPolicy', 'RequestAuthentication'];
const GROUPS: readonly string[] = ['networking.istio.io', 'security.istio.io'];
/** Kubernetes' limit for a condition's message is 32 KiB; who reads it wants less. */
const MAX_MESSAGE = 1_024;

type WithStatus = KubeObject & { status?: { conditions?: Condition[]; observedGeneration?: number | string } };

export function concernsIstioStatus(key: string): boolean {
  const [group = '', kind = ''] = key.split('/');
  return GROUPS.includes(group) && STATUS_KINDS.includes(kind);
}

/**
 * @param objects as they are in the sources, of those that are refused by themselves the last good version
 * @param refused the newest version of these
 * @param problems of all objects; those of an API server name as their file its key there
 * @param now ISO 8601
 */
export function istioStatusUpdates(objects: ReadonlyMap<string, LoadedObject>, refused: ReadonlyMap<string, KubeObject>, problems: readonly ValidationError[], now: string): StatusUpdate[] {
  const wrong = new Map<string, string[]>();
  for (const { severity, file, field, message } of problems) {
    const key = severity === 'error' ? /^kubernetes:\/\/[^/]*\/(.+)$/.exec(file)?.[1] : undefined;
    if (key === undefined) continue;
    wrong.set(key, [...(wrong.get(key) ?? []), field === '' ? message : `${field}: ${message}`]);
  }
  const updates: StatusUpdate[] = [];
  const offer = (key: string, object: WithStatus): void => {
    // One of a file has no version, and no status.
    if (!concernsIstioStatus(key) || object.metadata.resourceVersion === undefined) return;
    const present = object.status?.conditions ?? [];
    const before = present.find(({ type }) => type === TYPE);
    const mistakes = wrong.get(key);
    if (!mistakes && (!before || before.status === 'True')) return;
    const own = mistakes
      ? { type: TYPE, status: 'False', reason: 'ErrorsFound', message: `the last good version stays in force: ${mistakes.join('; ')}`.slice(0, MAX_MESSAGE) }
      : { type: TYPE, status: 'True', reason: 'NoErrorsFound', message: '' };
    const condition = { ...own, observedGeneration: object.metadata.generation ?? 0, lastTransitionTime: before?.status === own.status && before.lastTransitionTime ? before.lastTransitionTime : now };
    // The API server leaves out what is empty.
    if (before && isDeepStrictEqual({ ...before, message: before.message ?? '' }, condition)) return;
    updates.push({ object, status: { conditions: [...present.filter(({ type }) => type !== TYPE), condition] } });
  };
  for (const [key, { object }] of objects) if (!refused.has(key)) offer(key, object as WithStatus);
  for (const object of refused.values()) offer(objectKey(object), object as WithStatus);
  return updates;
}
