import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { AdsServer } from './ads-server.js';
import type { Envoy } from './envoy.js';
import { inspectionName } from './inspection.js';
import { ListenerWaits } from './listener-waits.js';
import { podListenerName } from './pod-listener.js';
import { LDS, Snapshot, type Entry } from './snapshot.js';

const entry = (name: string, version = '1'): Entry => ({ name, version, any: { type_url: '', value: Buffer.alloc(0) }, needs: [] });
const INNER = inspectionName('c1', 'http');

/** Envoy as busy as it is with a hundred listeners can't be made otherwise. */
function world() {
  const state = { acked: new Set<string>(), open: new Set<string>(), listening: new Set<string>(), asked: 0, answers: true, inner: '1', kernelKnows: true };
  const waits = new ListenerWaits({
    ads: { status: (_: string, name: string) => ({ acked: state.acked.has(name), nack: undefined }), changedSoon: () => new Promise((resolve) => setTimeout(resolve, 1)), connected: true } as unknown as AdsServer,
    envoy: { admin: { listeners: () => (state.asked++, state.answers ? Promise.resolve([...state.listening].map((name) => ({ name, addresses: [] }))) : new Promise(() => undefined)) } } as unknown as Envoy,
    stopping: new AbortController().signal,
    snapshot: () => new Snapshot([[LDS, new Map([...['u1', 'u2'].map((uid) => entry(podListenerName(uid))), entry(INNER, state.inner)].map((each) => [each.name, each]))]]),
    isWanted: () => true, classOf: () => 'c1', isStarted: () => true,
    isOpen: (uid) => (state.kernelKnows ? Promise.resolve(state.open.has(uid)) : Promise.reject(new Error('no inet_diag'))),
  });
  const isReady = async (uid: string): Promise<boolean> => {
    const over = new AbortController();
    setTimeout(() => over.abort(), 100);
    return waits.whenReady(uid, over.signal).then(() => true, () => false);
  };
  return { state, isReady };
}

describe('ListenerWaits', () => {
  it('a pod is in force when it listens, by the kernel, while Envoy is too busy with others to say so', async () => {
    const { state, isReady } = world();
    for (const name of [podListenerName('u1'), podListenerName('u2'), INNER]) state.acked.add(name);
    state.listening.add(INNER);
    state.open.add('u1');
    assert.equal(await isReady('u1'), true);
    state.answers = false;
    assert.equal(await isReady('u2'), false, 'its own does not listen yet');
    state.open.add('u2');
    assert.deepEqual([await isReady('u2'), state.asked], [true, 1], 'what it leads to listens, as was heard before');
  });

  it('nothing that listens counts before Envoy has taken what it was given', async () => {
    const { state, isReady } = world();
    state.open.add('u1');
    for (const name of [INNER, podListenerName('u1')]) state.listening.add(name);
    assert.equal(await isReady('u1'), false, 'of the pod');
    state.acked.add(podListenerName('u1')).add(INNER);
    assert.equal(await isReady('u1'), true);
    state.inner = '2';
    state.acked.delete(INNER);
    state.listening.delete(INNER);
    assert.equal(await isReady('u1'), false, 'of what it leads to');
  });

  it('where the kernel can not say Envoy is asked', async () => {
    const { state, isReady } = world();
    state.kernelKnows = false;
    for (const name of [podListenerName('u1'), INNER]) state.acked.add(name);
    state.listening.add(INNER);
    assert.equal(await isReady('u1'), false);
    state.listening.add(podListenerName('u1'));
    assert.equal(await isReady('u1'), true);
  });
});
