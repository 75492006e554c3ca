/** The push pipeline with real gRPC clients over a real socket. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { credentials } from '@grpc/grpc-js';
import { rootLogger } from '../../common/log.js';
import { sleep, waitFor } from '../../common/retry.js';
import { AggregatedDiscoveryServiceClient } from '../../proto/generated/envoy/service/discovery/v3/ads.js';
import { DiscoveryRequest, type DiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { TYPE } from '../generate/resource.js';
import { Pilot, type PilotOptions } from '../index.js';
import { TestClient } from '../testing/client.js';
import { podYaml, serviceYaml, sliceYaml, type PodSpec } from '../testing/mesh.js';

const silent = rootLogger.child({}, { level: 'silent' });
const pod = (name: string, ip: string): PodSpec => ({ name, ip, labels: { app: 'web' } });
const web1 = pod('web-1', '10.0.0.1');
const HOST = 'web.shop.svc.cluster.local';
const WEB = `outbound|80||${HOST}`;
const OTHER = 'outbound|80||other.shop.svc.cluster.local';
const NODE = 'sidecar~10.0.0.9~client.shop~shop.svc.cluster.local';
const ZTUNNEL = 'ztunnel~192.168.0.1~node-1.istio-system~istio-system.svc.cluster.local';
const WEIGHTS = (v1: number): string => `apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\nspec: {hosts: [web], http: [{route: [{destination: {host: web}, weight: ${v1}}, {destination: {host: other}, weight: ${100 - v1}}]}]}\n`;

let folder: string;
let pilot: Pilot;
const clients: TestClient[] = [];

/** Replaced in one step, as whoever writes for others should. */
function write(name: string, yaml: string): void {
  writeFileSync(join(folder, name), yaml);
}

async function start(listen: string[] = ['127.0.0.1:0'], limits: NonNullable<PilotOptions['limits']> = {}): Promise<void> {
  pilot = new Pilot({ sources: [folder], listen, limits, logger: silent, debounce: { quietMs: 20 } });
  await pilot.start();
}

function connect(nodeId = NODE, metadata: Record<string, unknown> = {}, address = pilot.addresses[0]!): TestClient {
  const client = new TestClient(address, nodeId, metadata);
  clients.push(client);
  return client;
}

/** A client that watches all that a sidecar watches, up to date. */
async function sidecar(): Promise<TestClient> {
  const client = connect();
  client.subscribe(TYPE.cluster);
  client.subscribe(TYPE.endpoint, [WEB, OTHER]);
  client.subscribe(TYPE.listener);
  client.subscribe(TYPE.route, ['80']);
  await client.nth(TYPE.route, 1);
  await waitFor('all ACKs', () => pilot.status().ads.connections.some(({ types }) => Object.keys(types).length === 4 && Object.values(types).every(({ acked }) => acked)), { everyMs: 5 });
  client.responses.length = 0;
  return client;
}

const names = (response: { resources: { name: string }[] }): string[] => response.resources.map(({ name }) => name).sort();

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-pilot-push-'));
  write('web.yaml', podYaml('shop', web1) + serviceYaml('shop', 'web', '10.96.0.1', [web1]));
  write('other.yaml', serviceYaml('shop', 'other', '10.96.0.2', [pod('o', '10.0.0.5')]));
  await start();
});

afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  await pilot.stop();
  rmSync(folder, { recursive: true, force: true });
});

test('delta: an endpoint change sends that one endpoint set and nothing else', async () => {
  const client = await sidecar();
  write('more.yaml', podYaml('shop', pod('web-2', '10.0.0.2')));
  write('web.yaml', podYaml('shop', web1) + serviceYaml('shop', 'web', '10.96.0.1', [web1, pod('web-2', '10.0.0.2')]));
  const response = await client.nth(TYPE.endpoint, 1);
  assert.deepEqual([names(response), response.removed_resources], [[WEB], []]);
  await sleep(150);
  assert.deepEqual(client.responses.map(({ type_url }) => type_url), [TYPE.endpoint]);
});

