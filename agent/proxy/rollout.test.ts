import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { sleep, waitFor } from '../../common/retry.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { echoServer, requests, type TestNetns } from '../testing/netns.js';
import { ENDPOINT, ProxyWorld, SERVICE_CLUSTER, SERVICE_VIP } from '../testing/proxy-world.js';
import { assignment, edsCluster, routes } from '../testing/resources.js';
import type { TestStream } from '../testing/control-plane.js';
import type { ProxyPod } from './node-proxy.js';
import { CDS, EDS, RDS } from './snapshot.js';

describe('roll-out of changes to a running Envoy', () => {
  const world = new ProxyWorld();
  let a: { pod: ProxyPod; netns: TestNetns };
  let b: { pod: ProxyPod; netns: TestNetns };

  before(async () => {
    await world.start({ execPath: world.drainingAfter(1) });
    a = await world.pod('pod-a');
    b = await world.pod('pod-b', { labels: { app: 'other' } });
    for (const { netns } of [a, b]) await netns.serve(echoServer(80));
    world.running.setPods([a.pod, b.pod]);
    await world.ready(a.pod, b.pod);
    await world.settled();
  });
  after(() => world.close());

  function streamOf(uid: string): TestStream {
    const stream = world.controlPlane.streams.find((item) => item.nodeId.includes(`~${uid}.`) && !item.ended);
    assert.ok(stream);
    return stream;
  }
  function send(stream: TestStream, type: string, resources: Record<string, Any>, removed: string[] = []): void {
    stream.send({ type_url: type, resources: Object.entries(resources).map(([name, resource]) => ({ name, resource, version: '' }) as never), removed_resources: removed });
  }

  it('makes before it breaks: routes move to new clusters under load and no request fails', async () => {
    const { failed } = await a.netns.load({ urls: [`http://${SERVICE_VIP}/`], host: 'web', kept: 4 }, async () => {
      let current = SERVICE_CLUSTER;
      for (let round = 0; round < 12; round++) {
        const next = `outbound|80|v${round}|web.shop.svc.cluster.local`;
        world.controlPlane.set(assignment(next, [`${ENDPOINT}:80`]), next);
        for (const uid of ['pod-a', 'pod-b']) {
          // In the order that is worst for the routes: they come first and the old cluster is gone with the new one's coming.
          send(streamOf(uid), RDS, { 80: routes(80, { web: next }) });
          send(streamOf(uid), CDS, { [next]: edsCluster(next) }, [current]);
        }
        current = next;
        await sleep(150);
        await world.settled();
      }
    });
    assert.deepEqual(failed.slice(0, 3), []);
    await waitFor('the old clusters to go', async () => !(await world.running.envoy.admin.get('/clusters')).includes('|v3|'));
  });

  it('does not split what two classes share when a push reaches their streams one after the other', async () => {
    const earlier = await added();
    const name = 'outbound|80|v11|web.shop.svc.cluster.local';
    for (const endpoints of [[`${ENDPOINT}:80`, '10.0.0.6:80'], [`${ENDPOINT}:80`]]) {
      send(streamOf('pod-a'), EDS, { [name]: assignment(name, endpoints) });
      await sleep(120);
      send(streamOf('pod-b'), EDS, { [name]: assignment(name, endpoints) });
      await waitFor('both to be taken', () => world.running.settled);
    }
    assert.equal(await added(), earlier);
  });

  it('splits it when they go on to differ, and each class has its own', async () => {
    const name = 'outbound|80|v11|web.shop.svc.cluster.local';
    send(streamOf('pod-b'), EDS, { [name]: assignment(name, []) });
    await waitFor('a cluster of its own', async () => (await world.running.envoy.admin.get('/clusters')).includes(`${name}~`));
    await world.settled();
    const status = async ({ netns }: typeof a): Promise<number | undefined> =>
      (await netns.script<{ status: number }[]>(requests([{ url: `http://${SERVICE_VIP}/`, headers: { host: 'web' } }])))[0]?.status;
    assert.deepEqual([await status(a), await status(b)], [200, 503]);
    send(streamOf('pod-b'), EDS, { [name]: assignment(name, [`${ENDPOINT}:80`]) });
    await waitFor('them to be one again', async () => !(await world.running.envoy.admin.get('/clusters')).includes(`${name}~`));
    assert.deepEqual([await status(a), await status(b)], [200, 200]);
  });

  it('drains no listener and makes no cluster anew when the class leaves whose versions have the plain names', async () => {
    const name = 'outbound|80|v11|web.shop.svc.cluster.local';
    send(streamOf('pod-b'), EDS, { [name]: assignment(name, [`${ENDPOINT}:80`, '10.0.0.99:80']) });
    await waitFor('a cluster of its own', async () => (await world.running.envoy.admin.get('/clusters')).includes(`${name}~`));
    await world.settled();
    const counted = async (): Promise<Record<string, number>> => Object.fromEntries([...(await world.running.envoy.admin.stats('^(cluster_manager\\.cluster_(added|modified)|listener_manager\\.(listener_added|listener_modified|listener_in_place_updated|total_filter_chains_draining))$'))].filter(([, value]) => value !== undefined));
    await waitFor('what drains from before to be gone', async () => (await counted())['listener_manager.total_filter_chains_draining'] === 0);
    const before = await counted();
    assert.equal(Object.keys(before).length, 6, JSON.stringify(before));
    world.running.setPods([b.pod]);
    await world.running.whenRemoved('pod-a', AbortSignal.timeout(60_000));
    await waitFor('what was the other class\'s alone to go', async () => !new RegExp(`^${name.replace(/[|.]/g, '\\$&')}::`, 'm').test(await world.running.envoy.admin.get('/clusters')));
    await world.settled();
    assert.deepEqual(await counted(), before);
  });

  async function added(): Promise<number> {
    return (await world.running.envoy.admin.stats('^cluster_manager\\.cluster_added$')).get('cluster_manager.cluster_added') ?? 0;
  }
});
