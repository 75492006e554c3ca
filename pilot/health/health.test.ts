// Delegated health checks: a real Envoy checks a real server at pilot's word, and what it finds is in everybody's endpoints.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { pino } from 'pino';
import { envoyBinary } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { HealthStatus } from '../../proto/generated/envoy/config/core/v3/health_check.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { TYPE } from '../generate/resource.js';
import { Pilot } from '../index.js';
import { buildService } from '../model/services.js';
import { DEFAULT_MESH_CONFIG } from '../model/mesh.js';
import { TestClient } from '../testing/client.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import { HEALTH_CHECK_ANNOTATION, readHealthCheck } from './check.js';

const WEB = 'outbound|80||web.shop.svc.cluster.local';
let folder: string;
let pilot: Pilot;
let server: Server;
let client: TestClient;
let envoy: ChildProcess | undefined;
let healthy = true;
let asked = 0;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-health-'));
  server = createServer((request, response) => {
    if (request.url === '/ready') asked++;
    response.writeHead(request.url === '/ready' && healthy ? 200 : 503).end();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const web = { name: 'web-1', ip: '127.0.0.1', labels: { app: 'web' }, port };
  // Another node's endpoint, which this Envoy has no business with.
  const other = { name: 'web-2', ip: '127.0.0.9', labels: { app: 'web' }, port };
  const yaml = serviceYaml('shop', 'web', '10.96.0.1', [web, other], `name: http, port: 80, targetPort: ${port}`).replace('name: web, namespace: shop}', `name: web, namespace: shop, annotations: {${HEALTH_CHECK_ANNOTATION}: "http /ready interval=100ms timeout=500ms unhealthy=2 healthy=1"}}`);
  writeFileSync(join(folder, 'world.yaml'), podYaml('shop', web) + podYaml('shop', other).replace('nodeName: node-1', 'nodeName: node-2') + yaml);
  pilot = new Pilot({ sources: [join(folder, 'world.yaml')], listen: ['127.0.0.1:0', `unix:${join(folder, 'xds.sock')}`], logger: pino({ level: 'silent' }), debounce: { quietMs: 20 }, healthVerdictTtlMs: 1_500 });
  await pilot.start();
  client = new TestClient(pilot.addresses[0]!, 'sidecar~10.0.0.9~client.shop~shop.svc.cluster.local');
  client.subscribe(TYPE.endpoint, [WEB]);
  await client.nth(TYPE.endpoint, 1);
});

after(async () => {
  client?.close();
  await stopEnvoy();
  await pilot?.stop();
  server?.close();
  rmSync(folder, { recursive: true, force: true });
});

function startEnvoy(): void {
  const bootstrap = {
    node: { id: 'node-1-proxy', cluster: 'node', metadata: { NODE_NAME: 'node-1' } },
    admin: { address: { pipe: { path: join(folder, 'admin.sock') } } },
    hds_config: { api_type: 'GRPC', transport_api_version: 'V3', grpc_services: [{ envoy_grpc: { cluster_name: 'pilot' } }] },
    static_resources: {
      clusters: [
        {
          name: 'pilot',
          type: 'STATIC',
          connect_timeout: '1s',
          load_assignment: { cluster_name: 'pilot', endpoints: [{ lb_endpoints: [{ endpoint: { address: { pipe: { path: join(folder, 'xds.sock') } } } }] }] },
          typed_extension_protocol_options: { 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': { '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions', explicit_http_config: { http2_protocol_options: {} } } },
        },
      ],
    },
  };
  writeFileSync(join(folder, 'envoy.json'), JSON.stringify(bootstrap));
  envoy = spawn(envoyBinary(), ['-c', join(folder, 'envoy.json'), '--concurrency', '1', '--disable-hot-restart', '--log-level', 'error'], { stdio: 'ignore' });
}

async function stopEnvoy(): Promise<void> {
  const child = envoy;
  envoy = undefined;
  if (!child || child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGKILL');
  await once(child, 'exit');
}

/** Health of the two endpoints in the newest assignment. */
function statuses(): Record<string, HealthStatus> {
  const [resource] = client.of(TYPE.endpoint).at(-1)!.resources;
  const found: Record<string, HealthStatus> = {};
  for (const { lb_endpoints } of ClusterLoadAssignment.decode(resource!.resource!.value).endpoints) {
    for (const { host_identifier, health_status } of lb_endpoints) {
      const address = host_identifier?.$case === 'endpoint' ? host_identifier.value.address?.address : undefined;
      if (address?.$case === 'socket_address') found[address.value.address] = health_status;
    }
  }
  return found;
}
const becomes = (what: string, status: HealthStatus): Promise<unknown> => waitFor(what, () => statuses()['127.0.0.1'] === status, { everyMs: 20 });

test('the Envoy of a node checks that node\'s endpoints, and clients hear of what it finds; others are left alone', async () => {
  startEnvoy();
  await waitFor('checks', () => asked > 2, { everyMs: 20 });
  assert.deepEqual(statuses(), { '127.0.0.1': HealthStatus.HEALTHY, '127.0.0.9': HealthStatus.HEALTHY });
  healthy = false;
  await becomes('the endpoint to be unhealthy', HealthStatus.UNHEALTHY);
  assert.equal(statuses()['127.0.0.9'], HealthStatus.HEALTHY, "another node's endpoint is not judged");
  healthy = true;
  await becomes('the endpoint to be healthy again', HealthStatus.HEALTHY);
});

test('an Envoy that is gone leaves its last word in force for a while, then nothing is known', async () => {
  healthy = false;
  await becomes('the endpoint to be unhealthy', HealthStatus.UNHEALTHY);
  await stopEnvoy();
  const before = client.of(TYPE.endpoint).length;
  await becomes('the verdict to expire', HealthStatus.HEALTHY);
  assert.equal(client.of(TYPE.endpoint).length, before + 1, 'one push, when it expired');
});

test('readHealthCheck: what is asked for, or what is wrong with it', () => {
  const read = (text: string) =>
    readHealthCheck(buildService('web.shop.svc.cluster.local', 'web', 'shop', { apiVersion: 'v1', kind: 'Service', metadata: { name: 'web', annotations: { [HEALTH_CHECK_ANNOTATION]: text } }, spec: { ports: [{ name: 'http', port: 80 }, { name: 'admin', port: 9_000 }] } }, DEFAULT_MESH_CONFIG)!);
  const spec = read('http /ready port=admin interval=2s timeout=500ms unhealthy=5 healthy=2');
  assert.ok(typeof spec === 'object');
  assert.deepEqual([spec.kind, spec.path, spec.port.port, spec.intervalMs, spec.timeoutMs, spec.unhealthyThreshold, spec.healthyThreshold], ['http', '/ready', 9_000, 2_000, 500, 5, 2]);
  assert.ok(typeof read('tcp') === 'object');
  for (const [text, expected] of [['https /x', /expected "http PATH" or "tcp"/], ['http', /expected a path/], ['tcp port=nope', /expected a port of the service: http, admin/], ['tcp interval=1', /interval=1: expected a duration/], ['tcp unhealthy=0', /from 1 to 100/], ['tcp fast', /expected port=/]] as const) {
    assert.match(String(read(text)), expected);
  }
});
