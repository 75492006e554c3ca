/** What the two webhooks answer, as pure functions of a request. */
import { errorMessage } from '../../common/errors.js';
import type { InjectionConfig } from '../../common/injection/config.js';
import { injectPod } from '../../common/injection/inject.js';
import { diff } from '../../common/injection/json-patch.js';
import type { InjectablePod } from '../../common/injection/pod.js';
import { formatPath, type Problem } from '../../common/kube/schema.js';
import type { KubeObject } from '../../common/kube/types.js';
import { BadRequest, type AdmissionRequest, type Decision } from './admission-review.js';

export interface InjectContext {
  config: InjectionConfig;
  /** Undefined when the namespace is not known (yet). */
  namespaceLabels: (name: string) => Readonly<Record<string, string>> | undefined;
  /** Told why a pod is left alone. */
  onSkip?: (reason: string) => void;
}

function isPod(value: unknown): value is InjectablePod {
  const { metadata, spec } = (value ?? {}) as { metadata?: unknown; spec?: { containers?: unknown } };
  return typeof metadata === 'object' && metadata !== null && typeof spec === 'object' && spec !== null && Array.isArray(spec.containers);
}

/** `/inject/cluster/CLUSTER/net/NETWORK`, as istiod takes them: what the webhook's configuration says of its cluster. */
export function withPathValues(config: InjectionConfig, path: string): InjectionConfig {
  const parts = path.split('/').slice(2);
  const values = { ...config.values };
  for (let index = 0; index + 1 < parts.length; index += 2) {
    const value = decoded(parts[index + 1] ?? '').replaceAll('--slash--', '/');
    if (parts[index] === 'cluster') values.clusterId = value;
    if (parts[index] === 'net') values.network = value;
  }
  return { ...config, values };
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw new BadRequest(400, `reading the path: ${JSON.stringify(part)} is no percent-encoding`);
  }
}

/** A wrong annotation refuses the pod: half-captured traffic would be worse. A pod that is to be left alone is allowed as it is. */
export function inject(request: AdmissionRequest, context: InjectContext): Decision {
  if (request.kind.kind !== 'Pod') return { allowed: true, warnings: [`the sidecar injector was asked about a ${request.kind.kind}; it knows Pods`] };
  if (request.operation !== 'CREATE' || request.object === undefined || request.object === null) return { allowed: true };
  const pod = request.object;
  if (!isPod(pod)) return { allowed: false, code: 400, reason: 'BadRequest', message: 'injecting a sidecar: request.object: expected a Pod with metadata and spec.containers' };
  const namespace = request.namespace ?? pod.metadata.namespace ?? 'default';
  try {
    const result = injectPod({ pod, namespace, namespaceLabels: context.namespaceLabels(namespace) ?? {}, config: context.config });
    if (result.injected) return { allowed: true, patch: diff(pod, result.pod) };
    context.onSkip?.(result.reason);
    return { allowed: true };
  } catch (error) {
    return { allowed: false, code: 400, reason: 'BadRequest', message: `injecting a sidecar: ${errorMessage(error)}` };
  }
}

/** @param check everything that is wrong with one object; its warnings do not refuse it */
export function validate(request: AdmissionRequest, check: (object: KubeObject) => readonly Problem[]): Decision {
  if (request.operation === 'DELETE' || request.object === undefined || request.object === null) return { allowed: true };
  if (typeof request.object !== 'object') return { allowed: false, code: 400, reason: 'BadRequest', message: 'validating: request.object: expected an object' };
  const problems = check(request.object as KubeObject);
  const line = ({ path, message }: Problem): string => (path.length ? `${formatPath(path)}: ${message}` : message);
  const warnings = problems.filter(({ severity }) => severity === 'warning').map(line);
  const errors = problems.filter(({ severity }) => severity === 'error').map(line);
  const noted = warnings.length ? { warnings } : {};
  if (errors.length === 0) return { allowed: true, ...noted };
  return { allowed: false, code: 422, reason: 'Invalid', message: `configuration is invalid: ${errors.join('; ')}`, ...noted };
}
