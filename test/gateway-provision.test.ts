// A Gateway of the Gateway API brings its own proxy up: pilot writes it, the lab starts it, pilot serves it.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { logger } from '../common/log.js';
import { waitFor } from '../common/retry.js';
import { Lab } from '../lab/index.js';
import { Pilot } from '../pilot/index.js';

const NAME = `up-lab-gwapi-${process.pid}`;
const CLIENT = 'apiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: plain}\nspec: {containers: [{name: curl, image: curl}]}\n';
const SERVER = `
apiVersion: v1
kind: Pod
metadata: {name: echo, namespace: plain, labels: {app: echo}}
spec: {containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: plain}
spec: {selector: {app: echo}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: echo, namespace: plain}
spec:
  parentRefs: [{name: web, namespace: edge}]
  rules: [{backendRefs: [{name: echo, port: 80}]}]
`;
const GATEWAY = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: edge}
spec:
  gatewayClassName: istio
  listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]
`;

let directory: string;
let world: string;
let lab: Lab;
let pilot: Pilot;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-gwapi-'));
  world = join(directory, 'world');
  const provisioned = join(directory, 'provisioned');
  for (const path of [world, provisioned]) mkdirSync(path);
  writeFileSync(join(world, 'client.yaml'), CLIENT);
  writeFileSync(join(world, 'server.yaml'), SERVER);
  const discovery = `unix:${join(directory, 'xds.sock')}`;
  lab = await Lab.up({ name: NAME, sources: [world, provisioned], discovery });
  pilot = new Pilot({ sources: [world, lab.objectsDir], listen: [discovery], provisionDir: provisioned, logger: logger('pilot') });
  await pilot.start();
});

after(async () => {
  await pilot?.stop();
  await lab?.down();
  rmSync(directory, { recursive: true, force: true });
});

const gateways = (): string[] => lab.pods().filter(({ isGateway }) => isGateway).map(({ labels }) => labels['gateway.networking.k8s.io/gateway-name'] ?? '');

test('a Gateway brings a proxy up that is ready at its load balancer address, and its removal takes it down', async () => {
  assert.deepEqual(gateways(), []);
  writeFileSync(join(world, 'gateway.yaml'), GATEWAY);
  await waitFor('the proxy of the Gateway', () => gateways().length === 1, { timeoutMs: 60_000 });
  assert.deepEqual(gateways(), ['web']);
  await lab.whenReady({ sidecars: true, timeoutMs: 30_000 });
  const { serviceAccount, ready } = lab.pod('edge', 'web-istio');
  assert.deepEqual([serviceAccount, ready], ['web-istio', true]);
  const health = await lab.exec('plain/client', ['curl', '-sS', '-o', '/dev/null', '-w', '%{http_code}', `http://${lab.externalIp('edge', 'web-istio')}:15021/healthz/ready`]);
  assert.equal(health.stdout, '200', health.stderr);
  const url = `http://${lab.externalIp('edge', 'web-istio')}/x`;
  const answer = await waitFor('an answer through the gateway', async () => {
    const { stdout } = await lab.exec('plain/client', ['curl', '-s', '--max-time', '30', url]);
    return stdout.includes('"pod":"echo"') ? (JSON.parse(stdout) as { headers: Record<string, string> }) : undefined;
  }, { timeoutMs: 120_000 });
  assert.ok(answer.headers['x-request-id'], 'it came by Envoy');
  rmSync(join(world, 'gateway.yaml'));
  await waitFor('the proxy to go', () => gateways().length === 0, { timeoutMs: 60_000 });
  assert.throws(() => lab.externalIp('edge', 'web-istio'), /no Service of type LoadBalancer/);
});
