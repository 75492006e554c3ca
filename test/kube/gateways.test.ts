// Pilot with the arguments, the settings and the webhooks of its Deployment, under a real API server: it puts the proxy into the pods of the installation's gateways.
import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { stringify } from 'yaml';
import { installationObjects } from '../../cli/install/objects.js';
import { readValues } from '../../cli/install/values.js';
import { waitFor } from '../../common/retry.js';
import type { ConfigMap, Deployment, KubeObject, Pod } from '../../common/kube/types.js';
import { KubeCluster } from './cluster.js';
import { PILOT_USER } from './pilot.js';
import { Replica } from './replica.js';

const WAIT = { everyMs: 100 };
const objects = installationObjects(readValues([], ['gateways.ingress.enabled=true', 'gateways.egress.enabled=true', 'gateways.eastWest.enabled=true', 'gateways.eastWest.network=n1', 'pilot.proxyImage=registry.example/proxyv2:1', 'trustDomain=mesh.example']));
const yaml = (list: readonly object[]): string => list.map((object) => stringify(object)).join('---\n');
const find = <T extends KubeObject>(kind: string, name: string): T => objects.find((object) => object.kind === kind && object.metadata.name === name) as T;

interface Webhooks extends KubeObject {
  webhooks: { clientConfig: { service?: { path: string }; url?: string; caBundle?: string }; failurePolicy: string }[];
}

let folder: string;
let cluster: KubeCluster;
let replica: Replica;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-kube-gateways-'));
  chmodSync(folder, 0o755);
  cluster = await KubeCluster.start();
  const { args = [] } = find<Deployment>('Deployment', 'underpass-pilot').spec.template.spec.containers[0] as { args?: string[] };
  const injection = join(folder, 'injection.yaml');
  writeFileSync(injection, find<ConfigMap>('ConfigMap', 'underpass-injection').data!['injection.yaml']!);
  // Replica has addresses of its own.
  const own = args.slice(1).filter((word) => !/-listen=/.test(word)).map((word) => (word.startsWith('--injection-config=') ? `--injection-config=${injection}` : word));
  await cluster.apply(yaml(objects.filter(({ kind }) => !kind.endsWith('WebhookConfiguration'))));
  replica = await Replica.start(cluster, { args: own });
  // No Service leads anywhere without nodes.
  const webhooks = (objects.filter(({ kind }) => kind.endsWith('WebhookConfiguration')) as Webhooks[]).map((object) => ({ ...object, webhooks: object.webhooks.map((webhook) => ({ ...webhook, clientConfig: { url: `https://127.0.0.1:${replica.ports.webhooks}${webhook.clientConfig.service!.path}` } })) }));
  await cluster.apply(yaml(webhooks));
  await replica.ready();
});
after(async () => {
  await replica?.end('SIGKILL');
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

test('pilot of the Deployment is ready, trusted by the API server, and its validator refuses once it runs', async () => {
  for (const kind of ['MutatingWebhookConfiguration', 'ValidatingWebhookConfiguration']) {
    const { name } = objects.find((object) => object.kind === kind)!.metadata;
    await waitFor(`the CA of ${name}`, async () => (await cluster.get<Webhooks>('admissionregistration.k8s.io/v1', kind, { name }))?.webhooks.every(({ clientConfig, failurePolicy }) => clientConfig.caBundle !== undefined && failurePolicy === 'Fail'), WAIT);
  }
});

for (const [name, ports] of [['istio-ingressgateway', [15021, 80, 443]], ['istio-egressgateway', [80, 443]], ['istio-eastwestgateway', [15021, 15443]]] as const) {
  test(`a pod of ${name} gets its proxy, which the API server takes, and its Service's ports lead to it`, async () => {
    const { metadata, spec } = find<Deployment>('Deployment', name).spec.template;
    const make = async (): Promise<Pod> => (await cluster.apply(stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { ...metadata, name, namespace: 'istio-system' }, spec })))[0] as Pod;
    // The API server begins to call a webhook a moment after its configuration was stored.
    const made = await waitFor('the injection', async () => {
      const pod = await make();
      if (pod.spec.containers[0]!.image !== 'auto') return pod;
      await cluster.client.request('DELETE', `/api/v1/namespaces/istio-system/pods/${name}`, { body: { gracePeriodSeconds: 0 } });
      return undefined;
    }, WAIT);
    assert.deepEqual(made.spec.containers.map((container) => [container.name, container.image]), [['istio-proxy', 'registry.example/proxyv2:1']]);
    const proxy = made.spec.containers[0] as { args?: string[]; env?: { name: string; value?: string }[]; resources?: object };
    const env = (wanted: string): string | undefined => proxy.env?.find((variable) => variable.name === wanted)?.value;
    assert.deepEqual(proxy.args?.slice(0, 2), ['proxy', 'router']);
    assert.deepEqual([env('TRUST_DOMAIN'), env('CA_ADDR'), env('ISTIO_META_REQUESTED_NETWORK_VIEW')], ['mesh.example', 'istiod.istio-system.svc:15012', name === 'istio-eastwestgateway' ? 'n1' : undefined]);
    const service = await cluster.get<KubeObject & { spec: { selector: Record<string, string>; ports: { port: number; targetPort: number }[] } }>('v1', 'Service', { namespace: 'istio-system', name });
    assert.deepEqual(service!.spec.ports.map(({ port, targetPort }) => [port, targetPort]), ports.map((port) => [port, port]));
    for (const [key, wanted] of Object.entries(service!.spec.selector)) assert.equal(made.metadata.labels?.[key], wanted);
  });
}

test('with the rights of its manifest it was refused nothing', () => {
  assert.deepEqual(cluster.requests().filter(({ user, code }) => user === PILOT_USER && code === 403), []);
});
