/** Which policies, and filters, are a proxy's: those of the root namespace and of its own, by selector, or by reference to its Gateway. */
import type { LoadedObject } from '../../../common/kube/yaml.js';
import type { KubeObject, PolicyTargetReference, WorkloadSelector } from '../../../common/kube/types.js';
import { selects } from '../../model/configs.js';
import type { Model } from '../../model/model.js';
import { selectorLabels } from '../../model/peer-authentication.js';
import type { Proxy } from '../../model/proxy.js';
import { podOf } from '../inbound-ports.js';

const GATEWAY_NAME_LABELS = ['gateway.networking.k8s.io/gateway-name', 'istio.io/gateway-name'];
const GATEWAY_CLASS_LABEL = 'gateway.networking.k8s.io/gateway-class-name';

/** The workload that policies are looked for. */
export interface PolicyTarget {
  namespace: string;
  labels: Readonly<Record<string, string>>;
  /** Of a waypoint: only policies that name its Gateway, or the service, are its own. */
  waypoint?: { service?: { kind: string; namespace: string; name: string } };
}

export function policyTarget(model: Model, proxy: Proxy): PolicyTarget {
  return { namespace: proxy.namespace, labels: podOf(model, proxy)?.metadata.labels ?? proxy.labels };
}

export interface TargetedPolicy extends KubeObject {
  /** An EnvoyFilter calls its selector otherwise than policies do. */
  spec?: { selector?: WorkloadSelector; workloadSelector?: { labels?: Record<string, string> }; targetRef?: PolicyTargetReference; targetRefs?: PolicyTargetReference[] };
}

export function targetRefsOf({ spec }: TargetedPolicy): readonly PolicyTargetReference[] {
  return spec?.targetRefs?.length ? spec.targetRefs : spec?.targetRef ? [spec.targetRef] : [];
}

/** The root namespace's policies first, then the workload's namespace's, each by age. */
export function policiesFor<T extends TargetedPolicy>(model: Model, kind: T['kind'], target: PolicyTarget): LoadedObject<T>[] {
  const { rootNamespace } = model.mesh;
  return [...new Set([rootNamespace, target.namespace, ...(target.waypoint?.service ? [target.waypoint.service.namespace] : [])])].flatMap((namespace) => model.configs.inNamespace<T>(kind, namespace).filter(({ object }) => applies(object, target, rootNamespace)));
}

/** The policies whose filters a workload has, by name. */
export function policyKeys(model: Model, target: PolicyTarget): string[] {
  return (['AuthorizationPolicy', 'RequestAuthentication'] as const).flatMap((kind) => policiesFor(model, kind, target).map(({ key }) => key));
}

/** Policies with targetRefs are for the proxies of Gateway API's Gateways alone, those about services for waypoints. */
function applies(policy: TargetedPolicy, { namespace, labels, waypoint }: PolicyTarget, rootNamespace: string): boolean {
  const refs = targetRefsOf(policy);
  if (refs.length === 0) return !waypoint && selects(selectorLabels(policy.spec?.selector) ?? policy.spec?.workloadSelector?.labels, labels);
  const gateway = GATEWAY_NAME_LABELS.map((label) => labels[label]).find(Boolean);
  if (!gateway) return false;
  return refs.some(({ kind, name }) => {
    if (kind === 'Gateway') return name === gateway && policy.metadata.namespace === namespace;
    if (kind === 'GatewayClass') return policy.metadata.namespace === rootNamespace && labels[GATEWAY_CLASS_LABEL] === name;
    const service = waypoint?.service;
    return service !== undefined && kind === service.kind && name === service.name && policy.metadata.namespace === service.namespace;
  });
}
