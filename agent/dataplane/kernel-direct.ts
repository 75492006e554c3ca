/** Which connections between pods of the node, to a pod's own address, pass the proxy: by port, and by address. */
import type { BpfMap, BpfObject } from '../../native/index.js';
import { encodeAddress, u16 } from './kernel-codec.js';

export class DirectConnections {
  readonly #ports: BpfMap;
  readonly #addresses: BpfMap;

  constructor(object: BpfObject) {
    this.#ports = object.map('listener_ports');
    this.#addresses = object.map('proxied_addresses');
  }

  /** @param ports that some listener asks for @param proxied addresses that are the proxy's on every port */
  set(ports: readonly number[], proxied: readonly string[]): void {
    replace(this.#addresses, proxied.map(encodeAddress));
    replace(this.#ports, ports.map(u16));
  }

  isProxys(address: string, port: number): boolean {
    return this.#ports.get(u16(port)) !== undefined || this.#addresses.get(encodeAddress(address)) !== undefined;
  }
}

/** What is to be there comes first: nothing goes past the proxy for a moment. */
function replace(map: BpfMap, wanted: readonly Buffer[]): void {
  const keys = new Set(wanted.map((key) => key.toString('hex')));
  for (const key of wanted) map.set(key, Buffer.from([1]));
  for (const [key] of map.entries()) if (!keys.has(key.toString('hex'))) map.delete(key);
}
