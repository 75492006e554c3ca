import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../../common/xds/any.js';
import { Cluster, Cluster_DiscoveryType } from '../../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { parseProxy } from '../../model/proxy.js';
import { serviceYaml } from '../../testing/mesh.js';
import { testMesh } from '../../testing/model.js';
import { TYPE } from '../resource.js';

test('a gateway chooses among the endpoints of a headless service, a sidecar follows its client', () => {
  const { generators } = testMesh(serviceYaml('shop', 'db', 'None', [], 'name: tcp, port: 5432'));
  const discovery = (type: string): unknown => {
    const proxy = parseProxy(`${type}~10.0.0.8~x.shop~shop.svc.cluster.local`, {});
    const cluster = unpack(Cluster, generators.get(TYPE.cluster)!.one(proxy, 'outbound|5432||db.shop.svc.cluster.local')!.body)!;
    return [cluster.cluster_discovery_type?.value, cluster.eds_cluster_config?.service_name];
  };
  assert.deepEqual(discovery('router'), [Cluster_DiscoveryType.EDS, 'outbound|5432||db.shop.svc.cluster.local']);
  assert.deepEqual(discovery('sidecar'), [Cluster_DiscoveryType.ORIGINAL_DST, undefined]);
});
