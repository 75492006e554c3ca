import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { logger } from '../../common/log.js';
import { sleep, waitFor } from '../../common/retry.js';
import { TestControlPlane, type TestStream } from '../testing/control-plane.js';
import { assignment, edsCluster, httpListener, routes } from '../testing/resources.js';
import { AdsChannel } from './channel.js';
import { SidecarStream, sidecarTypes } from './sidecar-stream.js';

const { clusters: CDS, endpoints: EDS, listeners: LDS, routes: RDS } = sidecarTypes;
const WAIT = { timeoutMs: 5_000, everyMs: 2 };

describe('SidecarStream', () => {
  const server = new TestControlPlane('127.0.0.1:0');
  let channel: AdsChannel;
  let stream: SidecarStream;
  let updates = 0;

  before(async () => {
    await server.start();
    channel = new AdsChannel(server.address);
    stream = new SidecarStream({ channel, node: Node.fromPartial({ id: 'sidecar~1' }), logger: logger('test'), onUpdate: () => updates++, fetchTimeoutMs: 400 });
    stream.start();
    await waitFor('both wildcard subscriptions', () => server.streams[0]?.requests.length === 2, WAIT);
  });
  after(() => {
    stream.close();
    channel.close();
    server.stop();
  });

  async function send(type: { typeUrl: string }, items: Record<string, Any>, removed: string[] = []): Promise<void> {
    const open: TestStream = server.stream;
    await open.answered(open.send({ type_url: type.typeUrl, resources: Object.entries(items).map(([name, resource]) => ({ name, resource, version: '' }) as never), removed_resources: removed }));
  }
  const subscribed = (type: { typeUrl: string }): string[] => [...(server.stream.subscribed.get(type.typeUrl) ?? [])];

  it('asks for what clusters and listeners name, and is synced when all of it was answered', async () => {
    await send(CDS, { a: edsCluster('a') });
    await send(LDS, { '0.0.0.0_80': httpListener(80) });
    assert.deepEqual([subscribed(EDS), subscribed(RDS), stream.synced, updates], [['a'], ['80'], false, 0]);
    await send(EDS, { a: assignment('a', ['10.0.0.1:80']) });
    assert.equal(stream.synced, false);
    await send(RDS, { 80: routes(80, { a: 'a' }) });
    assert.deepEqual([stream.synced, updates], [true, 1]);
  });

  it('shows a new cluster only with its endpoints', async () => {
    await send(CDS, { b: edsCluster('b') });
    assert.deepEqual([[...stream.state.clusters.keys()], updates], [['a'], 1]);
    await send(EDS, { b: assignment('b', []) });
    assert.deepEqual([[...stream.state.clusters.keys()], [...stream.state.endpoints.keys()], updates], [['a', 'b'], ['a', 'b'], 2]);
  });

  it('unsubscribes with the cluster, and says nothing when nothing changed', async () => {
    await send(CDS, {}, ['b']);
    assert.deepEqual([subscribed(EDS), [...stream.state.endpoints.keys()], updates], [['a'], ['a'], 3]);
    await send(CDS, { a: edsCluster('a') });
    await send(LDS, { '0.0.0.0_80': httpListener(80) });
    assert.equal(updates, 3);
  });

  it('takes a removed name as an answer', async () => {
    await send(CDS, { c: edsCluster('c') });
    await send(EDS, {}, ['c']);
    assert.deepEqual([stream.state.clusters.has('c'), stream.state.endpoints.has('c')], [true, false]);
  });

  it('goes on without what the control plane never answers', async () => {
    await send(CDS, { d: edsCluster('d') });
    await sleep(100);
    assert.equal(stream.state.clusters.has('d'), false);
    await waitFor('the time-out', () => stream.state.clusters.has('d'), WAIT);
  });
});
