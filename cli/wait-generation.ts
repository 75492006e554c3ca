/**
 * Whether every control plane has this generation of an object in force, and all its clients have acknowledged what it made of it.
 * Pilot says so on its monitoring port; in a cluster that is reached through the API server, which needs `list` of pods, and `get` and
 * `create` of pods/portforward, in the mesh's root namespace.
 */
import { UnderpassError, errorMessage } from '../common/errors.js';
import { isRefusal, KubeApiError, resourceOf, resourcePath, type KubeClient } from '../common/kube/client.js';
import { kinds } from '../common/kube/kinds.js';
import { forwardPort } from '../common/kube/port-forward.js';
import type { KubeObject } from '../common/kube/types.js';
import { ClosableStore, type Closable } from '../common/lifecycle.js';
import { PILOT, PILOT_PORTS } from './install/pilot-objects.js';
import { ROOT_NAMESPACE } from './install/rbac.js';

/** What was written: either, or both. */
export interface WrittenVersion {
  generation?: number;
  resourceVersion?: string;
}

interface Distribution {
  pilot: string;
  /** Milliseconds by pilot's own clock. */
  now: number;
  behindSince: number | null;
  object: { generation: number | null; resourceVersion: string | null } | null;
}

const ANSWER_MS = 10_000;

export class Distributions implements Closable {
  readonly #store = new ClosableStore();
  /** By address and what is waited for: the pilot that answered, and when it was first seen to have the object in this version. */
  readonly #since = new Map<string, { pilot: string; at: number }>();

  private constructor(readonly addresses: readonly string[]) {}

  /** @param addresses `http://HOST:PORT` of pilots' monitoring ports; without any, those of the cluster's pods */
  static async open(addresses: readonly string[], client: KubeClient | undefined): Promise<Distributions> {
    if (addresses.length > 0) return new Distributions(addresses);
    if (!client) throw new UnderpassError('UNDERPASS_BAD_OPTION', '--generation: found neither a cluster nor --pilot, expected where to ask for what the control plane has', { hint: 'pilot answers on its --monitoring-listen, by default http://127.0.0.1:15014' });
    const { items = [] } = await client.request<{ items?: (KubeObject & { status?: { phase?: string } })[] }>('GET', `${resourcePath(resourceOf('v1', 'Pod'), { namespace: ROOT_NAMESPACE })}?${new URLSearchParams({ labelSelector: `app=${PILOT}` }).toString()}`);
    const pods = items.filter(({ status }) => status?.phase === 'Running').map(({ metadata }) => metadata.name);
    if (pods.length === 0) throw new UnderpassError('UNDERPASS_UNKNOWN_OBJECT', `looking for pilot in namespace ${ROOT_NAMESPACE}: no pod with app=${PILOT} runs`, { hint: 'other control planes do not say which generations they have sent; wait without --generation' });
    const store = new ClosableStore();
    try {
      const ports: string[] = [];
      for (const pod of pods) ports.push(`http://127.0.0.1:${store.add(await forwardPort(client.server, { namespace: ROOT_NAMESPACE, pod, port: PILOT_PORTS.monitoring, listen: 0, onProblem: () => undefined })).port}`);
      const self = new Distributions(ports);
      self.#store.add(store);
      return self;
    } catch (error) {
      await store.close();
      if (isRefusal(error, 401, 403)) throw Object.assign(new UnderpassError('UNDERPASS_NO_PERMISSION', errorMessage(error), { cause: error, hint: `it needs list of pods, and get and create of pods/portforward, in namespace ${ROOT_NAMESPACE}` }), { status: (error as KubeApiError).status });
      throw error;
    }
  }

  /** @returns what is still to come, of each pilot */
  async missing(object: string, wanted: WrittenVersion, signal: AbortSignal): Promise<string[]> {
    return (await Promise.all(this.addresses.map((address) => this.#missingAt(address, object, wanted, signal)))).flat();
  }

  async #missingAt(address: string, object: string, wanted: WrittenVersion, signal: AbortSignal): Promise<string[]> {
    const key = JSON.stringify([address, object, wanted]);
    let said: Distribution;
    try {
      const response = await fetch(`${address}/debug/distribution?${new URLSearchParams({ object }).toString()}`, { signal: AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]) });
      if (!response.ok) return [`control plane ${address}: ${response.status} ${(await response.text()).slice(0, 200).trim()}`];
      said = (await response.json()) as Distribution;
    } catch (error) {
      signal.throwIfAborted();
      return [`control plane ${address}: ${errorMessage(error)}`];
    }
    const older = olderThan(said.object, wanted);
    if (older !== undefined) {
      this.#since.delete(key);
      return [`control plane ${address}: ${older}`];
    }
    const known = this.#since.get(key);
    const since = known?.pilot === said.pilot ? known : { pilot: said.pilot, at: said.now };
    this.#since.set(key, since);
    // What waits was changed later: all that was in force when this version first was is acknowledged.
    return said.behindSince === null || said.behindSince > since.at ? [] : [`control plane ${address}: a client has not acknowledged what was changed before`];
  }

  close(): Promise<void> {
    return this.#store.close();
  }
}

function olderThan(found: Distribution['object'], { generation, resourceVersion }: WrittenVersion): string | undefined {
  if (!found) return 'it does not have the object';
  if (generation !== undefined && found.generation === null) throw new UnderpassError('UNDERPASS_BAD_OPTION', '--generation: the control plane has the object without a generation, as files have none', { hint: 'only an API server counts generations; wait without --generation' });
  if (generation !== undefined && found.generation! < generation) return `it has generation ${found.generation}`;
  if (resourceVersion !== undefined && !isReached(found.resourceVersion ?? '', resourceVersion)) return `it has resource version ${found.resourceVersion ?? 'none'}`;
  return undefined;
}

/** Those of one API server are numbers that count up. */
function isReached(found: string, wanted: string): boolean {
  return found === wanted || (/^\d+$/.test(found) && /^\d+$/.test(wanted) && BigInt(found) >= BigInt(wanted));
}

/** @param object `Kind/name.namespace` @throws UnderpassError `UNDERPASS_UNKNOWN_OBJECT` */
export async function currentGeneration(client: KubeClient, object: string): Promise<number> {
  const [word = '', place = ''] = object.split('/');
  const at = place.lastIndexOf('.');
  const [name, namespace] = [place.slice(0, at), place.slice(at + 1)];
  const kind = kinds.find(({ kind: each }) => each.toLowerCase() === word.toLowerCase());
  if (!kind) throw new UnderpassError('UNDERPASS_BAD_OPTION', `--generation=current: ${word} is no kind of Istio's API or the Gateway API, whose generations could be asked for`);
  for (const version of kind.versions) {
    try {
      const { metadata } = await client.get(resourceOf(`${kind.group}/${version}`, kind.kind), { name, namespace });
      if (metadata.generation !== undefined) return metadata.generation;
    } catch (error) {
      if (!isRefusal(error, 404)) throw error;
    }
  }
  throw new UnderpassError('UNDERPASS_UNKNOWN_OBJECT', `--generation=current: the API server has no ${object}`);
}
