import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { SendBudget } from './budget.js';
import { MapStore, SharedMap } from './shared-map.js';

const turns = async (): Promise<void> => {
  for (let turn = 0; turn < 20; turn++) await nextTurn();
};
const entries = (count: number, version = 'v'): (readonly [string, string])[] => Array.from({ length: count }, (_, i) => [`outbound|80||service-${i}`, version] as const);

test('SharedMap: behaves as a map through any order of changes', () => {
  const store = new MapStore();
  const shared = new SharedMap(store);
  const model = new Map<string, string>();
  let seed = 7;
  const random = (limit: number): number => (seed = (seed * 1_103_515_245 + 12_345) & 0x7fff_ffff) % limit;
  for (let step = 0; step < 5_000; step++) {
    const name = `n${random(300)}`;
    const kind = random(100);
    if (kind < 55) {
      shared.set(name, `v${step % 5}`);
      model.set(name, `v${step % 5}`);
    } else if (kind < 95) {
      assert.equal(shared.delete(name), model.delete(name));
    } else if (kind < 99) {
      const many = Array.from({ length: 120 }, (_, i) => [`n${(i * 7 + step) % 300}`, `m${step % 3}`] as const);
      shared.setAll({ items: many, nameOf: ([key]) => key, versionOf: ([, version]) => version });
      for (const [key, version] of many) model.set(key, version);
    } else {
      shared.clear();
      model.clear();
    }
    assert.equal(shared.size, model.size);
    assert.equal(shared.get(name), model.get(name));
  }
  assert.deepEqual([...shared].sort(), [...model.keys()].sort());
});

test('MapStore: equal content is one map, whatever order it came in; different content is not', () => {
  const store = new MapStore();
  const one = store.intern(new Map(entries(500)));
  assert.equal(store.intern(new Map(entries(500).reverse())), one);
  assert.notEqual(store.intern(new Map(entries(500, 'w'))), one);
  assert.notEqual(store.intern(new Map(entries(499))), one);
  assert.equal(store.intern(new Map()), store.intern(new Map()));
});

test('SendBudget: who comes when it is used up waits in line, the same work only once', async () => {
  const budget = new SendBudget(100);
  const done: string[] = [];
  const work = Object.fromEntries(['a', 'b', 'c'].map((name) => [name, () => done.push(name)])) as Record<string, () => void>;
  budget.whenFree(work['a']!);
  assert.deepEqual(done, ['a']);
  budget.take(150);
  for (const name of ['b', 'c', 'b']) budget.whenFree(work[name]!);
  await turns();
  assert.deepEqual(done, ['a']);
  budget.forget(work['c']!);
  budget.give(40);
  await turns();
  assert.deepEqual(done, ['a'], 'still over the limit');
  budget.give(110);
  await turns();
  assert.deepEqual(done, ['a', 'b']);
  assert.equal(budget.inFlightBytes, 0);
});

test('SendBudget: what work asks for in its own course has a turn of its own, so that nobody waits for a chain of it', async () => {
  const budget = new SendBudget(100);
  const log: string[] = [];
  let left = 4;
  const chain = (): void => {
    log.push('work');
    setImmediate(() => log.push('turn'));
    if (--left > 0) budget.whenFree(chain);
  };
  budget.whenFree(chain);
  assert.deepEqual(log, ['work']);
  await turns();
  assert.deepEqual(log, Array.from({ length: 4 }, () => ['work', 'turn']).flat());
});