test('delta: a change is pushed in the order clusters, endpoints, listeners, routes; what is gone is named', async () => {
  const client = await sidecar();
  write('third.yaml', serviceYaml('shop', 'third', '10.96.0.3', [], 'name: tcp, port: 5432'));
  await client.nth(TYPE.listener, 1);
  await sleep(100);
  assert.deepEqual(client.responses.map(({ type_url }) => type_url), [TYPE.cluster, TYPE.listener]);
  assert.deepEqual(names(client.of(TYPE.cluster)[0]!), ['outbound|5432||third.shop.svc.cluster.local']);
  assert.deepEqual(names(client.of(TYPE.listener)[0]!), ['10.96.0.3_5432']);
  client.responses.length = 0;
  rmSync(join(folder, 'third.yaml'));
  const [cluster, listener] = [await client.nth(TYPE.cluster, 1), await client.nth(TYPE.listener, 1)];
  assert.deepEqual([cluster.removed_resources, names(cluster)], [['outbound|5432||third.shop.svc.cluster.local'], []]);
  assert.deepEqual(listener.removed_resources, ['10.96.0.3_5432']);
});

test('delta: a cluster that is sent anew brings its endpoints along, which Envoy waits for', async () => {
  const client = await sidecar();
  write('rule.yaml', 'apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: shop}\nspec: {host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}\n');
  await client.nth(TYPE.endpoint, 1);
  assert.deepEqual(client.responses.map((response) => [response.type_url, names(response)]), [[TYPE.cluster, [WEB]], [TYPE.endpoint, [WEB]]]);
});

test('delta: initial_resource_versions are respected, what is gone meanwhile is named', async () => {
  const first = connect();
  first.subscribe(TYPE.cluster);
  const known = Object.fromEntries((await first.nth(TYPE.cluster, 1)).resources.map(({ name, version }) => [name, version]));
  const second = connect();
  second.subscribe(TYPE.cluster, [], { ...known, [OTHER]: 'an older one', 'outbound|80||gone.shop.svc.cluster.local': 'x' });
  const response = await second.nth(TYPE.cluster, 1);
  assert.deepEqual([names(response), response.removed_resources], [[OTHER], ['outbound|80||gone.shop.svc.cluster.local']]);
  const third = connect();
  third.subscribe(TYPE.cluster, [], known);
  // An answer nonetheless: it says that the client is up to date.
  assert.deepEqual(names(await third.nth(TYPE.cluster, 1)), []);
});

test('delta: subscribing again to a name sends it again, unsubscribing ends it', async () => {
  const client = connect();
  client.subscribe(TYPE.endpoint, [WEB]);
  await client.nth(TYPE.endpoint, 1);
  client.subscribe(TYPE.endpoint, [WEB, OTHER]);
  assert.deepEqual(names(await client.nth(TYPE.endpoint, 2)), [OTHER, WEB]);
  client.send({ type_url: TYPE.endpoint, resource_names_unsubscribe: [WEB] });
  await waitFor('the unsubscription', () => pilot.status().ads.connections[0]?.types[TYPE.endpoint]?.watched === 1, { everyMs: 5 });
  write('web.yaml', serviceYaml('shop', 'web', '10.96.0.1', []));
  write('other.yaml', serviceYaml('shop', 'other', '10.96.0.2', []));
  assert.deepEqual(names(await client.nth(TYPE.endpoint, 3)), [OTHER]);
});

test('a NACKed resource is not sent again before its content changes', async () => {
  const client = await sidecar();
  client.autoAck = false;
  write('routes.yaml', WEIGHTS(50));
  const refused = await client.nth(TYPE.route, 1);
  client.ack(refused, 'no such thing');
  await waitFor('the NACK in the status', () => pilot.status().ads.connections[0]?.types[TYPE.route]?.nack?.message === 'no such thing', { everyMs: 5 });
  client.autoAck = true;
  // A change elsewhere that regenerates routes: this one's content is the same.
  write('third.yaml', serviceYaml('shop', 'third', '10.96.0.3', [], 'name: tcp, port: 5432'));
  const other = await client.nth(TYPE.listener, 1);
  assert.deepEqual(names(other), ['10.96.0.3_5432']);
  await sleep(150);
  assert.equal(client.of(TYPE.route).length, 1);
  write('routes.yaml', WEIGHTS(60));
  await client.nth(TYPE.route, 2);
  await waitFor('the ACK in the status', () => pilot.status().ads.connections[0]?.types[TYPE.route]?.nack === undefined, { everyMs: 5 });
});

test('a client that does not answer gets the newest state when it does, and holds nobody up', async () => {
  const slow = await sidecar();
  slow.autoAck = false;
  const fast = connect();
  fast.subscribe(TYPE.route, ['80']);
  await fast.nth(TYPE.route, 1);
  write('routes.yaml', WEIGHTS(10));
  const unanswered = await slow.nth(TYPE.route, 1);
  for (const [index, weight] of [20, 30, 40].entries()) {
    write('routes.yaml', WEIGHTS(weight));
    await fast.nth(TYPE.route, index + 3);
  }
  assert.equal(slow.of(TYPE.route).length, 1);
  assert.equal(pilot.status().ads.queued, 1);
  slow.ack(unanswered);
  const newest = await slow.nth(TYPE.route, 2);
  assert.equal(newest.resources[0]!.version, fast.of(TYPE.route)[4]!.resources[0]!.version);
  slow.ack(newest);
  await waitFor('an empty queue', () => pilot.status().ads.queued === 0, { everyMs: 5 });
  assert.equal(slow.of(TYPE.route).length, 2);
});

