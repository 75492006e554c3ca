import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { MetricOverrides } from '../proxy/metric-overrides.js';
import { Overridden } from './metric-overrides.js';

const labels = (reporter: string, workload: string, more: Record<string, string> = {}): Record<string, string> => ({ reporter, [`${reporter}_workload`]: workload, [`${reporter}_workload_namespace`]: 'shop', ...more });

function told(overrides: Record<string, MetricOverrides>, series: readonly [Record<string, string>, number][]): Record<string, number> {
  const sums = new Overridden<number>(new Map(Object.entries(overrides)), (a, b) => a + b);
  for (const [of, value] of series) sums.take(['a', 'b'], of, value);
  return Object.fromEntries([...sums.sums].map(({ name, labels: text, totals }) => [`${name} ${text}`, totals]));
}

test('series that come to the same labels are one sum, in whatever order their labels were', () => {
  const drop = { 'source shop/web': { a: { code: null, tier: 'gold' }, b: 'off' as const } };
  assert.deepEqual(told(drop, [[labels('source', 'web', { code: '200' }), 1], [{ code: '404', ...labels('source', 'web') }, 2], [labels('destination', 'web'), 4], [labels('source', 'other'), 8]]), {
    'a reporter="source",source_workload="web",source_workload_namespace="shop",tier="gold"': 3,
    'a destination_workload="web",destination_workload_namespace="shop",reporter="destination"': 4,
    'b destination_workload="web",destination_workload_namespace="shop",reporter="destination"': 4,
    'a reporter="source",source_workload="other",source_workload_namespace="shop"': 8,
    'b reporter="source",source_workload="other",source_workload_namespace="shop"': 8,
  });
});

test('without overrides series are told as they are', () => {
  assert.deepEqual(told({}, [[{ z: '1', a: '2' }, 1]]), { 'a z="1",a="2"': 1, 'b z="1",a="2"': 1 });
});

test('a label may be made of what the series itself says, as it was before; what it does not say is unknown', () => {
  const made = { 'source shop/web': { a: { response_code: 'all', code: ['c', { label: 'response_code' }], grpc: [{ label: 'grpc_response_status' }] }, b: 'off' as const } };
  assert.deepEqual(told(made, [[labels('source', 'web', { response_code: '200' }), 1]]), { 'a code="c200",grpc="unknown",reporter="source",response_code="all",source_workload="web",source_workload_namespace="shop"': 1 });
});

test('a label\'s name is one that Prometheus takes, whatever a Telemetry calls it', () => {
  const odd = { 'source shop/web': { a: { 'x="1"} 1\nforged_total{y': 'z', 'my.tag': 'dots', '2nd': 'digit', '': 'nothing', le: '0.5', source_workload: null }, b: 'off' as const } };
  assert.deepEqual(told(odd, [[labels('source', 'web'), 1]]), { 'a _="nothing",_2nd="digit",my_tag="dots",reporter="source",source_workload_namespace="shop",x__1___1_forged_total_y="z"': 1 });
});
