/** A Kubernetes API server as a source: all kinds that count, each followed. An object that is refused stays as it was. */
import { setMaxListeners } from 'node:events';
import { errorMessage, UnderpassError } from '../../common/errors.js';
import { KubeClient, resourceOf, type Resource } from '../../common/kube/client.js';
import { kinds } from '../../common/kube/kinds.js';
import type { ApiServer } from '../../common/kube/kubeconfig.js';
import { reflect, type Following, type ReflectorOptions } from '../../common/kube/reflector.js';
import { objectKey, type KubeObject } from '../../common/kube/types.js';
import { loadValue, formatError, type LoadedObject, type ValidationError } from '../../common/kube/yaml.js';
import type { Logger } from '../../common/log.js';
import type { Backoff } from '../../common/retry.js';
import type { Source } from './sources.js';
import { trimmed } from './trim.js';

/** A kind as it is read. */
export interface FollowedKind {
  /** Its versions, the preferred one first. */
  resources: readonly Resource[];
  selectors?: ReflectorOptions['selectors'];
}

const coreKinds = (...kinds: string[]): FollowedKind[] => kinds.map((kind) => ({ resources: [resourceOf('v1', kind)] }));

/** Of every cluster. */
export const WORKLOAD_KINDS: readonly FollowedKind[] = [...coreKinds('Namespace', 'Node', 'ServiceAccount', 'Service', 'Pod'), { resources: [resourceOf('discovery.k8s.io/v1', 'EndpointSlice')] }];

/** Of the config cluster besides. */
export const CONFIG_KINDS: readonly FollowedKind[] = [
  ...coreKinds('ConfigMap'),
  // These can be large and many, and hold nothing of the mesh's; the last is the CA's own.
  { resources: [resourceOf('v1', 'Secret')], selectors: { fieldSelector: 'type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token,type!=underpass.io/ca-root' } },
  ...kinds.filter(({ unserved }) => !unserved).map(({ group, kind, versions }) => ({ resources: versions.map((version) => resourceOf(`${group}/${version}`, kind)) })),
];

export interface KubernetesSourceOptions {
  server: ApiServer;
  /** As objects' places name it, `kubernetes://CLUSTER/…`. */
  cluster: string;
  kinds: readonly FollowedKind[];
  logger: Logger;
  /** Called with the full set whenever it changed. */
  onChange: (objects: ReadonlyMap<string, LoadedObject>) => void;
  /** Changes within this time are one. */
  settleMs?: number;
  pageSize?: number;
  /** How long start() waits for the first lists, Infinity for as long as it takes; reading goes on after that. */
  startMs?: number;
  /** Has the rights that reading takes. */
  manifest?: string;
  backoff?: () => Backoff;
}

const SETTLE_MS = 40;
/** Taking over a change costs a look at every object: of a cluster with many that is a fifth of the time at most. */
const SETTLE_FACTOR = 4;
const START_MS = 30_000;

export class KubernetesSource implements Source {
  readonly #options: KubernetesSourceOptions;
  readonly #client: KubeClient;
  /** By the object's key. */
  readonly #objects = new Map<FollowedKind, Map<string, LoadedObject>>();
  readonly #errors = new Map<string, ValidationError[]>();
  /** The newest version of those that are refused, by key. */
  readonly #refused = new Map<string, KubeObject>();
  readonly #stop = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void>[] = [];
  #complete = false;
  #lastProblem = '';
  #tellMs = 0;

