/**
 * All sources of a mesh, merged. Those of the first one's cluster, the config cluster, hold Istio's configuration; of each
 * other cluster the workloads, services and namespaces take part, under names of their own.
 */
import { UnderpassError } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { LoadedObject, ValidationError } from '../../common/kube/yaml.js';
import type { Logger } from '../../common/log.js';
import { CLUSTER_KINDS, placedIn } from '../model/clusters.js';
import { DirectorySource } from './directory.js';

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

/** A source that is put together with others: makes it, to call `onChange` with all its objects whenever they changed. */
export type SourceFactory = (onChange: (objects: Objects) => void) => Source;

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
  logger: Logger;
  onChange: (objects: Objects) => void;
}

export class Sources implements Source {
  readonly #sources = new Map<string, Source>();
  readonly #latest = new Map<string, Objects>();
  /** An object that did not change stays the same one. */
  readonly #placed = new WeakMap<LoadedObject, LoadedObject>();
  #started = false;

  constructor(readonly options: SourcesOptions) {
    const { plan, logger } = options;
    for (const [cluster, directories] of plan.directories) this.#sources.set(cluster, new DirectorySource({ directories, logger: cluster ? logger.child({ cluster }) : logger, onChange: (objects) => this.#take(cluster, objects) }));
  }

  errors(): ValidationError[] {
    return [...this.#sources.values()].flatMap((source) => source.errors());
  }

  async start(): Promise<void> {
    await Promise.all([...this.#sources.values()].map((source) => source.start()));
    this.#started = true;
    this.options.onChange(this.#merged());
  }

  /** Another cluster joins while the mesh runs; what it has takes part when it was read for the first time. */
  async add(cluster: string, make: SourceFactory): Promise<void> {
    await this.remove(cluster);
    const source = make((objects) => {
      if (this.#sources.get(cluster) === source) this.#take(cluster, objects);
    });
    this.#sources.set(cluster, source);
    await source.start();
  }

  async remove(cluster: string): Promise<void> {
    const source = this.#sources.get(cluster);
    this.#sources.delete(cluster);
    if (this.#latest.delete(cluster) && this.#started) this.options.onChange(this.#merged());
    await source?.close();
  }

  async close(): Promise<void> {
    await Promise.all([...this.#sources.values()].map((source) => source.close()));
  }

  #take(cluster: string, objects: Objects): void {
    this.#latest.set(cluster, objects);
    if (this.#started) this.options.onChange(this.#merged());
  }

  #merged(): Objects {
    const own = this.#latest.get('') ?? new Map<string, LoadedObject>();
    if (this.#latest.size === 1 && this.#latest.has('')) return own;
    const merged = new Map(own);
    for (const [cluster, objects] of [...this.#latest].sort(([a], [b]) => (a < b ? -1 : 1))) {
      if (cluster === '') continue;
      for (const loaded of objects.values()) {
        if (!CLUSTER_KINDS.has(loaded.object.kind)) continue;
        let placed = this.#placed.get(loaded);
        if (!placed) this.#placed.set(loaded, (placed = placedIn(cluster, loaded)));
        merged.set(placed.key, placed);
      }
    }
    return merged;
  }
}
