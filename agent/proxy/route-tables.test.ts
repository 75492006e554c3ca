import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
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

test('RouteTable reads a table that differs from known ones in some hosts as it reads it alone, and takes the others from them', () => {
  const hosts = new Map(tables.flatMap(({ message }) => message.virtual_hosts.map((host) => [host.name, host] as const)));
  const random = generator(7);
  const own = (name: string): VirtualHost => VirtualHost.fromPartial({ name, domains: [`${name}.test`, 'x'.repeat(Math.floor(random() * 300))], routes: [] });
  let list: VirtualHost[] = [...hosts.values(), ...Array.from({ length: 40 }, (_, index) => own(`host-${index}`))];
  const kept: RouteConfiguration[] = [];
  for (let step = 0; step < 300; step++) {
    const at = Math.floor(random() * list.length);
    const change = random();
    if (change < 0.4) list = list.with(at, own(`changed-${step % 5}`));
    else if (change < 0.6) list = list.toSpliced(at, 1);
    else if (change < 0.8) list = list.toSpliced(at, 0, own(`new-${step}`), own(`new-${step}`));
    else list = [...list.slice(at), ...list.slice(0, at)];
    if (list.length === 0) list = [own('only')];
    const message = RouteConfiguration.fromPartial({ name: `table-${step % 3}`, virtual_hosts: list, validate_clusters: random() < 0.5, max_direct_response_body_size_bytes: Math.floor(random() * 1000) });
    const whole = RouteConfiguration.encode(message).finish();
    // A control plane may write its fields in another order.
    const split = RouteConfiguration.encode({ ...message, virtual_hosts: [] }).finish();
    const bytes = random() < 0.5 ? whole : Buffer.concat([split, RouteConfiguration.encode(RouteConfiguration.fromPartial({ virtual_hosts: list })).finish()]);
    const decoded = RouteTable.decode(bytes);
    assert.deepEqual(decoded, RouteConfiguration.decode(bytes), `step ${step}`);
    if (random() < 0.5) kept.push(decoded);
  }
  const [last, again] = [kept.at(-1)!, RouteTable.decode(RouteConfiguration.encode(kept.at(-1)!).finish())];
  last.virtual_hosts.forEach((host, index) => assert.equal(host, again.virtual_hosts[index]));
});

/** Pseudo-random numbers from 0 to 1, the same each time (a linear congruence of Numerical Recipes). */
function generator(seed: number): () => number {
  let state = seed;
  return () => (state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0) / 2 ** 32;
}

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
    assert.deepEqual(RouteConfiguration.decode(folding.fold(message).as(message.name).value), RouteConfiguration.decode(RouteConfiguration.encode(foldRoutes(message, extensions)).finish()));
    assert.deepEqual(RouteConfiguration.decode(folding.renamed(message, rename).as(message.name).value), RouteConfiguration.decode(RouteConfiguration.encode(renameClusters(foldRoutes(message, extensions), rename)).finish()));
    assert.deepEqual(RouteConfiguration.decode(folding.fold(message).as('other').value), { ...RouteConfiguration.decode(folding.fold(message).as(message.name).value), name: 'other' });
    assert.equal(folding.renamed(message, (name) => name).hash, folding.fold(message).hash);
  }
});
