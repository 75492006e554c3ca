/** What a batch of object changes touches, so that a push regenerates that and nothing else. Sets only grow by merging. */
export class ChangeSet {
  /** Hosts whose Service came, went or changed. */
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

  get empty(): boolean {
    return this.#sets().every((set) => set.size === 0);
  }

  merge(other: ChangeSet): this {
    const mine = this.#sets();
    other.#sets().forEach((set, index) => {
      for (const item of set) mine[index]!.add(item);
    });
    return this;
  }

  #sets(): Set<string>[] {
    return [this.services, this.endpoints, this.identities, this.routes, this.rules, this.pods, this.inboundNamespaces, this.addresses];
  }

  /** A few words for the log. */
  summary(): Record<string, number> {
    const names = ['services', 'endpoints', 'identities', 'routes', 'rules', 'pods', 'inboundNamespaces', 'addresses'];
    return Object.fromEntries(this.#sets().map((set, index) => [names[index]!, set.size] as const).filter(([, size]) => size > 0));
  }
}
