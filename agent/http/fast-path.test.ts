/** The order of a change on the HTTP fast path, its switch, and lost ends; the kernel's maps are data here. */
import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import type { HttpPod } from '../dataplane/kernel-http-control.js';
import { FastPath, type FastPathOptions, type RepeatedClasses } from './fast-path.js';

type Pod = ReturnType<FastPathOptions<string>['pods']>[number];
const pod = (last: number, changes: Partial<Pod> = {}): Pod => ({ uid: `p${last}`, netnsCookie: BigInt(last), mode: 'node', capture: true, acceleration: 'l7', ...changes });

class World {
  rows = new Map<bigint, HttpPod>();
  underWay = new Map<bigint, bigint>();
  beats: { on: boolean; knownLost: number }[] = [];
  lost = 0;
  pods: Pod[] = [pod(1), pod(2), pod(3)];
  steps: string[] = [];
  room = Infinity;
  problem: string | undefined;
  tables = 0;
  path!: FastPath<string>;

  open(changes: Partial<FastPathOptions<string>> = {}): FastPath<string> {
    const rowOf = (cookie: bigint): HttpPod => this.rows.get(cookie)!;
    this.path = new FastPath<string>({
      kernel: {
        beat: (on, knownLost) => void this.beats.push({ on, knownLost }),
        lostEnds: () => this.lost,
        pods: () => new Map(this.rows),
        setPod: (cookie, row) => {
          this.rows.set(cookie, row);
          this.steps.push(`${cookie} ${rowOf(cookie).state}`);
        },
        removePod: (cookie) => void this.rows.delete(cookie),
        activity: (cookie) => ({ underWay: this.underWay.get(cookie) ?? 0n, started: 0n }),
        forgetActivity: () => undefined,
      },
      pods: () => this.pods,
      tables: {
        write: (key, table) => {
          if (this.tables >= this.room) throw new RangeError('no room');
          this.steps.push(`table ${table}`);
          return ++this.tables;
        },
        keep: () => undefined,
      },
      problem: () => this.problem,
      on: true,
      logger: logger('test.fast-path'),
      beatMs: 5,
      ...changes,
    });
    return this.path;
  }

  wanted: RepeatedClasses<string> = new Map();
  suspend(wanted: RepeatedClasses<string>): Promise<void> | undefined {
    return this.path.suspend((this.wanted = wanted));
  }
  /** Envoy has all pods of these classes. */
  repeat(...keys: string[]): void {
    this.path.repeat(new Map(keys.map((key) => [key, this.wanted.get(key)!.uids])));
  }

  taken(): string[] {
    return this.steps.splice(0);
  }
}

const classes = (given: Record<string, [version: string, ...uids: string[]]>): RepeatedClasses<string> =>
  new Map(Object.entries(given).map(([key, [version, ...uids]]) => [key, { version, uids: new Set(uids), table: `${key}${version}` }]));

let world: World;
afterEach(() => world?.path.close());

test('FastPath: a change suspends its pods at once, waits for what is under way, and they are live again when Envoy has it', async () => {
  world = new World();
  const path = world.open();
  assert.equal(world.suspend(classes({ a: ['1', 'p1', 'p2'], b: ['1', 'p3'] })), undefined, 'nothing was fast');
  world.repeat('a', 'b');
  assert.deepEqual(world.taken(), ['table a1', 'table b1', '1 live', '2 live', '3 live']);
  world.underWay.set(2n, 3n);
  let isDrained = false;
  const drained = world.suspend(classes({ a: ['2', 'p1', 'p2'], b: ['1', 'p3'] }))!.then(() => (isDrained = true));
  assert.deepEqual(world.taken(), ['1 suspended', '2 suspended'], 'the other class goes on');
  await new Promise((resolve) => setTimeout(resolve, 60));
  assert.equal(isDrained, false);
  world.underWay.set(2n, 0n);
  await drained;
  assert.deepEqual(world.taken(), []);
  world.repeat('a', 'b');
  assert.deepEqual(world.taken(), ['table a2', '1 live', '2 live']);
  assert.deepEqual(path.status, { on: true, pods: { live: 3, suspended: 0 }, classes: 2, cutDrains: 0, lostEnds: 0, problems: [] });
});

test('FastPath: nothing that is fast changes: nobody waits, and a class that is not acknowledged stays Envoy\'s', () => {
  world = new World();
  const path = world.open();
  world.suspend(classes({ a: ['1', 'p1'], b: ['1', 'p3'] }));
  world.repeat('a');
  world.taken();
  assert.equal(world.suspend(classes({ a: ['1', 'p1'], b: ['2', 'p3'] })), undefined);
  assert.deepEqual(world.taken(), []);
});

test('FastPath: what does not end in time is not waited for for ever', async () => {
  world = new World();
  const path = world.open({ drainMs: 30 });
  world.suspend(classes({ a: ['1', 'p1'] }));
  world.repeat('a');
  world.underWay.set(1n, 1n);
  await world.suspend(classes({ a: ['2', 'p1'] }));
  assert.equal(path.status.cutDrains, 1);
  assert.equal(world.rows.get(1n)?.state, 'suspended');
  assert.equal(world.suspend(classes({ a: ['3', 'p1'] })), undefined, 'nor again');
});

