import assert from 'node:assert/strict';
import { test } from 'node:test';
import { contentVersion } from '../../common/xds/content-version.js';
import { edsCluster, httpListener, sidecarState } from '../testing/resources.js';
import { likelyState } from './likely-state.js';
import { withVersion, type XdsResource } from './resource-type.js';
import type { SidecarState } from './sidecar-stream.js';

test('only what bears the hashes of its content as versions is taken for what others will be sent', () => {
  const versioned = (versionOf: (content: Uint8Array) => string): SidecarState => {
    const state = sidecarState({ 'cds a': edsCluster('a'), 'lds 0.0.0.0_80': httpListener(80) });
    const all = <T>(map: ReadonlyMap<string, XdsResource<T>>) => new Map([...map].map(([name, resource]) => [name, withVersion(resource, versionOf(resource.any.value))]));
    return { ...state, clusters: all(state.clusters), listeners: all(state.listeners) };
  };
  const [empty, counted, byContent, later] = [versioned(() => ''), versioned(() => '2026-11-28/7'), versioned(contentVersion), versioned(contentVersion)];
  assert.equal(likelyState([empty, counted, sidecarState({})]), undefined);
  assert.ok(likelyState([empty, byContent, later]) === byContent, 'the first one');
});
