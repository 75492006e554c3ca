/** When the kernel is told to stop and to go on repeating, by what Envoy has answered; DESIGN section 6, rules 10 and 11. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { waitFor } from '../../common/retry.js';
import type { HttpTable } from '../http/table.js';
import type { FoldResult, RepeatedSources } from './fold.js';
import { RepeatFollower, type RepeatFollowerOptions } from './repeat-follower.js';
import { CDS, LDS, RDS, Snapshot, type Entry } from './snapshot.js';

const SOURCES: RepeatedSources = { pods: new Map([['p1', 'pod/p1'], ['p2', 'pod/p2']]), listeners: ['inner'], routes: ['80~taught~a'], clusters: ['web~taught'] };
const entry = (name: string, version: string): Entry => ({ name, version, any: { type_url: '', value: Buffer.alloc(0) } as Entry['any'], needs: [] });
function folded(versions: Record<string, string> = {}, repeated = new Map([['a', SOURCES]])): FoldResult {
  const of = (...names: string[]) => new Map(names.map((name) => [name, entry(name, versions[name] ?? '1')]));
  return { repeated, snapshot: new Snapshot([[LDS, of('pod/p1', 'pod/p2', 'inner', 'pod/other')], [CDS, of('web~taught', 'other')], [RDS, of('80~taught~a')]]) } as unknown as FoldResult;
}

class World {
  acked = new Set<string>();
  rolledOut = 0;
  steps: string[] = [];
  held: Promise<void> | undefined;
  waiters: (() => void)[] = [];
  follower = new RepeatFollower({
    ads: {
      status: (_type, name) => ({ acked: this.acked.has(name), nack: undefined }),
      changedWithin: () => new Promise((resolve) => this.waiters.push(resolve)),
      get rolledOut() {
        return world.rolledOut;
      },
    },
    stopping: new AbortController().signal,
    repeater: {
      suspend: (wanted) => {
        this.steps.push(`suspend ${[...wanted].map(([key, { version, uids }]) => `${key} ${version} ${[...uids].join('+')}`).join()}`);
        return this.held;
      },
      repeat: (ready) => void this.steps.push(`repeat ${[...ready].map(([key, uids]) => `${key} ${[...uids].join('+')}`).join()}`),
    },
    tables: {
      headers: { weight: 'w', endpoint: 'e' }, versionOf: () => 'v1', of: () => undefined, table: () => ({ classes: [{}] }) as unknown as HttpTable,
      renew: (key) => void this.steps.push(`renew ${key}`),
    },
  } satisfies RepeatFollowerOptions);

  answer(rolledOut: number, ...acked: string[]): void {
    this.rolledOut = rolledOut;
    for (const name of acked) this.acked.add(name);
    for (const waiter of this.waiters.splice(0)) waiter();
  }
}
let world: World;

test('RepeatFollower: pods are repeated for when Envoy has taken the snapshot and all that they need; one that it refuses waits alone', async () => {
  world = new World();
  assert.equal(world.follower.before(folded()), undefined);
  world.follower.follow(folded(), 5);
  world.answer(4, 'pod/p1', 'inner', '80~taught~a');
  await new Promise(setImmediate);
  assert.deepEqual(world.steps, ['suspend a v1 p1+p2']);
  world.answer(5);
  await waitFor('the first', () => world.steps.length === 2, { everyMs: 1 });
  world.answer(5, 'pod/p2');
  await waitFor('the second', () => world.steps.length === 3, { everyMs: 1 });
  assert.deepEqual(world.steps.slice(1), ['repeat a p1', 'repeat a p1+p2']);
});

test('RepeatFollower: an answer to a snapshot that another one follows starts nothing', async () => {
  world = new World();
  world.follower.before(folded());
  world.follower.follow(folded(), 1);
  let release = (): void => undefined;
  world.held = new Promise((resolve) => (release = resolve));
  const held = world.follower.before(folded());
  assert.ok(held);
  world.answer(1, 'pod/p1', 'pod/p2', 'inner', '80~taught~a');
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual(world.steps, ['suspend a v1 p1+p2', 'suspend a v1 p1+p2']);
  release();
  await held;
});

test('RepeatFollower: what changes in a listener or cluster of a taught pod makes all classes new, since Envoy drains what it can\'t see', () => {
  world = new World();
  const { follower } = world;
  const before = folded().snapshot;
  assert.equal(follower.renews(folded(), undefined), false);
  assert.equal(follower.renews(folded({ '80~taught~a': '2', 'pod/other': '2', other: '2' }), before), false);
  for (const name of ['pod/p2', 'inner', 'web~taught']) {
    assert.equal(follower.renews(folded({ [name]: '2' }), before), true, name);
    assert.deepEqual(world.steps.splice(0), ['renew a']);
  }
});
