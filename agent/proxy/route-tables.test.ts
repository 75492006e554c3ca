import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { routeTableHash, RouteTable } from '../xds/route-codec.js';
import { contentHash } from '../xds/resource-type.js';
import { foldRoutes, renameClusters } from './fold-routes.js';
import { Recording } from '../testing/recording.js';
import { stockExtensions } from '../testing/stock-envoy.js';
import { RouteTables } from './route-tables.js';

const recordings = ['canary', 'mirror', 'match-kinds', 'timeout-retry-fault'].flatMap((name) => Recording.open(name) ?? []);
const tables = recordings.flatMap((recording) => recording.sidecars.flatMap((sidecar) => recording.steps.flatMap(({ step }) => [...recording.state(sidecar, step).routes.values()])));
const extensions = stockExtensions();
const rename = (name: string): string => (name.includes('80') ? `${name}~other` : name);

test('RouteTable decodes what the whole message decodes, and hosts of equal bytes are one object', () => {
  assert.ok(tables.length > 5);
  for (const { any } of tables) {
    const [first, second] = [RouteTable.decode(any.value), RouteTable.decode(Buffer.from(any.value))];
    assert.deepEqual(first, RouteConfiguration.decode(any.value));
    first.virtual_hosts.forEach((host, index) => assert.equal(host, second.virtual_hosts[index]));
  }
  for (const cut of [1, 7, 30]) assert.throws(() => RouteTable.decode(tables[0]!.any.value.subarray(0, -cut)));
});

test('routeTableHash tells contents apart as the whole message\'s hash does', () => {
  const byWhole = new Map<string, string>();
  for (const { message } of tables) {
    const whole = contentHash(RouteConfiguration, message);
    assert.equal(byWhole.get(whole) ?? routeTableHash(message), routeTableHash(message));
    byWhole.set(whole, routeTableHash(message));
  }
  assert.equal(new Set(byWhole.values()).size, byWhole.size);
  const [host] = tables.flatMap(({ message }) => message.virtual_hosts);
  const of = (...virtual_hosts: RouteConfiguration['virtual_hosts']): string => routeTableHash(RouteConfiguration.fromPartial({ name: 't', virtual_hosts }));
  assert.notEqual(of(host!), of(host!, { ...host!, name: 'other' }));
});

test('RouteTables puts together what folding and renaming the whole table gives', () => {
  const folding = new RouteTables(extensions);
  for (const { message } of tables) {
    assert.deepEqual(RouteConfiguration.decode(folding.fold(message).any.value), RouteConfiguration.decode(RouteConfiguration.encode(foldRoutes(message, extensions)).finish()));
    assert.deepEqual(RouteConfiguration.decode(folding.renamed(message, rename).any.value), RouteConfiguration.decode(RouteConfiguration.encode(renameClusters(foldRoutes(message, extensions), rename)).finish()));
    assert.equal(folding.renamed(message, (name) => name).hash, folding.fold(message).hash);
  }
});
