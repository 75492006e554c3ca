/** A pod as admission sees it: what injection reads has names here, the rest is carried along. */
export interface InjectablePod {
  metadata: {
    name?: string;
    generateName?: string;
    namespace?: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
    ownerReferences?: { apiVersion?: string; kind: string; name: string; controller?: boolean }[];
    [field: string]: unknown;
  };
  spec: InjectableSpec;
  [field: string]: unknown;
}

export interface InjectableSpec {
  hostNetwork?: boolean;
  serviceAccountName?: string;
  containers: InjectableContainer[];
  initContainers?: InjectableContainer[];
  volumes?: { name: string; [field: string]: unknown }[];
  [field: string]: unknown;
}

export interface InjectableContainer {
  name: string;
  image?: string;
  args?: string[];
  env?: { name: string; value?: string; [field: string]: unknown }[];
  ports?: { name?: string; containerPort: number; protocol?: string }[];
  volumeMounts?: { name: string; mountPath: string; [field: string]: unknown }[];
  [field: string]: unknown;
}

export const PROXY_CONTAINER = 'istio-proxy';
export const INIT_CONTAINER = 'istio-init';
export const STATUS_ANNOTATION = 'sidecar.istio.io/status';

type Mapping = Record<string, unknown>;

/** Lists whose items have names of their own, as in Kubernetes' strategic merge. */
const MERGE_KEYS: Readonly<Record<string, readonly string[]>> = {
  containers: ['name'],
  initContainers: ['name'],
  volumes: ['name'],
  env: ['name'],
  imagePullSecrets: ['name'],
  volumeMounts: ['mountPath'],
  ports: ['containerPort', 'protocol'],
};
/** Items that are replaced whole: a variable has a value or a source, never both. */
const WHOLE_ITEMS: ReadonlySet<string> = new Set(['env', 'volumes']);

const isMapping = (value: unknown): value is Mapping => typeof value === 'object' && value !== null && !Array.isArray(value);

/** `over` wins; new items of lists come behind those that are there. */
export function strategicMerge(base: unknown, over: unknown, field = ''): unknown {
  if (over === undefined) return base;
  if (isMapping(base) && isMapping(over)) {
    const merged: Mapping = { ...base };
    for (const [key, value] of Object.entries(over)) merged[key] = strategicMerge(base[key], value, key);
    return merged;
  }
  const keys = MERGE_KEYS[field];
  if (!keys || !Array.isArray(base) || !Array.isArray(over)) return over;
  const identity = (item: Mapping): string => keys.map((key) => (key === 'protocol' ? (item[key] ?? 'TCP') : item[key])).join('/');
  const merged = [...(base as Mapping[])];
  for (const item of over as Mapping[]) {
    const position = merged.findIndex((candidate) => identity(candidate) === identity(item));
    if (position < 0) merged.push(item);
    else merged[position] = WHOLE_ITEMS.has(field) ? item : (strategicMerge(merged[position], item) as Mapping);
  }
  return merged;
}
