/** What is installed, in a cluster: applied, found again by its labels, taken away. */
import { UnderpassError, errorMessage } from '../../common/errors.js';
import { isRefusal, resourceOf, resourcePath, type KubeClient } from '../../common/kube/client.js';
import type { KubeObject } from '../../common/kube/types.js';
import { AGENT_NAMESPACE, LABELS, ROOT_NAMESPACE } from './rbac.js';

/** Prometheus' operator, which not every cluster has, and its kinds. */
export const OPERATOR = 'monitoring.coreos.com/v1';
const OPERATOR_KINDS: readonly string[] = ['PodMonitor', 'PrometheusRule'];

/** Every kind that any values install, in the order of removal: who calls, before what is called; what runs, before its rights. */
const KINDS: readonly [apiVersion: string, kind: string][] = [
  ['admissionregistration.k8s.io/v1', 'MutatingWebhookConfiguration'],
  ['admissionregistration.k8s.io/v1', 'ValidatingWebhookConfiguration'],
  ['apps/v1', 'DaemonSet'],
  ['apps/v1', 'Deployment'],
  ['policy/v1', 'PodDisruptionBudget'],
  ['networking.k8s.io/v1', 'NetworkPolicy'],
  ...OPERATOR_KINDS.map((kind): [string, string] => [OPERATOR, kind]),
  ['v1', 'Service'],
  ['v1', 'ConfigMap'],
  ['rbac.authorization.k8s.io/v1', 'RoleBinding'],
  ['rbac.authorization.k8s.io/v1', 'Role'],
  ['rbac.authorization.k8s.io/v1', 'ClusterRoleBinding'],
  ['rbac.authorization.k8s.io/v1', 'ClusterRole'],
  ['v1', 'ServiceAccount'],
];
/** Of all that is in a namespace. */
const NAMESPACES: readonly string[] = [AGENT_NAMESPACE, ROOT_NAMESPACE];
const SELECTOR = Object.entries(LABELS).map(([key, label]) => `${key}=${label}`).join(',');

export const named = ({ kind, metadata }: KubeObject): string => `${kind} ${metadata.namespace === undefined ? '' : `${metadata.namespace}/`}${metadata.name}`;
const idOf = (object: KubeObject): string => `${object.apiVersion} ${named(object)}`;

export interface Listing<T> {
  items?: T[];
}

export async function listed<T extends KubeObject>(client: KubeClient, apiVersion: string, kind: string, query: Readonly<Record<string, string>>, namespace?: string): Promise<T[]> {
  const { items = [] } = await client.request<Listing<T>>('GET', `${resourcePath(resourceOf(apiVersion, kind), namespace === undefined ? {} : { namespace })}?${new URLSearchParams(query)}`);
  return items.map((item) => ({ ...item, apiVersion, kind }));
}

/** @returns undefined when it is not there */
export async function present<T extends KubeObject>(client: KubeClient, apiVersion: string, kind: string, place: { namespace?: string; name: string }): Promise<T | undefined> {
  try {
    return await client.get<T>(resourceOf(apiVersion, kind), place);
  } catch (error) {
    if (isRefusal(error, 404)) return undefined;
    throw error;
  }
}

/** Kinds of Prometheus' operator that the API server has. */
export async function operatorKinds(client: KubeClient): Promise<string[]> {
  try {
    const { resources } = await client.request<{ resources: { kind: string }[] }>('GET', `/apis/${OPERATOR}`);
    return resources.map(({ kind }) => kind);
  } catch (error) {
    if (isRefusal(error, 404)) return [];
    throw error;
  }
}

/** Whether an installation made it, by its labels. */
export const isOurs = ({ metadata }: KubeObject): boolean => Object.entries(LABELS).every(([key, label]) => metadata.labels?.[key] === label);

/**
 * Objects to apply, where nothing is taken from anybody: a namespace that is there already stays whoever's it is, also when all
 * is uninstalled.
 * @throws UnderpassError `UNDERPASS_INSTALL` naming the objects that are somebody else's
 */
export async function withoutTaking(client: KubeClient, objects: readonly KubeObject[], hint: string): Promise<KubeObject[]> {
  const taken: string[] = [];
  const wanted: KubeObject[] = [];
  for (const object of objects) {
    const { apiVersion, kind, metadata } = object;
    const { namespace, name, labels = {} } = metadata;
    const found = await present(client, apiVersion, kind, { ...(namespace === undefined ? {} : { namespace }), name });
    if (!found || isOurs(found)) wanted.push(object);
    else if (kind === 'Namespace') wanted.push({ ...object, metadata: { ...metadata, labels: Object.fromEntries(Object.entries(labels).filter(([key]) => !Object.hasOwn(LABELS, key))) } });
    else taken.push(named(object));
  }
  if (taken.length > 0) throw new UnderpassError('UNDERPASS_INSTALL', `installing: these are there and somebody else's: ${taken.join(', ')}`, { hint });
  return wanted;
}

/** Server-side apply, one after the other. @throws UnderpassError `UNDERPASS_INSTALL` naming the object that was refused */
export async function applyAll(client: KubeClient, objects: readonly KubeObject[], progress: (text: string) => void): Promise<void> {
  for (const [index, object] of objects.entries()) {
    progress(`applying ${index + 1} of ${objects.length}: ${named(object)}`);
    try {
      await client.apply(resourceOf(object.apiVersion, object.kind), object);
    } catch (cause) {
      throw new UnderpassError('UNDERPASS_INSTALL', `applying ${named(object)}: ${errorMessage(cause)}`, { cause, hint: 'what was applied before it stays; the same command again goes on' });
    }
  }
}

/** What earlier values installed, or all, without namespaces; in the order of removal. */
export async function installed(client: KubeClient): Promise<KubeObject[]> {
  const found: KubeObject[] = [];
  const there = await operatorKinds(client);
  for (const [apiVersion, kind] of KINDS) {
    if (apiVersion !== OPERATOR || there.includes(kind)) found.push(...(await listed(client, apiVersion, kind, { labelSelector: SELECTOR })));
  }
  // Their controllers copy labels to what they make, and people to what is theirs.
  return found.filter(({ metadata: { namespace, ownerReferences = [] } }) => ownerReferences.length === 0 && (namespace === undefined || NAMESPACES.includes(namespace)));
}

export async function removeObject(client: KubeClient, object: KubeObject): Promise<void> {
  const { namespace, name } = object.metadata;
  await client.delete(resourceOf(object.apiVersion, object.kind), { namespace, name }).catch((error: unknown) => {
    if (!isRefusal(error, 404)) throw error;
  });
}

/** What the values do not want any more. @returns their names */
export async function prune(client: KubeClient, wanted: readonly KubeObject[]): Promise<string[]> {
  const kept = new Set(wanted.map(idOf));
  const gone = (await installed(client)).filter((object) => !kept.has(idOf(object)));
  for (const object of gone) await removeObject(client, object);
  return gone.map(named);
}
