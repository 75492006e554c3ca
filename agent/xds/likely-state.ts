/**
 * What a class of pods that is new here will be sent, most likely: what another one was. The control plane is told that all of it is held
 * already and answers with what differs, instead of with a whole mesh for each class. That takes versions that stand for content, as
 * underpass pilot's do; istiod's are empty, and it sends everything.
 */
import { contentVersion } from '../../common/xds/content-version.js';
import type { XdsResource } from './resource-type.js';
import type { SidecarState } from './sidecar-stream.js';

/** Of clusters and of listeners so many are looked at. */
const LOOKED_AT = 8;

/** @param states the likelier ones first */
export function likelyState(states: Iterable<SidecarState>): SidecarState | undefined {
  for (const state of states) if (isByContent(state)) return state;
  return undefined;
}

function isByContent({ clusters, listeners }: SidecarState): boolean {
  const some = [...firstOf<XdsResource<unknown>>(clusters.values()), ...firstOf<XdsResource<unknown>>(listeners.values())];
  return some.length > 0 && some.every(({ version, any }) => version === contentVersion(any.value));
}

function firstOf<T>(all: Iterable<T>): T[] {
  const found: T[] = [];
  for (const each of all) {
    found.push(each);
    if (found.length === LOOKED_AT) break;
  }
  return found;
}
