import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { logger } from '../../common/log.js';
import { sleep, waitFor } from '../../common/retry.js';
import { TestControlPlane, type TestStream } from '../testing/control-plane.js';
import { assignment, edsCluster, httpListener, routes, sidecarState } from '../testing/resources.js';
import { AdsChannel } from './channel.js';
import { visitRouteClusters } from './references.js';
import { SidecarStream, sidecarTypes } from './sidecar-stream.js';

const { clusters: CDS, endpoints: EDS, listeners: LDS, routes: RDS } = sidecarTypes;
const WAIT = { everyMs: 2 };

describe('SidecarStream', () => {
  const server = new TestControlPlane('127.0.0.1:0');
  let channel: AdsChannel;
  let stream: SidecarStream;
  let updates = 0;

  before(async () => {
    await server.start();
    channel = new AdsChannel(server.address);
    stream = new SidecarStream({ channel, node: Node.fromPartial({ id: 'sidecar~1' }), logger: logger('test'), onUpdate: () => updates++, fetchTimeoutMs: 400 });
    stream.start();
    await waitFor('both wildcard subscriptions', () => server.streams[0]?.requests.length === 2, WAIT);
  });
  after(() => {
    stream.close();
    channel.close();
    server.stop();
  });

  async function send(type: { typeUrl: string }, items: Record<string, Any>, removed: string[] = []): Promise<void> {
    const open: TestStream = server.stream;
    await open.answered(open.send({ type_url: type.typeUrl, resources: Object.entries(items).map(([name, resource]) => ({ name, resource, version: '' }) as never), removed_resources: removed }));
  }
  const references = (): readonly string[] => {
    const names = new Set<string>();
    visitRouteClusters(stream.state.routes.get('80')!.message.virtual_hosts, (name) => names.add(name));
    return [...names];
  };
  const subscribed = (type: { typeUrl: string }): string[] => [...(server.stream.subscribed.get(type.typeUrl) ?? [])];

  it('asks for what clusters and listeners name, and is synced when all of it was answered', async () => {
    await send(CDS, { a: edsCluster('a') });
    await send(LDS, { '0.0.0.0_80': httpListener(80) });
    assert.deepEqual([subscribed(EDS), subscribed(RDS), stream.synced, updates], [['a'], ['80'], false, 0]);
    await send(EDS, { a: assignment('a', ['10.0.0.1:80']) });
    assert.equal(stream.synced, false);
    await send(RDS, { 80: routes(80, { a: 'a' }) });
    assert.deepEqual([stream.synced, updates], [true, 1]);
  });

  it('shows a new cluster only with its endpoints', async () => {
    await send(CDS, { b: edsCluster('b') });
    assert.deepEqual([[...stream.state.clusters.keys()], updates], [['a'], 1]);
    await send(EDS, { b: assignment('b', []) });
    assert.deepEqual([[...stream.state.clusters.keys()], [...stream.state.endpoints.keys()], updates], [['a', 'b'], ['a', 'b'], 2]);
  });

  it('unsubscribes with the cluster, and says nothing when nothing changed', async () => {
    await send(CDS, {}, ['b']);
    assert.deepEqual([subscribed(EDS), [...stream.state.endpoints.keys()], updates], [['a'], ['a'], 3]);
    await send(CDS, { a: edsCluster('a') });
    await send(LDS, { '0.0.0.0_80': httpListener(80) });
    assert.equal(updates, 3);
  });

  it('waits for the other half of a push: routes before their cluster, or a cluster gone before its routes', async () => {
    const seen = updates;
    await send(RDS, { 80: routes(80, { a: 'next' }) });
    await send(CDS, { next: edsCluster('next') }, ['a']);
    assert.deepEqual([[...stream.state.clusters.keys()], updates], [['a'], seen]);
    await send(EDS, { next: assignment('next', []) });
    assert.deepEqual([[...stream.state.clusters.keys()], updates], [['next'], seen + 1]);
    await send(CDS, { a: edsCluster('a') }, ['next']);
    await send(EDS, { a: assignment('a', []) });
    assert.deepEqual([...stream.state.clusters.keys()], ['next']);
    await send(RDS, { 80: routes(80, { a: 'a' }) });
    assert.deepEqual([...stream.state.clusters.keys()], ['a']);
  });

  it('takes routes to a cluster that does not come for what is meant', async () => {
    await send(RDS, { 80: routes(80, { a: 'nowhere' }) });
    assert.deepEqual(references(), ['a']);
    await waitFor('the wait to be over', () => references()[0] === 'nowhere', WAIT);
    const seen = updates;
    await send(RDS, { 80: routes(80, { a: 'nowhere', b: 'nowhere' }) });
    assert.equal(updates, seen + 1, 'what dangles already is not waited for again');
    await send(RDS, { 80: routes(80, { a: 'a' }) });
  });

  it('takes a removed name as an answer', async () => {
    await send(CDS, { c: edsCluster('c') });
    await send(EDS, {}, ['c']);
    assert.deepEqual([stream.state.clusters.has('c'), stream.state.endpoints.has('c')], [true, false]);
  });

  it('goes on without what the control plane never answers', async () => {
    await send(CDS, { d: edsCluster('d') });
    await sleep(100);
    assert.equal(stream.state.clusters.has('d'), false);
    await waitFor('the time-out', () => stream.state.clusters.has('d'), WAIT);
  });
});

