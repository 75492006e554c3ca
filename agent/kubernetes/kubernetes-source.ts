import { setMaxListeners } from 'node:events';
import { renameSync, writeFileSync } from 'node:fs';
import { errorMessage } from '../../common/errors.js';
import { isRefusal, resourceOf, resourcePath, type KubeClient } from '../../common/kube/client.js';
import type { KubeObject, Pod } from '../../common/kube/types.js';
import { reflect, type Following } from '../../common/kube/reflector.js';
import type { PodMetadataPatch } from '../../common/lab-api.js';
import type { Logger } from '../../common/log.js';
import { Backoff } from '../../common/retry.js';
import { enrolsNamespace } from '../workloads/enrolment.js';
import { newest } from '../workloads/newest.js';
import type { PodRecord, StartingPod, WorkloadSource } from '../workloads/source.js';
import { apiPod, type ApiPod } from './pod-record.js';
import type { LabelEvents } from './label-events.js';
import type { PodPlace, PodPlaces } from './pod-places.js';

export interface KubernetesSourceOptions {
  client: KubeClient;
  nodeName: string;
  places: Pick<PodPlaces, 'find' | 'prepare'> & Partial<Pick<PodPlaces, 'mayDiffer'>>;
  logger: Logger;
  /** Told of every object's labels. */
  labels?: Pick<LabelEvents, 'look' | 'forget'>;
  backoff?: () => Backoff;
  pageSize?: number;
  /** Names of namespaces whose label asks for enrolment, a line each: for the CNI plugin, while no agent answers. */
  labelledFile?: string;
  /** Istio's label of ambient mode asks for it, too. */
  ambientLabel?: boolean;
}

const PODS = resourceOf('v1', 'Pod');
const NAMESPACES = resourceOf('v1', 'Namespace');
/** Changes within this time are one set. */
const SETTLE_MS = 10;
/** A pod runs and is not to be found: kubelet is about to make it, or has just ended it. */
const LOOK_AGAIN = { initialMs: 50, maxMs: 5_000, factor: 1.6, jitter: 0.2 };
/** After this many looks in vain, some ten seconds, the log says so. */
const LOOKS_UNTIL_SAID = 8;
const MOST_ENDED = 1_000;

const ofNode = (nodeName: string): { fieldSelector: string } => ({ fieldSelector: `spec.nodeName=${nodeName}` });

/** The node's pods as they are now, in one answer. */
export async function apiPods(client: KubeClient, nodeName: string, signal?: AbortSignal): Promise<ApiPod[]> {
  const { items = [] } = await client.request<{ items?: Pod[] }>('GET', `${resourcePath(PODS)}?${new URLSearchParams(ofNode(nodeName))}`, signal ? { signal } : {});
  return items.map(apiPod);
}

/** Fine when the pod is gone, or another has its name: that one is not to be told what this one does. */
export async function setPodMetadata(client: KubeClient, { namespace, name, uid }: Pick<PodRecord, 'namespace' | 'name' | 'uid'>, patch: PodMetadataPatch, signal?: AbortSignal): Promise<void> {
  await client.merge(PODS, { namespace, name }, { metadata: { uid, ...patch } }, signal).catch((error: unknown) => {
    if (!isRefusal(error, 404, 409)) throw error;
  });
}

/**
 * The pods of one node of a cluster, by the API, each with its place on this machine. What was read stays in force while the
 * API server is away.
 */
export class KubernetesSource implements WorkloadSource {
  readonly #options: KubernetesSourceOptions;
  /** By UID. */
  #pods = new Map<string, ApiPod>();
  /** Labels, by name. */
  #namespaces = new Map<string, Readonly<Record<string, string>>>();
  /** By UID; `ips`: those that the pod had when its place was looked up. A new sandbox has new ones. */
  readonly #places = new Map<string, PodPlace & { ips: string; starting?: readonly string[]; /** Before it ran: where it runs may be elsewhere. */ isGuess?: boolean }>();
  /** The last ones whose end the watch has told of, for answers that are older than that. */
  readonly #ended = new Set<string>();
  #dirty: () => void = () => undefined;
  #labelled: string | undefined;
  readonly #complete = new Set<string>();
  readonly #problems = new Map<string, string>();

  constructor(options: KubernetesSourceOptions) {
    this.#options = options;
  }

  get description(): string {
    return `Kubernetes ${this.#options.client.server.url.origin}`;
  }

  /** All that the API has of this node. */
  get pods(): Iterable<ApiPod> {
    return this.#pods.values();
  }

