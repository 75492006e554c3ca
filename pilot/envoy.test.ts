/**
 * A real Envoy as a sidecar, with Istio's iptables rules, in a network namespace of its own, configured by pilot alone.
 * A second namespace plays the rest of the cluster.
 */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { chownSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CertificateAuthority } from '../common/identity/ca.js';
import { SdsServer } from '../common/identity/sds-server.js';
import { istioRestoreInput, PROXY_UID } from '../common/istio-iptables.js';
import { ClosableStore } from '../common/lifecycle.js';
import { rootLogger } from '../common/log.js';
import { buildDir, envoyBinary, projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { Pilot } from './index.js';
import { nodeYaml, podYaml, serviceYaml, type PodSpec } from './testing/mesh.js';

const helper = join(buildDir, 'underpass-exec');
const program = join(projectRoot, 'dist', 'pilot', 'testing', 'netns-program.js');
const [mine, others] = ['a', 'b'].map((side) => `up-pilot-${process.pid}-${side}`) as [string, string];
const store = new ClosableStore();
const quiet = rootLogger.child({}, { level: 'warn' });

const client: PodSpec = { name: 'client', ip: '10.244.1.70', labels: { app: 'client', 'security.istio.io/tlsMode': 'istio' }, port: 8080 };
const v1: PodSpec = { name: 'web-v1', ip: '10.244.1.66', labels: { app: 'web', version: 'v1' } };
const v2: PodSpec = { name: 'web-v2', ip: '10.244.2.67', labels: { app: 'web', version: 'v2' } };

let folder: string;
let pilot: Pilot;
let admin: string;

const routing = (weightV1: number): string => `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
    - match: [{headers: {user: {exact: jesse}}}]
      route: [{destination: {host: web, subset: v2}}]
    - route:
        - {destination: {host: web, subset: v1}, weight: ${weightV1}}
        - {destination: {host: web, subset: v2}, weight: ${100 - weightV1}}
`;

async function startPilot(): Promise<Pilot> {
  const started = new Pilot({ sources: [join(folder, 'config')], listen: [`unix:${join(folder, 'ads.sock')}`], logger: quiet });
  await started.start();
  chownSync(join(folder, 'ads.sock'), PROXY_UID, PROXY_UID); // its owner's alone
  return started;
}

function inNamespace(namespace: string, args: readonly string[], options: { uid?: number } = {}): ChildProcess {
  const user = options.uid === undefined ? [] : ['--uid', String(options.uid), '--gid', String(options.uid)];
  const child = spawn(helper, ['--netns', `/run/netns/${namespace}`, '--die-with-parent', ...user, '--', ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  store.defer(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await ended;
  });
  return child;
}

async function serve(namespace: string, name: string, address: string, port: number): Promise<void> {
  const child = inNamespace(namespace, [process.execPath, program, 'serve', name, address, String(port)]);
  await new Promise<void>((resolve, reject) => {
    child.stdout!.once('data', () => resolve());
    child.once('exit', (code) => reject(new Error(`server ${name} ended with ${code}`)));
  });
}

async function call<T>(namespace: string, ...args: string[]): Promise<T> {
  const { stdout } = await run(helper, ['--netns', `/run/netns/${namespace}`, '--', process.execPath, program, ...args], { timeoutMs: 60_000 });
  return JSON.parse(stdout) as T;
}

interface Answer {
  status: number;
  body: { name: string; from: string; headers: Record<string, string> };
}

async function versions(count: number, ...headers: string[]): Promise<Record<string, number>> {
  const answers = await call<Answer[]>(mine, 'get', 'http://10.96.0.10/', String(count), 'host=web', ...headers);
  const counts: Record<string, number> = {};
  for (const { status, body } of answers) counts[status === 200 ? body.name : `status ${status}`] = (counts[status === 200 ? body.name : `status ${status}`] ?? 0) + 1;
  return counts;
}

async function stats(filter: string): Promise<Record<string, number>> {
  const text = await new Promise<string>((resolve, reject) => {
    request({ socketPath: admin, path: `/stats?filter=${encodeURIComponent(filter)}`, agent: false }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
      response.on('end', () => resolve(body));
    })
      .on('error', reject)
      .end();
  });
  return Object.fromEntries([...text.matchAll(/^(.*): (\d+)$/gm)].map((match) => [match[1]!, Number(match[2])]));
}

function bootstrap(): unknown {
  const pipe = (name: string, path: string, http2: boolean): unknown => ({
    name,
    type: 'STATIC',
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint: { address: { pipe: { path } } } }] }] },
    ...(http2
      ? {
          typed_extension_protocol_options: {
            'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
              '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
              explicit_http_config: { http2_protocol_options: {} },
            },
          },
        }
      : {}),
  });
  return {
    node: { id: `sidecar~${client.ip}~client.shop~shop.svc.cluster.local`, cluster: 'client.shop', metadata: { NAMESPACE: 'shop', LABELS: client.labels } },
    admin: { address: { pipe: { path: admin } } },
    dynamic_resources: {
      ads_config: { api_type: 'DELTA_GRPC', transport_api_version: 'V3', set_node_on_first_message_only: true, grpc_services: [{ envoy_grpc: { cluster_name: 'xds-grpc' } }] },
      cds_config: { ads: {}, initial_fetch_timeout: '0s', resource_api_version: 'V3' },
      lds_config: { ads: {}, initial_fetch_timeout: '0s', resource_api_version: 'V3' },
    },
    static_resources: { clusters: [pipe('xds-grpc', join(folder, 'ads.sock'), true), pipe('sds-grpc', join(folder, 'sds.sock'), true)] },
  };
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-pilot-'));
  store.defer(() => rmSync(folder, { recursive: true, force: true }));
  chownSync(folder, PROXY_UID, PROXY_UID); // Envoy makes its admin socket there
  admin = join(folder, 'admin.sock');
  await run('mkdir', [join(folder, 'config')]);
  writeFileSync(
    join(folder, 'config', 'cluster.yaml'),
    [
      nodeYaml,
      ...[client, v1, v2].map((pod) => podYaml('shop', pod)),
      serviceYaml('shop', 'web', '10.96.0.10', [v1, v2]),
      serviceYaml('shop', 'client', '10.96.0.11', [client], 'name: http, port: 80, targetPort: 8080'),
    ].join('\n'),
  );
  writeFileSync(join(folder, 'config', 'routing.yaml'), routing(75));

  for (const namespace of [mine, others]) {
    await run('ip', ['netns', 'add', namespace]);
    store.defer(async () => void (await run('ip', ['netns', 'del', namespace])));
    await run('ip', ['-n', namespace, 'link', 'set', 'lo', 'up']);
  }
  await run('ip', ['-n', mine, 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', others]);
  for (const [namespace, addresses] of [[mine, [client.ip]], [others, [v1.ip, v2.ip]]] as const) {
    for (const address of addresses) await run('ip', ['-n', namespace, 'addr', 'add', `${address}/32`, 'dev', 'eth0']);
    await run('ip', ['-n', namespace, 'link', 'set', 'eth0', 'up']);
    await run('ip', ['-n', namespace, 'route', 'add', 'default', 'dev', 'eth0']);
  }
  await run(helper, ['--netns', `/run/netns/${mine}`, '--', 'iptables-restore', '--noflush'], { input: istioRestoreInput({ family: 'ipv4' }) });

  const ca = await CertificateAuthority.create();
  const sds = await SdsServer.listen({ socketPath: join(folder, 'sds.sock'), source: { rootPem: ca.rootPem, issue: () => ca.issue({ namespace: 'shop', serviceAccount: 'client' }) } });
  store.add(sds);
  const peer = await ca.issue({ namespace: 'shop', serviceAccount: 'peer' });
  writeFileSync(join(folder, 'cert.pem'), peer.chainPem);
  writeFileSync(join(folder, 'key.pem'), peer.privateKeyPem);
  writeFileSync(join(folder, 'ca.pem'), ca.rootPem);
  chownSync(join(folder, 'sds.sock'), PROXY_UID, PROXY_UID);

  await Promise.all([serve(others, 'v1', v1.ip, 80), serve(others, 'v2', v2.ip, 80), serve(mine, 'app', '0.0.0.0', 8080)]);
  pilot = await startPilot();
  store.defer(() => pilot.stop());
  writeFileSync(join(folder, 'envoy.json'), JSON.stringify(bootstrap()));
  inNamespace(mine, [envoyBinary(), '-c', join(folder, 'envoy.json'), '--concurrency', '1', '--disable-hot-restart', '--log-level', 'error'], { uid: PROXY_UID });
  await waitFor('Envoy to have its listeners', async () => (await stats('listener_manager.total_listeners_active').catch(() => ({}) as Record<string, number>))['listener_manager.total_listeners_active'] === 3, {
    timeoutMs: 30_000,
  });
});

