/** DESIGN section 5, rule 11: only event-driven programs are accelerated, and how that is learnt. */
import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';
import { socketProbe } from '../../native/testing.js';
import { executable } from './kernel.js';
import { KernelWorld } from './kernel-testing.js';

const PROBATION = 8;
let w: KernelWorld;

before(async () => {
  // Connections of one exchange each are what these tests are made of.
  w = await KernelWorld.create('prob', { rodata: { brief_streak: 0 } });
});
/** Pods of which nothing has been learnt. */
beforeEach(() => {
  w.forget();
  w.put({ acceleration: 'l4' });
});
after(() => w.close());

function run(which: string, args: string[]) {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  return w.counted(() => w.world.probe(which, { pod: b, address: b.ipv4 }, { pod: a }, args));
}

function warm() {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  return w.counted(() => w.warm({ pod: b, address: b.ipv4 }, { pod: a }, ['--count', String(PROBATION)]));
}

function verdict(kind: 'listener' | 'client') {
  return w.kernel.probation().find((entry) => entry.kind === kind);
}

for (const acceleration of ['l4', 'l7'] as const) test(`probation: after 8 connections that sent without blocking, both ends are accelerated (${acceleration})`, async () => {
  w.put({ acceleration });
  assert.ok(w.kernel.pods().every((pod) => pod.acceleration === acceleration));
  const first = await warm();
  assert.equal(first.result.ok, true);
  assert.equal(first.counters['connections_short_circuited'], undefined);
  assert.equal(first.counters['connection_client_probation'], PROBATION);
  assert.equal(verdict('client')?.verdict, 'event-driven');
  assert.equal(verdict('listener')?.verdict, 'event-driven');
  assert.equal(verdict('listener')?.key, `${w.world.pod(1).ipv4}:7777@${w.world.pod(1).netnsCookie}`);
  const second = await run('churn', ['--count', '50']);
  assert.equal(second.result.ok, true);
  assert.equal(second.counters['connections_short_circuited'], 50);
});

test('probation: a blocking client stays plain for good, and half-closing 200 times all are right', async () => {
  const { result, counters } = await run('half-close', ['--count', '200', '--blocking-client']);
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connections_short_circuited'], undefined);
  assert.equal(verdict('client')?.verdict, 'blocking');
  assert.ok((counters['connection_client_blocking'] ?? 0) >= 190, JSON.stringify(counters));
  // The same program, non-blocking from now on: the verdict holds.
  const again = await run('churn', ['--count', '20']);
  assert.equal(again.counters['connections_short_circuited'], undefined);
});

test('probation: a blocking server stays plain, whoever its clients are', async () => {
  const { result, counters } = await run('half-close', ['--count', '60', '--blocking-server']);
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connections_short_circuited'], undefined);
  assert.equal(verdict('listener')?.verdict, 'blocking');
});

test('probation: a connect with a time-out, non-blocking for its length only, counts as blocking', async () => {
  const { result, counters } = await run('half-close', ['--count', '100', '--connect-timeout']);
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connections_short_circuited'], undefined);
  assert.equal(verdict('client')?.verdict, 'blocking');
});

test('probation: a program that blocks only later is seen at its next message and put back', async () => {
  await warm();
  const { result, counters } = await run('churn', ['--count', '40', '--blocking-client']);
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connections_short_circuited'], 1, 'only the one that showed it');
  assert.equal(counters['message_blocking'], 1);
  assert.equal(verdict('client')?.verdict, 'blocking');
});

test('probation: a program marked as splicing is never accelerated, in any container', async () => {
  w.kernel.markProgram(executable(socketProbe), 'spliced');
  const { result, counters } = await run('splice', ['--bytes', '3000000', '--warm', '20']);
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connections_short_circuited'], undefined);
  assert.equal(counters['connection_client_spliced'], 21);
  w.kernel.markProgram(executable(socketProbe), 'probation');
  assert.equal(w.kernel.probation().some((entry) => entry.verdict === 'spliced'), false);
});

test('probation: sockets with SO_ZEROCOPY, whose completions would never come, are never accelerated', async () => {
  const { result, counters } = await run('churn', ['--count', '30', '--zerocopy']);
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connections_short_circuited'], undefined);
  w.put({ acceleration: 'force' });
  const forced = await run('churn', ['--count', '30', '--zerocopy']);
  assert.equal(forced.counters['connections_short_circuited'], undefined);
  assert.equal(forced.counters['connection_zero_copy'], 30);
});

test('probation: a listener marked as splicing is never accelerated', async () => {
  const b = w.world.pod(1);
  w.kernel.markListener({ netnsCookie: b.netnsCookie, address: b.ipv4, port: 7777 }, 'spliced');
  await warm();
  const { counters } = await run('churn', ['--count', '30']);
  assert.equal(counters['connections_short_circuited'], undefined);
  assert.ok((counters['connection_listener_spliced'] ?? 0) >= 20, JSON.stringify(counters));
});

test('probation: what was learnt goes with the pod', async () => {
  await warm();
  assert.equal(w.kernel.probation().length, 2);
  for (const pod of w.world.pods) w.kernel.removePod(w.podRecord(pod).uid);
  assert.deepEqual(w.kernel.probation(), []);
});

test('probation: force skips it', async () => {
  w.put({ acceleration: 'force' });
  const { result, counters } = await run('churn', ['--count', '20']);
  assert.equal(result.ok, true);
  assert.equal(counters['connections_short_circuited'], 20);
  assert.deepEqual(w.kernel.probation(), []);
});
