import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { DestinationRule, VirtualService } from '../../common/kube/types.js';
import type { PodRecord } from '../../common/lab-api.js';
import { projectRoot } from '../../common/paths.js';
import { bounds, expectationsOf, readExpectations } from './routing.js';
import { findNamespaces, podsProof } from './stage.js';
import { selfTestProof } from './start.js';
import { leftAtPods } from './toggles.js';

test('bounds: four standard deviations around the mean, exact at the ends', () => {
  assert.deepEqual(bounds(1000, 0.25), { low: 195, high: 305 });
  assert.deepEqual(bounds(1000, 1), { low: 1000, high: 1000 });
  assert.deepEqual(bounds(1000, 0), { low: 0, high: 0 });
});

test('readExpectations: what the example\'s own files ask for', async () => {
  assert.deepEqual(await readExpectations(join(projectRoot, 'examples', 'canary'), 'shop'), [
    { name: 'jesse', headers: { user: 'jesse' }, versions: { v2: 1 } },
    { name: 'canary', headers: {}, versions: { v1: 0.75, v2: 0.25 } },
  ]);
  await assert.rejects(readExpectations(join(projectRoot, 'examples', 'canary'), 'nowhere'), { code: 'UNDERPASS_DEMO_YAML' });
});

test('expectationsOf: follows a reader\'s changes, skips matches that a header alone does not meet', () => {
  const virtualService = {
    apiVersion: 'networking.istio.io/v1', kind: 'VirtualService', metadata: { name: 'x', namespace: 'n' },
    spec: {
      hosts: ['x'],
      http: [
        { match: [{ headers: { a: { exact: '1' } }, uri: { prefix: '/p' } }], route: [{ destination: { host: 'x', subset: 'new' } }] },
        { match: [{ headers: { a: { prefix: '1' } } }], route: [{ destination: { host: 'x', subset: 'new' } }] },
        { match: [{ headers: { b: { exact: '2' } } }], route: [{ destination: { host: 'x', subset: 'new' }, weight: 100 }] },
        { route: [{ destination: { host: 'x', subset: 'old' }, weight: 1 }, { destination: { host: 'x', subset: 'new' }, weight: 9 }] },
        { route: [{ destination: { host: 'x', subset: 'never' } }] },
      ],
    },
  } as unknown as VirtualService;
  const rule = { apiVersion: 'networking.istio.io/v1', kind: 'DestinationRule', metadata: { name: 'x', namespace: 'n' }, spec: { host: 'x', subsets: [{ name: 'old', labels: { version: 'v7' } }, { name: 'new', labels: { version: 'v8' } }] } } as unknown as DestinationRule;
  assert.deepEqual(expectationsOf(virtualService, [rule]).map(({ headers, versions }) => [headers, versions]), [
    [{ b: '2' }, { v8: 1 }],
    [{}, { v7: 0.1, v8: 0.9 }],
  ]);
});

test('findNamespaces: by labels, and says what is missing', () => {
  const pod = (namespace: string, mode?: string): PodRecord => ({ namespace, labels: { app: 'client' }, namespaceLabels: mode ? { 'underpass.io/mode': mode } : {}, hasSidecar: mode === 'sidecar' }) as unknown as PodRecord;
  assert.deepEqual(findNamespaces([pod('a', 'sidecar'), pod('b'), pod('c', 'node')]), { meshed: 'c', plain: 'b' });
  assert.throws(() => findNamespaces([pod('b')]), /no namespace labelled underpass\.io\/mode=node/);
  assert.throws(() => findNamespaces([pod('c', 'node')]), /no namespace without the label/);
});

