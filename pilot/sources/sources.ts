/**
 * All sources of a mesh, merged. Those of the first one's cluster, the config cluster, hold Istio's configuration; of each
 * other cluster the workloads, services and namespaces take part, under names of their own.
 */
import { errorMessage, UnderpassError } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { KubeObject, Secret } from '../../common/kube/types.js';
import type { LoadedObject, ValidationError } from '../../common/kube/yaml.js';
import type { Logger } from '../../common/log.js';
import { Memo } from '../../common/memo.js';
import { CLUSTER_KINDS, placedIn } from '../model/clusters.js';
import { DirectorySource } from './directory.js';
import { parseKubeconfig, type ApiServer } from '../../common/kube/kubeconfig.js';
import { CONFIG_KINDS, KubernetesSource, WORKLOAD_KINDS } from './kubernetes.js';

export interface ClusterSource {
  /** A directory, or a file, of YAML. */
  directory: string;
  /** Empty: the config cluster. */
  cluster: string;
  /** Of the cluster's workloads that do not say another; empty: not said here. */
  network: string;
}

type Objects = ReadonlyMap<string, LoadedObject>;

/** What reads the objects of one cluster. */
export interface Source extends Closable {
  start(): Promise<void>;
  errors(): ValidationError[];
}

/** As in Istio: Secrets of the root namespace whose every key is the name of a cluster, its value a kubeconfig. */
const REMOTE_LABEL = 'istio/multiCluster';
/** The config cluster's API server; its directories override it. */
const CONFIG_API = ' api';
/** What has the rights that reading and writing take. */
export const PILOT_RIGHTS = 'deploy/pilot-rbac.yaml';
const REMOTE_RIGHTS = 'deploy/remote-rbac.yaml';

/**
 * `DIR`, or `cluster=NAME[,network=NETWORK]:DIR`.
 * @throws UnderpassError `UNDERPASS_SOURCE` when what stands before the colon is something else
 */
export function parseSource(written: string): ClusterSource {
  const settings = /^((?:cluster|network)=[^:]*):(.+)$/s.exec(written);
  const source: ClusterSource = { directory: settings?.[2] ?? written, cluster: '', network: '' };
  for (const setting of settings?.[1]?.split(',') ?? []) {
    const [name, value, ...rest] = setting.split('=');
    if ((name !== 'cluster' && name !== 'network') || !value || rest.length > 0 || !/^[\w.-]+$/.test(value)) {
      throw new UnderpassError('UNDERPASS_SOURCE', `reading source ${written}: found ${JSON.stringify(setting)}, expected cluster=NAME or network=NAME`, { hint: 'write --source DIR or --source cluster=NAME,network=NETWORK:DIR' });
    }
    source[name] = value;
  }
  return source;
}

export interface SourcePlan {
  /** Its name, where the sources give it one. */
  configCluster: string | undefined;
  configNetwork: string | undefined;
  /** The others, by name. */
  clusters: Record<string, { network: string }>;
  /** By cluster, the config cluster as the empty string; later ones override earlier ones. */
  directories: ReadonlyMap<string, readonly string[]>;
}

/** The first source's cluster is the config cluster, and so is that of all which name none. */
export function planSources(written: readonly string[]): SourcePlan {
  const sources = written.map(parseSource);
  const first = sources[0]?.cluster || undefined;
  const plan: SourcePlan = { configCluster: first, configNetwork: undefined, clusters: {}, directories: new Map() };
  const directories = plan.directories as Map<string, string[]>;
  for (const { directory, cluster: name, network } of sources) {
    const cluster = name === first ? '' : name;
    directories.set(cluster, [...(directories.get(cluster) ?? []), directory]);
    const known = cluster === '' ? plan.configNetwork : plan.clusters[cluster]?.network;
    if (known && network && known !== network) throw new UnderpassError('UNDERPASS_SOURCE', `reading source ${directory}: found network ${network} for cluster ${name || 'that names none'}, which another source has on ${known}`);
    if (cluster === '') plan.configNetwork = network || known;
    else plan.clusters[cluster] = { network: network || known || '' };
  }
  return plan;
}

export interface SourcesOptions {
  plan: SourcePlan;
  /** The config cluster's API server, read besides its directories; with it remote clusters join by Secrets. */
  apiServer?: ApiServer | undefined;
  /** How long start() waits for it. */
  startMs?: number;
  rootNamespace?: () => string;
  logger: Logger;
  onChange: (objects: Objects) => void;
}

export class Sources implements Source {
  readonly #sources = new Map<string, Source>();
  readonly #latest = new Map<string, Objects>();
  /** An object that did not change stays the same one. */
  readonly #placed = new Memo<LoadedObject, LoadedObject>();
  /** Kubeconfigs of remote clusters, as their Secrets have them. */
  readonly #remotes = new Map<string, string>();
  #started = false;
  #config: KubernetesSource | undefined;

  constructor(readonly options: SourcesOptions) {
    const { plan, logger } = options;
    for (const [cluster, directories] of plan.directories) this.#sources.set(cluster, new DirectorySource({ directories, logger: cluster ? logger.child({ cluster }) : logger, onChange: (objects) => this.#take(cluster, objects) }));
  }

