/**
 * Pods of other nodes that take HBONE and are dialled by their own address, since a headless service leads to them: what WDS
 * says, as plain data. Kept by workload, since pods come and go all the time.
 */
import { TunnelProtocol, type Address } from '../../proto/generated/istio/workload/workload.js';
import { addressText } from '../workloads/address-text.js';
import type { XdsResource } from '../xds/resource-type.js';

export class HeadlessIndex {
  /** Services without an address, `namespace/hostname`. */
  readonly #services = new Set<string>();
  /** By workload. */
  readonly #found = new Map<string, readonly string[]>();
  #addresses: readonly string[] = [];

  constructor(readonly nodeName: string) {}

  /** In order; another array only when it holds something else. */
  get addresses(): readonly string[] {
    return this.#addresses;
  }

  /** @param changed by name; undefined: it is gone */
  update(all: ReadonlyMap<string, XdsResource<Address>>, changed: Iterable<readonly [string, Address | undefined]>): void {
    let isWhole = false;
    const names: string[] = [];
    for (const [name, address] of changed) {
      names.push(name);
      const type = address?.type;
      const isHeadless = type?.$case === 'service' && type.value.addresses.length === 0;
      if (isHeadless === this.#services.has(name)) continue;
      isWhole = true;
      if (isHeadless) this.#services.add(name);
      else this.#services.delete(name);
    }
    if (this.#services.size === 0 && this.#found.size === 0) return;
    let differs = false;
    for (const name of isWhole ? new Set([...all.keys(), ...this.#found.keys()]) : names) {
      const now = this.#addressesOf(all.get(name)?.message);
      const before = this.#found.get(name) ?? [];
      if (now.join() === before.join()) continue;
      differs = true;
      if (now.length > 0) this.#found.set(name, now);
      else this.#found.delete(name);
    }
    if (differs) this.#addresses = [...new Set([...this.#found.values()].flat())].sort();
  }

  #addressesOf(address: Address | undefined): readonly string[] {
    if (address?.type?.$case !== 'workload') return [];
    const { node, tunnel_protocol: protocol, services, addresses } = address.type.value;
    if (protocol !== TunnelProtocol.HBONE || this.nodeName === '' || node === this.nodeName) return [];
    return Object.keys(services).some((service) => this.#services.has(service)) ? addresses.map(addressText) : [];
  }
}
