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
  object = BpfObject.open({ pinDir: null, programs: [] });
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
  http.setPod(7n, { table: 5, state: 'live', requestIds: true });
  assert.deepEqual([...http.pods()].sort(([a], [b]) => Number(a - b)), [[7n, { table: 5, state: 'live', requestIds: true }], [8n, { table: 4, state: 'suspended' }]]);
  http.removePod(7n);
  assert.deepEqual([...http.pods().keys()], [8n]);
  assert.deepEqual(http.activity(8n), { underWay: 0n, started: 0n });
  object.map('http_activity').set(u64(8n), new StructCodec(object, 'http_activity').encode({ under_way: 2n, started: 9n }));
  assert.deepEqual(http.activity(8n), { underWay: 2n, started: 9n });
  http.forgetActivity(8n);
  assert.deepEqual(http.activity(8n), { underWay: 0n, started: 0n });
});

test('orphans and idle clients: what belongs to nobody any more, and what has long not been used', () => {
  const socket = (ip: number, port: number) => Buffer.concat([Buffer.from('00000000000000000000ffff7f0000', 'hex'), Buffer.from([ip]), Buffer.from([port])]).subarray(0, 16);
  const tuple = new StructCodec(object, 'tuple').encode({ netns_cookie: 5n, local: socket(1, 0), remote: socket(2, 0), local_port: 4000, remote_port: 15001 });
  const channel = new StructCodec(object, 'http_channel');
  const states = object.enumValues('http_channel_state');
  const longAgo = 1n; // since the machine was started
  for (const [cookie, state, used] of [[11n, 'HTTP_IDLE', longAgo], [12n, 'HTTP_IDLE', process.hrtime.bigint()], [13n, 'HTTP_LOST', longAgo], [14n, 'HTTP_FAST', longAgo], [15n, 'HTTP_IDLE', 0n]] as const) {
    object.map('http_channels').set(u64(cookie), channel.encode({ state: states[state]!, used_ns: used, tuple }));
  }
  const [idle, ...others] = http.idleClients(60_000);
  assert.deepEqual([idle?.socket.cookie, idle?.netnsCookie, idle?.socket.localPort, idle?.socket.remotePort, others], [11n, 5n, 4000, 15001, []]);
  assert.deepEqual(http.orphans(), []);
  object.map('http_clients').set(new StructCodec(object, 'http_client_key').encode({ netns_cookie: 5n, port: 4000 }), u64(11n));
  object.map('http_servers').set(u64(21n), u64(11n));
  object.map('http_servers').set(u64(22n), u64(10n));
  assert.deepEqual(http.orphans(), [22n]);
});

test('Kernel: a new one has no heartbeat, so that nothing is fast before an agent says so', async () => {
  const kernel = await Kernel.open({ bpffsDir: null, instance: 'http-control', logger: logger('test'), httpFastPath: false });
  try {
    const { control } = kernel.http;
    assert.deepEqual([control.lostEnds(), control.pods().size, control.lastBeat()], [0, 0, { at: 0n, on: false }]);
    control.beat(true, 0);
    assert.ok(control.lastBeat().on && control.lastBeat().at > 0n);
  } finally {
    await kernel.close();
  }
});
