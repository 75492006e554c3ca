import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { logger } from '../../common/log.js';
import { Backoff, waitFor } from '../../common/retry.js';
import { pack } from '../../common/xds/any.js';
import { TestControlPlane, type TestStream } from '../testing/control-plane.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { assignment, edsCluster, httpListener } from '../testing/resources.js';
import { AdsChannel } from './channel.js';
import { DeltaAdsStream, type Change } from './delta-stream.js';
import { ClusterType, EndpointType, ListenerType, routeNames } from './resource-types.js';

const CDS = new ClusterType();
const EDS = new EndpointType();
const LDS = new ListenerType();

for (const transport of ['tcp', 'unix'] as const) {
  describe(`DeltaAdsStream over ${transport}`, () => {
    let folder: string;
    let server: TestControlPlane;
    let channel: AdsChannel;
    let stream: DeltaAdsStream;
    let changes: Change[];

    beforeEach(async () => {
      folder = mkdtempSync(join(tmpdir(), 'up-proxy-'));
      server = new TestControlPlane(transport === 'tcp' ? '127.0.0.1:0' : `unix:${join(folder, 'xds.sock')}`);
      await server.start();
      channel = new AdsChannel(server.address);
      changes = [];
      stream = new DeltaAdsStream({
        channel, node: Node.fromPartial({ id: 'sidecar~1' }), types: [CDS, EDS], onChange: (change) => changes.push(change), logger: logger('test'),
        backoff: new Backoff({ initialMs: 20, maxMs: 50, factor: 2, jitter: 0.2 }),
      });
    });
    afterEach(() => {
      stream.close();
      channel.close();
      server.stop();
      rmSync(folder, { recursive: true, force: true });
    });

    async function opened(count = 1): Promise<TestStream> {
      await waitFor('a stream with a request', () => server.streams.length >= count && server.stream.requests.length > 0, WAIT);
      return server.stream;
    }
    async function exchange(open: TestStream, response: Parameters<TestStream['send']>[0]): Promise<string> {
      const nonce = open.send(response);
      await open.answered(nonce);
      return nonce;
    }

    it('subscribes to everything of a wildcard type and acknowledges, the node only in the first request', async () => {
      stream.start();
      const open = await opened();
      const nonce = await exchange(open, { type_url: CDS.typeUrl, resources: resources({ a: edsCluster('a'), b: edsCluster('b') }) });
      assert.deepEqual(open.requests.map((request) => [request.node?.id, request.type_url, request.resource_names_subscribe, request.response_nonce]), [
        ['sidecar~1', CDS.typeUrl, [], ''],
        [undefined, CDS.typeUrl, [], nonce],
      ]);
      assert.deepEqual([...stream.state(CDS).resources.keys()], ['a', 'b']);
      assert.deepEqual(changes.map(({ updated, removed, first }) => ({ updated, removed, first })), [{ updated: ['a', 'b'], removed: [], first: true }]);
      assert.equal(stream.status.connected, true);
    });

    it('takes what is good, keeps the last good one of what is not, and names every resource and field in one NACK', async () => {
      stream.start();
      const open = await opened();
      await exchange(open, { type_url: CDS.typeUrl, resources: resources({ a: edsCluster('a'), b: edsCluster('b') }) });
      const before = stream.state(CDS).resources.get('a');
      const noSource = pack(Cluster, Cluster.fromJSON({ name: 'a', type: 'EDS' }));
      const undecodable = { type_url: CDS.typeUrl, value: Buffer.from([0x0a, 0xff]) };
      const nonce = await exchange(open, { type_url: CDS.typeUrl, resources: resources({ a: noSource, b: edsCluster('other'), c: edsCluster('c'), d: undecodable }) });
      assert.equal(open.nacks.length, 1);
      const { message, nonce: refused } = open.nacks[0]!;
      assert.equal(refused, nonce);
      assert.match(message, /CDS "a": eds_cluster_config\.eds_config: is missing/);
      assert.match(message, /CDS "b": name: is "other"/);
      assert.match(message, /CDS "d": \(whole\): does not decode/);
      assert.equal(stream.state(CDS).resources.get('a'), before);
      assert.deepEqual([...stream.state(CDS).resources.keys()], ['a', 'b', 'c']);
      assert.deepEqual([...stream.state(CDS).rejected.keys()], ['a', 'b', 'd']);
      await exchange(open, { type_url: CDS.typeUrl, resources: resources({ b: edsCluster('b') }), removed_resources: ['a', 'd'] });
      assert.deepEqual([...stream.state(CDS).rejected.keys()], []);
      assert.deepEqual(stream.status.acks, 2);
    });

    it('refuses what does not decode inside of an Any, naming resource and field, and lives on', async () => {
      stream.close();
      stream = new DeltaAdsStream({ channel, node: Node.fromPartial({ id: 'sidecar~2' }), types: [LDS], onChange: ({ updated }) => { for (const name of updated) routeNames.of(stream.state(LDS).resources.get(name)!); }, logger: logger('test') });
      stream.start();
      await waitFor('the stream', () => server.streams.at(-1)?.nodeId === 'sidecar~2', WAIT);
      const open = server.stream;
      const broken = Listener.decode(httpListener(80).value);
      const [filter] = broken.filter_chains[0]?.filters ?? [];
      if (filter?.config_type?.$case === 'typed_config') filter.config_type.value.value = Buffer.from([0x0a, 0xff]);
      await exchange(open, { type_url: LDS.typeUrl, resources: resources({ '0.0.0.0_80': pack(Listener, broken), '0.0.0.0_81': httpListener(81) }) });
      assert.match(open.nacks[0]?.message ?? '', /LDS "0\.0\.0\.0_80": filter_chains\[0\]\.filters\[0\]\.typed_config: does not decode as .*HttpConnectionManager/);
      assert.deepEqual([...stream.state(LDS).resources.keys()], ['0.0.0.0_81']);
    });

    it('refuses what its type did not foresee, and survives a listener that throws', async () => {
      stream.close();
      class Careless extends ClusterType {
        protected override validate(): void {
          throw new TypeError('unforeseen');
        }
      }
      const careless = new Careless();
      stream = new DeltaAdsStream({ channel, node: Node.fromPartial({ id: 'sidecar~3' }), types: [careless], onChange: () => { throw new Error('no'); }, logger: logger('test') });
      stream.start();
      await waitFor('the stream', () => server.streams.at(-1)?.nodeId === 'sidecar~3', WAIT);
      await exchange(server.stream, { type_url: CDS.typeUrl, resources: resources({ a: edsCluster('a') }) });
      assert.match(server.stream.nacks[0]?.message ?? '', /CDS "a": \(whole\): unforeseen/);
      await exchange(server.stream, { type_url: CDS.typeUrl, resources: [] });
    });

    it('reports only content that differs, not what is resent, whatever the order of its maps', async () => {
      stream.start();
      const open = await opened();
      const metadata = (keys: string[]): Any =>
        pack(Cluster, Cluster.fromPartial({ name: 'a', metadata: { filter_metadata: Object.fromEntries(keys.map((key) => [key, { value: key }])) } }));
      const [one, two] = [metadata(['x', 'y']), metadata(['y', 'x'])];
      assert.notDeepEqual(one.value, two.value);
      await exchange(open, { type_url: CDS.typeUrl, resources: resources({ a: one }) });
      const first = stream.state(CDS).resources.get('a')?.message;
      await exchange(open, { type_url: CDS.typeUrl, resources: resources({ a: two }) });
      await exchange(open, { type_url: CDS.typeUrl, resources: resources({ a: one }) });
      assert.deepEqual(changes.map((change) => change.updated), [['a'], [], []]);
      assert.equal(stream.state(CDS).resources.get('a')?.message, first);
    });

    it('subscribes and unsubscribes by difference, and forgets what it no longer asks for', async () => {
      stream.start();
      const open = await opened();
      stream.setNames(EDS, new Set(['a', 'b']));
      await exchange(open, { type_url: EDS.typeUrl, resources: resources({ a: assignment('a', ['10.0.0.1:80']), b: assignment('b', []) }) });
      stream.setNames(EDS, new Set(['b', 'c']));
      await waitFor('the request', () => requestsFor(open, EDS.typeUrl).length === 3, WAIT);
      assert.deepEqual(requestsFor(open, EDS.typeUrl).filter((request) => !request.response_nonce).map((request) => [request.resource_names_subscribe, request.resource_names_unsubscribe]), [
        [['a', 'b'], []],
        [['c'], ['a']],
      ]);
      assert.deepEqual([...stream.state(EDS).resources.keys()], ['b']);
      // A push that crossed the unsubscription does not bring it back; an empty assignment is content, a removed name is absence.
      await exchange(open, { type_url: EDS.typeUrl, resources: resources({ a: assignment('a', []) }), removed_resources: ['c'] });
      assert.deepEqual([...stream.state(EDS).resources.keys()], ['b']);
      assert.deepEqual([...stream.state(EDS).absent], ['c']);
      stream.setNames(EDS, new Set());
      await waitFor('the request', () => requestsFor(open, EDS.typeUrl).at(-1)?.resource_names_unsubscribe.length === 2, WAIT);
    });

    it('never opens a named type with an empty request, which would ask for everything', async () => {
      stream.start();
      const open = await opened();
      stream.setNames(EDS, new Set());
      await exchange(open, { type_url: CDS.typeUrl, resources: [] });
      assert.deepEqual(requestsFor(open, EDS.typeUrl), []);
    });

    it('refuses a type that it did not ask for', async () => {
      stream.start();
      const open = await opened();
      await exchange(open, { type_url: 'type.googleapis.com/some.Thing' });
      assert.match(open.nacks[0]?.message ?? '', /some\.Thing was not asked for/);
    });

    it('what was refused on the last connection counts until the next one has answered, and then only if it is refused there too', async () => {
      stream.start();
      const open = await opened();
      const undecodable = { type_url: CDS.typeUrl, value: Buffer.from([0x0a, 0xff]) };
      await exchange(open, { type_url: CDS.typeUrl, resources: resources({ gone: undecodable, still: undecodable }) });
      open.call.end();
      const next = await opened(2);
      assert.deepEqual([...stream.state(CDS).rejected.keys()], ['gone', 'still']);
      await exchange(next, { type_url: CDS.typeUrl, resources: resources({ still: undecodable }) });
      assert.deepEqual([...stream.state(CDS).rejected.keys()], ['still']);
      await exchange(next, { type_url: CDS.typeUrl, resources: resources({ a: edsCluster('a') }) });
      assert.deepEqual([...stream.state(CDS).rejected.keys()], ['still']);
    });

    it('reconnects with the versions that it holds, a fresh node and fresh nonces; state stays meanwhile', async () => {
      stream.start();
      const open = await opened();
      stream.setNames(EDS, new Set(['a']));
      const nonce = await exchange(open, { type_url: CDS.typeUrl, resources: resources({ a: edsCluster('a'), b: edsCluster('b') }, '7') });
      await exchange(open, { type_url: EDS.typeUrl, resources: resources({ a: assignment('a', []) }) });
      open.call.end();
      await waitFor('the loss', () => !stream.status.connected, WAIT);
      assert.deepEqual([...stream.state(CDS).resources.keys()], ['a', 'b']);
      const next = await opened(2);
      await waitFor('both subscriptions', () => next.requests.length === 2, WAIT);
      assert.deepEqual(next.requests.map((request) => [request.node?.id, request.type_url, request.resource_names_subscribe, request.initial_resource_versions, request.response_nonce]), [
        ['sidecar~1', CDS.typeUrl, [], { a: '7', b: '7' }, ''],
        [undefined, EDS.typeUrl, ['a'], { a: '' }, ''],
      ]);
      changes.length = 0;
      await exchange(next, { type_url: CDS.typeUrl, resources: resources({ a: edsCluster('a') }, '8'), removed_resources: ['b'] });
      assert.deepEqual(changes.map(({ updated, removed, first }) => ({ updated, removed, first })), [{ updated: [], removed: ['b'], first: false }]);
      assert.equal(stream.state(CDS).resources.get('a')?.version, '8');
      assert.ok(next.requests.every((request) => request.response_nonce !== nonce));
    });

    it('ignores what a connection that was given up still delivers', async () => {
      stream.start();
      const open = await opened();
      await exchange(open, { type_url: CDS.typeUrl, resources: resources({ a: edsCluster('a') }) });
      stream.setNode(Node.fromPartial({ id: 'sidecar~2' }));
      open.send({ type_url: CDS.typeUrl, resources: resources({ late: edsCluster('late') }) });
      const next = await opened(2);
      assert.equal(next.nodeId, 'sidecar~2');
      await exchange(next, { type_url: CDS.typeUrl, resources: [] });
      assert.deepEqual([...stream.state(CDS).resources.keys()], ['a']);
    });

    it('comes back when the control plane was away, and gives up when closed', async () => {
      const address = server.address;
      stream.start();
      await exchange(await opened(), { type_url: CDS.typeUrl, resources: resources({ a: edsCluster('a') }) });
      server.stop();
      await waitFor('the loss', () => stream.status.lastError !== undefined, WAIT);
      await waitFor('more attempts', () => stream.status.connects >= 3, WAIT);
      server = new TestControlPlane(address);
      await server.start();
      await exchange(await opened(), { type_url: CDS.typeUrl, resources: resources({ b: edsCluster('b') }) });
      assert.deepEqual([...stream.state(CDS).resources.keys()], ['a', 'b']);
      stream.close();
      const connects = stream.status.connects;
      await waitFor('the end', () => server.stream.ended, WAIT);
      assert.equal(stream.status.connects, connects);
    });

    it('takes a response that is larger than gRPC\'s default', async () => {
      stream.start();
      const open = await opened();
      const large = assignment('a', Array.from({ length: 200_000 }, (_, index) => `10.${(index >> 16) & 255}.${(index >> 8) & 255}.${index & 255}:80`));
      assert.ok(large.value.length > 4 << 20);
      stream.setNames(EDS, new Set(['a']));
      await exchange(open, { type_url: EDS.typeUrl, resources: resources({ a: large }) });
      assert.equal(ClusterLoadAssignment.decode(stream.state(EDS).resources.get('a')!.any.value).endpoints[0]?.lb_endpoints.length, 200_000);
    });
  });
}

