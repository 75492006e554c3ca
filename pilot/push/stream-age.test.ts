/** A real Envoy whose streams end of old age all the time, under traffic. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ClosableStore } from '../../common/lifecycle.js';
import { rootLogger } from '../../common/log.js';
import { envoyBinary } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { Pilot } from '../index.js';
import { freePort } from '../testing/free-port.js';

const STREAMS = 4;
const WAIT = { everyMs: 10 };

const config = (port: number): string => `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {selector: {app: edge}, servers: [{port: {number: ${port}, name: http, protocol: HTTP}, bind: 127.0.0.1, hosts: ["*"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: shop}
spec: {hosts: ["*"], gateways: [edge], http: [{directResponse: {status: 200}}]}
`;

const bootstrap = (pilot: string): unknown => ({
  node: { id: 'router~127.0.0.1~edge-1.shop~shop.svc.cluster.local', cluster: 'edge', metadata: { LABELS: { app: 'edge' } } },
  dynamic_resources: {
    ads_config: { api_type: 'DELTA_GRPC', transport_api_version: 'V3', grpc_services: [{ envoy_grpc: { cluster_name: 'pilot' } }] },
    cds_config: { ads: {}, resource_api_version: 'V3' },
    lds_config: { ads: {}, resource_api_version: 'V3' },
  },
  static_resources: {
    clusters: [
      {
        name: 'pilot',
        type: 'STATIC',
        typed_extension_protocol_options: { 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': { '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions', explicit_http_config: { http2_protocol_options: {} } } },
        load_assignment: { cluster_name: 'pilot', endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: '127.0.0.1', port_value: Number(pilot.split(':')[1]) } } } }] }] },
      },
    ],
  },
});

test('Envoy comes back after each end of its stream, and no request fails meanwhile', async () => {
  const store = new ClosableStore();
  try {
    const folder = mkdtempSync(join(tmpdir(), 'up-stream-age-'));
    store.defer(() => rmSync(folder, { recursive: true, force: true }));
    const port = await freePort();
    writeFileSync(join(folder, 'config.yaml'), config(port));
    const pilot = new Pilot({ sources: [join(folder, 'config.yaml')], listen: ['127.0.0.1:0'], limits: { streamAgeMs: 500 }, logger: rootLogger.child({}, { level: 'silent' }) });
    await pilot.start();
    store.defer(() => pilot.stop());
    writeFileSync(join(folder, 'envoy.json'), JSON.stringify(bootstrap(pilot.addresses[0]!)));
    const envoy = spawn(envoyBinary(), ['-c', join(folder, 'envoy.json'), '--concurrency', '1', '--disable-hot-restart', '--log-level', 'error'], { stdio: 'ignore' });
    store.defer(async () => {
      if (envoy.exitCode !== null) return;
      envoy.kill('SIGKILL');
      await once(envoy, 'exit');
    });
    const get = (): Promise<number> => fetch(`http://127.0.0.1:${port}/`).then(({ status }) => status, () => 0);
    await waitFor('Envoy to serve', async () => (await get()) === 200, WAIT);
    const streams = new Set<string>();
    const answers = new Map<number, number>();
    await waitFor(`${STREAMS} streams`, async () => {
      for (const { id } of pilot.status().ads.connections) streams.add(id);
      const status = await get();
      answers.set(status, (answers.get(status) ?? 0) + 1);
      return streams.size >= STREAMS;
    }, WAIT);
    assert.deepEqual([...answers.keys()], [200]);
    assert.deepEqual(pilot.status().ads.connections.flatMap(({ types }) => Object.values(types).flatMap(({ nack }) => nack?.message ?? [])), []);
  } finally {
    await store.close();
  }
});