test('FastPath: while one Envoy takes over from another nothing is fast, whatever the switch says, and what is under way is waited for', async () => {
  world = new World();
  const path = world.open();
  world.suspend(classes({ a: ['1', 'p1'] }));
  world.repeat('a');
  world.underWay.set(1n, 1n);
  let isHeld = false;
  const held = path.hold().then(() => (isHeld = true));
  assert.equal(world.beats.at(-1)?.on, false);
  assert.deepEqual([path.status.on, path.status.reason], [false, 'an Envoy takes over from another']);
  path.setOn(true);
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.deepEqual([world.beats.at(-1)?.on, isHeld], [false, false]);
  world.underWay.set(1n, 0n);
  await held;
  path.setOn(false);
  path.unhold();
  assert.equal(world.beats.at(-1)?.on, false, 'who switched it off meanwhile is heard');
  path.setOn(true);
  assert.equal(world.beats.at(-1)?.on, true);
});

test('FastPath: pods that leave, come, or have another label or class', async () => {
  world = new World();
  const path = world.open();
  world.suspend(classes({ a: ['1', 'p1', 'p2'], b: ['1', 'p3'] }));
  world.repeat('a', 'b');
  world.taken();
  world.pods = [pod(1, { acceleration: 'l4' }), pod(2, { capture: false }), pod(3)];
  path.podsChanged();
  assert.deepEqual(world.taken(), ['1 suspended', '2 suspended']);
  world.pods = [pod(1), pod(3), pod(4)];
  path.podsChanged();
  assert.deepEqual(world.taken(), ['1 live']);
  assert.deepEqual([...world.rows.keys()], [1n, 3n]);
  // To another class, whose table is there: not before Envoy has its listener as that class's.
  await world.suspend(classes({ a: ['1', 'p4'], b: ['1', 'p3', 'p1'] }));
  assert.deepEqual(world.taken(), ['1 suspended']);
  path.podsChanged();
  assert.deepEqual(world.taken(), []);
  world.repeat('a', 'b');
  assert.deepEqual(world.taken(), ['1 live', '4 live']);
});

test('FastPath: a former agent\'s live pods are suspended, and waited for before Envoy hears anything', async () => {
  world = new World();
  world.rows = new Map([[1n, { table: 7, state: 'live' }], [9n, { table: 8, state: 'live' }]]);
  const path = world.open();
  assert.deepEqual(world.taken(), ['1 suspended', '9 suspended']);
  world.underWay.set(1n, 1n);
  const drained = world.suspend(classes({ a: ['1', 'p1'] }));
  assert.ok(drained);
  assert.deepEqual([...world.rows.keys()], [1n], 'of a pod that is gone nothing stays');
  world.underWay.set(1n, 0n);
  await drained;
});

test('FastPath: a table that does not fit leaves its pods to Envoy, with the reason in the status', () => {
  world = new World();
  world.room = 1;
  const path = world.open();
  world.suspend(classes({ a: ['1', 'p1'], b: ['1', 'p3'] }));
  world.repeat('a', 'b');
  assert.deepEqual(world.taken(), ['table a1', '1 live']);
  assert.deepEqual(path.status.problems, [{ class: 'b', reason: 'no room' }]);
  world.room = 2;
  world.suspend(classes({ a: ['1', 'p1'], b: ['2', 'p3'] }));
  world.repeat('a', 'b');
  assert.deepEqual(world.taken(), ['table b2', '3 live']);
});

test('FastPath: off by switch, by a problem, after lost ends for a while, and when it ends', async () => {
  world = new World();
  const path = world.open({ lostMs: 80 });
  const last = (): { on: boolean; knownLost: number } => world.beats.at(-1)!;
  assert.deepEqual(last(), { on: true, knownLost: 0 });
  path.setOn(false);
  assert.equal(last().on, false);
  assert.match(path.status.reason ?? '', /switched off/);
  path.setOn(true);
  world.problem = 'the self-test failed';
  await waitFor('the next beat', () => !last().on, { everyMs: 2 });
  world.problem = undefined;
  await waitFor('the next beat', () => last().on, { everyMs: 2 });
  world.lost = 4;
  await waitFor('the loss to be seen', () => !last().on && last().knownLost === 4, { everyMs: 2 });
  assert.match(path.status.reason ?? '', /lost/);
  assert.equal(path.status.lostEnds, 4);
  await waitFor('it to be over', () => last().on, { everyMs: 2 });
  path.close();
  assert.equal(last().on, false);
});

test('FastPath: whether a pod\'s requests get ids is in its row, and changes there alone', () => {
  world = new World();
  const asks = new Set(['p1']);
  const path = world.open({ requestIds: (uid) => asks.has(uid) });
  void world.suspend(classes({ a: ['1', 'p1', 'p2'] }));
  world.repeat('a');
  assert.deepEqual([world.rows.get(1n), world.rows.get(2n)], [{ table: 1, state: 'live', requestIds: true }, { table: 1, state: 'live' }]);
  world.taken();
  path.podsChanged();
  assert.deepEqual(world.taken(), []);
  asks.add('p2').delete('p1');
  path.podsChanged();
  assert.deepEqual([world.taken(), world.rows.get(1n), world.rows.get(2n)], [['1 live', '2 live'], { table: 1, state: 'live' }, { table: 1, state: 'live', requestIds: true }]);
});
