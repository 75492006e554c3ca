import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAX_NAME_BYTES, NumberedNames } from './numbered-names.js';

test('names keep their numbers while thousands come and go, and are found by exactly their text', () => {
  const names = new NumberedNames();
  const expected = new Map<string, number>();
  let state = 7;
  const random = (below: number): number => (state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0) % below;
  for (let step = 0; step < 60_000; step++) {
    const text = `Kubernetes//Pod/team-${random(20)}/app-${random(400)}${'ü€'.repeat(random(3))}`;
    const known = expected.get(text);
    if (known !== undefined && random(2) === 0) {
      names.remove(known);
      expected.delete(text);
    } else {
      const number = names.add(text);
      if (known === undefined) assert.ok(![...(step % 997 === 0 ? expected.values() : [])].includes(number), 'a number is one name\'s');
      else assert.equal(number, known);
      expected.set(text, number);
    }
  }
  assert.equal(names.size, expected.size);
  for (const [text, number] of expected) assert.deepEqual([names.find(text), names.text(number), names.has(number)], [number, text, true]);
  assert.deepEqual(new Set(names.numbers()), new Set(expected.values()));
  for (let of = 0; of < 20; of++) for (let app = 0; app < 400; app++) if (!expected.has(`Kubernetes//Pod/team-${of}/app-${app}`)) assert.equal(names.find(`Kubernetes//Pod/team-${of}/app-${app}`), undefined);
  assert.equal(names.find('Kubernetes//Pod/team-1/app-'), undefined);
  for (const number of [...expected.values()]) names.remove(number);
  assert.deepEqual([names.size, [...names.numbers()]], [0, []]);
});

test('the empty name and the longest one are names, a longer one and a number of nobody are errors', () => {
  const names = new NumberedNames();
  const [empty, longest] = [names.add(''), names.add('x'.repeat(MAX_NAME_BYTES))];
  assert.deepEqual([names.text(empty), names.text(longest).length, names.find('')], ['', MAX_NAME_BYTES, empty]);
  assert.throws(() => names.add('x'.repeat(MAX_NAME_BYTES + 1)), /65535 bytes, expected at most 65534/);
  names.remove(empty);
  assert.throws(() => names.text(empty), /no name has the number/);
  assert.throws(() => names.text(99), /no name has the number 99/);
});
