/** Resources that many clients have in common: what is worked out about all of them is worked out once, and held once. */
import type { Resource } from './resource.js';

export class ResourceList {
  #versions: ReadonlyMap<string, string> | undefined;

  /** @param resources each with a name of its own; not to be changed any more */
  constructor(readonly resources: readonly Resource[]) {}

  get versions(): ReadonlyMap<string, string> {
    return (this.#versions ??= new Map(this.resources.map(({ name, version }) => [name, version])));
  }
}

/** All that a subscription covers. */
export interface Whole {
  shared: ResourceList;
  /** What only this client has, or few. */
  own: readonly Resource[];
}

/** Clients may ask for as many different lists as they like: of these the newest are compared with. */
const MAX_KNOWN = 64;

/** Lists that hold the same resources become one, whoever made them. */
export class ResourceLists {
  readonly #known: ResourceList[] = [];
  #before: readonly ResourceList[] = [];

  /** Something has changed: what is made again and is the same is the same list, and lists that nobody has made since the last time are forgotten. */
  renew(): void {
    this.#before = this.#known.splice(0);
  }

  /** Of several with one name the last counts. */
  intern(made: readonly Resource[]): ResourceList {
    const resources = [...new Map(made.map((resource) => [resource.name, resource])).values()];
    const same = (list: ResourceList): boolean => list.resources.length === resources.length && list.resources.every((resource, index) => resource === resources[index]);
    const known = this.#known.find(same);
    if (known) return known;
    const list = this.#before.find(same) ?? new ResourceList(resources);
    this.#known.push(list);
    if (this.#known.length > MAX_KNOWN) this.#known.shift();
    return list;
  }
}
