import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { KernelPod, ProbationEntry } from './kernel.js';
import { countProbation, podProbation, probationOf } from './probation.js';

const pods: KernelPod[] = [['a', 7n], ['b', 8n], ['gone', 9n]].map(([uid, netnsCookie]) => ({
  uid: uid as string, netnsCookie: netnsCookie as bigint, cgroupPath: '', addresses: [], mode: 'node', capture: true, acceleration: 'l4',
}));
const nameOf = (uid: string) => (uid === 'gone' ? undefined : { namespace: 'shop', name: uid });
const entry = (kind: 'listener' | 'client', netnsCookie: bigint, more: Partial<ProbationEntry> = {}): ProbationEntry => ({ kind, netnsCookie, key: '', seen: 0, verdict: 'probation', reason: '', ...more });

test('probationOf: the listener that is asked for, and all programs of the client\'s pod', () => {
  const entries = podProbation([
    entry('listener', 8n, { address: '10.0.0.2', port: 80, verdict: 'event-driven' }), entry('listener', 8n, { address: '10.0.0.2', port: 81 }),
    entry('listener', 7n, { address: '10.0.0.2', port: 80 }), entry('listener', 7n, { address: '127.0.0.1', port: 80, verdict: 'blocking' }),
    entry('client', 7n, { program: '/usr/bin/curl' }), entry('client', 7n), entry('client', 8n), entry('client', 9n), entry('client', 0n, { verdict: 'spliced' }),
  ], pods, nameOf);
  const [a, b] = [{ namespace: 'shop', name: 'a' }, { namespace: 'shop', name: 'b' }];
  const direct = probationOf(entries, a, { ...b, address: '10.0.0.2', port: 80 });
  assert.equal(direct.listener?.verdict, 'event-driven');
  assert.deepEqual(direct.clients.map(({ program }) => program), ['/usr/bin/curl', undefined]);
  assert.equal(probationOf(entries, a, { ...b, address: '::ffff:10.0.0.2', port: 80 }).listener?.verdict, 'event-driven');
  assert.equal(probationOf(entries, a, { ...b, address: '10.0.0.2', port: 82 }).listener, undefined);
  for (const address of ['127.0.0.5', '::1']) assert.equal(probationOf(entries, a, { ...a, address, port: 80 }).listener?.verdict, 'blocking', address);
  assert.deepEqual(entries.filter(({ pod }) => pod === undefined).map(({ kind, verdict }) => [kind, verdict]), [['client', 'probation'], ['client', 'spliced']]);
  assert.equal(JSON.stringify(entries).includes('netnsCookie'), false);
});

test('countProbation: each kind and verdict, zeros too', () => {
  const counted = countProbation([entry('client', 7n), entry('client', 7n), entry('listener', 7n, { verdict: 'spliced' })]);
  assert.equal(counted.length, 8);
  assert.deepEqual(counted.filter(({ count }) => count > 0), [
    { kind: 'listener', verdict: 'spliced', count: 1 }, { kind: 'client', verdict: 'probation', count: 2 },
  ]);
});
