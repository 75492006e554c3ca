/** What many clients have in common is made, noted and encoded once: they are sent, and sent later, what each would be alone. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { rootLogger } from '../../common/log.js';
import { DeltaDiscoveryRequest, type DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import type { Generators } from '../generate/generator.js';
import { TYPE } from '../generate/resource.js';
import { podYaml, serviceYaml, sliceYaml, type PodSpec } from '../testing/mesh.js';
import { testMesh, type TestMesh } from '../testing/model.js';
import { TestStream } from '../testing/stream.js';
import { Assembler } from './assembler.js';
import { SendBudget } from './budget.js';
import { ConnectThrottle } from './connect-throttle.js';
import { DeltaConnection } from './delta.js';
import { PushMetrics } from './metrics.js';
import { MapStore } from './shared-map.js';

/** More than are held for each client by itself. */
const SERVICES = Array.from({ length: 150 }, (_, index) => `web-${index}`);
const cluster = (name: string): string => `outbound|80||${name}.shop.svc.cluster.local`;
const NAMES = SERVICES.map(cluster);
const pod = (name: string, ip: string): PodSpec => ({ name, ip, labels: { app: name } });
const MESH = SERVICES.map((name, index) => serviceYaml('shop', name, `10.96.0.${index + 1}`, [pod(`${name}-1`, `10.1.0.${index + 1}`)])).join('\n') + '\n';
const RULE = `apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: mine, namespace: other}\nspec: {host: web-7.shop.svc.cluster.local, exportTo: [.], trafficPolicy: {loadBalancer: {simple: RANDOM}}}\n---\n`;

class Client {
  readonly stream = new TestStream();
  readonly connection: DeltaConnection;

  constructor(readonly mesh: Mesh, readonly nodeId: string, readonly metadata: Record<string, unknown> = {}) {
    this.connection = new DeltaConnection(mesh.context(), this.stream as unknown as DeltaConnection['call'], () => undefined, { identity: undefined, local: false });
  }

  ask(typeUrl: string, request: Parameters<typeof DeltaDiscoveryRequest.fromPartial>[0] = {}): void {
    this.stream.emit('data', DeltaDiscoveryRequest.fromPartial({ type_url: typeUrl, node: { id: this.nodeId, metadata: this.metadata }, ...request }));
  }

  /** Acknowledges what has come since the last call. @returns it, without what differs from stream to stream */
  async take(): Promise<Pick<DeltaDiscoveryResponse, 'type_url' | 'resources' | 'removed_resources'>[]> {
    for (let turn = 0; turn < 20; turn++) await new Promise<void>((resolve) => setImmediate(resolve));
    const fresh = this.stream.read();
    for (const { type_url, nonce } of fresh) this.ask(type_url, { response_nonce: nonce });
    return fresh.map(({ type_url, resources, removed_resources }) => ({ type_url, resources, removed_resources }));
  }
}

/** A mesh and its clients; with `shared` false they are all served one by one. */
class Mesh {
  readonly mesh: TestMesh;
  readonly #maps = new MapStore();

  constructor(yaml: string, readonly shared = true) {
    this.mesh = testMesh(yaml);
  }