  errors(): ValidationError[] {
    return [...this.#sources.values()].flatMap((source) => source.errors());
  }

  /** Of the config cluster's API server: what was refused, as it is there now. */
  get refused(): ReadonlyMap<string, KubeObject> {
    return this.#config?.refused ?? new Map<string, KubeObject>();
  }

  /** Why the first state is not there yet. */
  get problem(): string | undefined {
    return this.#started ? undefined : (this.#config?.problem ?? 'the sources have not been read yet');
  }

  async start(): Promise<void> {
    const { apiServer } = this.options;
    if (apiServer) this.#sources.set(CONFIG_API, (this.#config = this.#apiSource(CONFIG_API, apiServer)));
    await Promise.all([...this.#sources.values()].map((source) => source.start()));
    this.#started = true;
    this.#tell();
  }

  #apiSource(cluster: string, server: ApiServer): KubernetesSource {
    const { plan, logger, startMs } = this.options;
    const name = cluster === CONFIG_API ? (plan.configCluster ?? 'Kubernetes') : cluster;
    const source = new KubernetesSource({
      server,
      manifest: cluster === CONFIG_API ? PILOT_RIGHTS : REMOTE_RIGHTS,
      ...(cluster === CONFIG_API && startMs !== undefined ? { startMs } : {}),
      cluster: name,
      kinds: cluster === CONFIG_API ? [...WORKLOAD_KINDS, ...CONFIG_KINDS] : WORKLOAD_KINDS,
      logger: logger.child({ cluster: name }),
      // One that was taken away may still have something to tell.
      onChange: (objects) => this.#sources.get(cluster) === source && this.#take(cluster, objects),
    });
    return source;
  }

  /** Clusters come and go with the Secrets that name them; one that is in the options stays as it is there. */
  #followRemotes(own: Objects): void {
    const wanted = new Map<string, string>();
    const rootNamespace = this.options.rootNamespace?.() ?? 'istio-system';
    for (const { object } of own.values()) {
      if (object.kind !== 'Secret' || object.metadata.namespace !== rootNamespace || object.metadata.labels?.[REMOTE_LABEL] !== 'true') continue;
      for (const [cluster, encoded] of Object.entries((object as Secret).data ?? {})) if (!this.#isGiven(cluster)) wanted.set(cluster, encoded);
    }
    for (const cluster of this.#remotes.keys()) if (wanted.get(cluster) !== this.#remotes.get(cluster)) this.#leave(cluster);
    for (const [cluster, encoded] of wanted) if (!this.#remotes.has(cluster)) this.#join(cluster, encoded);
  }

  #isGiven(cluster: string): boolean {
    const { plan } = this.options;
    return cluster === (plan.configCluster ?? 'Kubernetes') || plan.directories.has(cluster);
  }

  #join(cluster: string, encoded: string): void {
    const { plan, logger } = this.options;
    this.#remotes.set(cluster, encoded);
    let source: Source;
    try {
      source = this.#apiSource(cluster, parseKubeconfig(Buffer.from(encoded, 'base64').toString('utf8'), { place: `of remote cluster ${cluster}` }));
    } catch (error) {
      logger.error({ cluster, reason: errorMessage(error) }, 'a remote cluster can not be read');
      return;
    }
    // The mesh's settings hold this very object: whoever asks for a cluster finds it from now on.
    plan.clusters[cluster] = { network: '' };
    this.#sources.set(cluster, source);
    // It goes on trying; what it has takes part when it was read for the first time.
    source.start().catch((error: unknown) => logger.error({ cluster, reason: errorMessage(error) }, 'a remote cluster does not answer'));
  }

  #leave(cluster: string): void {
    this.#remotes.delete(cluster);
    const source = this.#sources.get(cluster);
    this.#sources.delete(cluster);
    this.#latest.delete(cluster);
    void source?.close();
  }

  async close(): Promise<void> {
    await Promise.all([...this.#sources.values()].map((source) => source.close()));
  }

  #take(cluster: string, objects: Objects): void {
    this.#latest.set(cluster, objects);
    if (this.#started) this.#tell();
  }

  #tell(): void {
    const own = this.#own();
    if (this.options.apiServer) this.#followRemotes(own);
    this.options.onChange(this.#merged(own));
  }

  #own(): Objects {
    const [api, written] = [this.#latest.get(CONFIG_API), this.#latest.get('')];
    return api && written ? new Map([...api, ...written]) : (api ?? written ?? new Map<string, LoadedObject>());
  }

  #merged(own: Objects): Objects {
    if ([...this.#latest.keys()].every((cluster) => cluster === '' || cluster === CONFIG_API)) return own;
    const merged = new Map(own);
    for (const [cluster, objects] of [...this.#latest].sort(([a], [b]) => (a < b ? -1 : 1))) {
      if (cluster === '' || cluster === CONFIG_API) continue;
      for (const loaded of objects.values()) {
        if (!CLUSTER_KINDS.has(loaded.object.kind)) continue;
        const placed = this.#placed.once(loaded, () => placedIn(cluster, loaded));
        merged.set(placed.key, placed);
      }
    }
    return merged;
  }
}
