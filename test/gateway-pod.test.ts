// Gateways as the lab's pods: stock Envoy as Istio's router, with pilot as its control plane.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { logger } from '../common/log.js';
import { run } from '../common/process.js';
import { Lab } from '../lab/index.js';
import { labTraces, NO_TRACES } from '../lab/traces.js';
import { Pilot } from '../pilot/index.js';

const NAME = `up-lab-gw-${process.pid}`;
const WORLD = `
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  template:
    metadata:
      labels: {app: istio-ingressgateway, istio: ingressgateway, sidecar.istio.io/inject: "true"}
      annotations: {inject.istio.io/templates: gateway}
    spec:
      serviceAccountName: istio-ingressgateway-service-account
      containers: [{name: istio-proxy, image: auto, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: egress, namespace: istio-system, labels: {istio: egressgateway}}
spec:
  containers:
    - name: istio-proxy
      image: docker.io/istio/proxyv2:1.27.0
      args: [proxy, router, --domain, $(POD_NAMESPACE).svc.cluster.local]
      env: [{name: ISTIO_META_REQUESTED_NETWORK_VIEW, value: network1}]
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  ports: [{name: status-port, port: 15021}, {name: http2, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: plain}
spec: {containers: [{name: curl, image: curl}]}
`;

interface Bootstrap {
  node: { id: string; metadata: Record<string, unknown> };
}

let directory: string;
let lab: Lab;
let pilot: Pilot;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-gateway-'));
  writeFileSync(join(directory, 'world.yaml'), WORLD);
  const discovery = `unix:${join(directory, 'xds.sock')}`;
  lab = await Lab.up({ name: NAME, sources: [join(directory, 'world.yaml')], discovery, watch: false });
  pilot = new Pilot({ sources: [join(directory, 'world.yaml'), lab.objectsDir], listen: [discovery], logger: logger('pilot') });
  await pilot.start();
});

after(async () => {
  await pilot?.stop();
  await lab?.down();
  rmSync(directory, { recursive: true, force: true });
});

test('Lab: gateway pods become ready with a control plane, by injection template and by arguments alike', async () => {
  await lab.whenReady({ sidecars: true, timeoutMs: 60_000 });
  for (const name of ['istio-ingressgateway', 'egress']) {
    const { ready, isGateway, hasSidecar, containers } = lab.pod('istio-system', name);
    assert.deepEqual([ready, isGateway, hasSidecar], [true, true, false], name);
    assert.deepEqual(containers.map((container) => container.name), ['istio-proxy']);
  }
});

test("Lab: a gateway asks as Istio's router, with its metadata", async () => {
  const { name, ips } = lab.pod('istio-system', 'istio-ingressgateway');
  const asked = async (pod: string): Promise<Bootstrap> => {
    const dump = JSON.parse(await lab.proxyAdmin(pod, '/config_dump?resource=&mask=bootstrap')) as { configs: { bootstrap: Bootstrap }[] };
    return dump.configs[0]?.bootstrap as Bootstrap;
  };
  const { node } = await asked(`istio-system/${name}`);
  assert.equal(node.id, `router~${ips[0]}~${name}.istio-system~istio-system.svc.cluster.local`);
  assert.equal(node.metadata['SERVICE_ACCOUNT'], 'istio-ingressgateway-service-account');
  assert.equal(node.metadata['WORKLOAD_NAME'], 'istio-ingressgateway');
  assert.equal(node.metadata['CLUSTER_ID'], 'Kubernetes');
  assert.equal((node.metadata['LABELS'] as Record<string, string>)['istio'], 'ingressgateway');
  assert.equal((await asked('istio-system/egress')).node.metadata['REQUESTED_NETWORK_VIEW'], 'network1');
});

test('Lab: a gateway is ready on port 15021 through its Service, has no iptables rule, and runs as user 1337', async () => {
  const health = await lab.exec('plain/client', ['curl', '-sS', '-w', '%{http_code}', 'http://istio-ingressgateway.istio-system:15021/healthz/ready']);
  assert.equal(health.stdout.trim(), 'LIVE\n200');
  const { containers, netns } = lab.pod('istio-system', 'istio-ingressgateway');
  const status = readFileSync(`/proc/${containers[0]?.pid}/status`, 'utf8');
  assert.match(status, /^Uid:\t1337\t1337\t1337\t1337$/m);

  assert.doesNotMatch((await run('nsenter', [`--net=${netns}`, 'iptables-save'])).stdout, /ISTIO/);
});

test('Lab.down: with gateways leaves nothing', async () => {
  await pilot.stop();
  await lab.down();
  assert.deepEqual(labTraces(NAME), NO_TRACES);
});
