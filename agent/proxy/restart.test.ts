import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, it } from 'node:test';
import { logger } from '../../common/log.js';
import { envoyBinary } from '../../common/paths.js';
import { isRunning, processStartTime } from '../../common/process-id.js';
import { sleep, waitFor } from '../../common/retry.js';
import { typeUrl, pack } from '../../common/xds/any.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { Address } from '../../proto/generated/istio/workload/workload.js';
import { echoServer, requests, type TestNetns } from '../testing/netns.js';
import { ProxyWorld, SERVICE_CLUSTER, SERVICE_VIP } from '../testing/proxy-world.js';
import { routes, tcpListener } from '../testing/resources.js';
import { NodeProxy, type ProxyPod } from './node-proxy.js';
import { LDS, RDS } from './snapshot.js';

interface Answer {
  status: number;
  body: { server: string };
}

/** How often Envoy changed or was told anything. */
const UPDATES = '^(cluster_manager\\.(cluster_added|cluster_modified|cluster_removed|cds\\.update_success)|listener_manager\\.(listener_added|listener_modified|listener_removed|listener_in_place_updated|lds\\.update_success))$';

describe('NodeProxy over restarts', () => {
  const world = new ProxyWorld();
  let a: { pod: ProxyPod; netns: TestNetns };

  before(async () => {
    await world.start();
    a = await world.pod('pod-a');
    await a.netns.serve(echoServer(80));
    world.running.setPods([a.pod]);
    await world.ready(a.pod);
    await world.settled();
  });
  after(() => world.close());

  async function statuses(host = 'web'): Promise<number[]> {
    const answers = await a.netns.script<Answer[]>(requests([{ url: `http://${SERVICE_VIP}/`, headers: { host } }]));
    return answers.map((answer) => answer.status);
  }
  /** Whether anything answers a request for the one service there is. */
  async function reached(vip: string): Promise<boolean> {
    return a.netns.script<boolean>(`const s = require('net').connect(80, '${vip}', () => s.write('GET / HTTP/1.1\\r\\nhost: web\\r\\n\\r\\n')); const end = (is) => { console.log(is); process.exit(0); }; s.on('data', () => end(true)); s.on('error', () => end(false)); s.on('close', () => end(false));`);
  }
  async function podListeners(proxy: NodeProxy): Promise<string[]> {
    return (await proxy.envoy.admin.listeners()).map(({ name }) => name).filter((name) => name.startsWith('pod/'));
  }
  async function updates(proxy: NodeProxy): Promise<Record<string, number>> {
    return Object.fromEntries(await proxy.envoy.admin.stats(UPDATES));
  }

  it('keeps its sockets to root', () => {
    for (const name of ['ads.sock', 'envoy-admin.sock', 'envoy.json', 'envoy.log']) assert.equal(statSync(join(world.folder, 'run', name)).mode & 0o777, 0o600, name);
  });

  it('adopts the same Envoy, which is sent nothing that it has, and no request fails meanwhile', async () => {
    const { pid } = world.running.status().envoy;
    const earlier = await updates(world.running);
    // A client that calls all the while, over one connection and over new ones.
    const { failed } = await a.netns.load({ urls: [`http://${SERVICE_VIP}/`], host: 'web', kept: 1, anew: 1, pauseMs: 2 }, async () => {
      await world.running.stop({ keepEnvoy: true });
      await sleep(700);
      const proxy = await world.startProxy();
      assert.equal(proxy.status().envoy.adopted, true);
      assert.equal(proxy.status().envoy.pid, pid);
      await waitFor('Envoy to come back', () => proxy.status().envoy.connected);
      await sleep(300);
      // Its pods are not known yet: silence, rather than a snapshot without them.
      assert.deepEqual((await podListeners(proxy)), ['pod/pod-a/outbound']);
      proxy.setPods([a.pod]);
      await world.ready(a.pod);
      await world.settled();
      assert.deepEqual(await updates(proxy), earlier);
    });
    assert.deepEqual(failed, []);
  });

  it('an Envoy that connects before it is known to be taken over loses no listener by which a pod is called', async () => {
    const inbound = 'pod/pod-a/inbound';
    world.controlPlane.set(pack(Listener, { ...Listener.decode(tcpListener('0.0.0.0', 15006, SERVICE_CLUSTER).value), name: 'virtualInbound' }), 'virtualInbound');
    world.controlPlane.push(LDS);
    const redirected = { ...a.pod, redirected: true };
    world.running.setPods([redirected]);
    await waitFor('its inbound listener', async () => (await podListeners(world.running)).includes(inbound));
    await world.settled();
    const removed = async (proxy: NodeProxy): Promise<number | undefined> => (await updates(proxy))['listener_manager.listener_removed'];
    const earlier = await removed(world.running);
    await world.running.stop({ keepEnvoy: true });
    const next = world.newProxy();
    // As on a busy machine, where Envoy asks for its configuration sooner than it answers this.
    const { admin } = next.envoy;
    const ask = admin.serverInfo.bind(admin);
    let answer!: () => void;
    const late = new Promise<void>((resolve) => (answer = resolve));
    admin.serverInfo = async (...args) => {
      await late;
      return ask(...args);
    };
    // Its own listener is what keeps the port from being free.
    next.setPods([{ ...redirected, inboundPortFree: false }]);
    const started = next.start();
    await waitFor('Envoy and the control plane', () => next.status().envoy.connected && next.status().classes.every(({ synced }) => synced) && next.status().workloads.synced);
    await sleep(300);
    assert.deepEqual([(await podListeners(next)).includes(inbound), await removed(next)], [true, earlier]);
    answer();
    await started;
    await world.ready(redirected);
    await world.settled();
    assert.deepEqual([next.status().envoy.adopted, (await podListeners(next)).includes(inbound), await removed(next)], [true, true, earlier]);
    world.controlPlane.tables.get(LDS)!.delete('virtualInbound');
    world.controlPlane.push(LDS, ['virtualInbound']);
    next.setPods([a.pod]);
    await waitFor('its end', async () => !(await podListeners(next)).includes(inbound));
  });

  it('rolls out after an adoption what changed meanwhile, and takes away what is gone', async () => {
    const b = await world.pod('pod-b');
    const proxy = world.running;
    proxy.setPods([a.pod, b.pod]);
    await world.ready(b.pod);
    await proxy.stop({ keepEnvoy: true });
    world.controlPlane.set(routes(80, { web: SERVICE_CLUSTER, renamed: SERVICE_CLUSTER }), '80');
    const next = await world.startProxy();
    // The adopted Envoy has a listener that this process never heard of.
    assert.equal((await podListeners(next)).length, 2);
    const removed = next.whenRemoved('pod-b', AbortSignal.timeout(60_000));
    next.setPods([a.pod]);
    await removed;
    assert.equal((await podListeners(next)).length, 1);
    await world.settled();
    assert.deepEqual(await statuses('renamed'), [200]);
  });

  it('goes on after an adoption though one class has no answer, whose pods keep what they have', async () => {
    const b = await world.pod('pod-b2', { labels: { app: 'other' } });
    await b.netns.serve(echoServer(80));
    world.running.setPods([a.pod, b.pod]);
    await world.ready(b.pod);
    await world.settled();
    await world.running.stop({ keepEnvoy: true });
    rmSync(join(world.folder, 'run', 'xds-state.bin'));
    const answer = world.controlPlane.onRequest;
    world.controlPlane.onRequest = (stream, request) => (stream.nodeId.includes('~pod-b2.') ? undefined : answer(stream, request));
    world.controlPlane.set(routes(80, { web: SERVICE_CLUSTER, later: SERVICE_CLUSTER }), '80');
    const next = await world.startProxy({ staleAfterMs: 300 });
    next.setPods([a.pod, b.pod]);
    await waitFor('the change of the class that has an answer', async () => (await statuses('later'))[0] === 200);
    const ofB = async (): Promise<number[]> => (await b.netns.script<Answer[]>(requests([{ url: `http://${SERVICE_VIP}/`, headers: { host: 'web' } }]))).map((item) => item.status);
    assert.deepEqual(await ofB(), [200]);
    assert.deepEqual((await podListeners(next)).sort(), ['pod/pod-a/outbound', 'pod/pod-b2/outbound']);
    next.setPods([a.pod]);
    await next.whenRemoved('pod-b2', AbortSignal.timeout(60_000));
    assert.deepEqual(await podListeners(next), ['pod/pod-a/outbound']);
    world.controlPlane.onRequest = answer;
    await world.settled();
  });

  it('starts Envoy again when it dies, with all that it had', async () => {
    const { pid } = world.running.status().envoy;
    assert.ok(pid);
    process.kill(pid, 'SIGKILL');
    await waitFor('another Envoy', () => world.running.status().envoy.pid !== pid && world.running.status().envoy.connected);
    await world.ready(a.pod);
    assert.deepEqual(await statuses(), [200]);
    assert.equal(world.running.status().envoy.restarts, 1);
  });

  it('goes on without a control plane, and starts without one from the saved state', async () => {
    const proxy = world.running;
    // By its Host header it would be served; without a certificate for the way to its waypoint it is not.
    const waypoint = { destination: { $case: 'hostname' as const, value: { namespace: 'shop', hostname: 'wp.shop.svc' } }, hbone_mtls_port: 15_008 };
    const behind = (more: object): Any => pack(Address, Address.fromPartial({ type: { $case: 'service', value: { namespace: 'shop', hostname: 'behind.shop.svc', addresses: [{ address: Buffer.from([10, 96, 0, 66]) }], ports: [{ service_port: 80, target_port: 80 }], ...more } } }));
    assert.equal(await reached('10.96.0.66'), true);
    world.controlPlane.set(behind({ waypoint }), 'shop/behind.shop.svc');
    world.controlPlane.push(typeUrl(Address));
    await waitFor('the way to the waypoint to be the only one', async () => !(await reached('10.96.0.66')));
    await sleep(1_200); // the state is written a second after a change
    world.controlPlane.stop();
    await waitFor('the loss', () => !proxy.status().controlPlane.connected);
    assert.deepEqual(await statuses(), [200]);
    await proxy.stop({ keepEnvoy: false });
    const next = await world.startProxy({ staleAfterMs: 300 });
    assert.equal(next.status().envoy.adopted, false);
    next.setPods([a.pod]);
    await world.ready(a.pod);
    assert.deepEqual(await statuses(), [200]);
    assert.deepEqual(next.status().classes.map(({ synced, stale }) => ({ synced, stale })), [{ synced: false, stale: true }]);
    assert.equal(await reached('10.96.0.66'), false, 'what has a waypoint still has it');
    world.controlPlane.set(behind({}), 'shop/behind.shop.svc');
    // It is back: the streams find it by themselves, and changes arrive.
    world.controlPlane.set(routes(80, { web: SERVICE_CLUSTER, back: SERVICE_CLUSTER }), '80');
    await world.controlPlane.start();
    await waitFor('the control plane', async () => (await statuses('back'))[0] === 200, { everyMs: 100 });
    await waitFor('the service to have no waypoint any more', () => reached('10.96.0.66'));
    world.controlPlane.set(tcpListener('10.96.5.5', 9000, SERVICE_CLUSTER), '10.96.5.5_9000');
    world.controlPlane.push(LDS);
    world.controlPlane.push(RDS);
    await waitFor('a change', async () => JSON.stringify(await next.envoy.admin.configDump()).includes('10.96.5.5_9000'));
  });

  it('leaves Envoy running when the agent is killed, and the next agent adopts it', async () => {
    const proxy = world.running;
    await world.settled();
    const { pid } = proxy.status().envoy;
    await proxy.stop({ keepEnvoy: true });
    const options = { nodeName: 'node-1', runDir: join(world.folder, 'run'), discoveryAddress: world.controlPlane.address, envoyPath: envoyBinary(), concurrency: 1 };
    const script = join(import.meta.dirname, '..', 'testing', 'proxy-process.js');
    for (let round = 0; round < 2; round++) {
      const child = spawn(process.execPath, [script, JSON.stringify(options), JSON.stringify([a.pod])], { stdio: ['ignore', 'pipe', 'inherit'] });
      let line = '';
      for await (line of createInterface({ input: child.stdout })) if (line.startsWith('ready')) break;
      assert.equal(line, `ready ${pid} true`);
      assert.deepEqual(await statuses(), [200]);
      const ended = once(child, 'exit');
      child.kill('SIGKILL');
      await ended;
      assert.deepEqual(await statuses(), [200]);
    }
    const next = await world.startProxy();
    assert.deepEqual([next.status().envoy.pid, next.status().envoy.adopted], [pid, true]);
    next.setPods([a.pod]);
    await world.ready(a.pod);
  });

  it('starts a new Envoy when the one of the state file is another program', async () => {
    const proxy = world.running;
    await proxy.stop({ keepEnvoy: false });
    const me = { pid: process.pid, startTime: processStartTime(process.pid), binary: 'another', version: '' };
    writeFileSync(join(world.folder, 'run', 'envoy.state.json'), JSON.stringify(me));
    const next = await world.startProxy();
    assert.equal(next.status().envoy.adopted, false);
    next.setPods([a.pod]);
    await world.ready(a.pod);
    assert.deepEqual(await statuses(), [200]);
  });

  it('says why when Envoy can not be started', async () => {
    const broken = join(world.folder, 'no-envoy');
    writeFileSync(broken, '#!/bin/sh\necho no such luck >&2\nexit 3\n', { mode: 0o755 });
    const proxy = new NodeProxy({ nodeName: 'n', runDir: join(world.folder, 'broken'), discoveryAddress: world.controlPlane.address, envoyPath: broken, logger: logger('test') });
    await assert.rejects(proxy.start(), { code: 'UNDERPASS_ENVOY_START', message: /exit 3: no such luck/ });
  });

  it('ends Envoy when told to, and leaves no socket behind', async () => {
    const proxy = world.running;
    const { pid } = proxy.status().envoy;
    assert.ok(pid);
    const id = { pid, startTime: processStartTime(pid) ?? '' };
    assert.ok(isRunning(id));
    await proxy.stop({ keepEnvoy: false });
    assert.ok(!isRunning(id));
    world.proxy = undefined;
  });
});
