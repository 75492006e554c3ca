/** Which services a change of the classes' states may concern, so that the kernel's entries of the others need not be looked at. */
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { addressOf, isOutboundListener } from './fold-listeners.js';
import { changedDomains } from './plain-routes.js';

/** @returns host names and addresses; undefined: any may be concerned. Both have the same classes, in the same order. */
export function changesBetween(before: readonly SidecarState[], now: readonly SidecarState[]): Set<string> | undefined {
  const changes = new Set<string>();
  for (const [index, state] of now.entries()) if (!addChanges(before[index]!, state, changes)) return undefined;
  return changes;
}

/** @returns whether `changes` has all of them now */
function addChanges(before: SidecarState, now: SidecarState, changes: Set<string>): boolean {
  if (before === now) return true;
  return different(before.listeners, now.listeners).every((name) => addListener(before.listeners.get(name)?.message, changes) && addListener(now.listeners.get(name)?.message, changes)) &&
    different(before.routes, now.routes).every((name) => addRoutes(before, now, name, changes)) &&
    different(before.clusters, now.clusters).every((name) => !name.startsWith('outbound|') || addHost(name, changes)) &&
    different(before.endpoints, now.endpoints).every((name) => addHost(name, changes));
}

function addListener(listener: Listener | undefined, changes: Set<string>): boolean {
  if (!listener) return true;
  // The frame of all of them: its access log is theirs.
  if (listener.name === 'virtualOutbound') return false;
  if (!isOutboundListener(listener)) return true;
  const more = listener.additional_addresses.flatMap(({ address }) => (address?.address?.$case === 'socket_address' ? [address.address.value.address] : []));
  for (const address of [addressOf(listener).address, ...more]) {
    if (address === '0.0.0.0' || address === '::') return false;
    changes.add(address);
  }
  return true;
}

function addRoutes(before: SidecarState, now: SidecarState, name: string, changes: Set<string>): boolean {
  const [old, own] = [before.routes.get(name)?.message, now.routes.get(name)?.message];
  const domains = old && own && changedDomains(old, own);
  for (const domain of domains ?? []) changes.add(domain.replace(/^\[(.*)\]$/, '$1'));
  return domains !== undefined;
}

/** @param name `outbound|PORT|SUBSET|HOST`; of any other it is not known whose it is */
function addHost(name: string, changes: Set<string>): boolean {
  const [direction, , , host] = name.split('|');
  if (direction !== 'outbound' || host === undefined) return false;
  changes.add(host);
  return true;
}

/** Names under which two maps have different messages, or one of them none. */
function different<T extends { message: unknown }>(before: ReadonlyMap<string, T>, now: ReadonlyMap<string, T>): string[] {
  if (before === now) return [];
  const found: string[] = [];
  for (const [name, { message }] of now) if (before.get(name)?.message !== message) found.push(name);
  for (const name of before.keys()) if (!now.has(name)) found.push(name);
  return found;
}
