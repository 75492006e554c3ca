/** Which local servers the kernel knows to be event-driven, by the address that they are reached at. */
import { decodeAddress, encodeAddress } from './kernel-codec.js';
import type { KernelPod, ProbationEntry } from './kernel.js';

/** `<address>:<port>` of listeners at their own pod's address: in its namespace a pod can have any address. */
export function eventDrivenListeners(entries: readonly ProbationEntry[], pods: readonly KernelPod[]): Set<string> {
  const own = new Set(pods.flatMap(({ netnsCookie, addresses }) => addresses.map((address) => `${decodeAddress(encodeAddress(address))}@${netnsCookie}`)));
  const found = new Set<string>();
  for (const { kind, address, port, netnsCookie, verdict } of entries) {
    if (kind !== 'listener' || address === undefined || verdict !== 'event-driven') continue;
    if (own.has(`${address}@${netnsCookie}`)) found.add(`${address.includes(':') ? `[${address}]` : address}:${port}`);
  }
  return found;
}
