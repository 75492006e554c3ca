import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ResourceLists } from '../generate/resource-list.js';
import type { Resource } from '../generate/resource.js';
import { MapStore } from './shared-map.js';
import { Watch } from './watch.js';

test('Watch: what is to be sent to a client of the same list is what comparing in full finds, whatever was sent before', () => {
  let state = 9;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const made = new Map<string, Resource>();
  const resource = (name: string, version: number): Resource => {
    const key = `${name} ${version}`;
    if (!made.has(key)) made.set(key, { name, version: `${version}`, body: { type_url: 't', value: Buffer.alloc(0) } });
    return made.get(key)!;
  };
  const lists = new ResourceLists();
  const watches = [new Watch('t', new MapStore()), new Watch('t', new MapStore())];
  let shared = new Map(Array.from({ length: 40 }, (_, index) => [`s${index}`, 0]));
  let [few, full] = [0, 0];
  for (let step = 0; step < 600; step++) {
    // Most changes leave the list as it is.
    if (random(4) === 0) {
      shared = new Map(shared);
      if (random(2) === 0) shared.set(`s${random(45)}`, random(3));
      else shared.delete(`s${random(45)}`);
    }
    lists.renew();
    for (const watch of watches) {
      const own = Array.from({ length: random(4) }, () => resource(`${random(8) === 0 ? 's' : 'o'}${random(6)}`, random(3)));
      const whole = { shared: lists.intern([...shared].map(([name, version]) => resource(name, version))), own: [...new Map(own.map((each) => [each.name, each])).values()] };
      const current = new Map([...whole.shared.resources, ...whole.own].map((each) => [each.name, each]));
      const expected = { changed: [...current.values()].filter(watch.isUnsent), removed: [...watch.sent.keys()].filter((name) => !current.has(name)) };
      const found = watch.changesFrom(whole);
      const sorted = ({ changed, removed }: typeof expected) => [changed.map(({ name, version }) => `${name} ${version}`).sort(), [...removed].sort()];
      if (found) assert.deepEqual(sorted(found), sorted(expected), `step ${step}`);
      found ? few++ : full++;
      watch.noteSent(expected.changed);
      for (const name of expected.removed) watch.sent.delete(name);
      if (!found && random(5) > 0) watch.noteWhole(whole);
      for (const [name, { version }] of current) assert.equal(watch.sent.get(name), version);
      assert.equal(watch.sent.size, current.size);
    }
  }
  assert.ok(few > 300 && full > 100, `${few} times few, ${full} times in full`);
});
