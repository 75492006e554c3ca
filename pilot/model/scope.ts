/** The mesh as one kind of client sees it: the visible services and routes, the rules that it obeys, its Sidecar resource. */
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { Sidecar, VirtualService } from '../../common/kube/types.js';
import type { EgressListener } from './egress.js';
import type { Model } from './model.js';
import type { AppliedRule } from './rules.js';
import type { MeshService } from './types.js';
import type { Visibility } from './visibility.js';

export class Scope {
  readonly #rules = new Map<string, AppliedRule | undefined>();

  constructor(
    readonly model: Model,
    /** One of the clients that share it: namespace and what rules select by are the same for all. */
    readonly client: { namespace: string; labels: Readonly<Record<string, string>> },
    readonly visibility: Visibility,
    readonly sidecar: LoadedObject<Sidecar> | undefined,
    /** Of the Sidecar, in its order; without any, one that has everything. */
    readonly egress: readonly EgressListener[] | undefined = undefined,
    /** Which DestinationRules' workload selectors select its clients: tells scopes of a namespace apart. */
    readonly selectors = '',
    /** The same object for scopes that see the same services and obey the same rules for them: what is made of these alone is theirs together. */
    readonly view: object = {},
  ) {}

  get namespace(): string {
    return this.client.namespace;
  }

  get services(): readonly MeshService[] {
    return this.visibility.services;
  }

  service(host: string): MeshService | undefined {
    return this.visibility.service(host);
  }

  get virtualServices(): readonly LoadedObject<VirtualService>[] {
    return this.visibility.virtualServices;
  }

  virtualServicesFor(host: string): LoadedObject<VirtualService>[] {
    return this.visibility.virtualServicesFor(host);
  }

  /** The DestinationRule in force for requests of this client to `host`. */
  rule(host: string): AppliedRule | undefined {
    if (!this.#rules.has(host)) this.#rules.set(host, this.model.rules.find(host, this.service(host), this.client));
    return this.#rules.get(host);
  }

  /** The Sidecar's listener that has this port: the one that names it, else the one without a port. Undefined: no Sidecar divides them. */
  egressListener(port: number): EgressListener | undefined {
    return this.egress?.find((listener) => listener.port?.number === port) ?? this.egress?.find((listener) => !listener.port);
  }

  /** Where what is no service's goes: on to where it was meant for, to the Sidecar's egress proxy, or nowhere. */
  get passthroughCluster(): string {
    if (this.outboundTrafficPolicy === 'REGISTRY_ONLY') return 'BlackHoleCluster';
    const proxy = this.sidecar?.object.spec.outboundTrafficPolicy?.egressProxy;
    if (!proxy) return 'PassthroughCluster';
    return `outbound|${proxy.port?.number ?? ''}|${proxy.subset ?? ''}|${this.model.resolve(proxy.host, this.sidecar!.object)}`;
  }

  /** What happens to traffic towards hosts that are no service. */
  get outboundTrafficPolicy(): 'ALLOW_ANY' | 'REGISTRY_ONLY' {
    return this.sidecar?.object.spec.outboundTrafficPolicy?.mode ?? this.model.mesh.outboundTrafficPolicy;
  }
}
