import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { after, before, describe, it } from 'node:test';
import { sleep, waitFor } from '../../common/retry.js';
import { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { type TestNetns } from '../testing/netns.js';
import { ENDPOINT, ProxyWorld } from '../testing/proxy-world.js';
import { assignment, edsCluster, tcpListener } from '../testing/resources.js';
import { tcpChain, type FoldedListeners } from './fold-listeners.js';
import type { ProxyPod } from './node-proxy.js';
import { PlainListeners, plainChains, type PlainChains } from './plain-listeners.js';
import { LDS } from './snapshot.js';

const chains = new Map<string, FilterChain>();
/** As folding has it: equal chains are one object. */
const chain = (cluster: string): FilterChain => {
  if (!chains.has(cluster)) chains.set(cluster, tcpChain(cluster, cluster, undefined));
  return chains.get(cluster)!;
};
const passthrough = (): FilterChain => tcpChain('passthrough', 'PassthroughCluster', undefined);
const plain = (clusters: readonly string[], ofAccounts: readonly string[] = []): PlainChains => plainChains({ inspected: { plain: clusters.map(chain) }, defaultChain: passthrough() } as unknown as FoldedListeners, new Set(ofAccounts));

describe('PlainListeners', () => {
  const ways = (listeners: PlainListeners, classes: Readonly<Record<string, PlainChains>>) => {
    const { clusters, listeners: made, split } = listeners.entries(Object.entries(classes).map(([key, of]) => ({ key, plain: of })));
    assert.deepEqual(clusters.map(({ name }) => name), Object.keys(classes).map((key) => `inspect/${key}/plain`), 'a class\'s pods hand on to one name, wherever it leads');
    for (const { leadsTo } of clusters) assert.ok(made.some(({ name }) => name === leadsTo), `${leadsTo} is there`);
    const leads = Object.fromEntries(clusters.map(({ name, leadsTo }) => [name.split('/')[1], leadsTo!.replace('inspect/', '')]));
    return { leads, names: made.map(({ name }) => name.replace('inspect/', '')), versions: new Map(made.map(({ name, version }) => [name, version])), split };
  };
  const [one, two] = [['db', 'cache'], ['db', 'cache', 'queue']].map((clusters) => plain(clusters!)) as [PlainChains, PlainChains];

  it('classes with equal chains share a listener; one that comes to differ has one of its own, and the others\' stays as it is', () => {
    const listeners = new PlainListeners();
    const shared = ways(listeners, { a: one, b: plain(['db', 'cache']), c: one });
    assert.deepEqual([shared.leads, shared.names, shared.split], [{ a: 'a/plain', b: 'a/plain', c: 'a/plain' }, ['a/plain'], []]);
    listeners.commit();
    // The class that it is named by, too.
    const moved = ways(listeners, { a: two, b: one, c: one });
    assert.deepEqual([moved.leads, moved.split], [{ a: 'a~2/plain', b: 'a/plain', c: 'a/plain' }, ['inspect/a~2/plain']]);
    assert.equal(moved.versions.get('inspect/a/plain'), shared.versions.get('inspect/a/plain'));
    listeners.commit();
    const again = ways(listeners, { a: two, b: two, c: two });
    assert.deepEqual(again.leads, { a: 'a~2/plain', b: 'a/plain', c: 'a/plain' }, 'equal again, all stay: their connections are there');
  });

  it('what changes for all is changed in place, and so is what a fold that was not published had apart', () => {
    const listeners = new PlainListeners();
    ways(listeners, { a: one, b: one });
    listeners.commit();
    assert.equal(ways(listeners, { a: two, b: one }).leads['a'], 'a~2/plain');
    assert.deepEqual(ways(listeners, { a: two, b: two }).leads, { a: 'a/plain', b: 'a/plain' });
  });

  it('a name stays when the class leaves that it comes from, over a restart too', () => {
    const listeners = new PlainListeners();
    ways(listeners, { a: one, b: one });
    listeners.commit();
    ways(listeners, { b: one });
    listeners.commit();
    const next = new PlainListeners(JSON.parse(JSON.stringify(listeners.given)) as Record<string, string>);
    assert.deepEqual(ways(next, { a: two, b: one }).leads, { a: 'a~2/plain', b: 'a/plain' }, 'and is not given to another');
  });

  it('what bears an account\'s identity is in a listener of the class\'s own, at no time in a shared one', () => {
    const listeners = new PlainListeners();
    const before_ = ways(listeners, { a: one, b: one });
    listeners.commit();
    const bound = (account: string): PlainChains => plain(['db', `cache~${account}`], [`cache~${account}`]);
    const after_ = ways(listeners, { a: bound('alice'), b: bound('bob') });
    assert.deepEqual(after_.leads, { a: 'a/plain/own', b: 'b/plain/own' });
    assert.equal(after_.versions.get('inspect/a/plain'), ways(new PlainListeners(), { a: plain(['db']) }).versions.get('inspect/a/plain'), 'connections from before have the rest of what they came by');
    assert.notEqual(after_.versions.get('inspect/a/plain'), before_.versions.get('inspect/a/plain'));
    listeners.commit();
    assert.deepEqual(ways(listeners, { a: one, b: one }).leads, after_.leads, 'it stays there');
    const next = new PlainListeners(listeners.given);
    assert.deepEqual(ways(next, { a: one, b: one }).leads, after_.leads, 'over a restart too');
  });

  it('classes of an agent that had a listener for each keep them', () => {
    assert.deepEqual(ways(new PlainListeners({ a: 'a', b: 'b' }), { a: one, b: one, c: one }).leads, { a: 'a/plain', b: 'b/plain', c: 'a/plain' });
  });
});

describe('plain TCP of two classes that share a listener, at a real Envoy', () => {
  const world = new ProxyWorld();
  const DRAIN_SECONDS = 2;
  const vip = (index: number): string => `10.96.2.${index}`;
  const cluster = (name: string): string => `outbound|9000||${name}`;
  let a: { pod: ProxyPod; netns: TestNetns };
  let b: { pod: ProxyPod; netns: TestNetns };
  const server = (port: number, name: string): string => `require('net').createServer((s) => { s.write('${name} '); s.on('data', (d) => s.write(d)); s.on('error', () => {}); }).listen(${port}, () => console.log('ready'));`;

  before(async () => {
    await world.start({ execPath: world.drainingAfter(DRAIN_SECONDS) });
    for (const [name, port] of [['one', 5001], ['two', 5002]] as const) {
      world.controlPlane.set(edsCluster(cluster(name)), cluster(name));
      world.controlPlane.set(assignment(cluster(name), [`${ENDPOINT}:${port}`]), cluster(name));
    }
    for (let index = 1; index <= 70; index++) world.controlPlane.set(tcpListener(vip(index), 9000, cluster('one')), `${vip(index)}_9000`);
    a = await world.pod('pod-a');
    b = await world.pod('pod-b', { labels: { app: 'other' } });
    for (const { netns } of [a, b]) {
      await netns.serve(server(5001, 'one'));
      await netns.serve(server(5002, 'two'));
    }
    world.running.setPods([a.pod, b.pod]);
    await world.ready(a.pod, b.pod);
    await world.settled();
  });
  after(() => world.close());

  const plainListeners = async (): Promise<string[]> => (await world.running.envoy.admin.listeners()).map(({ name }) => name).filter((name) => name.endsWith('/plain'));
  function send(uid: string, type: string, resources: Record<string, Any>): void {
    const stream = world.controlPlane.streams.find((item) => item.nodeId.includes(`~${uid}.`) && !item.ended);
    assert.ok(stream);
    stream.send({ type_url: type, resources: Object.entries(resources).map(([name, resource]) => ({ name, resource, version: '' }) as never) });
  }
  /** Holds a connection, and opens others one after another until it is told to end: the held one's echo of what it is told then, and what greeted the others. */
  async function call({ netns }: typeof a, address: string): Promise<{ end(): Promise<{ text: string; seen: string[] }> }> {
    const child = await netns.serve(`
      const net = require('net'); const seen = new Set(); let text = ''; let ending = false;
      const held = net.connect(9000, '${address}'); held.on('error', (e) => (text += e.code)); held.on('close', () => (text += 'closed'));
      held.once('data', () => { console.log('ready'); next(); }); held.on('data', (d) => { text += d; if (ending) { console.log(JSON.stringify({ text, seen: [...seen] })); process.exit(0); } });
      process.stdin.once('data', () => { ending = true; if (held.destroyed) { console.log(JSON.stringify({ text, seen: [...seen] })); process.exit(0); } held.write('still'); });
      const next = () => {
        const s = net.connect(9000, '${address}'); let greeting = '';
        const over = (what) => { seen.add(what); s.destroy(); setTimeout(next, 2); };
        s.once('data', (d) => { greeting = String(d).trim(); over(greeting); }); s.once('error', (e) => over(e.code)); s.once('end', () => { if (!greeting) over('ended'); });
      };`);
    return {
      end: async () => {
        const answer = once(createInterface(child.stdout!), 'line') as Promise<[string]>;
        child.stdin!.write('end');
        return JSON.parse((await answer)[0]) as { text: string; seen: string[] };
      },
    };
  }

  it('there is one for both', async () => {
    const listening = await plainListeners();
    assert.equal(listening.length, 1, listening.join());
    assert.equal(world.running.status().classes.length, 2);
    for (const each of [a, b]) assert.equal((await (await call(each, vip(3))).end()).text, 'one still');
  });

  it('the next agent takes it over and changes nothing', async () => {
    const stats = async (): Promise<Record<string, number>> => Object.fromEntries([...(await world.running.envoy.admin.stats('^(cluster_manager\\.cluster_(added|modified|removed)|listener_manager\\.(listener_added|listener_modified|listener_removed))$'))].filter(([, value]) => value !== undefined));
    const [before_, listening] = [await stats(), await plainListeners()];
    await world.running.stop({ keepEnvoy: true });
    await world.startProxy();
    world.running.setPods([a.pod, b.pod]);
    await world.ready(a.pod, b.pod);
    await world.settled();
    assert.deepEqual([await stats(), await plainListeners()], [before_, listening]);
  });

  it('one class comes to differ under load: none of its connections is refused, or led elsewhere than it says, and those that are open go on, as the other class\'s do', async () => {
    const calls = [await call(a, vip(7)), await call(b, vip(7))];
    send('pod-b', LDS, { [`${vip(7)}_9000`]: tcpListener(vip(7), 9000, cluster('two')) });
    await waitFor('a listener of its own', async () => (await plainListeners()).length === 2);
    await world.settled();
    // What drains has ended by then.
    await sleep(DRAIN_SECONDS * 1_000 + 1_000);
    const [ofA, ofB] = [await calls[0]!.end(), await calls[1]!.end()];
    assert.deepEqual([ofA.text, ofA.seen], ['one still', ['one']]);
    assert.deepEqual([ofB.text, ofB.seen], ['one still', ['one', 'two']]);
    assert.deepEqual(world.running.status().nacks, []);
  });
});
