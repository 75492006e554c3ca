import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KernelError } from '../../native/index.js';
import { setTimeout as sleep } from 'node:timers/promises';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import type { WorkloadView } from '../policy/workload-policies.js';
import { pod } from './dataplane-testing.js';
import { PolicyEnforcer, reasonOf } from './policy-enforcer.js';

const failed = (syscall: string, errnoName: string): KernelError => new KernelError(Object.assign(new Error(`listing sockets: ${syscall}: ${errnoName}`), { syscall, errnoName }));

test('reasonOf: names what of the kernel is missing, and leaves other failures as they are', () => {
  assert.match(reasonOf(failed('sock_diag', 'ENOENT')), /modprobe tcp_diag/);
  assert.match(reasonOf(failed('sock_diag', 'EOPNOTSUPP')), /CONFIG_INET_DIAG_DESTROY/);
  assert.equal(reasonOf(failed('open', 'ENOENT')), 'listing sockets: open: ENOENT');
  assert.equal(reasonOf(new Error('other')), 'other');
});

for (const synced of [false, true]) {
  test(`whenKnown: a control plane that ${synced ? 'has not named the pod yet is waited for' : 'serves no workloads keeps no pod out of the mesh'}`, async (t) => {
    const enforcer = new PolicyEnforcer({
      kernel: { pods: () => [], setPolicies: () => undefined, policyVersions: () => new Map() },
      proxySettled: () => true, workloadsMs: 50, logger: logger('test.policy').child({}, { level: 'silent' }),
    });
    t.after(() => enforcer.close());
    const record = pod({});
    enforcer.setPods([record]);
    const view = { addresses: new Map(), authorizations: new Map(), rejectedAuthorizations: new Map(), synced } as WorkloadView;
    enforcer.setWorkloads(view);
    let isKnown = false;
    const ended = new AbortController();
    const waiting = enforcer.whenKnown(record.uid, ended.signal).then(() => (isKnown = true), () => undefined);
    if (!synced) return waiting.then(() => assert.equal(isKnown, true));
    await sleep(150);
    assert.equal(isKnown, false);
    ended.abort();
    await waiting;
  });
}

test('status: what the control plane has just said is settling before anybody has looked whom it concerns', async (t) => {
  const written: number[] = [];
  const enforcer = new PolicyEnforcer({
    kernel: { pods: () => [], setPolicies: (policies) => void written.push(policies.size), policyVersions: () => new Map() },
    proxySettled: () => true, logger: logger('test.policy').child({}, { level: 'silent' }),
  });
  t.after(() => enforcer.close());
  enforcer.setWorkloads({ addresses: new Map(), authorizations: new Map(), rejectedAuthorizations: new Map(), synced: true } as WorkloadView);
  assert.deepEqual([enforcer.status().settling, written], [1, []]);
  await waitFor('it to be looked at', () => written.length > 0, { timeoutMs: 60_000 });
  assert.equal(enforcer.status().settling, 0);
});