it('DeltaAdsStream: an opening that fails, or has nothing to show yet, is tried again, and at once when it is told to', async (context) => {
  const server = new TestControlPlane('127.0.0.1:0');
  await server.start();
  const channel = new AdsChannel(server.address);
  const answers: (() => ReturnType<AdsChannel['open']> | undefined)[] = [() => { throw new Error('no key'); }, () => undefined, () => channel.open()];
  const problems: (string | undefined)[] = [];
  let wake: (() => void) | undefined;
  const stream = new DeltaAdsStream({
    channel: {
      open: (again) => {
        problems.push(stream.status.lastError);
        wake = again;
        return answers.shift()!();
      },
      waitsFor: () => 'a certificate',
    },
    node: Node.fromPartial({ id: 'sidecar~1' }), types: [CDS], onChange: () => undefined, logger: logger('test'),
    // The second look would be in an hour: whoever wakes it does not wait for that.
    backoff: new Backoff({ initialMs: 10, maxMs: 3_600_000, factor: 360_000, jitter: 0 }),
  });
  context.after(() => {
    stream.close();
    channel.close();
    server.stop();
  });
  stream.start();
  await waitFor('the second try', () => problems.length === 2, WAIT);
  assert.equal(stream.status.lastError, 'waiting for a certificate');
  wake!();
  await waitFor('a stream', () => server.streams.length === 1, WAIT);
  assert.deepEqual(problems, [undefined, 'no key', 'waiting for a certificate']);
});

