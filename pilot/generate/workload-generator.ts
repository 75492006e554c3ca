import type { ChangeSet } from '../model/changes.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { authorization, authorizationNames } from './authorizations.js';
import type { Generator, Names } from './generator.js';
import { TYPE, type Resource } from './resource.js';
import { addressNames, workloadAddress } from './workloads.js';

/** `network/ip`: how an on-demand client asks for an address. */
const BY_ADDRESS = /^[^/]*\/[0-9a-fA-F.:]+$/;

export class AddressGenerator implements Generator {
  readonly typeUrl = TYPE.address;
  readonly wildcard = true;
  readonly #made = new Map<string, Resource | undefined>();
  constructor(readonly model: Model) {}

  all(proxy: Proxy): Resource[] {
    return addressNames(this.model).flatMap((name) => this.one(proxy, name) ?? []);
  }

  one(_proxy: Proxy, name: string): Resource | undefined {
    if (!this.#made.has(name)) this.#made.set(name, workloadAddress(this.model, name));
    return this.#made.get(name);
  }

  affected(_proxy: Proxy, change: ChangeSet, names: Names): 'all' | Iterable<string> {
    if (change.full) return 'all';
    // On-demand names by address can't be told from the change; they are few.
    return change.addresses.size === 0 ? [] : [...change.addresses, ...[...names].filter((name) => BY_ADDRESS.test(name))];
  }

  invalidate(change: ChangeSet): void {
    if (change.full) this.#made.clear();
    if (change.addresses.size === 0) return;
    for (const name of this.#made.keys()) if (change.addresses.has(name) || BY_ADDRESS.test(name)) this.#made.delete(name);
  }
}

export class AuthorizationGenerator implements Generator {
  readonly typeUrl = TYPE.authorization;
  readonly wildcard = true;
  readonly #made = new Map<string, Resource | undefined>();
  constructor(readonly model: Model) {}

  all(): Resource[] {
    return authorizationNames(this.model).flatMap((name) => this.one(undefined, name) ?? []);
  }

  one(_proxy: Proxy | undefined, name: string): Resource | undefined {
    if (!this.#made.has(name)) this.#made.set(name, authorization(this.model, name));
    return this.#made.get(name);
  }

  affected(_proxy: Proxy, change: ChangeSet): 'all' | Iterable<string> {
    // What a PeerAuthentication becomes depends on those of the wider scopes.
    if (change.touches('PeerAuthentication')) return 'all';
    return change.configs.get('AuthorizationPolicy') ?? [];
  }

  invalidate(change: ChangeSet): void {
    if (change.touches('PeerAuthentication')) this.#made.clear();
    for (const name of change.configs.get('AuthorizationPolicy') ?? []) this.#made.delete(name);
  }
}
