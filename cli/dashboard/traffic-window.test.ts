// Rates out of readings: of several nodes, agents that begin anew, and edges that both ends tell of.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TrafficEdge, TrafficReport } from '../../common/traffic.js';
import { quantile, TrafficWindow } from './traffic-window.js';

const end = (workload: string) => ({ namespace: 'shop', workload, app: workload });
const edge = (source: string, destination: string, count: number, more: Partial<TrafficEdge> = {}): TrafficEdge => ({
  reporter: 'source', way: 'envoy', protocol: 'http', source: end(source), destination: end(destination), service: { namespace: 'shop', name: destination }, totals: { count, failed: count / 2, received: count * 10, sent: count * 20, times: [0, count, 0] }, ...more,
});
const report = (node: string, ...edges: TrafficEdge[]): TrafficReport => ({ node, requestBoundsMs: [1, 5], roundTripBoundsMs: [2, 4], edges });
const short = (window: TrafficWindow): unknown[] => {
  const { ends, edges } = window.graph();
  return edges.map(({ from, to, way, rate, failed }) => [ends[from]!.workload, ends[to]!.workload, way, rate, failed]);
};

test('rates are of the window; before the second reading there are none', () => {
  const window = new TrafficWindow();
  window.add(report('n1', edge('a', 'b', 100)), 0);
  assert.deepEqual(short(window), [['a', 'b', 'envoy', 0, 0]]);
  window.add(report('n1', edge('a', 'b', 120)), 2_000);
  assert.deepEqual(short(window), [['a', 'b', 'envoy', 10, 0.5]]);
  const { edges: [first], seconds } = window.graph();
  assert.deepEqual([first!.service, first!.received, first!.sent, first!.p50, first!.p99, first!.total, seconds], ['shop/b', 100, 200, 3, 4.96, 120, 2]);
  for (let at = 4; at <= 60; at += 2) window.add(report('n1', edge('a', 'b', 120)), at * 1_000);
  assert.deepEqual(short(window), [['a', 'b', 'envoy', 0, 0]]);
});

test('an edge that both ends tell of counts once, by the source, whichever ways the other end names; without the source the destination tells', () => {
  const window = new TrafficWindow();
  for (const [at, count] of [[0, 0], [1_000, 10]] as const) {
    window.add(report('n1', edge('a', 'b', count + 1, { way: 'hbone' }), edge('a', 'c', count + 1, { reporter: 'destination' })), at);
    window.add(report('n2', edge('a', 'b', count + 1, { reporter: 'destination' })), at);
  }
  assert.deepEqual(short(window), [['a', 'b', 'hbone', 10, 0.5], ['a', 'c', 'envoy', 10, 0.5]]);
});

test('a caller that is known by its account alone is not counted beside a workload of its namespace that tells of the same', () => {
  const account = { ...end('two'), what: 'account' } as const;
  const window = new TrafficWindow();
  for (const [at, count] of [[0, 0], [1_000, 10]] as const) {
    window.add(report('n1', edge('a', 'b', count + 1, { way: 'hbone' })), at);
    window.add(report('n2', edge('', 'b', count + 1, { reporter: 'destination', source: account, way: 'hbone' }), edge('', 'c', count + 1, { reporter: 'destination', source: account, way: 'hbone' })), at);
  }
  assert.deepEqual(short(window), [['a', 'b', 'hbone', 10, 0.5], ['two', 'c', 'hbone', 10, 0.5]]);
});

test('a tunnel is not told beside the requests that went in it, and is where nobody tells of these', () => {
  const tunnel = (from: string): TrafficEdge => edge(from, 'b', 11, { reporter: 'destination', way: 'hbone', protocol: 'tcp', service: { namespace: 'unknown', name: 'unknown' } });
  const window = new TrafficWindow();
  window.add(report('n1', edge('a', 'b', 1, { way: 'hbone' })), 0);
  window.add(report('n2', tunnel('a'), tunnel('c')), 0);
  const { ends, edges } = window.graph();
  assert.deepEqual(edges.map(({ from, protocol }) => [ends[from]!.workload, protocol]), [['a', 'http'], ['c', 'tcp']]);
});

test('edges of several nodes are added up; those of one that is asked no more are gone', () => {
  const window = new TrafficWindow();
  for (const [at, count] of [[0, 1], [1_000, 11]] as const) for (const node of ['n1', 'n2']) window.add(report(node, edge('a', 'b', count)), at);
  assert.deepEqual(short(window), [['a', 'b', 'envoy', 20, 0.5]]);
  window.keepOnly(new Set(['n1']));
  assert.deepEqual(short(window), [['a', 'b', 'envoy', 10, 0.5]]);
});

test('an agent that counts anew makes no negative rate, and what is new counts from nothing', () => {
  const window = new TrafficWindow();
  window.add(report('n1', edge('a', 'b', 100)), 0);
  window.add(report('n1', edge('a', 'b', 4), edge('a', 'c', 6)), 1_000);
  assert.deepEqual(short(window), [['a', 'b', 'envoy', 4, 0.5], ['a', 'c', 'envoy', 6, 0.5]]);
});

test('quantile: as histogram_quantile, and undefined of nothing', () => {
  assert.equal(quantile(0.5, [0, 0, 0], [1, 5]), undefined);
  assert.equal(quantile(0.5, [10, 0, 0], [1, 5]), 0.5);
  assert.equal(quantile(0.75, [10, 10, 0], [1, 5]), 3);
  assert.equal(quantile(0.99, [0, 0, 7], [1, 5]), 5);
});
