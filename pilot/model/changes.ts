/** What a batch of object changes touches, so that a push regenerates that and nothing else. Only grows by merging. */
export class ChangeSet {
  /** When the oldest of these changes came in, by performance.now(). */
  since = performance.now();
  /** Everything: a mesh-wide setting changed. */
  full = false;
  /** Hosts whose Service or ServiceEntry came, went or changed. */
  readonly services = new Set<string>();
  /** Hosts whose endpoints changed. */
  readonly endpoints = new Set<string>();
  /** Hosts whose endpoints run under other service accounts than before; of headless ones, whose endpoints are others. */
  readonly identities = new Set<string>();
  /** Host patterns of VirtualServices that changed. */
  readonly routes = new Set<string>();
  /** Host patterns of DestinationRules that changed. */
  readonly rules = new Set<string>();
  /** `namespace/name` of pods that changed. */
  readonly pods = new Set<string>();
  /** Namespaces whose Services changed: their pods' inbound side may have. */
  readonly inboundNamespaces = new Set<string>();
  /** Names of WDS addresses to look at again. */
  readonly addresses = new Set<string>();
  /** Networks whose gateways changed: others' ways to their workloads are others now. */
  readonly networks = new Set<string>();
  /** Configuration objects that changed: `namespace/name` by kind, e.g. `AuthorizationPolicy`, `Gateway`, `Secret`. */
  readonly configs = new Map<string, Set<string>>();

  get empty(): boolean {
    return !this.full && this.configs.size === 0 && Object.values(this.#sets()).every((set) => set.size === 0);
  }

  addConfig(kind: string, namespace: string, name: string): void {
    let names = this.configs.get(kind);
    if (!names) this.configs.set(kind, (names = new Set()));
    names.add(`${namespace}/${name}`);
  }

  /** Whether an object of one of these kinds changed anywhere, or everything did. */
  touches(...kinds: readonly string[]): boolean {
    return this.full || kinds.some((kind) => this.configs.has(kind));
  }

  /** The same for objects in one of the given namespaces: a workload's own, and the mesh's root namespace. */
  touchesIn(namespaces: readonly string[], ...kinds: readonly string[]): boolean {
    if (this.full) return true;
    for (const kind of kinds) {
      for (const name of this.configs.get(kind) ?? []) if (namespaces.some((namespace) => name.startsWith(`${namespace}/`))) return true;
    }
    return false;
  }

  merge(other: ChangeSet): this {
    const mine = this.#sets();
    const theirs = other.#sets();
    for (const key of Object.keys(mine) as (keyof typeof mine)[]) for (const item of theirs[key]) mine[key].add(item);
    for (const [kind, names] of other.configs) {
      const known = this.configs.get(kind);
      if (known) for (const name of names) known.add(name);
      else this.configs.set(kind, new Set(names));
    }
    this.full ||= other.full;
    this.since = Math.min(this.since, other.since);
    return this;
  }

  #sets() {
    const { services, endpoints, identities, routes, rules, pods, inboundNamespaces, addresses, networks } = this;
    return { services, endpoints, identities, routes, rules, pods, inboundNamespaces, addresses, networks };
  }

  /** What made this change, in istiod's words for the triggers of a push. */
  *kinds(): Iterable<string> {
    if (this.full) yield 'global';
    if (this.services.size > 0) yield 'service';
    if (this.endpoints.size > 0) yield 'endpoint';
    if (this.pods.size > 0) yield 'proxy';
    if (this.configs.size > 0) yield 'config';
  }

  /** A few words for the log. */
  summary(): Record<string, number | boolean> {
    const sizes = [...Object.entries(this.#sets()).map(([name, set]) => [name, set.size] as const), ...[...this.configs].map(([kind, names]) => [kind, names.size] as const)];
    return { ...(this.full ? { full: true } : {}), ...Object.fromEntries(sizes.filter(([, size]) => size > 0)) };
  }
}
