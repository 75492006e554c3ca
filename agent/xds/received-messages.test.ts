import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { DeltaDiscoveryRequest, Resource } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { waitFor } from '../../common/retry.js';
import { TestControlPlane } from '../testing/control-plane.js';
import { AdsChannel } from './channel.js';
import type { DeltaResponse } from './delta-response.js';

const MESSAGE_BYTES = 16 << 20;
const WAIT = { everyMs: 10 };

test('a stream that waits for its next message keeps nothing of its last one', async () => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const control = new TestControlPlane('127.0.0.1:0');
  await control.start();
  const channel = new AdsChannel(control.address);
  const stream = channel.open();
  try {
    stream.write(DeltaDiscoveryRequest.fromPartial({ type_url: 'x' }));
    await waitFor('a stream', () => control.streams.length > 0, WAIT);
    collect();
    const before = process.memoryUsage().arrayBuffers;
    const sizes: number[] = [];
    stream.on('data', ({ resources }: DeltaResponse) => {
      for (const { resource } of resources) sizes.push(resource?.value.length ?? 0);
    });
    control.stream.send({ type_url: 'x', resources: [Resource.fromPartial({ name: 'large', resource: { type_url: 'x', value: Buffer.alloc(MESSAGE_BYTES) } })] });
    await waitFor('the message', () => sizes.length > 0, WAIT);
    assert.deepEqual(sizes, [MESSAGE_BYTES]);
    let held = Infinity;
    await waitFor('its memory to be free', () => {
      collect();
      held = process.memoryUsage().arrayBuffers - before;
      return held < MESSAGE_BYTES / 4;
    }, WAIT).catch(() => undefined);
    assert.ok(held < MESSAGE_BYTES / 4, `${held} bytes are held`);
    assert.equal(stream.destroyed, false);
  } finally {
    stream.on('error', () => undefined);
    stream.cancel();
    channel.close();
    control.stop();
  }
});
