import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '../../common/retry.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { pack } from '../../common/xds/any.js';
import { echoServer, requests, type TestNetns } from '../testing/netns.js';
import { ENDPOINT, ProxyWorld, SERVICE_CLUSTER, SERVICE_VIP } from '../testing/proxy-world.js';
import { assignment, edsCluster, httpListener, sniffedListener, tcpListener } from '../testing/resources.js';
import { LDS, CDS } from './snapshot.js';
import type { ListenerAddress } from './envoy-admin.js';
import type { ProxyPod } from './node-proxy.js';

interface Answer {
  status: number;
  body: { server: string; client: string; connection: number; headers: Record<string, string> };
}

/** Says its name to whoever connects, then what it got back. */
function tcpServer(port: number, name: string): string {
  return `require('net').createServer((s) => { s.write(${JSON.stringify(name)}); s.on('data', (d) => s.end(d)); s.on('error', () => {}); }).listen(${port}, () => console.log('ready'));`;
}

/** Connects, sends "x" after the first data, and prints all that came: {text, error}. */
function tcpClient(address: string, port: number): string {
  return `const s = require('net').connect(${port}, '${address}'); let text = ''; let error;
    s.setTimeout(5000, () => s.destroy(new Error('timeout')));
    s.on('data', (d) => { if (!text) s.write('x'); text += d; }); s.on('error', (e) => (error = e.code || e.message));
    s.on('close', () => console.log(JSON.stringify({ text, error })));`;
}