test('selfTestProof: holds only where the node does what the verdict allows', () => {
  type Status = Parameters<typeof selfTestProof>[0];
  const fine = { ok: true, reason: '' };
  const bad = { ok: false, reason: 'order: wrong' };
  const status = (change: { checks?: { name: string; ok: boolean; detail: string }[]; acceleration?: typeof fine; capture?: typeof fine; on?: boolean; bpfProblem?: string; way?: string }): Status => ({
    selfTest: { ok: true, capture: change.capture ?? fine, acceleration: change.acceleration ?? fine, checks: change.checks ?? [{ name: 'order', ok: true, detail: '' }, { name: 'splice', ok: false, detail: '' }], restrictions: ['splice'], tookMs: 1 },
    acceleration: { default: 'l4', on: change.on ?? true },
    redirection: { default: 'auto', ...(change.bpfProblem === undefined ? {} : { bpfProblem: change.bpfProblem }) },
    pods: [{ way: change.way ?? 'bpf' }],
  }) as unknown as Status;
  const failing = [{ name: 'churn', ok: true, detail: '' }, { name: 'order', ok: false, detail: '' }];
  assert.equal(selfTestProof(status({})).holds, true);
  assert.equal(selfTestProof(status({ checks: [] })).holds, false, 'no check was made');
  assert.equal(selfTestProof(status({ on: false })).holds, false, 'a passed test and no acceleration');
  assert.equal(selfTestProof(status({ checks: failing })).holds, false, 'a failed check without consequence');
  assert.equal(selfTestProof(status({ checks: failing, acceleration: bad })).holds, false, 'acceleration in spite of the verdict');
  const off = selfTestProof(status({ checks: failing, acceleration: bad, on: false }));
  assert.deepEqual([off.holds, off.notes], [true, ['short-circuits stay off here: order: wrong']]);
  assert.equal(selfTestProof(status({ checks: failing, capture: bad, bpfProblem: 'x' })).holds, false, 'captured by BPF in spite of the verdict');
  assert.equal(selfTestProof(status({ checks: failing, capture: bad, bpfProblem: 'x', way: 'iptables' })).holds, true);
  assert.equal(selfTestProof({ ...status({}), selfTest: { pending: true } }).holds, false);
  assert.equal(selfTestProof({ ...status({ on: false, bpfProblem: 'no BPF', way: 'iptables' }), selfTest: { pending: true } }).holds, true);
});

test('podsProof: every pod has to run and be ready', () => {
  const pod = (change: Partial<PodRecord>): PodRecord => ({ namespace: 'a', name: 'x', phase: 'Running', ready: true, hasSidecar: false, containers: [{ pid: 1 }], ...change }) as unknown as PodRecord;
  assert.equal(podsProof('l', 'd', [pod({}), pod({ hasSidecar: true, ready: false })]).holds, true);
  assert.equal(podsProof('l', 'd', []).holds, false);
  assert.deepEqual(podsProof('l', 'd', [pod({}), pod({ name: 'y', ready: false })]), { holds: false, text: 'lab l runs 1 pods of d; not ready: a/y' });
  assert.equal(podsProof('l', 'd', [pod({ phase: 'Failed' })]).holds, false);
});

test('leftAtPods: names pins, hooks, rules and the listener that are still there', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-demo-left-'));
  try {
    const node = { paths: { bpffsDir: folder, instance: 'i', netnsFolder: join(folder, 'netns') } };
    const output = { rules: '', sockets: '' };
    const lab = {
      pods: () => [{ uid: 'u1', name: 'client', namespace: 'plain' }, { uid: 'u2', name: 'other', namespace: 'shop' }],
      exec: (_pod: unknown, argv: string[]) => Promise.resolve({ code: 0, stdout: argv[2]?.includes('/tcp') ? output.sockets : output.rules, stderr: '' }),
    };
    const left = (): Promise<string[]> => leftAtPods({ lab, node } as unknown as Parameters<typeof leftAtPods>[0], 'plain');
    mkdirSync(join(folder, 'netns', 'u2'), { recursive: true });
    assert.deepEqual(await left(), []);
    mkdirSync(join(folder, 'netns', 'u1'));
    mkdirSync(join(folder, 'i', 'links', 'pods', 'u1'), { recursive: true });
    output.rules = ':UNDERPASS_OUTPUT - [0:0]';
    output.sockets = '   0: 0100007F:3A99 00000000:0000 0A 00000000:00000000';
    assert.deepEqual(await left(), ['the pinned namespace of client', 'a hook on client', 'an iptables rule in client', "the proxy's listener in client"]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
