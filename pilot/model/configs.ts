/** Configuration objects by kind and namespace, oldest first: what policy, gateway and filter generators look through. */
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { KubeObject } from '../../common/kube/types.js';

export class Configs {
  readonly #byKind = new Map<string, Map<string, LoadedObject>>();
  /** Sorted lists, made when asked for and dropped with the next change of their kind. */
  readonly #sorted = new Map<string, ReadonlyMap<string, readonly LoadedObject[]>>();

  set(kind: string, key: string, loaded: LoadedObject | undefined): void {
    let objects = this.#byKind.get(kind);
    if (!objects) this.#byKind.set(kind, (objects = new Map()));
    if (loaded) objects.set(key, loaded);
    else objects.delete(key);
    this.#sorted.delete(kind);
  }

  /** All objects of a kind in the order of their age. */
  all<T extends KubeObject>(kind: string): readonly LoadedObject<T>[] {
    return (this.#lists(kind).get('') ?? []) as readonly LoadedObject<T>[];
  }

  inNamespace<T extends KubeObject>(kind: string, namespace: string): readonly LoadedObject<T>[] {
    return (this.#lists(kind).get(`/${namespace}`) ?? []) as readonly LoadedObject<T>[];
  }

  get<T extends KubeObject>(kind: string, namespace: string, name: string): LoadedObject<T> | undefined {
    return this.inNamespace<T>(kind, namespace).find(({ object }) => object.metadata.name === name);
  }

  #lists(kind: string): ReadonlyMap<string, readonly LoadedObject[]> {
    let lists = this.#sorted.get(kind);
    if (!lists) {
      const made = new Map<string, LoadedObject[]>();
      for (const loaded of [...(this.#byKind.get(kind)?.values() ?? [])].sort(byAge)) {
        for (const place of ['', `/${loaded.object.metadata.namespace ?? ''}`]) {
          const list = made.get(place);
          if (list) list.push(loaded);
          else made.set(place, [loaded]);
        }
      }
      this.#sorted.set(kind, (lists = made));
    }
    return lists;
  }
}

/** The order of precedence in Istio: creation time, then name, then namespace. */
export function byAge(a: LoadedObject, b: LoadedObject): number {
  const [x, y] = [a, b].map(({ object: { metadata } }) => `${metadata.creationTimestamp ?? ''}\0${metadata.name}\0${metadata.namespace ?? ''}`);
  return x! < y! ? -1 : x! > y! ? 1 : 0;
}

/** Whether labels have all that a selector asks for; an empty or absent selector asks for nothing. */
export function selects(selector: Readonly<Record<string, string>> | undefined, labels: Readonly<Record<string, string>>): boolean {
  for (const key in selector) if (labels[key] !== selector[key]) return false;
  return true;
}
