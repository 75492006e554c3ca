// Every recorded scenario of istiod, step by step, over its streams: the agent and a real Envoy take all of it, also after istiod went away.
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { Backoff, waitFor } from '../../common/retry.js';
import { logger } from '../../common/log.js';
import { projectRoot } from '../../common/paths.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import { DeltaDiscoveryRequest, DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { typeUrl } from '../../common/xds/any.js';
import { AdsChannel, type DeltaStream } from '../xds/channel.js';
import type { DeltaResponse } from '../xds/delta-response.js';
import { WorkloadStream } from '../xds/workload-stream.js';
import { RecordedIstiod } from '../testing/istiod.js';
import { IstiodSecurity } from '../testing/istiod-security.js';
import { IstiodWorld } from '../testing/istiod-world.js';
import { Recording } from '../testing/recording.js';
import { requests } from '../testing/netns.js';

const WAIT = { everyMs: 5 };
const all = readdirSync(join(projectRoot, 'test', 'fixtures', 'istiod')).map((name) => Recording.open(name)!);
const scenarioOf = ({ folder }: Recording): string => folder.slice(folder.lastIndexOf('/') + 1);
const recorded = (scenario: string): Recording => all.find((recording) => scenarioOf(recording) === scenario)!;
/** `protocol-corners` has one client in two sessions that ask for parts: further down. */
const withPods = all.filter((recording) => recording.sidecars.length > 0 && scenarioOf(recording) !== 'protocol-corners');

it('the checkout has all scenarios', () => {
  assert.equal(all.length, 27);
  assert.deepEqual(all.filter(({ sidecars }) => sidecars.length === 0).map(scenarioOf).sort(), ['gateway-https', 'wds-on-demand', 'wds-reconnect']);
});

/** Most of them as on port 15012, where clusters have mutual TLS and HBONE as well; these as on 15010 too. */
const PLAINTEXT = ['base-world', 'canary', 'node-streams', 'waypoint'];

for (const isSecure of [true, false]) describe(`scenarios of istiod through the agent into Envoy${isSecure ? ', by TLS' : ', in plaintext'}`, () => {
  for (const recording of withPods.filter((of) => isSecure || PLAINTEXT.includes(scenarioOf(of)))) {
    it(scenarioOf(recording), async (test) => {
      const security = isSecure ? await IstiodSecurity.create() : undefined;
      const world = new IstiodWorld(scenarioOf(recording), security ? { security } : {});
      test.after(() => world.close());
      await world.start(security ? await IstiodWorld.trusted(security, recording.sidecars) : {});
      const check = async (step: number): Promise<void> => {
        assert.deepEqual(await world.refusals(), [], `step ${step}`);
        const classes = new Map(world.proxy.status().classes.map((of) => [of.node, of]));
        for (const session of world.istiod.sessions) {
          const found = classes.get(session.node);
          if (!found) continue;
          const { clusters, listeners, routes } = recording.state(session, step);
          assert.deepEqual([found.clusters, found.listeners], [clusters.size, listeners.size], `${session.name}, step ${step}`);
          assert.ok(found.routes >= routes.size, `${session.name}, step ${step}: ${found.routes} route tables of ${routes.size}`);
        }
      };
      for (const { step } of recording.steps) {
        if (step === 0) await world.ready();
        else await world.goTo(step);
        await check(step);
      }
      const last = recording.steps.at(-1)!.step;
      const streams = world.istiod.live.length;
      world.istiod.stop();
      await world.istiod.start();
      await waitFor('all streams to be back', () => world.istiod.live.length === streams && world.istiod.live.every(({ acks }) => acks.length >= 2), WAIT);
      await world.settled();
      await check(last);
      assert.deepEqual(security?.refused ?? [], []);
    });
  }
});

/** A client that says just what a test says. */
class RawClient {
  readonly responses: DeltaDiscoveryResponse[] = [];
  readonly #channel: AdsChannel;
  readonly #stream: DeltaStream;

