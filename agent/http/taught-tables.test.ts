/** Names of classes stay where a table comes out as it was, and those that are not used are given back. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { clusterViews, CALLER, inputOf, recorded } from './compile-testing.js';
import { className, type HttpTable } from './table.js';
import { TaughtTables, type TaughtView } from './taught-tables.js';

/** A recording of a canary by header, in which all endpoints are on this node. */
function view(changes: Partial<TaughtView> = {}): TaughtView {
  const state = recorded('canary');
  const { local, teachable } = inputOf(state);
  return {
    local, localAs: '', teachable, tunnels: undefined,
    classes: [{ key: 'a', state, clusters: clusterViews(state) as never, reasonOf: () => undefined, reasons: undefined, caller: CALLER }],
    ...changes,
  };
}

class Store {
  next = 0;
  most = Infinity;
  discarded: HttpTable[] = [];
  written: HttpTable[] = [];
  takeName = (): { index: number; generation: number } | undefined => (this.next < this.most ? { index: this.next, generation: ++this.next } : undefined);
  discard = (table: HttpTable): void => void this.discarded.push(table);
  write = (_key: string, table: HttpTable): number => this.written.push(table);
  keep = (): void => undefined;
}
const namesIn = (tables: TaughtTables): string[] => (tables.table('a')?.classes ?? []).map(className);

test('TaughtTables: what comes out the same keeps its names and version; what does not, or is renewed, gets others', () => {
  const store = new Store();
  const tables = new TaughtTables(store);
  tables.compile(view());
  const [first, version] = [namesIn(tables), tables.versionOf('a')];
  assert.ok(first.length > 0);
  tables.compile(view());
  assert.deepEqual([namesIn(tables), tables.versionOf('a'), store.next], [first, version, first.length], 'the same out of other objects');
  tables.renew('a');
  tables.compile(view());
  const second = namesIn(tables);
  assert.ok(second.every((name) => !first.includes(name)) && tables.versionOf('a') !== version);
  tables.compile(view());
  assert.deepEqual(namesIn(tables), second, 'renewed once');
  tables.compile(view({ teachable: new Set([...view().teachable].slice(1)) }));
  const third = namesIn(tables);
  assert.ok(third.every((name) => !first.includes(name) && !second.includes(name)));
  tables.compile(view({ classes: [] }));
  assert.equal(tables.table('a'), undefined);
  assert.equal(tables.of('a'), undefined);
});

test('TaughtTables: names of tables that were never written are given back, those of others are the store\'s', () => {
  const store = new Store();
  const tables = new TaughtTables(store);
  tables.compile(view());
  const first = tables.table('a')!;
  tables.renew('a');
  tables.compile(view());
  assert.deepEqual(store.discarded, [first]);
  const second = tables.table('a')!;
  tables.write('a', second);
  tables.compile(view({ classes: [] }));
  assert.deepEqual([store.discarded, store.written], [[first], [second]]);
});

test('TaughtTables: routes for which there is no name are Envoy\'s', () => {
  const store = new Store();
  store.most = 0;
  const tables = new TaughtTables(store);
  tables.compile(view());
  assert.equal(namesIn(tables).length, 0);
  assert.ok(tables.table('a')!.findings.some(({ reason }) => /no room for more classes/.test(reason ?? '')));
});