describe('SidecarStream that knows what was there before', () => {
  const server = new TestControlPlane('127.0.0.1:0');
  before(() => server.start());
  after(() => server.stop());

  for (const [what, endpoints, kept] of [['what the control plane confirms stays the same objects, so that nothing is folded again', ['10.0.0.1:80'], true], ['what differs is new, and that alone', ['10.0.0.2:80'], false]] as const) {
    it(what, async () => {
      const known = sidecarState({ 'cds a': edsCluster('a'), 'eds a': assignment('a', ['10.0.0.1:80']), 'lds 0.0.0.0_80': httpListener(80), 'rds 80': routes(80, { a: 'a' }) });
      const channel = new AdsChannel(server.address);
      const stream = new SidecarStream({ channel, node: Node.fromPartial({ id: 'sidecar~2' }), logger: logger('test'), onUpdate: () => undefined, fetchTimeoutMs: 400 });
      stream.preload(known);
      stream.start();
      const types = [CDS, EDS, LDS, RDS];
      const opened = await waitFor('all subscriptions', () => server.streams.find((each) => !each.ended && each.requests.length === types.length), WAIT);
      const answers = { [CDS.typeUrl]: { a: edsCluster('a') }, [EDS.typeUrl]: { a: assignment('a', endpoints) }, [LDS.typeUrl]: { '0.0.0.0_80': httpListener(80) }, [RDS.typeUrl]: {} };
      for (const { typeUrl } of [EDS, RDS, CDS, LDS]) await opened!.answered(opened!.send({ type_url: typeUrl, resources: Object.entries(answers[typeUrl]!).map(([name, resource]) => ({ name, resource, version: '7' }) as never) }));
      await waitFor('it to be in sync', () => stream.synced, WAIT);
      assert.deepEqual([stream.state.clusters === known.clusters, stream.state.endpoints === known.endpoints, stream.state.listeners === known.listeners, stream.state.routes === known.routes], [true, kept, true, true]);
      stream.close();
      channel.close();
      await waitFor('its end', () => opened!.ended, WAIT);
    });
  }

  it('of what another class was sent nothing counts before the control plane has answered for each type; what it says otherwise, or not at all, is not there', async () => {
    const ofAnother = sidecarState({ 'cds a': edsCluster('a'), 'cds b': edsCluster('b'), 'eds a': assignment('a', ['10.0.0.1:80']), 'eds b': assignment('b', ['10.0.0.2:80']), 'lds 0.0.0.0_80': httpListener(80), 'rds 80': routes(80, { a: 'a' }) });
    const channel = new AdsChannel(server.address);
    const stream = new SidecarStream({ channel, node: Node.fromPartial({ id: 'sidecar~3' }), logger: logger('test'), onUpdate: () => undefined, fetchTimeoutMs: 60_000 });
    stream.preload(ofAnother, { isOthers: true });
    stream.start();
    const opened = (await waitFor('all subscriptions', () => server.streams.find((each) => !each.ended && each.requests.length === 4), WAIT))!;
    assert.deepEqual(opened.requests.map(({ type_url, resource_names_subscribe: names, initial_resource_versions: held }) => [type_url, names, Object.keys(held)]), [[CDS.typeUrl, [], ['a', 'b']], [EDS.typeUrl, ['a', 'b'], ['a', 'b']], [LDS.typeUrl, [], ['0.0.0.0_80']], [RDS.typeUrl, ['80'], ['80']]]);
    const answer = (type: { typeUrl: string }, items: Record<string, Any>, removed: string[] = []): Promise<unknown> => opened.answered(opened.send({ type_url: type.typeUrl, resources: Object.entries(items).map(([name, resource]) => ({ name, resource, version: '7' }) as never), removed_resources: removed }));
    const seen: boolean[] = [];
    await answer(CDS, {}, ['b']);
    await answer(LDS, {});
    seen.push(stream.synced);
    await answer(EDS, {});
    seen.push(stream.synced);
    await answer(RDS, { 80: routes(80, { other: 'a' }) });
    assert.deepEqual([...seen, stream.synced], [false, false, true]);
    const { clusters, endpoints, listeners, routes: tables } = stream.state;
    assert.deepEqual([[...clusters.keys()], [...endpoints.keys()], tables.get('80')!.message.virtual_hosts.map(({ name }) => name)], [['a'], ['a'], ['other:80']]);
    assert.ok(listeners === ofAnother.listeners, 'what is the same is the same object');
    stream.close();
    channel.close();
    await waitFor('its end', () => opened.ended, WAIT);
  });

  it('a control plane that says nothing of what was announced is asked for all of it', async () => {
    const ofAnother = sidecarState({ 'cds a': edsCluster('a'), 'eds a': assignment('a', ['10.0.0.1:80']), 'lds 0.0.0.0_80': httpListener(80), 'rds 80': routes(80, { a: 'a' }) });
    const channel = new AdsChannel(server.address);
    const stream = new SidecarStream({ channel, node: Node.fromPartial({ id: 'sidecar~4' }), logger: logger('test'), onUpdate: () => undefined, fetchTimeoutMs: 200 });
    stream.preload(ofAnother, { isOthers: true });
    stream.start();
    const opened = (await waitFor('all subscriptions', () => server.streams.find((each) => !each.ended && each.requests.length === 4), WAIT))!;
    const answer = (type: { typeUrl: string }, items: Record<string, Any>): Promise<unknown> => opened.answered(opened.send({ type_url: type.typeUrl, resources: Object.entries(items).map(([name, resource]) => ({ name, resource, version: '7' }) as never) }));
    await answer(CDS, {});
    await answer(LDS, {});
    const again = (type: { typeUrl: string }) => opened.requests.filter(({ type_url, resource_names_unsubscribe: dropped }) => type_url === type.typeUrl && dropped.length > 0);
    await waitFor('what was announced to be dropped', () => again(EDS).length + again(RDS).length === 2, WAIT);
    assert.equal(stream.synced, false);
    await answer(EDS, { a: assignment('a', ['10.0.0.3:80']) });
    await answer(RDS, { 80: routes(80, { a: 'a' }) });
    assert.equal(stream.synced, true);
    stream.close();
    channel.close();
    await waitFor('its end', () => opened.ended, WAIT);
  });
});
