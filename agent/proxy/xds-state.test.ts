import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { DownstreamTlsContext, UpstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { pack } from '../../common/xds/any.js';
import { Recording } from '../testing/recording.js';
import { edsCluster, tcpListener } from '../testing/resources.js';
import { sidecarTypes, type SidecarState } from '../xds/sidecar-stream.js';
import { NO_WAYPOINTS } from './waypoint-table.js';
import { loadState, saveState } from './xds-state.js';

describe('saved xDS state', () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-proxy-'));
  const path = join(folder, 'xds-state.bin');
  const recording = Recording.open('canary');
  const state = recording?.state(recording.sidecars[0]!) as SidecarState;
  const none = (problem: string): void => assert.fail(problem);
  after(() => rmSync(folder, { recursive: true }));

  it('comes back as it was, in order, readable by its owner only', async () => {
    const waypoints = { waypoints: { 'shop/wp.shop.svc:15008': { endpoints: ['10.0.0.1:15008'], peers: ['spiffe://cluster.local/ns/shop/sa/wp'] } }, destinations: [{ addresses: ['10.96.0.1'], ports: [80], hostname: 'web.shop.svc', waypoint: 'shop/wp.shop.svc:15008' }] };
    const node = Node.fromPartial({ id: 'sidecar~1', metadata: { NAMESPACE: 'canary' } });
    await saveState(path, { classes: [{ key: 'b', node, state }, { key: 'a', node, state }], waypoints, accountClusters: ['outbound|80||web.shop.svc'] });
    assert.equal(statSync(path).mode & 0o777, 0o600);
    const { classes: loaded, ...known } = loadState(path, none);
    assert.deepEqual(known, { waypoints, accountClusters: ['outbound|80||web.shop.svc'] });
    assert.deepEqual(loaded.map((item) => [item.key, item.node.id]), [['b', 'sidecar~1'], ['a', 'sidecar~1']]);
    for (const kind of ['clusters', 'endpoints', 'listeners', 'routes'] as const) {
      const flat = (from: SidecarState): unknown[] => [...from[kind]].map(([name, { any }]) => [name, any.value]);
      assert.ok(flat(state).length > 0);
      assert.deepEqual(flat(loaded[0]!.state), flat(state));
    }
    const once = statSync(path).size;
    await saveState(path, { classes: [...'abcdefgh'].map((key) => ({ key, node, state })), waypoints, accountClusters: ['outbound|80||web.shop.svc'] });
    assert.ok(statSync(path).size < 2 * once, 'what classes share is there once');
    assert.deepEqual(loadState(path, none).classes.map(({ state: { clusters } }) => clusters.size), Array(8).fill(state.clusters.size));
  });

  it('is ignored when damaged, cut short or missing', async () => {
    await saveState(path, { classes: [{ key: 'a', node: Node.fromPartial({}), state }], waypoints: NO_WAYPOINTS, accountClusters: [] });
    const bytes = readFileSync(path);
    for (const bad of [bytes.subarray(0, -1), Buffer.concat([bytes.subarray(0, 100), Buffer.from([bytes[100]! ^ 1]), bytes.subarray(101)]), Buffer.alloc(0), Buffer.from('something else')]) {
      writeFileSync(path, bad);
      const problems: string[] = [];
      assert.deepEqual(loadState(path, (problem) => problems.push(problem)), { classes: [], waypoints: NO_WAYPOINTS, accountClusters: [] });
      assert.equal(problems.length, 1);
    }
    assert.deepEqual(loadState(join(folder, 'none'), none), { classes: [], waypoints: NO_WAYPOINTS, accountClusters: [] });
  });

  it('never holds a private key', async () => {
    const name = 'outbound|443||api';
    const tls = UpstreamTlsContext.fromPartial({ common_tls_context: { tls_certificates: [{ private_key: { specifier: { $case: 'inline_string', value: 'SECRET' } } }] } });
    const cluster = Cluster.decode(edsCluster(name).value);
    cluster.transport_socket = { name: 'tls', config_type: { $case: 'typed_config', value: pack(UpstreamTlsContext, tls) } };
    const down = DownstreamTlsContext.fromPartial({ common_tls_context: tls.common_tls_context as never });
    const listener = Listener.decode(tcpListener('10.96.0.7', 443, name).value);
    listener.filter_chains[0]!.transport_socket = { name: 'tls', config_type: { $case: 'typed_config', value: pack(DownstreamTlsContext, down) } };
    const listeners = new Map([[listener.name, sidecarTypes.listeners.decode(listener.name, '', pack(Listener, listener))]]);
    const clusters = new Map([[name, sidecarTypes.clusters.decode(name, '', pack(Cluster, cluster))]]);
    await saveState(path, { classes: [{ key: 'a', node: Node.fromPartial({}), state: { clusters, endpoints: new Map(), listeners, routes: new Map() } }], waypoints: NO_WAYPOINTS, accountClusters: [] });
    assert.ok(!readFileSync(path).includes('SECRET'));
    assert.deepEqual([loadState(path, none).classes[0]?.state.clusters.size, loadState(path, none).classes[0]?.state.listeners.size], [0, 0]);
  });
});