it('DeltaAdsStream: whoever has nothing to show yet hears of one that waits, however often it looks in vain', async () => {
  const waiting = new Set<() => void>();
  let looks = 0;
  const stream = new DeltaAdsStream({
    channel: {
      open: (again) => {
        waiting.add(again);
        looks++;
        return undefined;
      },
    },
    node: Node.fromPartial({ id: 'sidecar~1' }), types: [CDS], onChange: () => undefined, logger: logger('test'),
    backoff: new Backoff({ initialMs: 1, maxMs: 1, factor: 1, jitter: 0 }),
  });
  stream.start();
  await waitFor('a few looks', () => looks > 5, WAIT);
  stream.close();
  assert.equal(waiting.size, 1);
});

describe('AdsChannel', () => {
  it('rejects an address that is neither host:port nor unix:/path, and a port that is none', () => {
    for (const address of ['istiod', '127.0.0.1:0', '127.0.0.1:70000', '127.0.0.1:x', ':15010', 'unix:']) assert.throws(() => new AdsChannel(address), { code: 'UNDERPASS_BAD_ADDRESS', message: /with a port from 1 to 65535, nor unix/ }, address);
    for (const address of ['127.0.0.1:15010', 'istiod.istio-system:65535', '[::1]:1', 'unix:/run/pilot.sock']) new AdsChannel(address).close();
  });
});

const WAIT = { everyMs: 2 };

function requestsFor(stream: TestStream, type: string): TestStream['requests'] {
  return stream.requests.filter((request) => request.type_url === type);
}

function resources(items: Readonly<Record<string, Any>>, version = ''): DeltaDiscoveryResponse['resources'] {
  return DeltaDiscoveryResponse.fromPartial({ resources: Object.entries(items).map(([name, resource]) => ({ name, version, resource })) }).resources;
}
