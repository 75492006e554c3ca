// Connections that the shared Envoy pooled towards a server in probation are renewed when the probation is over.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { askAgent } from '../agent/index.js';
import { EnvoyAdmin } from '../agent/proxy/envoy-admin.js';
import { sleep, waitFor } from '../common/retry.js';
import { NodeUnderTest, enrolled } from './agent-harness.js';

const node = new NodeUnderTest(`up-agentp-${process.pid}`);
const ONE_SERVER = { user: 'jesse' };

before(() => node.up(['shop.yaml']));
after(() => node.down());

interface Bytes {
  tcp: number;
  moved: number;
}

async function bytes(): Promise<Bytes> {
  const { pods } = JSON.parse(await askAgent(node.paths.adminSocket, '/v1/counters')) as { pods: { bytes_tcp: number; bytes_short_circuited: number }[] };
  return pods.reduce((sum, pod) => ({ tcp: sum.tcp + pod.bytes_tcp, moved: sum.moved + pod.bytes_short_circuited }), { tcp: 0, moved: 0 });
}

const envoy = new EnvoyAdmin(join(node.paths.folder, 'envoy-admin.sock'));

async function modified(): Promise<number> {
  return (await envoy.stats('^cluster_manager\\.cluster_modified$')).get('cluster_manager.cluster_modified') ?? 0;
}

test('after probation a few kept connections are short-circuited on both hops, though Envoy had pooled the second before', async () => {
  node.startAgent();
  await node.podsAre('shop', 'shop to be enrolled', enrolled('bpf'));
  const first = await modified();
  // More connections than probation asks for, towards one server; Envoy keeps them in its pool.
  const crowd = node.load('shop/client', { keepAlive: 16, fresh: 0, headers: ONE_SERVER });
  const few = node.load('shop/client', { keepAlive: 1, fresh: 0, headers: ONE_SERVER });
  await few.run(50);
  await waitFor('the end of the probation', async () => {
    const { probation } = await node.status();
    return (['listener', 'client'] as const).every((kind) => probation.some((entry) => entry.kind === kind && entry.verdict === 'event-driven'));
  }, { timeoutMs: 60_000 });
  const crowded = await crowd.end();
  await waitFor('the renewal', async () => (await modified()) > first, { timeoutMs: 60_000 });
  const earlier = await few.end();
  // The client's own connections are opened after its probation; the pool is as it is.
  const late = node.load('shop/client', { keepAlive: 3, fresh: 0, headers: ONE_SERVER });
  await late.run(30);
  const start = await bytes();
  await late.run(300);
  const end = await bytes();
  const [tcp, moved] = [end.tcp - start.tcp, end.moved - start.moved];
  assert.ok(moved > 100_000, `${moved} bytes short-circuited`);
  // What is opened anew, or finds a full queue, goes by TCP.
  assert.ok(tcp < moved / 10, `${tcp} bytes by TCP, ${moved} short-circuited`);
  for (const { failures } of [crowded, earlier, await late.end()]) assert.deepEqual(failures, {});
});

test('an agent that starts anew has nothing to renew', async () => {
  const load = node.load('shop/client', { keepAlive: 3, fresh: 0, headers: ONE_SERVER });
  await load.run(50);
  const earlier = await modified();
  await node.endAgent('SIGTERM');
  node.startAgent();
  await node.podsAre('shop', 'shop to be enrolled again', enrolled('bpf'));
  await sleep(2_500); // two more looks at the verdicts
  assert.equal((await node.status()).proxy.envoy.adopted, true);
  assert.equal(await modified(), earlier);
  assert.deepEqual((await load.end()).failures, {});
});