  constructor(test: TestContext, istiod: RecordedIstiod, node: string) {
    this.#channel = new AdsChannel(istiod.address);
    this.#stream = this.#channel.open();
    this.#stream.on('data', ({ resources, ...rest }: DeltaResponse) => this.responses.push({ ...rest, resources: [...resources] }));
    this.#stream.on('error', () => undefined);
    this.#stream.write(DeltaDiscoveryRequest.fromPartial({ node: Node.fromPartial({ id: node }) }));
    test.after(() => this.#channel.close());
  }

  send(request: Parameters<typeof DeltaDiscoveryRequest.fromPartial>[0]): void {
    this.#stream.write(DeltaDiscoveryRequest.fromPartial(request));
  }

  async next(count: number): Promise<DeltaDiscoveryResponse> {
    await waitFor(`response ${count}`, () => this.responses.length >= count, WAIT);
    return this.responses[count - 1]!;
  }
}

async function served(test: TestContext, scenario: string, session: string, step: number): Promise<{ istiod: RecordedIstiod; recording: Recording; node: string }> {
  const recording = recorded(scenario);
  const found = recording.sessions.find(({ name }) => name === session)!;
  const istiod = new RecordedIstiod('127.0.0.1:0', recording, [found]);
  await istiod.start();
  test.after(() => istiod.stop());
  for (let at = 0; at <= step; at++) await istiod.goTo(at);
  return { istiod, recording, node: found.node };
}

const names = ({ resources, removed_resources: removed }: DeltaDiscoveryResponse): [string[], string[]] => [resources.map(({ name }) => name).sort(), [...removed].sort()];
const received = (recording: Recording, session: string): DeltaDiscoveryResponse[] => recording.sessions.find(({ name }) => name === session)!.events.flatMap((event) => (event.dir === 'recv' ? recording.response(event) : []));

describe('the server that answers as the recorded istiod', () => {
  it('has an empty answer for routes and endpoints that it does not know, as was recorded', async (test) => {
    const { istiod, recording, node } = await served(test, 'protocol-corners', '3-unknown-names', 0);
    const client = new RawClient(test, istiod, node);
    const answers = received(recording, '3-unknown-names').filter(({ type_url: type }) => [typeUrl(ClusterLoadAssignment), typeUrl(RouteConfiguration)].includes(type)).slice(0, 2);
    for (const [at, expected] of answers.entries()) {
      const unknown = expected.resources.filter(({ name }) => name !== '80');
      client.send({ type_url: expected.type_url, resource_names_subscribe: unknown.map(({ name }) => name) });
      const found = await client.next(at + 1);
      const decode = ({ resource }: { resource?: { value: Uint8Array } | undefined }): unknown => (expected.type_url === typeUrl(RouteConfiguration) ? RouteConfiguration.decode(resource!.value).virtual_hosts : ClusterLoadAssignment.decode(resource!.value).endpoints);
      assert.deepEqual(found.resources.map(({ name }) => name), unknown.map(({ name }) => name));
      assert.deepEqual([found.resources.map(decode), unknown.map(decode)], [[[]], [[]]]);
    }
  });

  it('names what a client brings along and does not exist any more, and sends all else again, as was recorded', async (test) => {
    const { istiod, recording, node } = await served(test, 'protocol-corners', '4-reconnect', 5);
    const client = new RawClient(test, istiod, node);
    const sent = recording.sessions.find(({ name }) => name === '4-reconnect')!.events.filter(({ dir, initial_resource_versions: versions }) => dir === 'send' && versions);
    for (const [at, expected] of received(recording, '4-reconnect').entries()) {
      client.send({ type_url: expected.type_url, initial_resource_versions: sent[at]!.initial_resource_versions! });
      assert.deepEqual(names(await client.next(at + 1)), names(expected));
    }
  });

  it('says nothing after a NACK or a nonce that it never gave, until the next push', async (test) => {
    const { istiod, node } = await served(test, 'canary', 'toolbox-v1-6d9f-hbone-delta', 0);
    const client = new RawClient(test, istiod, node);
    client.send({ type_url: typeUrl(Cluster) });
    const first = await client.next(1);
    client.send({ type_url: typeUrl(Cluster), response_nonce: first.nonce, error_detail: { code: 3, message: 'no' } });
    client.send({ type_url: typeUrl(Cluster), response_nonce: 'stale' });
    // It answers in order: had either an answer, it would come before this one.
    client.send({ type_url: typeUrl(Listener) });
    assert.equal((await client.next(2)).type_url, typeUrl(Listener));
    const pushed = istiod.goTo(1);
    const push = await client.next(3);
    assert.equal(push.type_url, typeUrl(Cluster));
    client.send({ type_url: push.type_url, response_nonce: push.nonce });
    const lists = await client.next(4);
    assert.deepEqual([lists.type_url, names(lists)[0]], [typeUrl(Listener), names(client.responses[1]!)[0]], 'all listeners again');
    client.send({ type_url: lists.type_url, response_nonce: lists.nonce });
    await pushed;
  });
});

describe('the agent where istiod is peculiar', () => {
  it('takes listeners whose routes and endpoints istiod does not know, and answers 404 there', async (test) => {
    const world = new IstiodWorld('protocol-corners', { pods: ['4-reconnect'] });
    test.after(() => world.close());
    await world.start();
    for (let step = 1; step <= 5; step++) await world.istiod.goTo(step);
    world.istiod.stop();
    await world.istiod.start();
    await world.ready();
    assert.deepEqual(await world.refusals(), []);
    await world.netns().redirect('10.96.0.0/16');
    const [answer] = await world.netns().script<{ status: number }[]>(requests([{ url: 'http://10.96.111.111/', headers: { host: 'api' } }]));
    assert.equal(answer!.status, 404);
  });

  it('keeps what is good when it refuses a push, and goes on with the next one', async (test) => {
    const world = new IstiodWorld('canary');
    test.after(() => world.close());
    await world.start();
    await world.ready();
    const stream = world.istiod.live.find(({ nodeId }) => nodeId.startsWith('sidecar~'))!;
    const before = world.proxy.status().classes[0]!;
    const broken = { name: 'outbound|80||broken', version: '', resource: { type_url: typeUrl(Cluster), value: Uint8Array.of(0xff, 0xff, 0xff) } };
    await stream.answered(stream.send({ type_url: typeUrl(Cluster), resources: [broken as DeltaDiscoveryResponse['resources'][number]] }));
    assert.match(stream.nacks[0]!.message, /outbound\|80\|\|broken/);
    assert.equal(world.proxy.status().classes[0]!.clusters, before.clusters);
    stream.nacks.length = 0;
    for (const { step } of world.recording.steps.slice(1)) await world.goTo(step);
    assert.deepEqual(await world.refusals(), []);
    assert.equal(world.proxy.status().classes[0]!.clusters, world.recording.state(world.recording.sidecars[0]!).clusters.size);
  });

  it('comes back with the versions that it has, and is told only what went meanwhile', async (test) => {
    const { istiod, recording } = await served(test, 'wds-reconnect', 'first', 0);
    const channel = new AdsChannel(istiod.address);
    const stream = new WorkloadStream({ channel, nodeName: 'node-1', nodeAddress: '127.0.0.1', logger: logger('test'), backoff: new Backoff({ initialMs: 20, maxMs: 100, factor: 1.5, jitter: 0 }) });
    test.after(() => {
      stream.close();
      channel.close();
    });
    stream.start();
    await waitFor('all', () => stream.synced, WAIT);
    istiod.stop();
    await istiod.goTo(2);
    await istiod.start();
    await waitFor('the removals', () => !stream.addresses.has('Kubernetes//Pod/recon/two-v1-6d9f') && stream.authorizations.size === 0, WAIT);
    const asked = recording.sessions.find(({ name }) => name === 'third')!.events.filter(({ dir, initial_resource_versions: versions }) => dir === 'send' && versions);
    assert.deepEqual(istiod.stream.requests.filter(({ response_nonce: nonce }) => nonce === '').map(({ initial_resource_versions: versions }) => versions), asked.map(({ initial_resource_versions: versions }) => versions), 'as the recorded client asked');
    assert.equal(stream.addresses.size, 4);
    assert.deepEqual(istiod.stream.nacks, []);
  });

  it('follows workloads by the wildcard, whatever other clients ask for by name', async (test) => {
    const { istiod, recording } = await served(test, 'wds-on-demand', 'wildcard-star', 0);
    const channel = new AdsChannel(istiod.address);
    const stream = new WorkloadStream({ channel, nodeName: 'node-1', nodeAddress: '127.0.0.1', logger: logger('test') });
    test.after(() => {
      stream.close();
      channel.close();
    });
    stream.start();
    await waitFor('all', () => stream.synced, WAIT);
    for (const { step } of recording.steps) await istiod.goTo(step);
    const held = new Set<string>();
    for (const { resources, removed_resources: removed } of received(recording, 'wildcard-star')) {
      for (const { name } of resources) held.add(name);
      for (const name of removed) held.delete(name);
    }
    assert.deepEqual([...stream.addresses.keys()].sort(), [...held].sort());
  });
});
