import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TableNames } from './table-names.js';
import type { Content } from './variants.js';

type Tables = Record<string, Record<string, Content>>;

const assigned = (names: TableNames, classes: Tables): Record<string, string[]> => {
  const found = names.assign(Object.entries(classes).map(([key, tables]) => ({ key, contents: new Map(Object.entries(tables)) })));
  return Object.fromEntries(Object.entries(classes).map(([key, tables]) => [key, Object.keys(tables).map((name) => found.of(key, name))]));
};
const given = (names: TableNames, classes: Tables): Record<string, string[]> => {
  const found = assigned(names, classes);
  names.commit();
  return found;
};
const web = (hash: string, account?: string): Record<string, Content> => ({ 80: { hash, ...(account === undefined ? {} : { account }) } });

test('TableNames: equal tables are one; whoever differs moves, and nobody else, whichever of them comes, leaves or is equal again', () => {
  const names = new TableNames();
  assert.deepEqual(given(names, { a: web('1'), b: web('1'), c: web('1') }), { a: ['80'], b: ['80'], c: ['80'] });
  assert.deepEqual(given(names, { a: web('2'), b: web('1'), c: web('1') }), { a: ['80~a'], b: ['80'], c: ['80'] }, 'the senior one, too');
  assert.deepEqual(given(names, { a: web('1'), b: web('1'), c: web('1') }), { a: ['80~a'], b: ['80'], c: ['80'] });
  assert.deepEqual(given(names, { a: web('3'), b: web('3'), c: web('3') }), { a: ['80~a'], b: ['80'], c: ['80'] }, 'each in place');
  assert.deepEqual(given(names, { c: web('3'), d: web('3') }), { c: ['80'], d: ['80'] });
});

test('TableNames: a name never stands for something else while who left it, or some of its own, may drain by it', () => {
  const names = new TableNames();
  given(names, { a: web('1'), b: web('1'), c: web('1') });
  assert.deepEqual(assigned(names, { a: web('2'), b: web('3'), c: web('3') }), { a: ['80~a'], b: ['80~b'], c: ['80~b'] }, 'they do not agree');
  assert.deepEqual(given(names, { a: web('2'), b: web('1'), c: web('1') }), { a: ['80~a'], b: ['80'], c: ['80'] }, 'what was not published is forgotten');
  assert.deepEqual(given(names, { a: web('2'), b: web('3'), c: web('3') }), { a: ['80~a'], b: ['80~b'], c: ['80~b'] }, 'a has left it, and says otherwise');
  assert.deepEqual(given(names, { a: web('2'), b: web('3'), c: web('3'), d: web('4') })['d'], ['80~d'], 'nor is it given to who comes');
  assert.deepEqual(given(names, { a: web('2'), b: web('3'), c: web('3'), d: web('4'), e: web('1') })['e'], ['80'], 'but to who says what it stood for');
});

test('TableNames: what becomes an account\'s has its name, and stays so, over a restart too', () => {
  const names = new TableNames();
  given(names, { a: web('1'), b: web('1') });
  assert.deepEqual(given(names, { a: web('2', 'shop/alice'), b: web('3', 'shop/bob') }), { a: ['80~shop/alice'], b: ['80~shop/bob'] });
  const next = new TableNames(JSON.parse(JSON.stringify(names.given)) as TableNames['given']);
  for (const each of [names, next]) assert.deepEqual(['a', 'b', 'c'].map((key) => each.isAccounts(key, '80', key === 'b' ? 'shop/bob' : 'shop/alice')), [true, true, false]);
  assert.deepEqual(given(next, { a: web('2', 'shop/alice'), b: web('3', 'shop/bob') }), { a: ['80~shop/alice'], b: ['80~shop/bob'] });
});

test('TableNames: the next agent goes on with the names of before, also of one that gave each account its own', () => {
  const names = new TableNames();
  given(names, { a: web('1'), b: web('1'), c: web('1') });
  given(names, { a: web('2'), b: web('1'), c: web('1') });
  given(names, { a: web('2'), b: web('2'), c: web('1') });
  const next = new TableNames(JSON.parse(JSON.stringify(names.given)) as TableNames['given']);
  assert.deepEqual(assigned(next, { a: web('5'), b: web('5'), c: web('6'), d: web('7') }), { a: ['80~a'], b: ['80~a'], c: ['80'], d: ['80~d'] });
  const later = new TableNames(undefined, { a: {}, b: { 80: ['80~shop/bob', '80~shop/bob~b'] } });
  assert.ok(later.isAccounts('a', '80', 'shop/alice') && later.isAccounts('b', '80', 'shop/bob') && !later.isAccounts('c', '80', 'shop/alice'));
  assert.deepEqual(assigned(later, { a: web('1', 'shop/alice'), b: web('1', 'shop/bob'), c: web('1') }), { a: ['80~shop/alice'], b: ['80~shop/bob~b'], c: ['80'] });
});

test('TableNames: no two contents ever have one name, and of who stays no name changes but where contents do, whatever comes and goes', () => {
  let state = 7;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const fresh = (): Record<string, Content> => ({ 80: { hash: `h${random(4)}` }, 81: { hash: `h${random(3)}` } });
  let names = new TableNames();
  let classes: Tables = { k0: fresh() };
  /** What was published. */
  let [before, contentsBefore]: [Record<string, string[]>, Tables] = [{}, {}];
  for (let step = 0; step < 2_000; step++) {
    const change = random(4);
    const keys = Object.keys(classes);
    let restarts = false;
    if (change === 0 && keys.length > 1) classes = Object.fromEntries(Object.entries(classes).filter(([key]) => key !== keys[random(keys.length)]));
    else if (change === 1 && keys.length < 8) classes = { [`k${random(12)}`]: fresh(), ...classes };
    else if (change === 2) {
      const same = fresh();
      for (const key of keys) if (random(2) === 0) classes = { ...classes, [key]: random(3) === 0 ? fresh() : same };
    } else if (keys.length === Object.keys(contentsBefore).length && keys.every((key) => classes[key] === contentsBefore[key])) {
      restarts = true;
      names = new TableNames(names.given);
    }
    const isPublished = restarts || random(5) > 0;
    const now = isPublished ? given(names, classes) : assigned(names, classes);
    const contents = new Map<string, string>();
    for (const [key, tables] of Object.entries(classes)) Object.entries(tables).forEach(([table, { hash }], index) => {
      const name = now[key]![index]!;
      assert.equal(contents.get(name) ?? hash, hash, `step ${step}: ${name}`);
      contents.set(name, hash);
      if (contentsBefore[key]?.[table]?.hash === hash) assert.equal(name, before[key]![index], `step ${step}: ${key}`);
    });
    if (isPublished) [before, contentsBefore] = [now, classes];
  }
});
