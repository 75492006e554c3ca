import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../common/paths.js';
import { REASONS, requestsBetween, sharesOf, sharesText } from './requests.js';

test('REASONS: each of the kernel\'s reasons has its words', () => {
  const counters = readFileSync(join(projectRoot, 'bpf', 'structs.h'), 'utf8');
  const reasons = /COUNTER_HTTP_ANSWERS_FAST,\s*\/\* why not[^*]*\*\/([^]*?)\/\* connections/.exec(counters)?.[1] ?? '';
  assert.deepEqual([...reasons.matchAll(/COUNTER_(\w+)/g)].map(([, name]) => name?.toLowerCase()).sort(), Object.keys(REASONS).sort());
});

test('requestsBetween: what has grown, by reason; what no counter saw is of connections that were given up', () => {
  const before = { http_requests_fast: 10, http_no_class: 5, http_requests_envoy: 5 };
  const after = { http_requests_fast: 100, http_no_class: 14, http_requests_envoy: 14, http_not_learnt: 1, http_channels: 7 };
  assert.deepEqual(requestsBetween(100, before, after), { fast: 90, envoy: { "its route is Envoy's": 9, 'not learnt yet': 1 } });
  assert.deepEqual(requestsBetween(120, before, after)?.envoy, { "its route is Envoy's": 9, 'not learnt yet': 1, "its connection is Envoy's for good": 20 });
  assert.equal(requestsBetween(100, after, after), undefined);
});

test('sharesOf: rounds count by their requests, and shares add up to one', () => {
  const shares = sharesOf([{ fast: 90, envoy: { a: 10 } }, { fast: 300, envoy: { b: 100 } }]);
  assert.deepEqual(shares, { fast: 0.78, envoy: { a: 0.02, b: 0.2 } });
  assert.equal(sharesOf([]), undefined);
  assert.equal(sharesText(shares ?? { fast: 0, envoy: {} }), 'fast 78.0 %; through Envoy: b 20.0 %, a 2.00 %');
  assert.equal(sharesText({ fast: 1, envoy: {} }), 'fast 100 %');
});
