/** A container's environment variables, and what of a pod's spec the lab leaves out. */
import type { ContainerSpec, KubeObject, PodSpec } from './kube.js';

/** A ConfigMap's or Secret's data, or undefined when there is none of that name. */
export type ConfigLookup = (kind: 'ConfigMap' | 'Secret', name: string) => Record<string, string> | undefined;

export function configData(object: KubeObject): Record<string, string> {
  const { data, stringData } = object as { data?: Record<string, string>; stringData?: Record<string, string> };
  if (object.kind !== 'Secret') return { ...data };
  const decoded = Object.entries(data ?? {}).map(([key, value]) => [key, Buffer.from(value, 'base64').toString('utf8')] as const);
  return { ...Object.fromEntries(decoded), ...stringData };
}

/**
 * The variables that the spec gives, in their order, on top of `base`.
 * @param field the value of a downward API field, e.g. `metadata.labels['app']`
 * @throws Error naming the ConfigMap, Secret or key that is missing and not optional
 */
export function environment(
  spec: ContainerSpec,
  base: Record<string, string>,
  field: (path: string) => string,
  config: ConfigLookup,
): Record<string, string> {
  const env = { ...base };
  const data = (
    kind: 'ConfigMap' | 'Secret',
    { name, optional }: { name: string; optional?: boolean },
  ): Record<string, string> => {
    const found = config(kind, name);
    if (!found && !optional) throw new Error(`its environment needs ${kind} ${name}, which is not there`);
    return found ?? {};
  };
  for (const { prefix = '', configMapRef, secretRef } of spec.envFrom ?? []) {
    const all = configMapRef ? data('ConfigMap', configMapRef) : secretRef ? data('Secret', secretRef) : {};
    for (const [key, value] of Object.entries(all)) env[prefix + key] = value;
  }
  for (const { name, value, valueFrom } of spec.env ?? []) {
    const reference = valueFrom?.configMapKeyRef ?? valueFrom?.secretKeyRef;
    if (reference) {
      const kind = valueFrom?.configMapKeyRef ? 'ConfigMap' : 'Secret';
      const found = data(kind, reference)[reference.key];
      if (found === undefined && !reference.optional)
        throw new Error(`its variable ${name} needs key ${reference.key} of ${kind} ${reference.name}, which is not there`);
      if (found !== undefined) env[name] = found;
    } else {
      env[name] = valueFrom?.fieldRef ? field(valueFrom.fieldRef.fieldPath) : expand(String(value ?? ''), env);
    }
  }
  return env;
}

/** What a pod's downward API tells. */
export interface PodFacts {
  name: string;
  namespace: string;
  uid: string;
  nodeName: string;
  serviceAccount: string;
  ips: readonly string[];
  hostIp: string;
  labels: Readonly<Record<string, string>>;
  annotations: Readonly<Record<string, string>>;
}

/** @param binDir commands of the lab's, first on the PATH */
export function podEnvironment(spec: ContainerSpec, pod: PodFacts, binDir: string, config: ConfigLookup): Record<string, string> {
  const [ip = ''] = pod.ips;
  const fields: Record<string, string | undefined> = {
    'metadata.name': pod.name,
    'metadata.namespace': pod.namespace,
    'metadata.uid': pod.uid,
    'spec.nodeName': pod.nodeName,
    'spec.serviceAccountName': pod.serviceAccount,
    'status.podIP': ip,
    'status.podIPs': pod.ips.join(','),
    'status.hostIP': pod.hostIp,
  };
  const base: Record<string, string> = {
    PATH: `${binDir}:${process.env['PATH'] ?? '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'}`,
    HOME: '/root',
    HOSTNAME: pod.name,
    POD_NAME: pod.name,
    POD_NAMESPACE: pod.namespace,
    POD_IP: ip,
    NODE_NAME: pod.nodeName,
  };
  const field = (path: string): string => {
    const [, map, key] = /^metadata\.(labels|annotations)\['(.+)'\]$/.exec(path) ?? [];
    return (key === undefined ? fields[path] : map === 'labels' ? pod.labels[key] : pod.annotations[key]) ?? '';
  };
  return environment(spec, base, field, config);
}

/** `$(NAME)` as in Kubernetes: left as it is when there is no such variable, `$$(NAME)` is `$(NAME)`. */
export function expand(text: string, env: Record<string, string>): string {
  return text.replace(
    /\$(\$\([A-Za-z_][\w.-]*\))|\$\(([A-Za-z_][\w.-]*)\)/g,
    (all, escaped: string | undefined, name: string | undefined) =>
      escaped !== undefined ? escaped : (env[name as string] ?? all),
  );
}

/** Parts of a pod's spec that change what it does and that the lab has nothing for. */
export function leftOut(spec: PodSpec): string[] {
  const parts: string[] = [];
  if (spec.initContainers?.length) parts.push('initContainers');
  return parts;
}

/** Kinds that start programs in a cluster and not here. */
export const LEFT_OUT_KINDS: ReadonlySet<string> = new Set(['ReplicaSet', 'ReplicationController', 'Job', 'CronJob']);
