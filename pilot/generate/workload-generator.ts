import type { ChangeSet } from '../model/changes.js';
import { namespaceOfHost } from '../model/hosts.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { authorization, authorizationNames } from './authorizations.js';
import type { Generator, Names } from './generator.js';
import { whereabouts } from './locality.js';
import { TYPE, type Resource } from './resource.js';
import { asSeen, splitAddress, splitNames } from './split-horizon.js';
import { addressNames, serviceNames, workloadAddress } from './workloads.js';

/** `network/ip`: how an on-demand client asks for an address. */
const BY_ADDRESS = /^[^/]*\/[0-9a-fA-F.:]+$/;

export class AddressGenerator implements Generator {
  readonly typeUrl = TYPE.address;
  readonly wildcard = true;
  readonly #made = new Map<string, Resource | undefined>();
  /** By the client's network, where networks have gateways. */
  readonly #seen = new Map<string, Map<string, Resource | undefined>>();
  constructor(readonly model: Model) {}

  all(proxy: Proxy): Resource[] {
    const network = this.#network(proxy);
    const names = [...addressNames(this.model), ...(network ? splitNames(this.model, network, serviceNames(this.model)) : [])];
    return names.flatMap((name) => this.#from(network, name) ?? []);
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    return this.#from(this.#network(proxy), name);
  }

  #from(network: string, name: string): Resource | undefined {
    if (!this.#made.has(name)) this.#made.set(name, workloadAddress(this.model, name));
    const plain = this.#made.get(name);
    if (!network) return plain;
    let seen = this.#seen.get(network);
    if (!seen) this.#seen.set(network, (seen = new Map()));
    if (!seen.has(name)) seen.set(name, plain ? asSeen(this.model, network, plain) : splitAddress(this.model, network, name));
    return seen.get(name);
  }

  /** The network from which a client sees others through their gateways; empty when it sees all alike. */
  #network(proxy: Proxy): string {
    return this.model.clusters.hboneGateways().length > 0 ? whereabouts(this.model, proxy).network : '';
  }

  affected(proxy: Proxy, change: ChangeSet, names: Names): 'all' | Iterable<string> {
    if (change.full || change.networks.size > 0) return 'all';
    const found = new Set(change.addresses);
    const network = this.#network(proxy);
    if (network) {
      const services = this.#servicesOf(change);
      for (const name of [...services, ...splitNames(this.model, network, services)]) found.add(name);
    }
    // On-demand names by address can't be told from the change; they are few.
    return found.size === 0 ? [] : [...found, ...[...names].filter((name) => BY_ADDRESS.test(name))];
  }

  /** Names of the services whose endpoints may be others now, with those that are gone: global ones are Kubernetes' own. */
  #servicesOf(change: ChangeSet): string[] {
    return [...change.endpoints, ...change.services, ...change.identities].flatMap((host) => {
      const namespace = namespaceOfHost(host, this.model.mesh.clusterDomain);
      return namespace === undefined ? [] : `${namespace}/${host}`;
    });
  }

  invalidate(change: ChangeSet): void {
    if (!change.empty) this.#seen.clear();
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
