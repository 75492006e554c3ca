/** A real ztunnel of one network, and a service of another: HBONE within HBONE through this control plane's east-west gateway. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { TokenIssuer } from '../../common/identity/service-account-token.js';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { Lab } from '../../lab/index.js';
import { Pilot } from '../../pilot/index.js';
import { ZtunnelNode, ztunnelYaml } from './node.js';

const TAKES = `proxy.istio.io/config: "proxyMetadata: {ISTIO_META_ENABLE_HBONE: 'true'}"`;
const service = (labels: string): string => `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {${labels}}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]}
---`;
const GLOBAL = 'istio.io/global: "true"';
const NEAR = `${ztunnelYaml('node-1')}${service(GLOBAL)}
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: ambient, annotations: {ambient.istio.io/redirection: enabled}}
spec: {serviceAccountName: client, containers: [{name: curl, image: curl}]}
`;
const FAR = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {underpass.io/mode: sidecar}}
---${service(GLOBAL)}
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {${TAKES}}}
    spec: {serviceAccountName: server, containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]}]}
`;
const CONFIGURATION = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: eastwest, namespace: istio-system, labels: {topology.istio.io/network: away}}
spec:
  gatewayClassName: istio-east-west
  listeners: [{name: mesh, port: 15008, protocol: HBONE, tls: {mode: Terminate, options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}}]
`;
const CLIENT = 'spiffe://cluster.local/ns/ambient/sa/client';

let folder: string;
let pilot: Pilot;
let near: Lab;
let far: Lab;
let ztunnel: ZtunnelNode;
before(async () => {
  ZtunnelNode.binary();
  folder = mkdtempSync(join(tmpdir(), 'up-ztunnel-networks-'));
  const write = (name: string, text: string): string => {
    writeFileSync(join(folder, name), text);
    return join(folder, name);
  };
  const [ca, tokens] = [await CertificateAuthority.create(), await TokenIssuer.create()];
  const [discovery, provisionDir] = [`unix:${join(folder, 'xds.sock')}`, join(folder, 'provisioned')];
  mkdirSync(provisionDir);
  const common = { nodes: 1, discovery, ca, sidecarConcurrency: 1 };
  near = await Lab.up({ ...common, name: `up-ztunnel-near-${process.pid}`, sources: [write('near.yaml', NEAR)], clusterId: 'near', watch: false });
  far = await Lab.up({ ...common, name: `up-ztunnel-far-${process.pid}`, sources: [write('far.yaml', FAR), provisionDir], clusterId: 'far', peers: [near], isolated: true });
  pilot = new Pilot({
    sources: [`cluster=near,network=home:${near.objectsDir}`, `cluster=far,network=away:${far.objectsDir}`, write('configuration.yaml', CONFIGURATION)],
    listen: [discovery],
    provisionDir,
    logger: logger('pilot').child({}, { level: 'warn' }),
    security: { listen: ['127.0.0.1:0'], hosts: ['localhost'], ca, tokenJwks: write('jwks.json', JSON.stringify(tokens.jwks)) },
  });
  await pilot.start();
  await waitFor('the proxy of the Gateway', () => far.pods().some(({ isGateway }) => isGateway), { timeoutMs: 120_000 });
  await far.whenReady({ sidecars: true, timeoutMs: 60_000 });
  ztunnel = new ZtunnelNode({ lab: near, ca, pilot, token: (subject) => tokens.issue(subject) }, near.info().nodes[0]!.name, 'home');
  await ztunnel.start();
  await ztunnel.enrol('ambient/client');
  await waitFor('the service', async () => (await ask()).startsWith('{'), { timeoutMs: 120_000 }).catch((error: unknown) => {
    throw new Error(`${String(error)}\n${ztunnel.log.slice(-6000)}`);
  });
});
after(async () => {
  await ztunnel?.stop();
  await pilot?.stop();
  await far?.down();
  await near?.down();
  rmSync(folder, { recursive: true, force: true });
});

const ask = async (): Promise<string> => (await near.exec('ambient/client', ['curl', '-sS', '--max-time', '30', 'http://web.shop/'])).stdout;

test('a service that is of the other network alone is reached through its gateway, and hears who called', async () => {
  const since = ztunnel.accesses.length;
  const pods = new Set<string>();
  for (let round = 0; round < 24; round++) {
    const { pod, headers } = JSON.parse(await ask()) as { pod: string; headers: Record<string, string> };
    assert.equal(headers['x-forwarded-client-cert'], `URI=${CLIENT}`);
    pods.add(pod);
  }
  assert.deepEqual([...pods].sort(), far.pods().filter(({ name }) => name.startsWith('web')).map(({ name }) => name).sort(), 'the gateway chooses for each');
  const logged = await ztunnel.logged(since, 24, ({ direction }) => direction === 'outbound');
  assert.deepEqual([...new Set(logged.map((access) => `${access['src.identity']} ${access['dst.addr']} ${access['dst.hbone_addr']} ${access.error ?? 'ok'}`))], [`${CLIENT} ${far.externalIp('istio-system', 'eastwest')}:15008 web.shop.svc.cluster.local:80 ok`]);
});

test('bytes arrive whole through both tunnels', async () => {
  const script = `
const { createHash, randomBytes } = require('node:crypto');
const data = randomBytes(8 << 20); const s = require('node:net').connect(9000, 'web.shop', () => s.write(data));
const back = createHash('sha256'); let length = 0; s.on('error', (e) => { console.log(e.code); process.exit(0); });
s.on('data', (d) => { back.update(d); if ((length += d.length) === data.length) { console.log(back.digest('hex') === createHash('sha256').update(data).digest('hex')); process.exit(0); } });`;
  assert.equal((await near.exec('ambient/client', [process.execPath, '-e', script], { timeoutMs: 60_000 })).stdout.trim(), 'true');
});
