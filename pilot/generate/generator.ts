/**
 * One generator per resource type, behind one interface, with what it made kept until something that it depends on
 * changes: a thousand proxies of a namespace share one generation.
 */
import { EnvoyFilters, ExtensionConfigGenerator, FilteredGenerator } from '../envoy-filter/envoy-filters.js';
import type { ChangeSet } from '../model/changes.js';
import type { MeshService, Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { TelemetryGenerator } from '../telemetry/telemetry-generator.js';
import { LabelledGenerator } from '../telemetry/workload-metadata.js';
import { ClusterGenerator } from './cluster-generator.js';
import { EndpointGenerator } from './endpoint-generator.js';
import { ListenerGenerator } from './listener-generator.js';
import { NameTableGenerator } from './name-table.js';
import type { Resource } from './resource.js';
import type { Whole } from './resource-list.js';
import { RouteGenerator } from './route-generator.js';
import { SecretGenerator, type SecretProblem } from './secret-generator.js';
import { AddressGenerator, AuthorizationGenerator } from './workload-generator.js';

/** Names that a stream watches. */
export interface Names extends Iterable<string> {
  readonly size: number;
  has(name: string): boolean;
}

/** The same object for all streams that watch the same names; never changed. */
export type SharedNames = ReadonlyMap<string, unknown>;

export interface Generator {
  readonly typeUrl: string;
  /** Whether a stream that asks for nothing by name gets everything. */
  readonly wildcard: boolean;
  /** Everything that a wildcard subscription of this proxy has. */
  all(proxy: Proxy): Resource[];
  /** Undefined: there is no such resource, and that is the answer. */
  one(proxy: Proxy, name: string): Resource | undefined;
  /**
   * All that a wildcard subscription has, or one to these `names` and no others, with what many clients have in common as one
   * list. Undefined: it is to be put together by all() and one().
   */
  whole?(proxy: Proxy, names: SharedNames | undefined): Whole | undefined;
  /** Whether making one resource takes so long for this proxy that several in one turn of the event loop hold others up; they are kept then. */
  isLarge?(proxy: Proxy): boolean;
  /** Which of the subscribed `names` a change may alter for this proxy; `all` when it can't be told by name. */
  affected(proxy: Proxy, change: ChangeSet, names: Names): 'all' | Iterable<string>;
  /** Makes what is kept about one service, so that a client's request finds it. @returns it */
  prepare?(proxy: Proxy, service: MeshService): readonly Resource[];
  /** Streams are gone: forgets what is kept for names that nobody watches any more, if it is much. @param watched told only then, each set of names once */
  forget?(watched: () => Iterable<Names>): void;
  /** Forgets what `change` has made stale. Called once a change, before anything is generated from it. */
  invalidate(change: ChangeSet): void;
}

export class Generators {
  readonly #filters: EnvoyFilters;
  readonly #byType: ReadonlyMap<string, Generator>;

  /** @param onSecretProblem told of each Secret that a gateway needs and that can't be used */
  constructor(model: Model, onSecretProblem?: (problem: SecretProblem) => void) {
    const filters = (this.#filters = new EnvoyFilters(model));
    const all: Generator[] = [
      new FilteredGenerator(new LabelledGenerator(new ClusterGenerator(model)), filters),
      new LabelledGenerator(new EndpointGenerator(model)),
      new FilteredGenerator(new TelemetryGenerator(model, new ListenerGenerator(model)), filters),
      new FilteredGenerator(new RouteGenerator(model), filters),
      new ExtensionConfigGenerator(filters),
      new SecretGenerator(model, onSecretProblem),
      new NameTableGenerator(model),
      new AddressGenerator(model),
      new AuthorizationGenerator(model),
    ];
    this.#byType = new Map(all.map((generator) => [generator.typeUrl, generator]));
  }

  get(typeUrl: string): Generator | undefined {
    return this.#byType.get(typeUrl);
  }

  invalidate(change: ChangeSet): void {
    this.#filters.invalidate(change);
    for (const generator of this.#byType.values()) generator.invalidate(change);
  }
}
