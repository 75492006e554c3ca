/** Which policies hold for a pod, from what the control plane says of workloads and policies (WDS). */
import { Scope, type Authorization } from '../../proto/generated/istio/security/authorization.js';
import type { Address } from '../../proto/generated/istio/workload/workload.js';
import type { XdsResource } from '../xds/resource-type.js';

export interface WorkloadView {
  /** By uid of the workload. */
  readonly addresses: ReadonlyMap<string, XdsResource<Address>>;
  /** By `<namespace>/<name>`. */
  readonly authorizations: ReadonlyMap<string, XdsResource<Authorization>>;
  /** Policies whose newest version can't be read, and why. */
  readonly rejectedAuthorizations: ReadonlyMap<string, string>;
  readonly synced: boolean;
}

export interface PodPolicies {
  policies: readonly XdsResource<Authorization>[];
  /** Why the pod's policies can't be judged by. */
  problems: readonly string[];
}

/** Istio's default; policies there hold for the whole mesh. */
const ROOT_NAMESPACE = 'istio-system';

/** The policies that a workload names; undefined while the control plane has no such workload. */
export function policiesNamed(view: WorkloadView, uid: string): readonly string[] | undefined {
  const type = view.addresses.get(uid)?.message.type;
  return type?.$case === 'workload' ? type.value.authorization_policies : undefined;
}

/**
 * @param uid the workload's, e.g. `Kubernetes//Pod/default/web-0`
 * @param lastNamed what it named before it was taken away: a pod that runs on without its workload keeps them
 */
export function policiesOf(view: WorkloadView, uid: string, namespace: string, lastNamed: readonly string[] = []): PodPolicies {
  const named = new Set(policiesNamed(view, uid) ?? lastNamed);
  const policies: XdsResource<Authorization>[] = [];
  for (const [name, resource] of view.authorizations) {
    if (view.rejectedAuthorizations.has(name)) continue;
    const { scope, namespace: own } = resource.message;
    if (named.has(name) || scope === Scope.GLOBAL || (scope === Scope.NAMESPACE && own === namespace)) policies.push(resource);
  }
  const problems = [...view.rejectedAuthorizations].filter(([name]) => named.has(name) || mayHold(view, name, namespace)).map(([, why]) => why);
  for (const name of named) {
    if (!view.authorizations.has(name) && !view.rejectedAuthorizations.has(name)) problems.push(`AUTHZ "${name}": the workload has this policy, and the control plane did not send it`);
  }
  return { policies: policies.sort((a, b) => (a.name < b.name ? -1 : 1)), problems: problems.sort() };
}

/** Whether a policy that can't be read may be one of the namespace's: by the last version that could, or by its name. */
function mayHold(view: WorkloadView, name: string, namespace: string): boolean {
  const scope = view.authorizations.get(name)?.message.scope ?? (isNamedBySome(view, name) ? Scope.WORKLOAD_SELECTOR : undefined);
  if (scope === Scope.WORKLOAD_SELECTOR) return false;
  const own = name.slice(0, name.indexOf('/'));
  return scope === Scope.GLOBAL || own === namespace || (scope === undefined && own === ROOT_NAMESPACE);
}

function isNamedBySome({ addresses }: WorkloadView, name: string): boolean {
  for (const { message: { type } } of addresses.values()) {
    if (type?.$case === 'workload' && type.value.authorization_policies.includes(name)) return true;
  }
  return false;
}