  get problem(): string | undefined {
    if (this.#problems.size > 0) return [...this.#problems.values()].join('; ');
    return this.#complete.size < 2 ? 'not read yet' : undefined;
  }

  watch(signal: AbortSignal): AsyncIterable<readonly PodRecord[]> {
    return newest(this.#sets(signal));
  }

  async admit({ namespace, name, uid, netns, ips }: StartingPod, signal: AbortSignal): Promise<PodRecord | undefined> {
    const { client, places, nodeName } = this.#options;
    const isMeant = (pod: ApiPod): boolean => (uid === undefined ? pod.namespace === namespace && pod.name === name && !pod.terminating : pod.uid === uid);
    let pod = [...this.#pods.values()].find(isMeant);
    if (!pod) {
      // Kubelet has heard of it before this watch has.
      const read = apiPod(await client.get<Pod>(PODS, { namespace, name }, signal));
      if (!isMeant(read) || read.nodeName !== nodeName || this.#ended.has(read.uid)) return undefined;
      pod = read;
      if (!this.#pods.has(read.uid)) this.#pods.set(read.uid, read);
    }
    const cgroup = places.prepare(pod.uid);
    if (cgroup === undefined) throw new Error(`pod ${namespace}/${name}: no cgroup is named by its UID ${pod.uid}`);
    this.#places.set(pod.uid, { cgroup, netns, ips: ips.join(), starting: ips, ...(places.mayDiffer ? { isGuess: true } : {}) });
    this.#dirty();
    return this.#record(pod);
  }

  setPodMetadata(pod: PodRecord, patch: PodMetadataPatch): Promise<void> {
    return setPodMetadata(this.#options.client, pod, patch);
  }

  async *#sets(signal: AbortSignal): AsyncGenerator<readonly PodRecord[], void> {
    const { nodeName, logger } = this.#options;
    const stop = new AbortController();
    const either = AbortSignal.any([signal, stop.signal]);
    setMaxListeners(0, either);
    let wake: (() => void) | undefined;
    let isChanged = false;
    const dirty = (): void => {
      isChanged = true;
      wake?.();
    };
    this.#dirty = dirty;
    let settling: NodeJS.Timeout | undefined;
    const changed = (): void => {
      settling ??= setTimeout(() => {
        settling = undefined;
        dirty();
      }, SETTLE_MS);
    };
    let looking: NodeJS.Timeout | undefined;
    const ended = new Promise<void>((resolve) => either.addEventListener('abort', () => resolve(), { once: true }));
    const following = [this.#follow(PODS.kind, this.#podsFollowing(changed), either, ofNode(nodeName)), this.#follow(NAMESPACES.kind, this.#namespacesFollowing(changed), either)];
    const again = new Backoff(LOOK_AGAIN);
    let looks = 0;
    try {
      while (!either.aborted) {
        if (!isChanged) await Promise.race([ended, new Promise<void>((resolve) => (wake = resolve))]);
        isChanged = false;
        if (either.aborted || this.#complete.size < 2) continue;
        this.#writeLabelled();
        const missing = this.#locate();
        if (missing.length === 0) {
          again.reset();
          looks = 0;
        } else {
          if (++looks === LOOKS_UNTIL_SAID) logger.warn({ pods: missing.map(({ namespace, name }) => `${namespace}/${name}`) }, 'pods run, and no cgroup of theirs with a process in it is found; they are left alone, and looked for again');
          clearTimeout(looking);
          looking = setTimeout(dirty, again.next());
        }
        yield this.#records();
      }
    } finally {
      stop.abort();
      clearTimeout(settling);
      clearTimeout(looking);
      await Promise.all(following);
    }
  }

  #follow(kind: string, following: Following, signal: AbortSignal, selectors?: { fieldSelector: string }): Promise<void> {
    const { client, logger, backoff, pageSize } = this.#options;
    const resource = kind === PODS.kind ? PODS : NAMESPACES;
    const failed = (error: unknown): unknown => this.#problems.set(kind, errorMessage(error));
    const fine = (): boolean => this.#problems.delete(kind);
    return reflect({
      client, resources: [resource], logger, signal,
      following: {
        begin: (of) => {
          const list = following.begin(of);
          return {
            listed: list.listed,
            complete: () => {
              list.complete();
              if (!this.#complete.has(kind)) logger.info({ kind, server: client.server.url.origin }, 'read from the API server');
              this.#complete.add(kind);
            },
          };
        },
        changed: following.changed,
        deleted: following.deleted,
        watching: fine,
        failed,
      },
      ...(selectors ? { selectors } : {}),
      ...(backoff ? { backoff: backoff() } : {}),
      ...(pageSize === undefined ? {} : { pageSize }),
    });
  }

  #podsFollowing(changed: () => void): Following {
    const { labels } = this.#options;
    const read = (object: KubeObject, isChange: boolean): ApiPod => {
      labels?.look({ kind: 'Pod', metadata: object.metadata }, isChange);
      return apiPod(object as Pod);
    };
    return {
      begin: () => {
        const found = new Map<string, ApiPod>();
        return {
          listed: (object) => {
            const pod = read(object, false);
            found.set(pod.uid, pod);
          },
          complete: () => {
            this.#pods = found;
            changed();
          },
        };
      },
      changed: (object) => {
        const pod = read(object, true);
        this.#pods.set(pod.uid, pod);
        changed();
      },
      deleted: ({ metadata }) => {
        labels?.forget(metadata.uid);
        this.#pods.delete(metadata.uid ?? '');
        this.#hasEnded(metadata.uid ?? '');
        changed();
      },
    };
  }

  #hasEnded(uid: string): void {
    this.#ended.add(uid);
    const [oldest] = this.#ended;
    if (this.#ended.size > MOST_ENDED) this.#ended.delete(oldest!);
  }

  #namespacesFollowing(changed: () => void): Following {
    const { labels } = this.#options;
    const read = ({ metadata }: KubeObject, isChange: boolean): Readonly<Record<string, string>> => {
      labels?.look({ kind: 'Namespace', metadata }, isChange);
      return metadata.labels ?? {};
    };
    return {
      begin: () => {
        const found = new Map<string, Readonly<Record<string, string>>>();
        return {
          listed: (object) => void found.set(object.metadata.name, read(object, false)),
          complete: () => {
            this.#namespaces = found;
            changed();
          },
        };
      },
      changed: (object) => {
        this.#namespaces.set(object.metadata.name, read(object, true));
        changed();
      },
      deleted: ({ metadata }) => {
        labels?.forget(metadata.uid);
        this.#namespaces.delete(metadata.name);
        changed();
      },
    };
  }

  #writeLabelled(): void {
    const { labelledFile, logger, ambientLabel = false } = this.#options;
    if (labelledFile === undefined) return;
    const names = [...this.#namespaces].flatMap(([name, labels]) => (enrolsNamespace(labels, { ambientLabel }) ? [`${name}\n`] : [])).sort().join('');
    if (names === this.#labelled) return;
    try {
      writeFileSync(`${labelledFile}.new`, names, { mode: 0o600 });
      renameSync(`${labelledFile}.new`, labelledFile);
      this.#labelled = names;
    } catch (error) {
      logger.warn({ reason: errorMessage(error) }, 'which namespaces are labelled can\'t be written for the CNI plugin; while no agent answers it goes by what was written before');
    }
  }

  /** @returns pods that run and were not found */
  #locate(): ApiPod[] {
    for (const uid of this.#places.keys()) if (!this.#pods.has(uid)) this.#places.delete(uid);
    const wanted = [...this.#pods.values()].filter((pod) => {
      const place = this.#places.get(pod.uid);
      return !pod.hostNetwork && pod.phase === 'Running' && (place?.ips !== pod.ips.join() || place.isGuess === true);
    });
    if (wanted.length === 0) return [];
    const found = this.#options.places.find(new Set(wanted.map(({ uid }) => uid)));
    for (const { uid, ips } of wanted) {
      const [place, known] = [found.get(uid), this.#places.get(uid)];
      const isSame = known?.ips === ips.join();
      // Of a guess the namespace is right.
      if (place) this.#places.set(uid, { cgroup: place.cgroup, netns: isSame ? known.netns : place.netns, ips: ips.join() });
      else if (!isSame) this.#places.delete(uid);
    }
    return wanted.filter(({ uid }) => !found.has(uid));
  }

  #records(): PodRecord[] {
    return [...this.#pods.values()].map((pod) => this.#record(pod));
  }

  #record(pod: ApiPod): PodRecord {
    const place = this.#places.get(pod.uid);
    const namespaceLabels = this.#namespaces.get(pod.namespace) ?? {};
    // Where it is not known, nothing can be done for it, whatever kubelet has told the API.
    if (!place) return { ...pod, namespaceLabels, cgroup: '', netns: '', ...(pod.phase === 'Running' && !pod.hostNetwork ? { phase: 'Pending' as const } : {}) };
    const { cgroup, netns, starting } = place;
    const here = { ...pod, namespaceLabels, cgroup, netns };
    return starting && pod.phase === 'Pending' ? { ...here, phase: 'Running', ips: [...starting], starting: true } : here;
  }
}
