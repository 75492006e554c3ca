/** What agent and programs of the HTTP fast path tell each other, in the kernel's own maps. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { logger } from '../../common/log.js';
import { BpfObject } from '../../native/index.js';
import { StructCodec, u32, u64 } from './kernel-codec.js';
import { Kernel } from './kernel.js';
import { KernelHttpControl } from './kernel-http-control.js';

let object: BpfObject;
let http: KernelHttpControl;
before(() => {
  object = BpfObject.open({ pinDir: null });
  http = new KernelHttpControl(object);
});
after(() => {
  http.close();
  object.close();
});

test('beat: the time is the kernel\'s own monotonic one, and what the programs keep beside it stays', () => {
  const control = object.map('http_control');
  const codec = new StructCodec(object, 'http_control');
  control.set(u32(1), codec.encode({ lost_events: 3 }));
  const before = process.hrtime.bigint();
  http.beat(true, 2);
  const written = control.get(u32(0))!;
  const at = codec.bigint(written, 'heartbeat_ns');
  assert.ok(at >= before && at <= process.hrtime.bigint());
  assert.deepEqual([codec.number(written, 'on'), codec.number(written, 'lost_events')], [1, 2]);
  assert.equal(http.lostEnds(), 3);
  http.beat(false, 3);
  assert.equal(codec.number(control.get(u32(0))!, 'on'), 0);
});

test('pods: their table and state, and what they have under way', () => {
  http.setPod(7n, { table: 3, state: 'live' });
  http.setPod(8n, { table: 4, state: 'suspended' });
  http.setPod(7n, { table: 5, state: 'live' });
  assert.deepEqual([...http.pods()].sort(([a], [b]) => Number(a - b)), [[7n, { table: 5, state: 'live' }], [8n, { table: 4, state: 'suspended' }]]);
  http.removePod(7n);
  assert.deepEqual([...http.pods().keys()], [8n]);
  assert.deepEqual(http.activity(8n), { underWay: 0n, started: 0n });
  object.map('http_activity').set(u64(8n), new StructCodec(object, 'http_activity').encode({ under_way: 2n, started: 9n }));
  assert.deepEqual(http.activity(8n), { underWay: 2n, started: 9n });
  http.forgetActivity(8n);
  assert.deepEqual(http.activity(8n), { underWay: 0n, started: 0n });
});

test('Kernel: a new one has no heartbeat, so that nothing is fast before an agent says so', async () => {
  const kernel = await Kernel.open({ bpffsDir: null, instance: 'http-control', logger: logger('test') });
  try {
    const { control } = kernel.http;
    assert.deepEqual([control.lostEnds(), control.pods().size, control.lastBeat()], [0, 0, { at: 0n, on: false }]);
    control.beat(true, 0);
    assert.ok(control.lastBeat().on && control.lastBeat().at > 0n);
  } finally {
    await kernel.close();
  }
});
