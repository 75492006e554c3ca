// What pods that are gone had added, in real maps.
import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { BpfMap, BpfObject } from '../../native/index.js';
import { noRequests } from '../telemetry/envoy-stats.js';
import { KernelFlows, type FlowSide } from './kernel-flows.js';
import { HttpServices, KernelHttpTotals } from './kernel-http-totals.js';

test('series of pods that are gone find room or are refused, and none of them costs a look at all that there are', (context) => {
  const object = BpfObject.open({ pinDir: null, programs: [], maxEntries: { flow_retired: 2, http_retired: 2 } });
  context.after(() => object.close());
  const flows = new KernelFlows(object, []), requests = new KernelHttpTotals(object, new HttpServices(object));
  const side: FlowSide = { opened: 1n, closed: 1n, denied: 0n, failed: 0n, received: 5n, sent: 6n, rttSumUs: 0n, rtt: Array.from({ length: flows.rttBoundsUs.length + 1 }, () => 0n) };
  const looks = mock.method(BpfMap.prototype, 'entries');
  for (const retire of [(hash: string) => flows.retire(hash, side), (hash: string) => requests.retire(hash, { ...noRequests(), requests: 1n })]) {
    assert.deepEqual(['a', 'b', 'c', 'a'].map((name) => retire(name.repeat(32))), [true, true, false, true]);
  }
  assert.equal(looks.mock.callCount(), 0);
  assert.deepEqual([...flows.retired()].map(([hash, { opened, received }]) => [hash[0], opened, received]).sort(), [['a', 2n, 10n], ['b', 1n, 5n]]);
  assert.deepEqual([...requests.retired()].map(([hash, totals]) => [hash[0], totals.requests]).sort(), [['a', 2n], ['b', 1n]]);
});
