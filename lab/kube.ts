/** The part of Kubernetes' types that the lab reads, and what it fills in as the API server would. */
import { createHash } from 'node:crypto';

export interface ObjectMeta {
  name: string;
  namespace?: string;
  uid?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  ownerReferences?: { apiVersion: string; kind: string; name: string; uid: string; controller?: boolean }[];
  creationTimestamp?: string;
  deletionTimestamp?: string;
}

export interface KubeObject {
  apiVersion: string;
  kind: string;
  metadata: ObjectMeta;
  spec?: unknown;
  [field: string]: unknown;
}

export interface KeyReference {
  name: string;
  key: string;
  optional?: boolean;
}

export interface ContainerSpec {
  name: string;
  image?: string;
  command?: string[];
  args?: string[];
  workingDir?: string;
  env?: {
    name: string;
    value?: string;
    valueFrom?: { fieldRef?: { fieldPath: string }; configMapKeyRef?: KeyReference; secretKeyRef?: KeyReference };
  }[];
  envFrom?: {
    prefix?: string;
    configMapRef?: { name: string; optional?: boolean };
    secretRef?: { name: string; optional?: boolean };
  }[];
  volumeMounts?: { name: string; mountPath: string; subPath?: string; readOnly?: boolean }[];
  ports?: { name?: string; containerPort: number; protocol?: string }[];
  readinessProbe?: ProbeSpec;
  /** `Always` for an init container that goes on running beside the others. */
  restartPolicy?: string;
}

export interface ProbeSpec {
  httpGet?: { path?: string; port: number | string; httpHeaders?: { name: string; value: string }[] };
  tcpSocket?: { port: number | string };
  grpc?: { port: number };
  exec?: { command: string[] };
  initialDelaySeconds?: number;
  periodSeconds?: number;
  timeoutSeconds?: number;
  failureThreshold?: number;
  successThreshold?: number;
}

/** Which keys become which files; all of them under their own names when not given. */
export interface VolumeItems {
  items?: { key: string; path: string }[];
  optional?: boolean;
}

/** Kinds that are not here, e.g. downwardAPI, are an empty directory. */
export interface VolumeSpec {
  name: string;
  configMap?: { name: string } & VolumeItems;
  secret?: { secretName: string } & VolumeItems;
  projected?: { sources?: { configMap?: { name: string } & VolumeItems; secret?: { name: string } & VolumeItems }[] };
}

export interface PodSpec {
  containers: ContainerSpec[];
  initContainers?: ContainerSpec[];
  volumes?: VolumeSpec[];
  nodeName?: string;
  nodeSelector?: Record<string, string>;
  serviceAccountName?: string;
  hostNetwork?: boolean;
  restartPolicy?: 'Always' | 'OnFailure' | 'Never';
  terminationGracePeriodSeconds?: number;
}

export interface ServicePort {
  name?: string;
  port: number;
  protocol?: string;
  targetPort?: number | string;
  appProtocol?: string;
}

export interface ServiceSpec {
  type?: string;
  clusterIP?: string;
  clusterIPs?: string[];
  ipFamilies?: ('IPv4' | 'IPv6')[];
  ipFamilyPolicy?: 'SingleStack' | 'PreferDualStack' | 'RequireDualStack';
  externalName?: string;
  ports?: ServicePort[];
  selector?: Record<string, string>;
  publishNotReadyAddresses?: boolean;
  loadBalancerIP?: string;
}

export interface Service extends KubeObject {
  spec: ServiceSpec;
}

/** A pod that is to be there: given as such, or from a workload's template. */
export interface DesiredPod {
  /** Given by an API server; else each pod that is made has one of its own. */
  uid?: string;
  namespace: string;
  name: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  ownerReferences: NonNullable<ObjectMeta['ownerReferences']>;
  /** The workload, e.g. `Deployment shop/nginx-v1`; a pod's own name when it has none. Pods of one owner replace each other. */
  owner: string;
  /** Of what can't change while a pod lives. */
  specHash: string;
  spec: PodSpec;
}

export function hash(value: unknown, length: number): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('hex').slice(0, length);
}

export function keyOf(object: { namespace?: string | undefined; name: string }): string {
  return `${object.namespace ?? ''}/${object.name}`;
}

/** A UID that stays the same when the same object is read again. */
export function stableUid(...parts: string[]): string {
  const digest = createHash('sha256').update(parts.join('\0')).digest('hex');
  return [
    digest.slice(0, 8),
    digest.slice(8, 12),
    `4${digest.slice(13, 16)}`,
    `8${digest.slice(17, 20)}`,
    digest.slice(20, 32),
  ].join('-');
}

interface WorkloadSpec {
  replicas?: number;
  template?: { metadata?: Partial<ObjectMeta>; spec?: PodSpec };
}

