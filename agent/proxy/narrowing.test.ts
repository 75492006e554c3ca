// Envoy's way to a policy that lets fewer in: each of its steps is told once, in order, and for such policies alone.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, it } from 'node:test';
import type { InboundPolicy } from './inbound-policy.js';
import { NarrowingFollower } from './narrowing.js';

const policy = (...barriers: string[]): InboundPolicy => new Map([[80, { takesPlaintext: true, isHttp: true, barriers: new Set(barriers), allowed: new Map() }]]);

function follower(former: InboundPolicy | undefined = undefined) {
  const told: string[] = [];
  const ads = { rolledOut: 0, changedWithin: (): Promise<void> => sleep(1) };
  const it = new NarrowingFollower({
    ads, stopping: new AbortController().signal,
    onNarrowing: async (uid, side) => void told.push(`${side} ${uid}`),
    onNarrowed: (uid, http) => told.push(`narrowed ${uid} ${[...http].join()}`),
  });
  /** A snapshot in which the pod's listener is to be `wanted`, and callers come by `reached`. */
  const publish = (rollout: number, of: InboundPolicy, wanted: string | undefined, reached: string | undefined): void =>
    it.follow(new Map([['p', of]]), new Map(wanted === undefined ? [] : [['p', wanted]]), new Map(reached === undefined ? [] : [['p', reached]]), rollout, () => former);
  const answered = async (rollout: number): Promise<void> => {
    ads.rolledOut = rollout;
    await sleep(20);
  };
  return { it, told, publish, answered };
}

describe('NarrowingFollower', () => {
  it('tells of a narrower policy before callers are led to it, and again when that roll-out was answered, and then of nothing more', async () => {
    const { it: follow, told, publish, answered } = follower();
    publish(1, policy(), undefined, undefined);
    await answered(1);
    publish(2, policy('deny'), 'l1', undefined);
    await follow.beforeListeners(['pod/q/inbound', 'pod/p/hbone', 'pod/p/inbound']);
    await answered(2);
    assert.deepEqual(told, ['accepted p'], 'callers are not led there');
    await follow.before(['p']);
    publish(3, policy('deny'), 'l1', 'l1');
    await sleep(20);
    assert.deepEqual(told, ['accepted p', 'opened p']);
    await answered(3);
    assert.deepEqual(told, ['accepted p', 'opened p', 'narrowed p 80']);
    for (const rollout of [4, 5]) {
      publish(rollout, policy('deny'), 'l1', 'l1');
      await answered(rollout);
    }
    assert.equal(told.length, 3);
  });

  it('has nothing to tell of a policy that lets more in, and of one that comes and goes before Envoy has it', async () => {
    const { it: follow, told, publish, answered } = follower();
    publish(1, policy('a', 'b'), 'l1', 'l1');
    await answered(1);
    publish(2, policy('a'), 'l2', 'l1');
    await follow.beforeListeners(['pod/p/inbound']);
    await follow.before(['p']);
    publish(3, policy('a'), 'l2', 'l2');
    await answered(3);
    publish(4, policy('a', 'c'), 'l3', 'l2');
    publish(5, policy('a'), 'l2', 'l2');
    await answered(5);
    assert.deepEqual(told, []);
  });

  it('of an adopted Envoy the policy of before is the former agent\'s', async () => {
    const { told, publish, answered } = follower(policy());
    publish(1, policy('deny'), 'l1', 'l1');
    await answered(1);
    assert.deepEqual(told, ['opened p', 'narrowed p 80']);
  });
});
