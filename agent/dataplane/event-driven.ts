/** Which local servers the kernel knows to be event-driven, by the address that they are reached at. */
import { decodeAddress, encodeAddress } from './kernel-codec.js';
import type { KernelPod, ProbationEntry } from './kernel.js';

/** `<address>:<port>` of listeners at their own pod's address: in its namespace a pod can have any address. */
export function eventDrivenListeners(entries: readonly ProbationEntry[], pods: readonly KernelPod[]): Set<string> {
  const own = new Set(pods.flatMap(({ netnsCookie, addresses }) => addresses.map((address) => `${decodeAddress(encodeAddress(address))}@${netnsCookie}`)));
  const found = new Set<string>();
  for (const { kind, key, verdict } of entries) {
    if (kind !== 'listener' || verdict !== 'event-driven') continue;
    const [, bracketed, plain, port, cookie] = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)@(\d+)$/.exec(key) ?? [];
    if (own.has(`${bracketed ?? plain}@${cookie}`)) found.add(bracketed === undefined ? `${plain}:${port}` : `[${bracketed}]:${port}`);
  }
  return found;
}
