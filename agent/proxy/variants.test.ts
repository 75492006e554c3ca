import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NameBook, type Content } from './variants.js';

type Contents = Record<string, string | Content>;

const classOf = (key: string, contents: Contents) => ({ key, contents: new Map(Object.entries(contents).map(([name, content]) => [name, typeof content === 'string' ? { hash: content } : content])) });
const namesIn = (book: NameBook, ...classes: ReturnType<typeof classOf>[]): Record<string, string> => {
  const names = book.assign(classes);
  return Object.fromEntries(classes.flatMap(({ key, contents }) => [...contents.keys()].map((name) => [`${key} ${name}`, names.of(key, name)])));
};

test('NameBook: a name stays when the class that it came from leaves, in whichever order', () => {
  const book = new NameBook();
  const [a, b, c, d] = [classOf('a', { web: '1' }), classOf('b', { web: '2' }), classOf('c', { web: '2' }), classOf('d', { web: '1' })];
  assert.deepEqual(namesIn(book, a, b, c, d), { 'a web': 'web', 'b web': 'web~b', 'c web': 'web~b', 'd web': 'web' });
  assert.deepEqual(namesIn(book, b, c, d), { 'b web': 'web~b', 'c web': 'web~b', 'd web': 'web' }, 'who had the plain name has left, and so has the class of the other one');
  assert.deepEqual(namesIn(book, c, d), { 'c web': 'web~b', 'd web': 'web' });
  assert.deepEqual(namesIn(book, c), { 'c web': 'web~b' });
  assert.deepEqual(namesIn(book, classOf('e', { web: '2' }), c), { 'e web': 'web~b', 'c web': 'web~b' }, 'a senior one that comes takes what is there');
});

test('NameBook: a class that comes back gets no name that others have by now', () => {
  const book = new NameBook();
  namesIn(book, classOf('a', { web: '1' }), classOf('b', { web: '2' }), classOf('c', { web: '2' }));
  namesIn(book, classOf('a', { web: '1' }), classOf('c', { web: '2' }));
  assert.deepEqual(namesIn(book, classOf('a', { web: '1' }), classOf('b', { web: '3' }), classOf('c', { web: '2' })), { 'a web': 'web', 'b web': 'web~b~2', 'c web': 'web~b' });
});

test('NameBook: contents that are equal again have one name again; of one account as of none', () => {
  const book = new NameBook();
  const of = (hash: string): Contents => ({ web: hash, own: { hash, account: 'shop/alice' } });
  assert.deepEqual(namesIn(book, classOf('a', of('1')), classOf('b', of('2'))), { 'a web': 'web', 'a own': 'own~shop/alice', 'b web': 'web~b', 'b own': 'own~shop/alice~b' });
  assert.deepEqual(namesIn(book, classOf('a', of('2')), classOf('b', of('2'))), { 'a web': 'web', 'a own': 'own~shop/alice', 'b web': 'web', 'b own': 'own~shop/alice' });
});

test('NameBook: what becomes an account\'s own leaves the name that others may still have', () => {
  const book = new NameBook();
  namesIn(book, classOf('a', { web: '1' }), classOf('b', { web: '2' }));
  const own = (key: string, account: string) => classOf(key, { web: { hash: key, account } });
  assert.deepEqual(namesIn(book, own('a', 'shop/alice'), own('b', 'shop/bob')), { 'a web': 'web~shop/alice', 'b web': 'web~shop/bob' });
});

test('NameBook: the next agent goes on with the names of before', () => {
  const book = new NameBook();
  namesIn(book, classOf('a', { web: '1' }), classOf('b', { web: '2' }), classOf('c', { web: '2' }));
  namesIn(book, classOf('b', { web: '2' }), classOf('c', { web: '2' }));
  const next = new NameBook(JSON.parse(JSON.stringify(book.given)) as NameBook['given']);
  assert.deepEqual(namesIn(next, classOf('b', { web: '2' }), classOf('c', { web: '2' })), { 'b web': 'web~b', 'c web': 'web~b' });
});

test('NameBook: no two contents ever have one name, and of who stays no name changes but where contents do, whatever comes and goes', () => {
  let state = 5;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  let book = new NameBook();
  // Classes with equal contents may have one map of them, or one each.
  let shared = new NameBook();
  const sharing = (all: ReturnType<typeof classOf>[]): typeof all => {
    const known = new Map(all.map(({ contents }) => [JSON.stringify([...contents]), contents]));
    return all.map(({ key, contents }) => ({ key, contents: known.get(JSON.stringify([...contents]))! }));
  };
  let classes = [classOf('k0', { web: 'h0', db: 'h1' })];
  let before = namesIn(book, ...classes);
  namesIn(shared, ...classes);
  let came = 1;
  for (let step = 0; step < 2_000; step++) {
    const change = random(4);
    const fresh = (key: string) => classOf(key, { web: `h${random(4)}`, db: `h${random(4)}` });
    if (change === 0 && classes.length > 1) classes = classes.toSpliced(random(classes.length), 1);
    else if (change === 1 && classes.length < 8) {
      const key = random(3) === 0 ? `k${random(came)}` : `k${came++}`;
      if (!classes.some((each) => each.key === key)) classes = classes.toSpliced(random(classes.length + 1), 0, fresh(key));
    } else if (change === 2) classes = classes.with(random(classes.length), fresh(classes[random(classes.length)]!.key));
    else [book, shared] = [new NameBook(book.given), new NameBook(shared.given)];
    classes = [...new Map(classes.map((each) => [each.key, each])).values()];
    const now = namesIn(book, ...classes);
    assert.deepEqual([namesIn(shared, ...sharing(classes)), shared.given], [now, book.given], `step ${step}`);
    const contentOf = new Map<string, string>();
    for (const { key, contents: own } of classes) for (const [name, { hash }] of own) {
      const chosen = now[`${key} ${name}`]!;
      assert.equal(contentOf.get(chosen) ?? hash, hash, `step ${step}: ${chosen}`);
      contentOf.set(chosen, hash);
    }
    if (change !== 2) for (const [of, name] of Object.entries(now)) assert.equal(name, before[of] ?? name, `step ${step}: ${of}`);
    before = now;
  }
});
