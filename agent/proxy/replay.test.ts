import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { envoyBinary } from '../../common/paths.js';
import { rootLogger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { TestControlPlane } from '../testing/control-plane.js';
import { echoServer, requests, TestNetns } from '../testing/netns.js';
import { Recording } from '../testing/recording.js';
import type { Teaching } from '../http/names.js';
import { NodeProxy, type ProxyPod } from './node-proxy.js';

/** The recording's addresses: the service, its first two pods, and the one that step 5 adds. */
const SERVICE_ADDRESS = '10.96.62.1';
const V1 = '10.244.1.66';
const V2 = '10.244.2.67';
const V2_NEW = '10.244.2.102';

interface Answer {
  status: number;
  body: { server: string; client: string; headers: Record<string, string> };
}

/** With a class for every route. */
const teaching: Teaching = { versionOf: () => '1', headers: { weight: 'x-w', endpoint: 'x-e', other: 'x-o' }, of: () => () => '0000000100000001' };

for (const taught of [false, true]) describe(`replay of canary through the agent into Envoy${taught ? ', for a pod that the kernel learns from' : ''}`, () => {
  const recording = Recording.open('canary');
  assert.ok(recording);
  const session = recording.sidecars[0];
  assert.ok(session);
  const folder = mkdtempSync(join(tmpdir(), 'up-proxy-'));
  const controlPlane = new TestControlPlane(`unix:${join(folder, 'xds.sock')}`);
  const play = controlPlane.play(recording, (node) => recording.sidecars.find((item) => item.node === node));
  let netns: TestNetns;
  let proxy: NodeProxy;
  let pod: ProxyPod;

  before(async () => {
    netns = await TestNetns.create();
    // The recorded endpoints become addresses of a real server in the pod's namespace.
    for (const address of [V1, V2, V2_NEW]) await netns.ip('addr', 'add', `${address}/32`, 'dev', 'lo');
    await netns.serve(echoServer(80));
    await netns.redirect('10.96.0.0/16');
    await controlPlane.start();
    pod = {
      uid: 'b2f1', name: session.metadata.NAME, namespace: session.metadata.NAMESPACE, labels: session.metadata.LABELS, annotations: {},
      serviceAccount: session.metadata.SERVICE_ACCOUNT, ips: ['10.244.1.70'], netnsPath: netns.path, iptables: true, ...(taught ? { taught: { netnsCookie: 5n } } : {}),
    };
    proxy = new NodeProxy({ nodeName: 'node-1', runDir: join(folder, 'run'), discoveryAddress: controlPlane.address, envoyPath: envoyBinary(), concurrency: 1, logger: rootLogger, ...(taught ? { fastPath: { tables: { ...teaching, table: () => undefined, renew: () => undefined }, repeater: { suspend: () => undefined, repeat: () => undefined } } } : {}) });
    await proxy.start();
    // Its endpoints are the pod's own, so that they are of this node.
    if (taught) {
      pod.ips.push(V1, V2, V2_NEW);
      proxy.setEventDriven(new Set([V1, V2].map((address) => `${address}:80`)));
    }
    proxy.setPods([pod]);
  });

  after(async () => {
    await proxy?.stop({ keepEnvoy: false });
    controlPlane.stop();
    await netns?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  /** How often each server answered `count` requests. */
  async function call(count: number, headers: Record<string, string> = {}): Promise<Record<string, number>> {
    const list = Array.from({ length: count }, () => ({ url: `http://${SERVICE_ADDRESS}/`, headers: { host: 'canary', ...headers } }));
    const answers = await netns.script<Answer[]>(requests(list));
    const shares: Record<string, number> = {};
    for (const { status, body } of answers) {
      assert.equal(status, 200, JSON.stringify(body));
      assert.ok(body.headers['x-envoy-attempt-count'], 'answered through Envoy');
      shares[body.server] = (shares[body.server] ?? 0) + 1;
    }
    return shares;
  }

  /** What a server is told of 5 requests with this draw. */
  async function drawn(draw: Record<string, string>): Promise<string[]> {
    const answers = await netns.script<Answer[]>(requests(Array.from({ length: 5 }, () => ({ url: `http://${SERVICE_ADDRESS}/`, headers: { host: 'canary', ...draw } }))));
    for (const { body } of answers) assert.deepEqual(Object.keys(body.headers).filter((name) => /^x-[weo]$/.test(name)), []);
    return [...new Set(answers.map(({ status, body }) => `${status} ${body.server} ${(body.headers['x-underpass-lesson'] ?? '').replace(/\d+$/, 'PORT')}`))];
  }

  it('takes every step without a NACK on either side, and routes as that step says', async () => {
    const routed: Record<number, () => Promise<void>> = {
      0: async () => assert.deepEqual(Object.keys(await call(40)).sort(), [V1, V2]),
      1: async () => assert.deepEqual(Object.keys(await call(40)).sort(), [V1, V2]),
      2: async () => {
        assert.deepEqual(await call(20, { user: 'jesse' }), { [V2]: 20 });
        assert.deepEqual(await call(20, { user: 'other' }), { [V1]: 20 });
      },
      3: async () => {
        const { [V1]: first = 0, [V2]: second = 0 } = await call(400);
        assert.ok(first > 260 && second > 60, `75/25 gave ${first}/${second}`);
        if (!taught) return;
        const lesson = '0000000100000001-0000000000000005-PORT';
        assert.deepEqual(await drawn({ 'x-w': '75', 'x-e': `${V2}:80` }), [`200 ${V2} ${lesson}`]);
        assert.deepEqual(await drawn({ 'x-w': '74', 'x-e': `${V1}:80` }), [`200 ${V1} ${lesson}`]);
        assert.deepEqual(await drawn({ 'x-w': '75', 'x-o': `${V2}:80` }), [`200 ${V2} `]);
      },
      4: async () => {
        const { [V1]: first = 0, [V2]: second = 0 } = await call(400);
        assert.ok(first > 150 && second > 150, `50/50 gave ${first}/${second}`);
      },
      5: async () => assert.deepEqual(Object.keys(await call(100)).sort(), [V1, V2_NEW, V2]),
      6: async () => assert.deepEqual(Object.keys(await call(100)).sort(), [V1, V2_NEW, V2]),
    };
    for (const { step, desc } of recording.steps) {
      await play(step);
      if (step === 0) await proxy.whenReady(pod.uid, AbortSignal.timeout(60_000));
      await waitFor('the step to reach Envoy', () => proxy.settled, { everyMs: 5 });
      const check = routed[step];
      assert.ok(check, `step ${step} (${desc}) is checked`);
      await check();
    }
    assert.deepEqual(controlPlane.streams.flatMap((stream) => stream.nacks), []);
    assert.deepEqual(proxy.status().nacks, []);
    const rejected = await proxy.envoy.admin.stats('update_rejected$');
    assert.deepEqual([...rejected].filter(([, value]) => value > 0), []);
    // What the recording deleted is gone from Envoy too.
    const clusters = await proxy.envoy.admin.get('/clusters');
    assert.ok(clusters.includes('outbound|80||canary.canary') && !clusters.includes('outbound|80|v1|'));
  });
});