  constructor(options: KubernetesSourceOptions) {
    this.#options = options;
    this.#client = new KubeClient(options.server, 'underpass-pilot', options.manifest);
    // Each kind has a request of its own.
    setMaxListeners(0, this.#stop.signal);
  }

  errors(): ValidationError[] {
    return [...this.#errors.values()].flat();
  }

  /** What was refused, as it is in the cluster now. */
  get refused(): ReadonlyMap<string, KubeObject> {
    return this.#refused;
  }

  /** Why not everything was read yet. */
  get problem(): string | undefined {
    return this.#complete ? undefined : this.#lastProblem || `${this.#options.server.url.href} has not answered yet`;
  }

  /** @throws UnderpassError `UNDERPASS_KUBERNETES` when not everything could be read in time; reading goes on until close() */
  async start(): Promise<void> {
    const { kinds: wanted, server, startMs = START_MS } = this.#options;
    let missing = wanted.length;
    await new Promise<void>((resolve, reject) => {
      const timer = startMs === Infinity ? undefined : setTimeout(() => reject(new UnderpassError('UNDERPASS_KUBERNETES', `reading ${server.url.href}: ${this.#lastProblem || `no answer in ${startMs} ms`}`)), startMs);
      this.#stop.signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
      this.#running = wanted.map((kind) =>
        this.#follow(kind, () => {
          if (--missing > 0) return;
          clearTimeout(timer);
          this.#complete = true;
          this.#tell();
          resolve();
        }),
      );
    });
  }

  async close(): Promise<void> {
    this.#stop.abort();
    clearTimeout(this.#timer);
    this.#client.close();
    await Promise.all(this.#running);
  }

  #follow(kind: FollowedKind, onFirst: () => void): Promise<void> {
    const { logger, pageSize, backoff } = this.#options;
    let isFirst = true;
    let resource = kind.resources[0]!;
    const following: Following = {
      begin: (version) => {
        const found = new Map<string, LoadedObject>();
        return {
          listed: (object) => this.#load(kind, version, object, found),
          complete: () => {
            resource = version;
            this.#replace(kind, found);
            if (isFirst) onFirst();
            isFirst = false;
          },
        };
      },
      changed: (object) => {
        if (this.#load(kind, resource, object, this.#objects.get(kind)!)) this.#later();
      },
      deleted: (object) => {
        const key = objectKey({ ...resource, metadata: object.metadata });
        this.#objects.get(kind)!.delete(key);
        this.#forgive(key);
        this.#later();
      },
      failed: (error) => (this.#lastProblem = errorMessage(error)),
    };
    return reflect({ ...kind, client: this.#client, following, logger, signal: this.#stop.signal, ...(pageSize === undefined ? {} : { pageSize }), ...(backoff ? { backoff: backoff() } : {}) });
  }

  /** @returns false when it says what it said before */
  #load(of: FollowedKind, { apiVersion, kind }: Resource, item: KubeObject, into: Map<string, LoadedObject>): boolean {
    const { cluster, logger } = this.#options;
    // Items of lists do not say what they are.
    const object = trimmed({ ...item, apiVersion, kind });
    const key = objectKey(object);
    const before = into.get(key)?.object;
    // Most changes of these are about what was left out.
    if (before && (kind === 'Pod' || kind === 'Node') && isSame(before, object)) return false;
    const { objects, errors } = loadValue(object, `kubernetes://${cluster}/${key.replace(/^\//, '')}`);
    const said = this.#errors.get(key)?.map(formatError).join('\n');
    this.#forgive(key);
    if (errors.length > 0) this.#errors.set(key, errors);
    if (objects.length === 0) this.#refused.set(key, object);
    // A status that is written is another version with the same mistakes.
    for (const error of said === errors.map(formatError).join('\n') ? [] : errors) logger[error.severity === 'error' ? 'error' : 'warn']({ file: error.file, field: error.field }, formatError(error));
    const loaded = objects[0] ?? this.#objects.get(of)?.get(key);
    if (loaded) into.set(key, loaded);
    return true;
  }

  #forgive(key: string): void {
    this.#errors.delete(key);
    this.#refused.delete(key);
  }

  #replace(kind: FollowedKind, found: Map<string, LoadedObject>): void {
    for (const key of this.#objects.get(kind)?.keys() ?? []) if (!found.has(key)) this.#forgive(key);
    this.#objects.set(kind, found);
    this.#later();
  }

  #later(): void {
    if (!this.#complete || this.#timer || this.#stop.signal.aborted) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#tell();
    }, Math.max(this.#options.settleMs ?? SETTLE_MS, SETTLE_FACTOR * this.#tellMs));
  }

  #tell(): void {
    const begin = performance.now();
    const all = new Map<string, LoadedObject>();
    for (const kind of this.#options.kinds) for (const [key, loaded] of this.#objects.get(kind) ?? []) all.set(key, loaded);
    this.#options.onChange(all);
    this.#tellMs = performance.now() - begin;
  }
}

/** But for the version, which nobody asks of such an object. */
function isSame(a: KubeObject, b: KubeObject): boolean {
  const content = ({ metadata: { resourceVersion: _version, ...metadata }, ...rest }: KubeObject): string => JSON.stringify([metadata, rest]);
  return content(a) === content(b);
}
