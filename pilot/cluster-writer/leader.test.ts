import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KubeApiError, type KubeClient } from '../../common/kube/client.js';
import type { KubeObject } from '../../common/kube/types.js';
import { rootLogger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { LeaderElection } from './leader.js';

/** One Lease, behind an API server that may stop to answer; requests end with their signal alone then. */
class Leases {
  lease: KubeObject | undefined;
  isStuck = false;
  waiting = 0;
  readonly client = {
    get: (_resource: unknown, _place: unknown, signal: AbortSignal) => this.#answer(signal, () => {
      if (!this.lease) throw new KubeApiError(404, 'not found');
      return this.lease;
    }),
    create: (_resource: unknown, object: KubeObject, signal: AbortSignal) => this.#answer(signal, () => (this.lease = { ...object, metadata: { ...object.metadata, resourceVersion: '1' } })),
    merge: (_resource: unknown, _place: unknown, patch: object, signal: AbortSignal) => this.#answer(signal, () => (this.lease = { ...this.lease!, ...patch, metadata: { ...this.lease!.metadata, resourceVersion: `${Number(this.lease!.metadata.resourceVersion) + 1}` } })),
  } as unknown as KubeClient;

  #answer<T>(signal: AbortSignal, answer: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      if (!this.isStuck) return resolve(Promise.resolve().then(answer));
      this.waiting++;
      signal.addEventListener('abort', () => reject(signal.reason as Error));
    });
  }
}

test('LeaderElection: a term ends when it was not renewed in time, while a request is still waited for', async () => {
  const times = { leaseMs: 1_500, renewMs: 1_000, retryMs: 600 };
  const leases = new Leases();
  let endedAt: number | undefined;
  const election = new LeaderElection({
    client: leases.client,
    namespace: 'istio-system',
    name: 'lease',
    identity: 'one',
    logger: rootLogger.child({}, { level: 'silent' }),
    times,
    onTerm: (signal) => signal.addEventListener('abort', () => (endedAt = performance.now())),
  });
  election.start();
  try {
    await waitFor('a term', () => election.isLeader, { everyMs: 5 });
    const renewedAt = performance.now();
    leases.isStuck = true;
    await waitFor('the end of the term', () => endedAt !== undefined, { everyMs: 5 });
    assert.ok(leases.waiting > 0, 'nobody asked for a renewal');
    assert.ok(endedAt! - renewedAt < times.leaseMs, `the term ended after ${endedAt! - renewedAt} ms, when others may hold the lease of ${times.leaseMs} ms`);
  } finally {
    await election.close();
  }
});
