import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { sleep, waitFor } from '../../common/retry.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { echoServer, type TestNetns } from '../testing/netns.js';
import { ENDPOINT, ProxyWorld, SERVICE_CLUSTER, SERVICE_VIP } from '../testing/proxy-world.js';
import { assignment, edsCluster, passthroughCluster } from '../testing/resources.js';
import type { ProxyPod } from './node-proxy.js';
import { endpointKeys, markEventDriven } from './pool-renewal.js';

const UPDATES = '^(cluster_manager\\.(cluster_added|cluster_modified|cluster_removed|cds\\.update_success)|listener_manager\\.(listener_added|listener_modified|lds\\.update_success))$';
const CONNECTIONS = `cluster.${SERVICE_CLUSTER}.upstream_cx_total`;
const ACTIVE = `cluster.${SERVICE_CLUSTER}.upstream_cx_active`;

describe('the mark of event-driven endpoints', () => {
  const cluster = Cluster.decode(edsCluster('c').value);
  const of = (endpoints: string[]): ClusterLoadAssignment => ClusterLoadAssignment.decode(assignment('c', endpoints).value);
  const mark = (endpoints: string[], eventDriven: string[]): unknown => markEventDriven(cluster, of(endpoints), endpointKeys(eventDriven)).metadata?.filter_metadata['underpass'];

  it('is there only when an endpoint of the cluster is event-driven, and depends on which ones only', () => {
    assert.equal(mark(['10.0.0.1:80'], []), undefined);
    assert.equal(mark(['10.0.0.1:80'], ['10.0.0.1:81', '10.0.0.2:80']), undefined);
    const one = mark(['10.0.0.1:80', '10.0.0.2:80'], ['10.0.0.1:80']);
    assert.ok(one);
    assert.deepEqual(mark(['10.0.0.3:80', '10.0.0.1:80'], ['10.9.9.9:80', '10.0.0.1:80']), one);
    const both = mark(['10.0.0.1:80', '10.0.0.2:80'], ['10.0.0.1:80', '10.0.0.2:80']);
    assert.notDeepEqual(both, one);
    assert.deepEqual(mark(['10.0.0.2:80', '10.0.0.1:80'], ['10.0.0.2:80', '10.0.0.1:80']), both);
  });

  it('knows IPv6 endpoints however they are written', () => {
    assert.ok(mark(['fd00:0::0001:80'], ['[fd00::1]:80']));
    assert.equal(mark(['fd00::2:80'], ['[fd00::1]:80']), undefined);
  });

  it('finds endpoints within the cluster, keeps other metadata, and leaves ORIGINAL_DST alone', () => {
    const inline = Cluster.fromPartial({ ...cluster, load_assignment: of(['10.0.0.1:80']), metadata: { filter_metadata: { istio: { services: 'x' } } } });
    const marked = markEventDriven(inline, undefined, endpointKeys(['10.0.0.1:80']));
    assert.deepEqual(Object.keys(marked.metadata?.filter_metadata ?? {}), ['istio', 'underpass']);
    assert.equal(inline.metadata?.filter_metadata['underpass'], undefined);
    const passthrough = Cluster.decode(passthroughCluster().value);
    assert.equal(markEventDriven(passthrough, undefined, endpointKeys(['10.0.0.1:80'])), passthrough);
  });
});

describe('pools of a running Envoy towards an endpoint whose probation ends', () => {
  const world = new ProxyWorld();
  let a: { pod: ProxyPod; netns: TestNetns };

  before(async () => {
    await world.start();
    a = await world.pod('pod-a');
    // Answers take a while, so that there are always requests under way in the old pool.
    await a.netns.serve(echoServer(80).replace('res.end(', '((text) => setTimeout(() => res.end(text), 20))('));
    world.running.setPods([a.pod]);
    await world.ready(a.pod);
    await world.settled();
  });
  after(() => world.close());

  async function stat(name: string): Promise<number> {
    return (await world.running.envoy.admin.stats(`^${name.replace(/[|.]/g, '\\$&')}$`)).get(name) ?? 0;
  }
  async function updates(): Promise<Record<string, number>> {
    return Object.fromEntries(await world.running.envoy.admin.stats(UPDATES));
  }
  it('are drained once, under load, without a failed request, and opened anew', async () => {
    let before_: Record<string, number> = {};
    const { failed } = await a.netns.load({ urls: [`http://${SERVICE_VIP}/`], host: 'web', kept: 4 }, async () => {
      await waitFor('the pool', async () => (await stat(ACTIVE)) >= 3);
      before_ = await updates();
      await sleep(500);
      assert.ok((await stat(CONNECTIONS)) <= 4, 'a busy pool keeps its connections');
      for (const eventDriven of [[`${ENDPOINT}:80`], [], [`${ENDPOINT}:80`, '10.0.0.77:80']]) {
        const earlier = await stat(CONNECTIONS);
        world.running.setEventDriven(new Set(eventDriven));
        await waitFor('new connections', async () => (await stat(CONNECTIONS)) >= earlier + 2);
        await waitFor('the old ones to go', async () => (await stat(ACTIVE)) <= 4);
        await world.settled();
      }
    });
    const after_ = await updates();
    assert.equal((after_['cluster_manager.cluster_modified'] ?? 0) - (before_['cluster_manager.cluster_modified'] ?? 0), 3, 'one cluster, each time');
    assert.equal(after_['listener_manager.lds.update_success'], before_['listener_manager.lds.update_success']);
    assert.deepEqual(failed, []);
  });

  it('stay when the set is the same, or changes for other endpoints', async () => {
    const earlier = await updates();
    for (const set of [[`${ENDPOINT}:80`, '10.0.0.77:80'], [`${ENDPOINT}:80`], [`${ENDPOINT}:80`, '[fd00::9]:80']]) {
      world.running.setEventDriven(new Set(set));
      await sleep(150);
      await world.settled();
    }
    assert.deepEqual(await updates(), earlier);
  });

  it('stay over a restart of the agent with the same set', async () => {
    const earlier = await updates();
    await world.running.stop({ keepEnvoy: true });
    const next = await world.startProxy();
    assert.equal(next.status().envoy.adopted, true);
    next.setEventDriven(new Set([`${ENDPOINT}:80`]));
    next.setPods([a.pod]);
    await world.ready(a.pod);
    await world.settled();
    assert.deepEqual(await updates(), earlier);
    next.setEventDriven(new Set());
    await waitFor('a change to arrive all the same', async () => (await updates())['cluster_manager.cluster_modified'] === (earlier['cluster_manager.cluster_modified'] ?? 0) + 1);
  });
});
