/** Health reports on the TLS port: whoever makes them has proven to be the proxy of that node. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { credentials, Metadata, status as GrpcStatus, type ServiceError } from '@grpc/grpc-js';
import { waitFor } from '../../common/retry.js';
import { HealthStatus } from '../../proto/generated/envoy/config/core/v3/health_check.js';
import { HealthCheckRequestOrEndpointHealthResponse, HealthDiscoveryServiceClient, type HealthCheckSpecifier } from '../../proto/generated/envoy/service/health/v3/hds.js';
import { bearer, securePilot, type SecurePilot } from '../ca/testing.js';
import { endpointAddress } from '../generate/envoy.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import { HEALTH_CHECK_ANNOTATION } from './check.js';

const WAIT = { everyMs: 10 };
const CLUSTER = 'outbound|80||web.shop.svc.cluster.local';
const web = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web' } };
const other = { name: 'web-2', ip: '10.0.0.2', labels: { app: 'web' } };
const PROXY = { namespace: 'istio-system', serviceAccount: 'ztunnel', pod: { name: 'proxy-1' }, nodeName: 'node-1' };
const MESH =
  podYaml('shop', web) + podYaml('shop', other).replace('nodeName: node-1', 'nodeName: node-2') +
  podYaml('istio-system', { name: 'proxy-1', ip: '10.0.0.3', labels: {} }).replace('spec: {', 'spec: {serviceAccountName: ztunnel, ') +
  serviceYaml('shop', 'web', '10.96.0.1', [web, other]).replace('name: web, namespace: shop}', `name: web, namespace: shop, annotations: {${HEALTH_CHECK_ANNOTATION}: "http /ready interval=100ms timeout=100ms unhealthy=1 healthy=1"}}`);

let mesh: SecurePilot;
before(async () => {
  mesh = await securePilot(MESH);
});
after(() => mesh.store.close());

interface Checker {
  specifiers: HealthCheckSpecifier[];
  error?: ServiceError;
  report(address: string, health: HealthStatus): void;
}

function checker(metadata: Metadata, node: Record<string, unknown> = {}): Checker {
  const client = new HealthDiscoveryServiceClient(mesh.address, credentials.createSsl(Buffer.from(mesh.pilot.ca!.rootPem)), { 'grpc.use_local_subchannel_pool': 1 });
  const stream = client.streamHealthCheck(metadata);
  const send = (request_type: Parameters<typeof HealthCheckRequestOrEndpointHealthResponse.fromPartial>[0]['request_type']): void => void stream.write(HealthCheckRequestOrEndpointHealthResponse.fromPartial({ request_type }));
  const found: Checker = {
    specifiers: [],
    report: (address, health_status) =>
      send({ $case: 'endpoint_health_response', value: { cluster_endpoints_health: [{ cluster_name: CLUSTER, locality_endpoints_health: [{ endpoints_health: [{ health_status, endpoint: { address: endpointAddress(address, 80) } }] }] }] } }),
  };
  stream.on('data', (specifier: HealthCheckSpecifier) => found.specifiers.push(specifier));
  stream.on('error', (error: ServiceError) => (found.error = error));
  send({ $case: 'health_check_request', value: { node: { id: 'proxy', metadata: node } } });
  mesh.store.defer(() => {
    stream.cancel();
    client.close();
  });
  return found;
}
const code = async (from: Checker): Promise<GrpcStatus> => (await waitFor('the refusal', () => from.error, WAIT)).code;
const monitoring = async (path: string): Promise<string> => (await fetch(`http://${mesh.pilot.monitoringAddress}${path}`)).text();

test('only the proxy of a node is asked to check health there, and for no other node', async () => {
  assert.equal(await code(checker(new Metadata())), GrpcStatus.UNAUTHENTICATED);
  assert.equal(await code(checker(bearer(await mesh.issuer.issue({ namespace: 'shop', serviceAccount: 'web', pod: { name: 'web-1' }, nodeName: 'node-1' })), { NODE_NAME: 'node-1' })), GrpcStatus.PERMISSION_DENIED);
  assert.equal(await code(checker(bearer(await mesh.issuer.issue({ namespace: 'istio-system', serviceAccount: 'ztunnel' })), { NODE_NAME: 'node-1' })), GrpcStatus.PERMISSION_DENIED, 'a token that names no pod');
  const refused = checker(bearer(await mesh.issuer.issue(PROXY)), { NODE_NAME: 'node-2' });
  assert.equal(await code(refused), GrpcStatus.PERMISSION_DENIED);
  assert.match(refused.error!.details, /runs on node node-1, its metadata says NODE_NAME node-2/);
});

test("reports about another node's endpoints are refused and counted, those about its own count", async () => {
  const token = bearer(await mesh.issuer.issue(PROXY));
  const own = checker(token);
  const specifier = await waitFor('what to check', () => own.specifiers[0], WAIT);
  const addresses = specifier.cluster_health_checks.flatMap(({ locality_endpoints }) => locality_endpoints.flatMap(({ endpoints }) => endpoints.map(({ address }) => (address?.address?.$case === 'socket_address' ? address.address.value.address : ''))));
  assert.deepEqual(addresses, ['10.0.0.1'], 'without NODE_NAME it is the node that the caller has proven');
  own.report('10.0.0.2', HealthStatus.UNHEALTHY);
  own.report('10.0.0.1', HealthStatus.HEALTHY); // whoever was healthy once is believed to be unhealthy at once
  own.report('10.0.0.1', HealthStatus.UNHEALTHY);
  const ready = async (): Promise<Record<string, boolean>> => {
    const [service] = JSON.parse(await monitoring('/debug/endpointz?host=web.shop.svc.cluster.local')) as { ep: { address: string; ready: boolean }[] }[];
    return Object.fromEntries(service!.ep.map((endpoint) => [endpoint.address, endpoint.ready]));
  };
  await waitFor('the verdict', async () => !(await ready())['10.0.0.1'], WAIT);
  assert.deepEqual(await ready(), { '10.0.0.1': false, '10.0.0.2': true });
  assert.match(await monitoring('/metrics'), /^pilot_hds_refused_reports 1$/m);
  assert.ok(mesh.log.some((line) => line.includes("another node's endpoint") && line.includes('10.0.0.2')));
});
