// What of the graph is shown, and where: the parts of the dashboard's pages that need no browser.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { GraphEdge } from '../common/traffic.js';
import { milliseconds, percent, perSecond } from '../dashboard/format.js';
import { layout, NODE_HEIGHT, NODE_WIDTH } from '../dashboard/layout.js';
import { viewOf, type Wanted } from '../dashboard/model.js';

const ALL: Wanted = { group: 'workload', query: '', namespace: '', hideIdle: false };
const end = (namespace: string, workload: string, app = workload) => ({ namespace, workload, app });
const edge = (from: number, to: number, more: Partial<GraphEdge> = {}): GraphEdge => ({ from, to, service: '', protocol: 'http', way: 'envoy', rate: 10, failed: 0, received: 1, sent: 1, total: 10, ...more });
const GRAPH = {
  ends: [end('shop', 'client'), end('shop', 'web-v1', 'web'), end('shop', 'web-v2', 'web'), end('bank', 'db')],
  edges: [edge(0, 1, { service: 'shop/web', failed: 0.5, p50: 1, p99: 2 }), edge(0, 2, { service: 'shop/web', rate: 30, p50: 3, p99: 9 }), edge(0, 2, { service: 'shop/web', way: 'fast-path' }), edge(1, 3, { rate: 0, received: 0, sent: 0 })],
};
const short = (wanted: Partial<Wanted>): unknown[] => {
  const { nodes, edges } = viewOf(GRAPH, { ...ALL, ...wanted });
  return edges.map(({ from, to, way, rate, failed, p99 }) => [nodes[from]!.id, nodes[to]!.id, way, rate, failed, p99]);
};

test('versions of a service are one node when nodes are services; rates are added up, failures weighed, the slowest stays', () => {
  assert.deepEqual(short({ group: 'service' }), [['shop/client', 'shop/web', 1, 10, 0, NaN], ['shop/client', 'shop/web', 2, 40, 0.125, 9], ['shop/web', 'bank/db', 2, 0, 0, NaN]]);
  assert.deepEqual(short({ group: 'namespace' }).map((row) => (row as unknown[]).slice(0, 4)), [['shop', 'bank', 2, 0], ['shop', 'shop', 1, 10], ['shop', 'shop', 2, 40]]);
});

test('a service of which no workload answered stands beside its workloads, and is the service when nodes are services; it has no page', () => {
  const graph = { ends: [...GRAPH.ends, { ...end('shop', 'web'), what: 'service' as const }], edges: [edge(0, 1, { service: 'shop/web' }), edge(0, 4, { service: 'shop/web', failed: 1 })] };
  const pages = (group: Wanted['group']): unknown[] => viewOf(graph, { ...ALL, group }).nodes.map(({ id, hasPage }) => [id, hasPage]);
  assert.deepEqual(pages('workload'), [['shop/client', true], ['shop/web (service)', false], ['shop/web-v1', true]]);
  assert.deepEqual(pages('service'), [['shop/client', false], ['shop/web', false]]);
});

test('a search shows what speaks with what it finds', () => {
  assert.deepEqual(short({ query: 'DB' }).map((row) => (row as unknown[]).slice(0, 2)), [['shop/web-v1', 'bank/db']]);
  assert.deepEqual(short({ hideIdle: true, namespace: 'bank' }), []);
  const { hidden, namespaces } = viewOf(GRAPH, { ...ALL, namespace: 'bank' });
  assert.deepEqual([hidden, namespaces], [3, ['bank', 'shop']]);
});

test('no two nodes lie over each other, each is in its namespace\'s box, callers stand left of who they call, and it is the same each time', () => {
  const nodes = Array.from({ length: 400 }, (_, index) => ({ id: `n${index}`, namespace: `ns-${index % 7}` }));
  const edges = Array.from({ length: 900 }, (_, index) => ({ from: (index * 7) % 400, to: (index * 13 + 5) % 400 }));
  const placed = layout(nodes, edges);
  assert.deepEqual(layout(nodes, edges), placed);
  const overlap = (a: { x: number; y: number; width: number; height: number }, b: typeof a): boolean => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
  const areas = nodes.map((_, index) => ({ x: placed.x[index]!, y: placed.y[index]!, width: NODE_WIDTH, height: NODE_HEIGHT }));
  for (const some of [areas, placed.boxes]) some.forEach((one, index) => some.slice(index + 1).forEach((other) => assert.ok(!overlap(one, other), JSON.stringify([one, other]))));
  nodes.forEach(({ namespace }, index) => {
    const box = placed.boxes.find((each) => each.namespace === namespace)!;
    const { x, y } = areas[index]!;
    assert.ok(x >= box.x && y >= box.y && x + NODE_WIDTH <= box.x + box.width && y + NODE_HEIGHT <= box.y + box.height);
  });
  const chain = layout(['a', 'b', 'c'].map((id) => ({ id, namespace: 'x' })), [{ from: 0, to: 1 }, { from: 1, to: 2 }, { from: 2, to: 0 }, { from: 1, to: 1 }]);
  assert.ok(chain.x[0]! < chain.x[1]! && chain.x[1]! < chain.x[2]!);
  assert.deepEqual(layout([], []).boxes, []);
});

test('figures have three digits and their unit; what was not measured is a dash', () => {
  assert.deepEqual([0, 0.003, 1.234, 123.4, 12_345].map(perSecond), ['0/s', '< 0.01/s', '1.23/s', '123/s', '12,345/s']);
  assert.deepEqual([NaN, undefined, 0.25, 4.567, 123_456].map(milliseconds), ['–', '–', '250 µs', '4.57 ms', '123 s']);
  assert.deepEqual([0, 0.0001, 0.055, 1].map(percent), ['0 %', '< 0.1 %', '5.5 %', '100 %']);
});