test('a burst of changes is one push', async () => {
  const client = await sidecar();
  for (let i = 1; i <= 10; i++) write('routes.yaml', WEIGHTS(i));
  await client.nth(TYPE.route, 1);
  await sleep(200);
  assert.ok(client.of(TYPE.route).length <= 2, `${client.of(TYPE.route).length} pushes`);
});

test('a stale nonce acknowledges nothing', async () => {
  const client = connect();
  client.autoAck = false;
  client.subscribe(TYPE.route, ['80']);
  const first = await client.nth(TYPE.route, 1);
  client.ack({ ...first, nonce: 'made up' });
  write('routes.yaml', WEIGHTS(50));
  await sleep(200);
  assert.equal(client.of(TYPE.route).length, 1);
  client.ack(first);
  await client.nth(TYPE.route, 2);
});

test('ztunnel: addresses by wildcard, then only what changed; an empty set of policies is an answer', async () => {
  const client = connect(ZTUNNEL);
  client.subscribe(TYPE.address);
  client.subscribe(TYPE.authorization);
  assert.deepEqual(names(await client.nth(TYPE.address, 1)), ['Kubernetes//Pod/shop/web-1', 'shop/other.shop.svc.cluster.local', `shop/${HOST}`]);
  assert.deepEqual((await client.nth(TYPE.authorization, 1)).resources, []);
  write('web.yaml', serviceYaml('shop', 'web', '10.96.0.1', []));
  const response = await client.nth(TYPE.address, 2);
  assert.deepEqual([names(response), response.removed_resources], [[], ['Kubernetes//Pod/shop/web-1']]);
});

test('a node id that is none ends the stream with INVALID_ARGUMENT; a type that is not served gets no answer', async () => {
  const client = connect('nobody');
  client.subscribe(TYPE.cluster);
  const error = await waitFor('the error', () => client.error, { everyMs: 5 });
  assert.match(error.message, /INVALID_ARGUMENT: reading node id "nobody": expected type~ip~name\.namespace~domain/);
  const other = connect();
  other.subscribe('type.googleapis.com/envoy.service.runtime.v3.Runtime', ['default']);
  other.subscribe(TYPE.route, ['80']);
  await other.nth(TYPE.route, 1);
  assert.equal(other.responses.length, 1);
});

test('a client that says nothing, opens too many streams, or watches too many names is told so; others go on', async () => {
  await pilot.stop();
  await start(['127.0.0.1:0', `unix:${join(folder, 'limits.sock')}`], { firstRequestMs: 200, streamsPerPeer: 2, namesPerType: 3 });
  const refused = async (client: TestClient): Promise<string> => (await waitFor('the refusal', () => client.error, { everyMs: 5 })).message;
  assert.match(await refused(connect()), /DEADLINE_EXCEEDED/);
  const first = connect();
  first.subscribe(TYPE.endpoint, [WEB, OTHER]);
  await first.nth(TYPE.endpoint, 1);
  const second = connect();
  second.subscribe(TYPE.route, ['80']);
  await second.nth(TYPE.route, 1);
  assert.match(await refused(connect()), /RESOURCE_EXHAUSTED: found 2 streams of 127\.0\.0\.1, expected at most 2/);
  const local = connect(NODE, {}, `unix:${join(folder, 'limits.sock')}`);
  local.subscribe(TYPE.route, ['80']);
  await local.nth(TYPE.route, 1);
  first.subscribe(TYPE.endpoint, ['a', 'b']);
  assert.match(await refused(first), /RESOURCE_EXHAUSTED: found a subscription to 4 names of one type, expected at most 3/);
  second.subscribe(TYPE.route, ['a'.repeat(2_000)]);
  assert.match(await refused(second), /INVALID_ARGUMENT: found the name of a resource with 2000 characters/);
  assert.equal(local.error, undefined);
});

