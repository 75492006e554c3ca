/** Which services a change of the classes' states may concern, so that the kernel's entries of the others need not be looked at. */
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { XdsResource } from '../xds/resource-type.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { changedDomains } from './plain-routes.js';
import { listenerFact } from './state-facts.js';

/** @returns host names and addresses; undefined: any may be concerned. Both have the same classes, in the same order. */
export function changesBetween(before: readonly SidecarState[], now: readonly SidecarState[]): Set<string> | undefined {
  const changes = new Set<string>();
  for (const [index, state] of now.entries()) if (!addChanges(before[index]!, state, changes)) return undefined;
  return changes;
}

/** @returns whether `changes` has all of them now */
function addChanges(before: SidecarState, now: SidecarState, changes: Set<string>): boolean {
  if (before === now) return true;
  return different(before.listeners, now.listeners).every((name) => addListener(before.listeners.get(name), changes) && addListener(now.listeners.get(name), changes)) &&
    different(before.routes, now.routes).every((name) => addRoutes(before, now, name, changes)) &&
    different(before.clusters, now.clusters).every((name) => !name.startsWith('outbound|') || addHost(name, changes)) &&
    different(before.endpoints, now.endpoints).every((name) => addHost(name, changes));
}

function addListener(listener: XdsResource<Listener> | undefined, changes: Set<string>): boolean {
  if (!listener) return true;
  // The frame of all of them: its access log is theirs.
  if (listener.name === 'virtualOutbound') return false;
  const { isOutbound, addresses } = listenerFact.of(listener);
  if (!isOutbound) return true;
  for (const address of addresses) {
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

/** Names under which two maps have different contents, or one of them none. */
function different(before: ReadonlyMap<string, XdsResource<unknown>>, now: ReadonlyMap<string, XdsResource<unknown>>): string[] {
  if (before === now) return [];
  const found: string[] = [];
  for (const [name, { any }] of now) if (before.get(name)?.any !== any) found.push(name);
  for (const name of before.keys()) if (!now.has(name)) found.push(name);
  return found;
}
