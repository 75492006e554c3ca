/**
 * What is kept of an object that an API server tells of. Of Pods and Nodes, which are many, that is what the mesh reads of
 * them (pilot/model/pods.ts, pilot/validation/checks/files.ts, pilot/generate/name-table.ts): a Pod of a busy cluster has ten
 * kilobytes, of which a tenth counts.
 */
import type { Condition, KubeObject, Node, Pod, PodSpec } from '../../common/kube/types.js';

/** What `kubectl apply` leaves: the object once more. */
const LAST_APPLIED = 'kubectl.kubernetes.io/last-applied-configuration';
/** The volume that Kubernetes gives every pod. */
const API_ACCESS = 'kube-api-access-';

type Untrimmed = KubeObject & { metadata: { managedFields?: unknown } };
type Mount = { name: string; mountPath: string };
type Volume = { name: string; secret?: unknown; configMap?: unknown; projected?: unknown };

/** A new object; what has not the shape of its kind is as it was, for the checks to say so. */
export function trimmed<T extends KubeObject>(object: T): T {
  const { managedFields: _fields, ...metadata } = object.metadata as Untrimmed['metadata'];
  if (metadata.annotations && LAST_APPLIED in metadata.annotations) {
    const { [LAST_APPLIED]: _applied, ...annotations } = metadata.annotations;
    metadata.annotations = annotations;
  }
  const kept: KubeObject = { ...object, metadata };
  if (kept.kind === 'Pod' && kept.apiVersion === 'v1' && isPod(kept)) return { ...pod(kept) } as KubeObject as T;
  if (kept.kind === 'Node' && kept.apiVersion === 'v1') return node(kept as Node) as KubeObject as T;
  return kept as T;
}

function isPod(object: KubeObject): object is Pod {
  const { spec, status } = object as Partial<Pod>;
  const lists: unknown[] = [spec?.containers, spec?.initContainers ?? [], spec?.volumes ?? [], status?.conditions ?? []];
  return typeof spec === 'object' && lists.every((list) => Array.isArray(list) && list.every((item) => typeof item === 'object' && item !== null));
}

function pod({ apiVersion, kind, metadata, spec, status }: Pod): Pod {
  const volumes = ((spec.volumes ?? []) as Volume[]).filter(({ name, secret, configMap, projected }) => (secret ?? configMap ?? projected) !== undefined && !name?.startsWith(API_ACCESS));
  const names = new Set(volumes.map(({ name }) => name));
  const mountsOf = ({ volumeMounts }: PodSpec['containers'][0]): Mount[] => (Array.isArray(volumeMounts) ? (volumeMounts as Mount[]).filter((mount) => typeof mount?.mountPath === 'string') : []);
  const kept = spec.containers.flatMap((container) => mountsOf(container).filter(({ name }) => names.has(name))).map(({ mountPath }) => mountPath.replace(/\/*$/, '/'));
  // What is mounted within such a volume hides its files.
  const counts = ({ name, mountPath }: Mount): boolean => names.has(name) || kept.some((path) => mountPath.startsWith(path));
  const containers = (all: PodSpec['containers']): PodSpec['containers'] =>
    all.map((container) => {
      const { name, ports } = container;
      const volumeMounts = mountsOf(container).filter(counts);
      return { name, ...(ports === undefined ? {} : { ports }), ...(volumeMounts.length > 0 ? { volumeMounts } : {}) } as PodSpec['containers'][0];
    });
  const { nodeName, serviceAccountName, hostNetwork, hostname, subdomain } = spec;
  return {
    apiVersion,
    kind,
    metadata,
    spec: {
      ...defined({ nodeName, serviceAccountName, hostNetwork, hostname, subdomain }),
      containers: containers(spec.containers),
      ...(spec.initContainers ? { initContainers: containers(spec.initContainers) } : {}),
      ...(volumes.length > 0 ? { volumes: volumes as NonNullable<PodSpec['volumes']> } : {}),
    },
    ...(status === undefined ? {} : { status: statusOf(status) }),
  };
}

function statusOf({ phase, podIP, podIPs, hostIP, conditions }: NonNullable<Pod['status']>): NonNullable<Pod['status']> {
  // When it became so and was looked at last is nothing to the mesh, and would be a change of its own.
  const ready = conditions?.filter(({ type }) => type === 'Ready').map(({ type, status }): Condition => ({ type, status }) as Condition);
  return defined({ phase, podIP, podIPs, hostIP, conditions: ready });
}

/** Its status has all images of the node, and changes with every heartbeat. */
function node({ apiVersion, kind, metadata }: Node): Node {
  return { apiVersion, kind, metadata };
}

function defined<T extends object>(object: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as { [K in keyof T]?: Exclude<T[K], undefined> };
}