describe('NodeProxy with two pods on one node', () => {
  const world = new ProxyWorld();
  let a: { pod: ProxyPod; netns: TestNetns };
  let b: { pod: ProxyPod; netns: TestNetns };

  before(async () => {
    await world.start();
    a = await world.pod('pod-a', { ips: ['10.0.1.1', 'fd00::1'] });
    b = await world.pod('pod-b', { ips: ['10.0.1.2', 'fd00::2'] });
    for (const { netns, pod } of [a, b]) await netns.serve(echoServer(80).replace('path: req.url', `path: '${pod.uid}'`));
    world.running.setPods([a.pod, b.pod]);
    await world.ready(a.pod, b.pod);
  });
  after(() => world.close());

  async function call(netns: TestNetns, count = 1): Promise<Answer[]> {
    return netns.script<Answer[]>(requests(Array.from({ length: count }, () => ({ url: `http://${SERVICE_VIP}/`, headers: { host: 'web' } }))));
  }
  async function servedBy(netns: TestNetns, count = 1): Promise<string[]> {
    return [...new Set((await call(netns, count)).map((answer) => `${answer.status} ${(answer.body as unknown as { path: string }).path}`))];
  }

  it('Envoy is sent no field that it warns of, once for each chain of each pod', () => {
    assert.doesNotMatch(readFileSync(join(world.folder, 'run', 'envoy.log'), 'utf8'), /deprecated/i);
  });

  it('opens one stream for pods of one config class', () => {
    assert.deepEqual(world.running.status().classes.map((item) => item.pods), [['pod-a', 'pod-b']]);
    assert.equal(new Set(world.controlPlane.streams.map((stream) => stream.nodeId)).size, 2, 'one WDS stream and one of the sidecar kind');
  });

  it('opens upstream connections in the client pod\'s namespace and never shares them between pods', async () => {
    // Both pods use the same cluster, the same endpoint address and one worker: only the namespace tells them apart.
    for (let round = 0; round < 5; round++) {
      assert.deepEqual(await servedBy(a.netns, 3), ['200 pod-a']);
      assert.deepEqual(await servedBy(b.netns, 3), ['200 pod-b']);
    }
    // One pooled connection served all of a pod's requests, so the pools were there to be mixed up.
    const [answer] = await call(a.netns);
    assert.equal(answer?.body.connection, 1);
    const clusters = await world.running.envoy.admin.stats(`^cluster\\.${SERVICE_CLUSTER.replace(/[|.]/g, '\\$&')}\\.upstream_cx_total$`);
    assert.deepEqual([...clusters.values()], [2]);
  });

  it('counts a pod\'s connections', async () => {
    const held = await a.netns.serve(`require('net').connect(80, '${SERVICE_VIP}', () => console.log('ready'));`);
    await waitFor('the connection to be counted', async () => (await world.running.activeConnections('pod-a')) === 1);
    assert.equal(await world.running.activeConnections('pod-b'), 0);
    held.kill('SIGKILL');
    await waitFor('its end to be counted', async () => (await world.running.activeConnections('pod-a')) === 0);
  });

  it('listens on ::1 too in a pod that has an IPv6 address', async () => {
    const listeners = await podListeners();
    assert.deepEqual(listeners.map(({ name, addresses }) => [name, addresses]).sort(), [
      ['pod/pod-a/outbound', ['127.0.0.1:15001', '::1:15001']],
      ['pod/pod-b/outbound', ['127.0.0.1:15001', '::1:15001']],
    ]);
  });

  it('refuses a connection whose destination is the listener itself', async () => {
    const before_ = await totalConnections();
    const result = await a.netns.script<{ text: string; error?: string }>(tcpClient('127.0.0.1', 15001));
    assert.equal(result.text, '');
    assert.notEqual(result.error, 'timeout');
    assert.equal((await totalConnections()) - before_, 1, 'one connection arrived: it was not sent round in a loop');
  });

  it('passes through what is no service, from the pod\'s namespace', async () => {
    await a.netns.ip('addr', 'add', '10.96.9.9/32', 'dev', 'lo');
    await a.netns.serve(tcpServer(7777, 'outside'));
    assert.deepEqual(await a.netns.script(tcpClient('10.96.9.9', 7777)), { text: 'outsidex' });
  });

  it('folds TCP services by address: two on one port, the server speaking first', async () => {
    const { controlPlane } = world;
    await a.netns.serve(tcpServer(5001, 'one'));
    await a.netns.serve(tcpServer(5002, 'two'));
    assert.deepEqual(world.running.listenerPorts(), [80]);
    for (const [vip, port] of [['10.96.1.1', 5001], ['10.96.1.2', 5002]] as const) {
      const cluster = `outbound|9000||${vip}`;
      controlPlane.set(edsCluster(cluster), cluster);
      controlPlane.set(assignment(cluster, [`${ENDPOINT}:${port}`]), cluster);
      controlPlane.set(tcpListener(vip, 9000, cluster), `${vip}_9000`);
    }
    controlPlane.push(CDS);
    controlPlane.push(LDS);
    await waitFor('the listeners', async () => JSON.stringify(await world.running.envoy.admin.configDump()).includes('10.96.1.2_9000'));
    assert.deepEqual(await a.netns.script(tcpClient('10.96.1.1', 9000)), { text: 'onex' });
    assert.deepEqual(await a.netns.script(tcpClient('10.96.1.2', 9000)), { text: 'twox' });
    assert.deepEqual(world.running.listenerPorts(), [80, 9000]);
    assert.deepEqual(world.running.status().nacks, []);
  });

  it('sniffs a port of unknown protocol: HTTP by its routes, and a server that speaks first does not hang', async () => {
    const [vip, cluster] = ['10.96.1.4', 'outbound|80||sniffed'];
    world.controlPlane.set(edsCluster(cluster), cluster);
    world.controlPlane.set(assignment(cluster, [`${ENDPOINT}:5001`]), cluster);
    world.controlPlane.set(sniffedListener(vip, 80, cluster), `${vip}_80`);
    world.controlPlane.push(CDS);
    world.controlPlane.push(LDS);
    await waitFor('the listener', async () => JSON.stringify(await world.running.envoy.admin.configDump()).includes(`${vip}_80`));
    assert.deepEqual(await a.netns.script(tcpClient(vip, 80)), { text: 'onex' });
    const [answer] = await a.netns.script<Answer[]>(requests([{ url: `http://${vip}/`, headers: { host: 'web' } }]));
    assert.equal(answer?.status, 200);
  });

  it('serves IPv6 from [::1]:15001 to an IPv6 endpoint, from the pod\'s namespace', async () => {
    const [vip, cluster] = ['fd00:96::1', 'outbound|9000||v6'];
    await b.netns.ip('addr', 'add', 'fd00::5/128', 'dev', 'lo');
    await b.netns.redirect('fd00:96::/64');
    await b.netns.serve(tcpServer(5001, 'six'));
    world.controlPlane.set(edsCluster(cluster), cluster);
    world.controlPlane.set(assignment(cluster, ['fd00::5:5001']), cluster);
    world.controlPlane.set(tcpListener(vip, 9000, cluster), `${vip}_9000`);
    world.controlPlane.push(CDS);
    world.controlPlane.push(LDS);
    await waitFor('the listener', async () => JSON.stringify(await world.running.envoy.admin.configDump()).includes(`${vip}_9000`));
    assert.deepEqual(await b.netns.script(tcpClient(vip, 9000)), { text: 'sixx' });
  });

  it('keeps other classes out of one class\'s trouble, and that class on its last good listeners', async () => {
    const c = await world.pod('pod-c', { labels: { app: 'other' } });
    await c.netns.serve(echoServer(80).replace('path: req.url', "path: 'pod-c'"));
    world.running.setPods([a.pod, b.pod, c.pod]);
    await world.ready(c.pod);
    assert.equal(world.running.status().classes.length, 2);
    assert.deepEqual((await podListeners()).find(({ name }) => name === 'pod/pod-c/outbound')?.addresses, ['127.0.0.1:15001'], 'it has no IPv6 address');
    // An invalid connection manager: our own checks do not look that deep, Envoy's do.
    const good = httpListener(80);
    const bad = Listener.decode(httpListener(8080).value);
    const broken = pack(Listener, { ...bad, filter_chains: bad.filter_chains.map((chain) => ({ ...chain, filters: [{ ...chain.filters[0]!, config_type: { $case: 'typed_config' as const, value: { ...chain.filters[0]!.config_type!.value as { type_url: string }, value: Buffer.alloc(0) } } }] })) });
    const streamOfC = world.controlPlane.streams.find((stream) => stream.nodeId.includes('pod-c'));
    streamOfC?.send({ type_url: LDS, resources: [resource('0.0.0.0_80', good), resource('0.0.0.0_8080', broken)] });
    await waitFor('the refusal', () => world.running.status().nacks.length > 0);
    const key = world.running.status().classes.find(({ pods }) => pods.includes('pod-c'))?.key;
    await waitFor('the refusal of both of its listeners', () => world.running.status().nacks.length === 2);
    // Envoy cuts its answer off before the reason.
    await waitFor('the reasons', () => world.running.status().nacks.every(({ message }) => message.includes('StatPrefix')));
    const [nack, ...more] = world.running.status().nacks;
    assert.deepEqual([nack, ...more].map((item) => `${item?.type} ${item?.name}`).sort(), [`LDS inspect/${key}/http`, 'LDS pod/pod-c/outbound']);
    assert.match(nack?.message ?? '', /HttpConnectionManager|http_connection_manager/);
    assert.deepEqual(await servedBy(c.netns), ['200 pod-c']);
    // Another class's change goes through meanwhile.
    world.controlPlane.set(tcpListener('10.96.1.3', 9000, SERVICE_CLUSTER), '10.96.1.3_9000');
    for (const stream of world.controlPlane.streams) {
      if (stream.nodeId.includes('pod-a')) stream.send({ type_url: LDS, resources: [resource('10.96.1.3_9000', tcpListener('10.96.1.3', 9000, SERVICE_CLUSTER))] });
    }
    await waitFor('the other class\'s listener', async () => JSON.stringify(await world.running.envoy.admin.configDump()).includes('10.96.1.3_9000'));
    assert.deepEqual(await servedBy(a.netns), ['200 pod-a']);
    // Mended, it is taken.
    streamOfC?.send({ type_url: LDS, resources: [], removed_resources: ['0.0.0.0_8080'] });
    await waitFor('the refusal to be over', () => world.running.status().nacks.length === 0);
    world.running.setPods([a.pod, b.pod]);
    await world.running.whenRemoved('pod-c');
  });

  it('survives a namespace that is not there: its pod is refused, others go on', async () => {
    const file = join(world.folder, 'no-netns');
    writeFileSync(file, '');
    const missing = { ...a.pod, uid: 'pod-d', netnsPath: join(world.folder, 'gone') };
    const noNamespace = { ...a.pod, uid: 'pod-e', netnsPath: file };
    const { pid } = world.running.status().envoy;
    world.running.setPods([a.pod, b.pod, missing, noNamespace]);
    for (const pod of [missing, noNamespace]) {
      await assert.rejects(world.running.whenReady(pod.uid, AbortSignal.timeout(60_000)), { code: 'UNDERPASS_ENVOY_REFUSED' });
    }
    assert.deepEqual(await servedBy(a.netns), ['200 pod-a']);
    assert.deepEqual(await servedBy(b.netns), ['200 pod-b']);
    world.running.setPods([a.pod, b.pod]);
    await Promise.all([missing, noNamespace].map((pod) => world.running.whenRemoved(pod.uid)));
    assert.deepEqual(world.running.status().nacks, []);
    assert.equal(world.running.status().envoy.pid, pid);
  });

  it('survives a namespace path that vanishes under a listener', async () => {
    const f = await world.pod('pod-f');
    await f.netns.serve(echoServer(80).replace('path: req.url', "path: 'pod-f'"));
    world.running.setPods([a.pod, b.pod, f.pod]);
    await world.ready(f.pod);
    const { pid } = world.running.status().envoy;
    // A program that is in the namespace already calls when it is told that the path is gone: Envoy has to open a connection in nowhere.
    const caller = await f.netns.serve(`console.log('ready'); process.stdin.once('data', () => { ${requests([{ url: `http://${SERVICE_VIP}/`, headers: { host: 'web' } }])} });`);
    await f.netns.deletePath();
    caller.stdin!.write('go');
    const [line] = (await once(createInterface(caller.stdout!), 'line')) as [string];
    const [answer] = JSON.parse(line) as Answer[];
    assert.equal(answer?.status, 503);
    assert.deepEqual(await servedBy(a.netns), ['200 pod-a']);
    world.running.setPods([a.pod, b.pod]);
    await world.running.whenRemoved('pod-f');
    assert.equal(world.running.status().envoy.pid, pid);
  });

  it('removes a pod\'s listener before whenRemoved resolves', async () => {
    world.running.setPods([b.pod]);
    await world.running.whenRemoved('pod-a');
    assert.deepEqual((await podListeners()).map(({ name }) => name), ['pod/pod-b/outbound']);
    const result = await a.netns.script<{ error?: string }>(tcpClient('127.0.0.1', 15001));
    assert.equal(result.error, 'ECONNREFUSED');
    assert.deepEqual(await servedBy(b.netns), ['200 pod-b']);
  });

  async function podListeners(): Promise<ListenerAddress[]> {
    return (await world.running.envoy.admin.listeners()).filter(({ name }) => name.startsWith('pod/'));
  }
  async function totalConnections(): Promise<number> {
    return (await world.running.envoy.admin.stats('^listener\\.pod_pod-a\\.downstream_cx_total$')).get('listener.pod_pod-a.downstream_cx_total') ?? 0;
  }
});

describe('NodeProxy whose publishing fails', () => {
  const world = new ProxyWorld();
  after(() => world.close());

  it('stays up, and Envoy has the last good configuration', async () => {
    let failures = 0;
    await world.start({
      onListenerPorts: () => {
        failures++;
        throw new Error('unforeseen');
      },
    });
    const { pod, netns } = await world.pod('pod-a');
    await netns.serve(echoServer(80));
    world.running.setPods([pod]);
    await world.ready(pod);
    const [answer] = await netns.script<Answer[]>(requests([{ url: `http://${SERVICE_VIP}/`, headers: { host: 'web' } }]));
    assert.equal(answer?.status, 200);
    assert.ok(failures > 0);
  });
});

function resource(name: string, any: ReturnType<typeof httpListener>): never {
  return { name, resource: any, version: '' } as never;
}