/** What a controller would make of a workload; `nodes` for DaemonSets. */
export function podsOf(object: KubeObject, nodes: readonly string[]): DesiredPod[] {
  const { kind, metadata } = object;
  const namespace = metadata.namespace ?? 'default';
  if (kind === 'Pod') {
    const spec = checkedPodSpec(object.spec as PodSpec | undefined, ['spec']);
    return [
      {
        namespace,
        name: metadata.name,
        labels: { ...metadata.labels },
        annotations: { ...metadata.annotations },
        ownerReferences: [],
        owner: `Pod ${namespace}/${metadata.name}`,
        ...uidOf(metadata),
        specHash: hash(metadata.uid === undefined ? spec : { spec, uid: metadata.uid }, 8),
        spec,
      },
    ];
  }
  const workload = (object.spec ?? {}) as WorkloadSpec;
  const spec = checkedPodSpec(workload.template?.spec, ['spec', 'template', 'spec']);
  const template = workload.template?.metadata ?? {};
  const specHash = hash({ labels: template.labels, annotations: template.annotations, spec }, 10);
  const controller =
    kind === 'Deployment' ? { kind: 'ReplicaSet', name: `${metadata.name}-${specHash}` } : { kind, name: metadata.name };
  const names =
    kind === 'StatefulSet'
      ? range(workload.replicas ?? 1).map((index) => `${metadata.name}-${index}`)
      : kind === 'DaemonSet'
        ? nodes.map((node) => `${metadata.name}-${hash([namespace, node, specHash], 5)}`)
        : range(workload.replicas ?? 1).map(
            (index) => `${controller.name}-${hash([namespace, metadata.name, specHash, index], 5)}`,
          );
  return names.map((name, index) => ({
    namespace,
    name,
    labels: { ...template.labels, ...(kind === 'Deployment' ? { 'pod-template-hash': specHash } : {}) },
    annotations: { ...template.annotations },
    ownerReferences: [
      { apiVersion: 'apps/v1', ...controller, uid: stableUid(kind, namespace, controller.name), controller: true },
    ],
    owner: `${kind} ${namespace}/${metadata.name}`,
    specHash,
    spec: kind === 'DaemonSet' ? { ...spec, nodeName: nodes[index] as string } : spec,
  }));
}

/** It names folders and cgroups. */
function uidOf({ uid }: ObjectMeta): { uid?: string } {
  if (uid === undefined) return {};
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(uid)) throw new PodSpecError(['metadata', 'uid'], `found ${JSON.stringify(uid)}, expected a UUID`);
  return { uid };
}

export const WORKLOAD_KINDS: ReadonlySet<string> = new Set(['Pod', 'Deployment', 'StatefulSet', 'DaemonSet']);

function range(count: number): number[] {
  return Array.from({ length: Math.max(0, count) }, (_, index) => index);
}

/** Something in a pod's spec that the lab can't start; `path` leads to it from the object's root. */
export class PodSpecError extends Error {
  constructor(
    readonly path: readonly (string | number)[],
    message: string,
  ) {
    super(message);
  }
}

function checkedPodSpec(spec: PodSpec | undefined, path: readonly string[]): PodSpec {
  const fail = (field: readonly (string | number)[], expected: string): never => {
    throw new PodSpecError([...path, ...field], `expected ${expected}`);
  };
  if (!spec || !Array.isArray(spec.containers) || spec.containers.length === 0)
    return fail(['containers'], 'a list of at least one container');
  const seen = new Set<string>();
  spec.containers.forEach((container, index) => {
    const at = ['containers', index];
    if (typeof container.name !== 'string' || !/^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/.test(container.name))
      fail([...at, 'name'], 'a name of a-z, 0-9 and -');
    if (seen.has(container.name)) fail([...at, 'name'], `a name of its own, ${container.name} is there already`);
    seen.add(container.name);
    if (!container.image && !container.command) fail([...at, 'image'], 'an image, or a command');
    for (const field of ['command', 'args'] as const) {
      const value = container[field] as unknown;
      if (value !== undefined && !(Array.isArray(value) && value.every((word) => typeof word === 'string')))
        fail([...at, field], 'a list of strings');
    }
    container.ports?.forEach((port, position) => {
      if (!Number.isInteger(port.containerPort) || port.containerPort < 1 || port.containerPort > 65535)
        fail([...at, 'ports', position, 'containerPort'], 'a port from 1 to 65535');
    });
  });
  return spec;
}

export function matches(selector: Record<string, string> | undefined, labels: Record<string, string>): boolean {
  const entries = Object.entries(selector ?? {});
  return entries.length > 0 && entries.every(([key, value]) => labels[key] === value);
}

/** The port number that a service's port means on this pod, or undefined when the pod has no port of that name. */
export function targetPort(port: ServicePort, spec: PodSpec): number | undefined {
  const target = port.targetPort ?? port.port;
  if (typeof target === 'number') return target;
  if (/^\d+$/.test(target)) return Number(target);
  return spec.containers.flatMap((container) => container.ports ?? []).find(({ name }) => name === target)?.containerPort;
}

export function serviceFamilies(spec: ServiceSpec): ('IPv4' | 'IPv6')[] {
  if (spec.ipFamilies?.length) {
    const dual = spec.ipFamilyPolicy === 'PreferDualStack' || spec.ipFamilyPolicy === 'RequireDualStack';
    if (!dual || spec.ipFamilies.length > 1) return spec.ipFamilies;
    return spec.ipFamilies[0] === 'IPv4' ? ['IPv4', 'IPv6'] : ['IPv6', 'IPv4'];
  }
  if (spec.ipFamilyPolicy === 'PreferDualStack' || spec.ipFamilyPolicy === 'RequireDualStack') return ['IPv4', 'IPv6'];
  if (spec.clusterIPs?.length) return spec.clusterIPs.map((ip) => (ip.includes(':') ? 'IPv6' : 'IPv4'));
  return [spec.clusterIP?.includes(':') ? 'IPv6' : 'IPv4'];
}
