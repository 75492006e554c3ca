/** Keeps what is provisioned as the Gateways say: asked after every change of a Gateway or a class, it tells the sink what is new and what is gone. */
import type { KubeObject } from '../../common/kube/types.js';
import type { Logger } from '../../common/log.js';
import { errorMessage } from '../../common/errors.js';
import { ownGateways } from '../gateway-api/listeners.js';
import { namespaceOf } from '../gateway-api/parents.js';
import type { ChangeSet } from '../model/changes.js';
import type { Configs } from '../model/configs.js';
import { isManaged, provision, type ProvisionOptions } from './provision.js';

/** Where provisioned objects go: a directory, an API server. */
export interface ProvisionSink {
  /** What an earlier run of this controller left, by owner. */
  owners(): Iterable<string>;
  /** All objects of an owner, `namespace/gateway`; replaces those of before. */
  apply(owner: string, objects: readonly KubeObject[]): void;
  remove(owner: string): void;
}

/** By owner, `namespace/gateway`. @returns also the Gateways whose proxies are others' */
export function wantedProvisions(configs: Configs, options: () => ProvisionOptions): { wanted: Map<string, readonly KubeObject[]>; leftAlone: string[] } {
  const wanted = new Map<string, readonly KubeObject[]>();
  const leftAlone: string[] = [];
  for (const { object } of ownGateways(configs)) {
    const owner = `${namespaceOf(object)}/${object.metadata.name}`;
    if (isManaged(object)) wanted.set(owner, provision(object, options()));
    else leftAlone.push(owner);
  }
  return { wanted, leftAlone };
}

export class GatewayController {
  /** What the sink was given last, by owner. */
  readonly #given = new Map<string, string>();
  /** Why a Gateway got nothing, said once. */
  readonly #said = new Map<string, string>();

  constructor(readonly configs: Configs, readonly sink: ProvisionSink, readonly options: () => ProvisionOptions, readonly logger: Logger) {
    for (const owner of sink.owners()) this.#given.set(owner, '');
  }

  /** Cheap for a change that touches no Gateway. */
  update(change: ChangeSet): void {
    if (change.touches('Gateway', 'GatewayClass')) this.reconcile();
  }

  reconcile(): void {
    const { wanted, leftAlone } = wantedProvisions(this.configs, this.options);
    for (const owner of leftAlone) this.#say(owner, 'its addresses name a Service that is run by others');
    for (const owner of this.#given.keys()) if (!wanted.has(owner)) this.#attempt(owner, () => this.#remove(owner));
    for (const [owner, objects] of wanted) {
      const text = JSON.stringify(objects);
      if (this.#given.get(owner) === text) continue;
      this.#attempt(owner, () => {
        this.sink.apply(owner, objects);
        this.#given.set(owner, text);
        this.logger.info({ gateway: owner, objects: objects.map(({ kind, metadata }) => `${kind} ${metadata.name}`) }, 'a gateway is brought up');
      });
    }
  }

  #remove(owner: string): void {
    this.sink.remove(owner);
    this.#given.delete(owner);
    this.logger.info({ gateway: owner }, 'a gateway is taken down');
  }

  /** A sink that fails for one Gateway does not hold up the others; it is tried again with the next change. */
  #attempt(owner: string, step: () => void): void {
    try {
      step();
      this.#said.delete(owner);
    } catch (error) {
      this.#say(owner, errorMessage(error));
    }
  }

  #say(owner: string, reason: string): void {
    if (this.#said.get(owner) === reason) return;
    this.#said.set(owner, reason);
    this.logger.warn({ gateway: owner, reason }, 'a gateway is not provisioned');
  }
}