  context(): DeltaConnection['context'] {
    const get: Generators['get'] = (type) => {
      const generator = this.mesh.generators.get(type);
      return this.shared || !generator ? generator : new Proxy(generator, { get: (target, key) => (key === 'whole' ? undefined : typeof target[key as keyof typeof target] === 'function' ? (target[key as 'all'] as () => unknown).bind(target) : target[key as keyof typeof target]) });
    };
    const logger = rootLogger.child({}, { level: 'silent' });
    return { generators: { get } as Generators, logger, metrics: new PushMetrics(), budget: new SendBudget(64 << 20), throttle: new ConnectThrottle(16), assembler: new Assembler(), maps: this.#maps, maxNames: 1_000, version: () => 'v', clients: () => undefined, wake: () => undefined };
  }
}

const node = (name: string, namespace: string): string => `sidecar~10.0.0.9~${name}.${namespace}~${namespace}.svc.cluster.local`;
const names = ({ resources }: { resources: { name: string }[] }): string[] => resources.map(({ name }) => name).sort();

/** All that happens to a few clients of a mesh, in words that two meshes can be compared by. */
async function story(shared: boolean): Promise<Awaited<ReturnType<Client['take']>>[]> {
  const mesh = new Mesh(MESH + RULE, shared);
  const told: Awaited<ReturnType<Client['take']>>[] = [];
  const clients = [new Client(mesh, node('a', 'shop')), new Client(mesh, node('b', 'shop')), new Client(mesh, node('c', 'other'))];
  const takeAll = async (): Promise<void> => {
    for (const client of clients) told.push(await client.take());
  };
  for (const client of clients) {
    client.ask(TYPE.cluster);
    client.ask(TYPE.endpoint, { resource_names_subscribe: NAMES });
  }
  await takeAll();
  // One of them turns away from what the others go on watching, and asks for something again.
  clients[0]!.ask(TYPE.endpoint, { resource_names_unsubscribe: NAMES.slice(0, 10) });
  clients[1]!.ask(TYPE.endpoint, { resource_names_subscribe: [NAMES[20]!] });
  await takeAll();
  const push = (change: ReturnType<TestMesh['apply']>): void => {
    for (const { connection } of clients) connection.push(change);
  };
  push(mesh.mesh.apply(sliceYaml('shop', 'web-3', []) + '\n' + sliceYaml('shop', 'web-30', [])));
  await takeAll();
  // Who comes now gets what is there now; who comes back is told what is new.
  clients.push(new Client(mesh, node('d', 'shop')), new Client(mesh, node('e', 'shop')));
  clients[3]!.ask(TYPE.endpoint, { resource_names_subscribe: NAMES });
  clients[4]!.ask(TYPE.endpoint, { resource_names_subscribe: NAMES, initial_resource_versions: { [NAMES[3]!]: 'old', 'outbound|80||gone': 'x' } });
  clients[3]!.ask(TYPE.cluster);
  await takeAll();
  push(mesh.mesh.remove('/Service/shop/web-5'));
  push(mesh.mesh.apply(serviceYaml('shop', 'late', '10.96.1.1', [])));
  await takeAll();
  return told;
}

test('first push: clients that share lists hear from beginning to end what clients that share nothing hear', async () => {
  const told = await story(true);
  assert.deepEqual(told, await story(false));
  const [last] = told.at(-2)!;
  assert.deepEqual([last!.type_url, last!.removed_resources], [TYPE.cluster, [cluster('web-5')]], 'what happened did happen');
});

test('first push: of one mesh the encoded bytes are the same objects for clients of all namespaces that see the same', async () => {
  const mesh = new Mesh(MESH + RULE);
  const clients = [new Client(mesh, node('a', 'shop')), new Client(mesh, node('b', 'shop')), new Client(mesh, node('c', 'third')), new Client(mesh, node('d', 'other'))];
  for (const client of clients) {
    client.ask(TYPE.cluster);
    client.ask(TYPE.endpoint, { resource_names_subscribe: NAMES });
    await client.take();
  }
  for (const index of [0, 1]) {
    const [a, b, third, other] = clients.map(({ stream }) => stream.written[index]!.parts[1]!);
    assert.ok(a === b && a === third);
    assert.notEqual(a, other, 'which obeys a rule of its own');
  }
  const base = clients.slice(0, 3).map(({ connection }) => connection.watches.get(TYPE.endpoint)!.sent.shared);
  assert.ok(base[0] && base.every((map) => map === base[0]), 'what they hold is noted once');
});

/** The version of one name's endpoints among many, as each of these clients is sent it. */
async function versions(yaml: string, name: string, clients: readonly Record<string, unknown>[]): Promise<string[]> {
  const mesh = new Mesh(MESH + yaml);
  const found: string[] = [];
  for (const metadata of clients) {
    const client = new Client(mesh, node(`in-${found.length}`, 'shop'), metadata);
    client.ask(TYPE.endpoint, { resource_names_subscribe: [...NAMES, name] });
    const [response] = await client.take();
    assert.equal(response!.resources.length, NAMES.length + 1);
    found.push(response!.resources.find((resource) => resource.name === name)!.version);
  }
  return found;
}

test('first push: endpoints that depend on where the client is are nobody else\'s', async () => {
  const entry = `apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ext, namespace: shop}\nspec: {hosts: [ext.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 10.2.0.1, locality: r1/z1}, {address: 10.2.0.2, locality: r1/z2}]}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: ext, namespace: shop}\nspec: {host: ext.example, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}}\n---\n`;
  const [first, second, third] = await versions(entry, 'outbound|80||ext.example', ['z1', 'z2', 'z1'].map((zone) => ({ LABELS: { 'istio-locality': `r1.${zone}` } })));
  assert.notEqual(first, second);
  assert.equal(first, third);
});

test('first push: so are those of other networks, which a client of none reaches directly', async () => {
  const far = { name: 'far-1', ip: '10.3.0.1', labels: { app: 'far', 'security.istio.io/tlsMode': 'istio', 'topology.istio.io/network': 'two' } };
  const gateway = '\napiVersion: v1\nkind: Service\nmetadata: {name: eastwest, namespace: istio-system, labels: {topology.istio.io/network: two}}\nspec: {clusterIP: 10.97.0.99, externalIPs: [192.0.2.1], selector: {istio: eastwestgateway}, ports: [{name: tls, port: 15443}]}\n';
  const [first, second, third] = await versions(podYaml('shop', far) + serviceYaml('shop', 'far', '10.96.9.9', [far]) + gateway, cluster('far'), [{}, { NETWORK: 'one' }, { NETWORK: 'two' }]);
  assert.notEqual(first, second);
  assert.equal(first, third);
});
