import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AgentHandle } from './agents.js';
import { read, rowsOf } from './top.js';

test('top: an agent that misses a reading has no rates until it has answered twice again, and the others have theirs', async () => {
  let total = 1_000_000;
  const silent = new Set<string>();
  const agents = ['a', 'b', 'c'].map((node): AgentHandle => ({
    node, place: `pod ${node}`, follow: () => Promise.reject(new Error('nothing is followed')), open: () => Promise.reject(new Error('nothing is followed')),
    ask: () => (silent.has(node) ? Promise.reject(new Error('no answer')) : Promise.resolve(`istio_requests_total{reporter="destination",destination_workload="${node}",destination_workload_namespace="n",response_code="200"} ${total + node.charCodeAt(0)}\n`)),
  }));
  const readings: Awaited<ReturnType<typeof read>>[] = [];
  for (const missing of [[], ['a'], [], []]) {
    silent.clear();
    for (const node of missing) silent.add(node);
    readings.push(await read({ agents }));
    total += 10;
  }
  const rates = readings.slice(1).map((now, index) => rowsOf(readings[index]!, now, 2, 'workload').map(({ name, requests }) => `${name} ${requests}`).sort());
  assert.deepEqual(rates, [['n/b 5', 'n/c 5'], ['n/b 5', 'n/c 5'], ['n/a 5', 'n/b 5', 'n/c 5']]);
  process.exitCode = 0;
});
