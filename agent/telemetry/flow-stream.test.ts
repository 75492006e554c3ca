import assert from 'node:assert/strict';
import { test } from 'node:test';
import { kernelFlow, type Flow } from './flow-record.js';
import { FLOWS_KEPT, FlowStream } from './flow-stream.js';

const names = { ofNetns: () => undefined, ofAddress: () => undefined, isRedirected: () => false };
const flow = (at: number): Flow => ({
  ...kernelFlow({ key: { client: 1n, server: 2n, peer: undefined, service: undefined, endpointPort: 80 }, client: { address: '10.0.0.1', port: 1 }, endpoint: '10.0.0.2', way: 'plain', reason: undefined, received: 1n, sent: 1n, moved: 0n, durationMs: 1, rttUs: 1 }, names, at),
  path: `/${'x'.repeat(1_000)}`, duration: at,
});

test('flows: who follows has all of the last ones that it asked for, however long their lines are; of what comes faster than it reads the number is said', () => {
  const flows = new FlowStream({ names, onListening: () => undefined });
  for (let at = 0; at < FLOWS_KEPT; at++) flows.tell(flow(at));
  const listener = flows.open({ follow: true, last: FLOWS_KEPT })!;
  for (let at = 0; at < 10; at++) flows.tell(flow(FLOWS_KEPT + at));
  const lines = (): { duration?: number; lost?: number }[] => String(listener.read()).trim().split('\n').map((line) => JSON.parse(line) as { duration?: number });
  assert.deepEqual(lines().map(({ duration }) => duration), Array.from({ length: FLOWS_KEPT }, (_, at) => at));
  flows.tell(flow(-1));
  assert.deepEqual(lines().map(({ duration, lost }) => duration ?? { lost }), [{ lost: 10 }, -1]);
  listener.destroy();
  flows.close();
});
