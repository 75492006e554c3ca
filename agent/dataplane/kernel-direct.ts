/** Which connections between pods of the node, to a pod's own address, pass the proxy: by port, and by address. */
import type { BpfMap, BpfObject } from '../../native/index.js';
import type { Drift } from '../consistency/drift.js';
import { decodeAddress, encodeAddress, u16 } from './kernel-codec.js';

const PRESENT = Buffer.from([1]);

export class DirectConnections {
  readonly #ports: BpfMap;
  readonly #addresses: BpfMap;
  /** None: what a former agent wrote holds. */
  #wanted: { map: BpfMap; keys: readonly Buffer[] }[] = [];

  constructor(object: BpfObject) {
    this.#ports = object.map('listener_ports');
    this.#addresses = object.map('proxied_addresses');
  }

  /** @param ports that some listener asks for @param proxied addresses that are the proxy's on every port */
  set(ports: readonly number[], proxied: readonly string[]): void {
    // In the order in which nothing goes past the proxy.
    this.#wanted = [{ map: this.#addresses, keys: proxied.map(encodeAddress) }, { map: this.#ports, keys: ports.map(u16) }];
    for (const { map, keys } of this.#wanted) replace(map, keys);
  }

  /** Compares the maps with what they were given: parts as those of a Check. */
  *audit(): Generator<Drift[]> {
    for (const { map, keys } of this.#wanted) {
      const wanted = new Set(keys.map((key) => key.toString('hex')));
      const found = new Set(map.entries().map(([key]) => key.toString('hex')));
      const drift = (hex: string, state: Drift['state'], repair: (key: Buffer) => void): Drift => {
        const key = Buffer.from(hex, 'hex');
        return { kind: 'listener-port', state, name: key.length === 2 ? `port ${key.readUInt16LE()}` : `address ${decodeAddress(key)}`, repair: () => repair(key) };
      };
      yield [
        ...[...wanted].filter((hex) => !found.has(hex)).map((hex) => drift(hex, 'missing', (key) => map.set(key, PRESENT))),
        ...[...found].filter((hex) => !wanted.has(hex)).map((hex) => drift(hex, 'orphaned', (key) => map.delete(key))),
      ];
    }
  }

  isProxys(address: string, port: number): boolean {
    return this.#ports.get(u16(port)) !== undefined || this.#addresses.get(encodeAddress(address)) !== undefined;
  }
}

/** What is to be there comes first: nothing goes past the proxy for a moment. */
function replace(map: BpfMap, wanted: readonly Buffer[]): void {
  const keys = new Set(wanted.map((key) => key.toString('hex')));
  for (const key of wanted) map.set(key, PRESENT);
  for (const [key] of map.entries()) if (!keys.has(key.toString('hex'))) map.delete(key);
}
