// Istio's own filters in what istiod was recorded to serve: left out for a stock Envoy, kept for one that says it has them.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { projectRoot } from '../../common/paths.js';
import { Any } from '../../proto/generated/google/protobuf/any.js';
import { Recording } from '../testing/recording.js';
import { stockExtensions, stockExtensionsPath } from '../testing/stock-envoy.js';
import { EnvoyExtensions } from './extensions.js';
import { Folder } from './fold.js';
import { CDS, LDS, RDS } from './snapshot.js';
import { keepExtension, stockFactory } from './stock.js';

const STATS = 'stats.PluginConfig';
const ALPN = 'istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig';
const PEER_METADATA = 'io.istio.http.peer_metadata.Config';
const EXCHANGE = 'envoy.tcp.metadataexchange.config.MetadataExchange';
const ISTIOS = [STATS, ALPN, PEER_METADATA, EXCHANGE];

/** As an Envoy of Istio's build lists itself, in its first request and in /server_info; nothing else about it is different. */
const istios = new EnvoyExtensions([
  ...(JSON.parse(readFileSync(stockExtensionsPath, 'utf8')) as { name: string; type_urls?: string[] }[]),
  ...ISTIOS.map((type) => ({ name: type, type_urls: [type] })),
  { name: 'istio.hashable_string' },
]);
/** As the same Envoy, with its Istio filters switched off by build flags. */
const disabled = new EnvoyExtensions([...ISTIOS.map((type) => ({ name: type, type_urls: [type], disabled: true }))]);

const folded = (recording: Recording, extensions: EnvoyExtensions): string => {
  const classes = recording.sidecars.map((session) => ({ key: session.name, state: recording.state(session) })).filter(({ state }) => state.listeners.size > 0);
  const pods = classes.map(({ key }) => ({ uid: key, netnsPath: `/run/netns/${key}`, ipv6: false, classKey: key }));
  const { snapshot, problems } = new Folder(extensions).fold(classes, pods);
  assert.deepEqual(problems, []);
  return [CDS, LDS, RDS].flatMap((type) => [...snapshot.entries(type).values()].map(({ any }) => Buffer.from(any.value).toString('latin1'))).join('\n');
};
/** All that was said to its clients, as bytes. */
const said = (recording: Recording): string => recording.sidecars.flatMap(({ events }) => events.flatMap((event) => (event.file === undefined ? [] : readFileSync(join(recording.folder, event.file)).toString('latin1')))).join('\n');
const held = (text: string): string[] => ISTIOS.filter((type) => text.includes(type));

describe('filters of Istio\'s own', () => {
  const recordings = readdirSync(join(projectRoot, 'test', 'fixtures', 'istiod')).map((name) => Recording.open(name)!).filter((recording) => recording.sidecars.some((session) => recording.state(session).listeners.size > 0));

  for (const recording of recordings) {
    it(`are left out for a stock Envoy, and stay for Istio's: ${recording.folder.slice(recording.folder.lastIndexOf('/') + 1)}`, () => {
      const expected = held(said(recording));
      assert.ok(expected.includes(EXCHANGE) && expected.includes(STATS), expected.join());
      assert.deepEqual(held(folded(recording, stockExtensions())), []);
      assert.deepEqual(held(folded(recording, istios)), expected);
    });
  }

  it('that are listed as disabled are as if they were not there', () => {
    for (const type of ISTIOS) assert.equal(keepExtension(disabled, 'filters', 'x', Any.fromPartial({ type_url: `type.googleapis.com/${type}` })), false);
  });

  it('factories of filter state have a stock twin, which Istio\'s Envoy does not need', () => {
    assert.deepEqual([stockFactory(stockExtensions(), 'istio.hashable_string'), stockFactory(istios, 'istio.hashable_string')], ['envoy.hashable_string', 'istio.hashable_string']);
  });

  it('that may carry policy are refused where they are lacking, by the field and the type', () => {
    assert.throws(() => keepExtension(stockExtensions(), 'http_filters', 'istio.authn', Any.fromPartial({ type_url: 'type.googleapis.com/istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig' })), /http_filters "istio\.authn": this Envoy has no extension for istio\.envoy\.config\.filter\.http\.authn/);
  });
});