after(() => store.close());

test('Envoy accepts everything that pilot serves', async () => {
  const rejected = await stats('update_rejected');
  assert.ok(Object.keys(rejected).length > 0);
  assert.deepEqual(Object.entries(rejected).filter(([, count]) => count > 0), []);
  // It answers to listeners a moment after it has them.
  await waitFor('the last answer', () => Object.values(pilot.status().ads.connections[0]!.types).every(({ acked, nack }) => acked || nack !== undefined), { timeoutMs: 60_000 });
  const [connection] = pilot.status().ads.connections;
  assert.deepEqual(Object.values(connection!.types).map(({ acked, nack }) => ({ acked, nack })), Object.values(connection!.types).map(() => ({ acked: true, nack: undefined })));
});

test('routes by weight, and by header', async () => {
  const byWeight = await versions(400);
  assert.equal((byWeight['v1'] ?? 0) + (byWeight['v2'] ?? 0), 400, JSON.stringify(byWeight));
  // 100 of 400 expected; six standard deviations are 52.
  assert.ok(byWeight['v2']! > 48 && byWeight['v2']! < 152, JSON.stringify(byWeight));
  assert.deepEqual(await versions(50, 'user=jesse'), { v2: 50 });
});

test('a change of the file reaches the traffic, and a faulty one does not', async () => {
  const file = join(folder, 'config', 'routing.yaml');
  const rdsUpdates = async (): Promise<number> => (await stats('rds.80.update_success'))['http.outbound_0.0.0.0_80;.rds.80.update_success'] ?? 0;
  const updates = await rdsUpdates();
  writeFileSync(file, routing(0));
  await waitFor('the route update', async () => (await rdsUpdates()) > updates);
  assert.deepEqual(await versions(50), { v2: 50 });
  writeFileSync(file, routing(100).replace('subset: v1}, weight', 'subste: v1}, weight'));
  await waitFor('the error', () => pilot.status().problems.some(({ field }) => field === 'spec.http[1].route[0].destination.subste'));
  assert.deepEqual(await versions(50), { v2: 50 });
});

