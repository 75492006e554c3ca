import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KernelError } from '../../native/index.js';
import { reasonOf } from './policy-enforcer.js';

const failed = (syscall: string, errnoName: string): KernelError => new KernelError(Object.assign(new Error(`listing sockets: ${syscall}: ${errnoName}`), { syscall, errnoName }));

test('reasonOf: names what of the kernel is missing, and leaves other failures as they are', () => {
  assert.match(reasonOf(failed('sock_diag', 'ENOENT')), /modprobe tcp_diag/);
  assert.match(reasonOf(failed('sock_diag', 'EOPNOTSUPP')), /CONFIG_INET_DIAG_DESTROY/);
  assert.equal(reasonOf(failed('open', 'ENOENT')), 'listing sockets: open: ENOENT');
  assert.equal(reasonOf(new Error('other')), 'other');
});