test('state of the world: clusters as a whole, stale requests ignored, endpoints asked for again are sent again', async () => {
  const client = new AggregatedDiscoveryServiceClient(pilot.addresses[0]!, credentials.createInsecure());
  const stream = client.streamAggregatedResources();
  const responses: DiscoveryResponse[] = [];
  stream.on('data', (response: DiscoveryResponse) => responses.push(response));
  stream.on('error', () => undefined);
  const send = (request: Partial<DiscoveryRequest>): void => void stream.write(DiscoveryRequest.fromPartial({ node: { id: NODE }, ...request }));
  const nth = async (type: string, count: number): Promise<DiscoveryResponse> => waitFor(`${type} ${count}`, () => responses.filter(({ type_url }) => type_url === type)[count - 1], { everyMs: 5 });
  try {
    send({ type_url: TYPE.cluster });
    const first = await nth(TYPE.cluster, 1);
    send({ type_url: TYPE.cluster, response_nonce: first.nonce, version_info: first.version_info });
    send({ type_url: TYPE.endpoint, resource_names: [WEB] });
    const endpoints = await nth(TYPE.endpoint, 1);
    send({ type_url: TYPE.endpoint, resource_names: [WEB], response_nonce: endpoints.nonce });
    await sleep(50);
    write('third.yaml', serviceYaml('shop', 'third', '10.96.0.3', [], 'name: tcp, port: 5432'));
    const second = await nth(TYPE.cluster, 2);
    assert.equal(second.resources.length, first.resources.length + 1);
    // A cluster came anew: the client asks for the endpoints that it has, and must get them.
    send({ type_url: TYPE.cluster, response_nonce: second.nonce, version_info: second.version_info });
    send({ type_url: TYPE.endpoint, resource_names: [WEB], response_nonce: endpoints.nonce });
    const again = await nth(TYPE.endpoint, 2);
    assert.equal(again.resources.length, 1);
    send({ type_url: TYPE.endpoint, resource_names: [WEB, OTHER], response_nonce: endpoints.nonce });
    await sleep(100);
    assert.equal(responses.filter(({ type_url }) => type_url === TYPE.endpoint).length, 2);
    send({ type_url: TYPE.endpoint, resource_names: [WEB, OTHER], response_nonce: again.nonce });
    assert.equal((await nth(TYPE.endpoint, 3)).resources.length, 2);
  } finally {
    stream.cancel();
    client.close();
  }
});

test('Unix sockets: served beside TCP, a leftover replaced, one in use refused, removed at the end', async () => {
  const path = join(folder, 'run', 'ads.sock');
  const second = new Pilot({ sources: [folder], listen: [`unix:${path}`, '127.0.0.1:0'], logger: silent });
  await second.start();
  try {
    for (const address of second.addresses) {
      const client = connect(NODE, {}, address);
      client.subscribe(TYPE.route, ['80']);
      await client.nth(TYPE.route, 1);
    }
    const third = new Pilot({ sources: [folder], listen: [`unix:${path}`], logger: silent });
    await assert.rejects(third.start(), { code: 'UNDERPASS_PILOT_LISTEN' });
    assert.ok(statSync(path).isSocket());
    assert.equal(statSync(path).mode & 0o777, 0o600, 'who opens it may read Secrets');
  } finally {
    for (const client of clients.splice(0)) client.close();
    await second.stop();
  }
  assert.throws(() => statSync(path));
});

test('a port that is taken is said with its address', async () => {
  const second = new Pilot({ sources: [folder], listen: [pilot.addresses[0]!], logger: silent });
  await assert.rejects(second.start(), { code: 'UNDERPASS_PILOT_LISTEN', message: new RegExp(`listening on ${pilot.addresses[0]!}`) });
});

test('endpoint slices in a later source override those of an earlier one', async () => {
  const late = mkdtempSync(join(tmpdir(), 'up-pilot-late-'));
  const second = new Pilot({ sources: [folder, late], listen: ['127.0.0.1:0'], logger: silent, debounce: { quietMs: 20 } });
  try {
    await second.start();
    const client = connect(NODE, {}, second.addresses[0]!);
    client.subscribe(TYPE.endpoint, [WEB]);
    const before = (await client.nth(TYPE.endpoint, 1)).resources[0]!.version;
    writeFileSync(join(late, 'slices.yaml'), sliceYaml('shop', 'web', []));
    assert.notEqual((await client.nth(TYPE.endpoint, 2)).resources[0]!.version, before);
    rmSync(join(late, 'slices.yaml'));
    assert.equal((await client.nth(TYPE.endpoint, 3)).resources[0]!.version, before);
  } finally {
    for (const client of clients.splice(0)) client.close();
    await second.stop();
    rmSync(late, { recursive: true, force: true });
  }
});