test('traffic for no service passes through', async () => {
  const [answer] = await call<Answer[]>(mine, 'get', `http://${v1.ip}/`, '1', 'host=elsewhere.example');
  assert.equal(answer!.body.name, 'v1');
});

test('delivers plaintext to the application from 127.0.0.6', async () => {
  const [answer] = await call<Answer[]>(others, 'get', `http://${client.ip}:8080/`, '1');
  assert.equal(answer!.status, 200);
  assert.equal(answer!.body.name, 'app');
  assert.equal(answer!.body.from?.replace('::ffff:', ''), '127.0.0.6');
});

test('takes mutual TLS of the mesh on the same port, and no mesh TLS without a certificate', async () => {
  const files = ['cert.pem', 'key.pem', 'ca.pem'].map((name) => join(folder, name));
  const answer = await call<Answer>(others, 'tls', client.ip, '8080', ...files);
  assert.equal(answer.status, 200, JSON.stringify(answer));
  assert.match(answer.body.headers['x-forwarded-client-cert']!, /URI=spiffe:\/\/cluster\.local\/ns\/shop\/sa\/peer/);
  const refused = await call<{ error?: string; status?: number }>(others, 'tls', client.ip, '8080');
  assert.ok(refused.error, JSON.stringify(refused));
});

test('a new pilot takes the stream up again without disturbing Envoy', async () => {
  const before = await stats('(listener_manager.listener_(modified|removed|added)|cluster_manager.cluster_(modified|removed|added))');
  writeFileSync(join(folder, 'config', 'routing.yaml'), routing(0));
  await pilot.stop();
  pilot = await startPilot();
  await waitFor('Envoy to be back', () => pilot.status().ads.connections.length === 1 && Object.keys(pilot.status().ads.connections[0]!.types).length >= 4, { timeoutMs: 30_000 });
  await waitFor('all ACKs', () => Object.values(pilot.status().ads.connections[0]!.types).every(({ acked }) => acked));
  assert.deepEqual(await stats('(listener_manager.listener_(modified|removed|added)|cluster_manager.cluster_(modified|removed|added))'), before);
  assert.deepEqual(await versions(20), { v2: 20 });
});
