// The order of steps, with stand-ins that record them; test/agent-*.test.ts does the same with the real kernel and Envoy.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import type { PodRecord } from '../../common/lab-api.js';
import { Backoff, waitFor } from '../../common/retry.js';
import type { KernelPod, ListenerPod } from './collaborators.js';
import { Dataplane } from './dataplane.js';

const logger = pino({ level: 'silent' });
const NO_TUNNELS = { tunnelled: new Set<string>(), takingTunnels: new Set<string>() };

class World {
  steps: string[] = [];
  kernelPods = new Map<string, KernelPod>();
  /** Pods of which a call, also one that failed, left something in the kernel. */
  touched = new Set<string>();
  pins = new Set<string>();
  rules = new Map<string, 'active' | 'stopped'>();
  inbound = new Map<string, 'active' | 'stopped'>();
  listeners = new Map<string, ListenerPod>();
  ready = true;
  removable = true;
  outdated = false;
  /** A program of the pod's listens on port 15008. */
  taken = false;
  live = 0;
  redirected = 0;
  failPut: string | undefined;
  failRules: string | undefined;
  failState: string | undefined;
  failLabels: string | undefined;
  labels: Record<string, string> = {};
  annotations: Record<string, string> = {};
  /** The state of the rules when all that follows a withdrawn label at once was done. */
  inboundAfterWithdrawal: string | undefined;

  step(text: string): void {
    if (this.steps.at(-1) !== text) this.steps.push(text);
  }

  dataplane(options: { kernel?: boolean } = {}): Dataplane {
    const world = this;
    return new Dataplane({
      logger,
      defaults: { acceleration: 'l4', redirection: 'auto' },
      drainPollMs: 5,
      callersHearMs: 20,
      setMetadata: ({ uid }, { labels = {}, annotations = {} }) => {
        if (world.failLabels !== undefined) return Promise.reject(new Error(world.failLabels));
        for (const [what, said, values] of [['label', world.labels, labels], ['annotation', world.annotations, annotations]] as const) {
          for (const [key, value] of Object.entries(values)) {
            if (value === null) {
              delete said[key];
              setImmediate(() => (world.inboundAfterWithdrawal = world.inbound.get(`/pins/${uid}`)));
            } else said[key] = value;
            world.step(`${what} ${uid} ${key}=${value}`);
          }
        }
        return Promise.resolve();
      },
      readyTimeoutMs: 60,
      backoff: () => new Backoff({ initialMs: 5, maxMs: 20, factor: 2, jitter: 0 }),
      kernel:
        options.kernel === false
          ? undefined
          : {
              putPod(pod) {
                world.touched.add(pod.uid);
                if (world.failPut !== undefined) throw new Error(world.failPut);
                world.kernelPods.set(pod.uid, pod);
                world.step(`kernel ${pod.mode} capture=${pod.capture} redirected=${pod.redirected} ${pod.acceleration}`);
              },
              removePod(uid) {
                world.kernelPods.delete(uid);
                world.touched.delete(uid);
                world.step('kernel removed');
              },
              liveConnections: () => world.live,
              pods: () => [...world.kernelPods.values()],
            },
      proxy: {
        setPods(pods) {
          world.listeners = new Map(pods.map((pod) => [pod.uid, pod]));
          world.step(`listeners ${pods.length}`);
        },
        async whenReady(uid, signal) {
          await waitFor('ready', () => world.ready && world.listeners.has(uid), { timeoutMs: 1_000, everyMs: 2, signal });
          world.step('listener ready');
        },
        async whenRemoved(uid, signal) {
          await waitFor('removed', () => world.removable && !world.listeners.has(uid), { timeoutMs: 1_000, everyMs: 2, signal });
          world.step('listener removed');
        },
        activeConnections: () => Promise.resolve(0),
      },
      namespaces: {
        pin(uid) {
          world.pins.add(uid);
          world.step('pin');
          return `/pins/${uid}`;
        },
        unpin(uid) {
          world.pins.delete(uid);
          world.step('unpin');
        },
        pinned: () => [...world.pins],
        path: (uid) => `/pins/${uid}`,
        cookie: () => Promise.resolve(7n),
        hasListener: () => Promise.resolve(world.taken),
        capturedSockets: () => Promise.resolve({ total: world.redirected, redirected: world.redirected }),
        inboundRules: (path) => ({
          start() {
            world.inbound.set(path, 'active');
            world.step('inbound rules start');
            return Promise.resolve({ backend: 'nft', notes: [] });
          },
          stop() {
            world.inbound.set(path, 'stopped');
            world.step('inbound rules stop');
            return Promise.resolve();
          },
          remove() {
            world.inbound.delete(path);
            world.step('inbound rules remove');
            return Promise.resolve();
          },
          state: () => Promise.resolve({ active: world.inbound.get(path) === 'active', present: world.inbound.has(path), outdated: world.outdated }),
        }),
        rules: (path) => ({
          start() {
            if (world.failRules !== undefined) return Promise.reject(new Error(world.failRules));
            world.rules.set(path, 'active');
            world.step('rules start');
            return Promise.resolve({ backend: 'nft', notes: [] });
          },
          stop() {
            world.rules.set(path, 'stopped');
            world.step('rules stop');
            return Promise.resolve();
          },
          remove() {
            world.rules.delete(path);
            world.step('rules remove');
            return Promise.resolve();
          },
          state: () => world.failState !== undefined ? Promise.reject(new Error(world.failState)) : Promise.resolve({ active: world.rules.get(path) === 'active', present: world.rules.has(path) }),
        }),
      },
    });
  }
}

function pod(namespaceLabels: Record<string, string>, change: Partial<PodRecord> = {}): PodRecord {
  return {
    uid: 'u1', name: 'client', namespace: 'shop', labels: {}, annotations: {}, namespaceLabels, nodeName: 'n1',
    serviceAccount: 'default', ips: ['10.1.0.2'], netns: '/run/netns/x', cgroup: '/cg/x', hostNetwork: false,
    phase: 'Running', ready: true, terminating: false, hasSidecar: false, containers: [], ...change,
  };
}
const mode = (value: string, more: Record<string, string> = {}): Record<string, string> => ({ 'underpass.io/mode': value, ...more });
const settled = (plane: Dataplane): Promise<boolean> => waitFor('settled', () => plane.status().every((row) => row.settled), { timeoutMs: 2_000, everyMs: 2 });
const status = (plane: Dataplane) => plane.status()[0] ?? assert.fail('no pod');

async function started(world: World, pods: PodRecord[], options: { kernel?: boolean; bpfProblem?: string } = {}): Promise<Dataplane> {
  const plane = world.dataplane(options);
  await plane.adopt(pods);
  world.steps = [];
  plane.start({ bpfProblem: options.bpfProblem });
  await settled(plane);
  return plane;
}

test('Dataplane: enrolling pins, waits for the listener, then captures; leaving goes the other way round', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  assert.deepEqual(world.steps, ['pin', 'listeners 1', 'listener ready', 'kernel node capture=true redirected=false l4']);
  assert.equal(status(plane).state, 'enrolled');
  assert.equal(status(plane).way, 'bpf');
  assert.equal(world.kernelPods.get('u1')?.netnsCookie, 7n);
  world.steps = [];
  world.live = 2;
  plane.setPods([pod(mode('off'))]);
  await waitFor('draining', () => status(plane).drainingConnections === 2, { timeoutMs: 1_000, everyMs: 2 });
  assert.deepEqual(world.steps, ['kernel node capture=false redirected=false off'], 'hooks, listener and pin stay while connections live');
  assert.equal(status(plane).way, 'plain');
  world.live = 0;
  await settled(plane);
  assert.deepEqual(world.steps, ['kernel node capture=false redirected=false off', 'listeners 0', 'listener removed', 'kernel removed', 'unpin']);
  assert.equal(status(plane).state, 'off');
  await plane.stop();
});

test('Dataplane: back to node while draining captures again without taking anything down', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  world.live = 1;
  plane.setPods([pod({})]);
  await waitFor('draining', () => status(plane).state === 'draining', { timeoutMs: 1_000, everyMs: 2 });
  world.steps = [];
  plane.setPods([pod(mode('node'))]);
  await settled(plane);
  assert.deepEqual(world.steps, ['pin', 'listener ready', 'kernel node capture=true redirected=false l4']);
  await plane.stop();
});

test('Dataplane: the new redirection is up before the old one is taken down, and rules wait for their connections', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  world.steps = [];
  plane.setPods([pod(mode('node', { 'underpass.io/redirection': 'iptables' }))]);
  await settled(plane);
  assert.deepEqual(world.steps, ['pin', 'listeners 1', 'listener ready', 'rules start', 'kernel node capture=false redirected=true l4']);
  assert.equal(status(plane).way, 'iptables');
  world.steps = [];
  world.redirected = 3;
  plane.setPods([pod(mode('node'))]);
  await waitFor('bpf', () => status(plane).drainingConnections === 3, { timeoutMs: 1_000, everyMs: 2 });
  assert.equal(status(plane).way, 'bpf');
  assert.deepEqual(world.steps.slice(0, 4), ['pin', 'listener ready', 'kernel node capture=true redirected=false l4', 'rules stop']);
  assert.equal(world.steps.includes('rules remove'), false);
  world.redirected = 0;
  await settled(plane);
  assert.ok(world.steps.includes('rules remove'));
  assert.deepEqual([...world.rules], []);
  await plane.stop();
});

test('Dataplane: acceleration changes alone touch the kernel only', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  world.steps = [];
  plane.setPods([pod(mode('node', { 'underpass.io/acceleration': 'off' }))]);
  await settled(plane);
  assert.deepEqual(world.steps, ['pin', 'listener ready', 'kernel node capture=true redirected=false off']);
  await plane.stop();
});

test('Dataplane: no capture before Envoy is ready; the reason is shown and it is tried again', async () => {
  const world = new World();
  world.ready = false;
  const plane = world.dataplane();
  await plane.adopt([pod(mode('node'))]);
  plane.start({ bpfProblem: undefined });
  await waitFor('failure', () => status(plane).state === 'failed', { timeoutMs: 2_000, everyMs: 2 });
  assert.match(status(plane).error ?? '', /Envoy did not acknowledge/);
  assert.equal(world.kernelPods.size, 0);
  assert.equal(status(plane).way, 'plain');
  world.ready = true;
  await settled(plane);
  assert.equal(status(plane).way, 'bpf');
  assert.equal(status(plane).error, undefined);
  await plane.stop();
});

test('Dataplane: a failing step leaves the pod on the way it had', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  world.failRules = 'no iptables here';
  plane.setPods([pod(mode('node', { 'underpass.io/redirection': 'iptables' }))]);
  await waitFor('failure', () => status(plane).state === 'failed', { timeoutMs: 2_000, everyMs: 2 });
  assert.equal(status(plane).way, 'bpf');
  assert.equal(world.kernelPods.get('u1')?.capture, true);
  assert.match(status(plane).error ?? '', /no iptables here/);
  plane.setPods([pod(mode('node'))]);
  await settled(plane);
  assert.equal(status(plane).state, 'enrolled');
  await plane.stop();
});

test('Dataplane: without a usable kernel auto means iptables, with the reason; sidecar pods keep their own way', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node')), pod(mode('sidecar'), { uid: 'u2', name: 'server', hasSidecar: true })], { kernel: false, bpfProblem: 'there is no BPF' });
  const [client, server] = plane.status();
  assert.equal(client?.way, 'iptables');
  assert.match(client?.reason ?? '', /iptables, since there is no BPF/);
  assert.equal(server?.mode, 'off');
  assert.match(server?.reason ?? '', /no BPF/);
  await plane.stop();
});

test('Dataplane: a pod with a sidecar gets hooks but no listener', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('sidecar'), { hasSidecar: true })]);
  assert.deepEqual(world.steps, ['kernel sidecar capture=true redirected=false l4']);
  world.steps = [];
  plane.setPods([pod({}, { hasSidecar: true })]);
  await settled(plane);
  assert.deepEqual(world.steps, ['kernel sidecar capture=false redirected=false off', 'kernel removed']);
  await plane.stop();
});

test('Dataplane: a pod that is gone is buried without waiting for connections, its pin last', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  world.steps = [];
  world.live = 5;
  plane.setPods([]);
  await waitFor('unpinned', () => world.pins.size === 0, { timeoutMs: 1_000, everyMs: 2 });
  assert.deepEqual(world.steps, ['kernel removed', 'listeners 0', 'listener removed', 'unpin']);
  await plane.stop();
});

test('Dataplane: the pin stays while Envoy has not acknowledged that the listener is gone', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  world.removable = false;
  plane.setPods([]);
  await new Promise((resolve) => setTimeout(resolve, 150));
  assert.equal(world.pins.size, 1);
  world.removable = true;
  await waitFor('unpinned', () => world.pins.size === 0, { timeoutMs: 1_000, everyMs: 2 });
  await plane.stop();
});

test('Dataplane: a restart takes over what is in place, without a step that a connection could notice', async () => {
  const world = new World();
  const first = await started(world, [pod(mode('node')), pod(mode('node', { 'underpass.io/redirection': 'iptables' }), { uid: 'u2', name: 'other' }), pod(mode('node'), { uid: 'u3', name: 'third' })]);
  await first.stop();
  world.steps = [];
  world.listeners = new Map();
  const second = world.dataplane();
  await second.adopt([pod(mode('node')), pod(mode('node', { 'underpass.io/redirection': 'iptables' }), { uid: 'u2', name: 'other' })]);
  assert.deepEqual(world.steps, ['listeners 2'], 'the proxy knows what has to stay before it speaks to Envoy');
  assert.deepEqual([...world.listeners.values()].map(({ uid, iptables }) => [uid, iptables]), [['u1', false], ['u2', true]]);
  second.start({ bpfProblem: undefined });
  await settled(second);
  await waitFor('the third pod to be buried', () => !world.pins.has('u3'), { timeoutMs: 1_000, everyMs: 2 });
  assert.equal(world.steps.some((step) => step.startsWith('rules') || step.includes('capture=false redirected=false')), false, world.steps.join(', '));
  assert.deepEqual(second.status().map(({ uid, way, state }) => [uid, way, state]), [['u1', 'bpf', 'enrolled'], ['u2', 'iptables', 'enrolled']]);
  assert.deepEqual([...world.kernelPods.keys()].sort(), ['u1', 'u2']);
  await second.stop();
});

test('Dataplane: a pod that the kernel refuses is redirected by iptables, with the reason, and tried again when its labels change', async () => {
  const world = new World();
  world.failPut = 'attaching connect4: EPERM';
  const plane = await started(world, [pod(mode('node'))]);
  assert.deepEqual([status(plane).way, status(plane).state], ['iptables', 'enrolled']);
  assert.match(status(plane).reason ?? '', /redirected by iptables, since the kernel refuses this pod: attaching connect4: EPERM/);
  assert.deepEqual([...world.touched], [], 'what the refused call left is removed');
  world.failPut = undefined;
  plane.setPods([pod(mode('node', { 'underpass.io/acceleration': 'off' }))]);
  await settled(plane);
  assert.deepEqual([status(plane).way, status(plane).reason], ['bpf', undefined]);
  assert.deepEqual([...world.rules], []);
  await plane.stop();
});

test('Dataplane: a refused pod with a sidecar is left to its own rules; one that asks for bpf is tried again for ever', async () => {
  const world = new World();
  world.failPut = 'E2BIG';
  const asked = pod(mode('node', { 'underpass.io/redirection': 'bpf' }), { uid: 'u2', name: 'strict' });
  const plane = world.dataplane();
  await plane.adopt([pod(mode('sidecar'), { hasSidecar: true }), asked]);
  plane.start({ bpfProblem: undefined });
  await waitFor('the verdicts', () => plane.status().some((row) => row.settled) && plane.status().some((row) => row.state === 'failed'), { timeoutMs: 2_000, everyMs: 2 });
  const [left, strict] = plane.status();
  assert.match(left?.reason ?? '', /left to its sidecar's own iptables rules, since the kernel refuses this pod: E2BIG/);
  assert.deepEqual([left?.state, strict?.state, strict?.error, strict?.way], ['off', 'failed', 'E2BIG', 'plain']);
  world.failPut = undefined;
  await waitFor('the kernel to take it', () => plane.status()[1]?.way === 'bpf', { timeoutMs: 2_000, everyMs: 2 });
  await plane.stop();
});

for (const end of ['leaves', 'is gone'] as const) {
  test(`Dataplane: what a failed call left in the kernel is removed when the pod ${end}`, async () => {
    const world = new World();
    world.failPut = 'EPERM';
    const plane = world.dataplane();
    const labels = { 'underpass.io/redirection': 'bpf' };
    await plane.adopt([pod(mode('node', labels))]);
    plane.start({ bpfProblem: undefined });
    await waitFor('failure', () => status(plane).state === 'failed', { timeoutMs: 2_000, everyMs: 2 });
    assert.deepEqual([...world.touched], ['u1']);
    plane.setPods(end === 'leaves' ? [pod(mode('off', labels))] : []);
    await waitFor('the pin to go', () => world.pins.size === 0, { timeoutMs: 2_000, everyMs: 2 });
    assert.deepEqual([...world.touched], []);
    await plane.stop();
  });
}

test('Dataplane: hooks that can not be switched off are removed, so that a pod can leave', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  world.failPut = 'EPERM';
  plane.setPods([pod(mode('off'))]);
  await settled(plane);
  assert.deepEqual([status(plane).state, [...world.touched], world.pins.size], ['off', [], 0]);
  await plane.stop();
});

test('Dataplane: rules that can not be read at adoption count as there: leaving removes them, staying makes them', async () => {
  for (const next of ['off', 'node'] as const) {
    const world = new World();
    const labels = mode('node', { 'underpass.io/redirection': 'iptables' });
    const first = await started(world, [pod(labels)]);
    await first.stop();
    world.failState = 'iptables-save: time-out';
    const second = world.dataplane();
    await second.adopt([pod(labels)]);
    world.steps = [];
    second.start({ bpfProblem: undefined });
    second.setPods([pod(next === 'off' ? mode('off') : labels)]);
    await settled(second);
    if (next === 'off') {
      assert.deepEqual([...world.rules], []);
      assert.ok(world.steps.indexOf('rules stop') < world.steps.indexOf('listeners 0'), world.steps.join(', '));
    } else assert.ok(world.steps.includes('rules start'), world.steps.join(', '));
    await second.stop();
  }
});

test('Dataplane: the rules of a pod that is gone are stopped before its listener goes', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node', { 'underpass.io/redirection': 'iptables' }))]);
  world.steps = [];
  plane.setPods([]);
  await waitFor('the pin to go', () => world.pins.size === 0, { timeoutMs: 2_000, everyMs: 2 });
  assert.deepEqual(world.steps, ['rules stop', 'kernel removed', 'listeners 0', 'listener removed', 'unpin']);
  await plane.stop();
});

test('Dataplane: a pod that leaves its sidecar\'s hooks says what it waits for', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('sidecar'), { hasSidecar: true })]);
  world.live = 4;
  plane.setPods([pod(mode('off'), { hasSidecar: true })]);
  await waitFor('draining', () => status(plane).drainingConnections === 4, { timeoutMs: 1_000, everyMs: 2 });
  assert.match(status(plane).reason ?? '', /^its sidecar keeps 4 upstream connections in its pools/);
  plane.setPods([pod(mode('node'), { hasSidecar: true })]);
  assert.match(status(plane).reason ?? '', /sidecar of its own.*; its sidecar keeps 4 upstream connections/, 'one reason does not hide the other');
  plane.setPods([pod(mode('off'), { hasSidecar: true })]);
  world.live = 0;
  await settled(plane);
  assert.equal(status(plane).reason, undefined);
  await plane.stop();
});

test('Dataplane: callers of a pod pass its policy once its listener is there, and until it is known that none is left', async () => {
  const world = new World();
  const plane = world.dataplane();
  plane.start({ bpfProblem: undefined });
  plane.setPods([pod(mode('node'))]);
  await settled(plane);
  const [none, wanted, uid] = [new Set<string>(), new Set(['u1']), 'u1'];
  plane.setInbound({ ...NO_TUNNELS, wanted, ready: none, certified: undefined });
  await settled(plane);
  assert.equal(world.inbound.size, 0);
  plane.setInbound({ ...NO_TUNNELS, wanted, ready: wanted, certified: undefined });
  await settled(plane);
  assert.equal(world.inbound.get('/pins/u1'), 'active');
  assert.equal(world.listeners.get(uid)?.redirected, true);
  plane.setInbound({ ...NO_TUNNELS, wanted, ready: none, certified: undefined });
  await settled(plane);
  assert.equal(world.inbound.get('/pins/u1'), 'active');
  plane.setInbound({ ...NO_TUNNELS, wanted: none, ready: none, certified: undefined });
  await settled(plane);
  assert.equal(world.inbound.get('/pins/u1'), 'stopped');
  assert.equal(world.listeners.get(uid)?.redirected, true, 'connections that were redirected keep their listener');
  plane.setPods([pod(mode('off'))]);
  await settled(plane);
  assert.equal(world.inbound.size, 0);
  await plane.stop();
});

const TLS_MODE = 'security.istio.io/tlsMode';

test('Dataplane: callers are told of mutual TLS when it can be had, and that it is over before it is', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  const seen = async (): Promise<void> => {
    plane.setPods([pod(mode('node'), { labels: { ...world.labels } })]);
    await settled(plane);
  };
  await settled(plane);
  const [none, own] = [new Set<string>(), new Set(['u1'])];
  world.steps = [];
  plane.setInbound({ ...NO_TUNNELS, wanted: own, ready: own, certified: none });
  await seen();
  const said = (): string[] => world.steps.filter((step) => /label|inbound/.test(step));
  assert.deepEqual([said(), world.labels], [['inbound rules start'], {}]);
  plane.setInbound({ ...NO_TUNNELS, wanted: own, ready: own, certified: own });
  await seen();
  assert.deepEqual([world.steps.at(-1), world.labels], [`label u1 ${TLS_MODE}=istio`, { [TLS_MODE]: 'istio' }]);
  await seen();
  // An agent that has just started has not given Envoy its certificate yet; the one of before is there.
  plane.setInbound({ ...NO_TUNNELS, wanted: own, ready: own, certified: none });
  await seen();
  assert.deepEqual(world.labels, { [TLS_MODE]: 'istio' });
  world.steps = [];
  plane.setInbound({ ...NO_TUNNELS, wanted: none, ready: none, certified: none });
  await seen();
  assert.deepEqual([said(), world.inbound.get('/pins/u1')], [[`label u1 ${TLS_MODE}=null`, 'inbound rules stop'], 'stopped']);
  assert.equal(world.inboundAfterWithdrawal, 'active', 'callers have time to hear of it');
  await plane.stop();
});

test('Dataplane: mutual TLS that is over before its own label was seen is taken back all the same', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  const [none, own] = [new Set<string>(), new Set(['u1'])];
  await settled(plane);
  plane.setInbound({ ...NO_TUNNELS, wanted: own, ready: own, certified: own });
  await settled(plane);
  assert.deepEqual(world.labels, { [TLS_MODE]: 'istio' });
  plane.setInbound({ ...NO_TUNNELS, wanted: none, ready: none, certified: none });
  await settled(plane);
  assert.deepEqual([world.labels, world.inbound.get('/pins/u1')], [{}, 'stopped']);
  assert.equal(world.inboundAfterWithdrawal, 'active', 'callers have time to hear of it');
  await plane.stop();
});

test('Dataplane: a pod that leaves says first that it takes no mutual TLS any more', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  const own = new Set(['u1']);
  await settled(plane);
  plane.setInbound({ ...NO_TUNNELS, wanted: own, ready: own, certified: own });
  await settled(plane);
  plane.setPods([pod(mode('node'), { labels: { ...world.labels } })]);
  await settled(plane);
  world.steps = [];
  plane.setPods([pod(mode('off'), { labels: { ...world.labels } })]);
  await settled(plane);
  assert.deepEqual(world.steps.filter((step) => /label|inbound|listener removed/.test(step)), [`label u1 ${TLS_MODE}=null`, 'inbound rules stop', 'listener removed', 'inbound rules remove']);
  assert.equal(world.inboundAfterWithdrawal, 'active', 'callers have time to hear of it');
  await plane.stop();
});

test('Dataplane: while a label can not be set callers go on as they do, and it is tried again', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  const own = new Set(['u1']);
  await settled(plane);
  world.failLabels = 'no API server';
  plane.setInbound({ ...NO_TUNNELS, wanted: own, ready: own, certified: own });
  await waitFor('the rules', () => world.inbound.get('/pins/u1') === 'active', { timeoutMs: 2_000, everyMs: 2 });
  assert.equal(status(plane).state, 'enrolled');
  world.failLabels = undefined;
  await settled(plane);
  assert.deepEqual(world.labels, { [TLS_MODE]: 'istio' });
  await plane.stop();
});

test('Dataplane: an agent that takes over leaves policies in force until it has heard of them', async () => {
  const world = new World();
  world.pins.add('u1');
  world.inbound.set('/pins/u1', 'active');
  const plane = world.dataplane();
  await plane.adopt([pod(mode('node'))]);
  assert.equal(world.listeners.get('u1')?.redirected, true);
  plane.start({ bpfProblem: undefined });
  await settled(plane);
  assert.equal(world.inbound.get('/pins/u1'), 'active');
  await plane.stop();
});

const REDIRECTION = 'ambient.istio.io/redirection';

test('Dataplane: callers are told of HBONE when it ends here, and that it is over before the pod leaves its listener', async () => {
  const world = new World();
  const said = (): string[] => world.steps.filter((step) => /annotation|listener removed|unpin/.test(step));
  const asSeen = (value: string): PodRecord => pod(mode(value), { annotations: { ...world.annotations } });
  const plane = await started(world, [pod(mode('node'))]);
  const [none, own] = [new Set<string>(), new Set(['u1'])];
  const policy = { wanted: none, ready: none, certified: none };
  await settled(plane);
  plane.setInbound({ ...policy, tunnelled: own, takingTunnels: none });
  await settled(plane);
  assert.deepEqual(said(), []);
  plane.setInbound({ ...policy, tunnelled: own, takingTunnels: own });
  await settled(plane);
  assert.deepEqual([said(), world.annotations], [[`annotation u1 ${REDIRECTION}=enabled`], { [REDIRECTION]: 'enabled' }]);
  // An agent that has just started has not heard what its Envoy has.
  plane.setPods([asSeen('node')]);
  plane.setInbound({ ...policy, tunnelled: own, takingTunnels: none });
  await settled(plane);
  assert.deepEqual(world.annotations, { [REDIRECTION]: 'enabled' });
  world.steps = [];
  plane.setPods([asSeen('off')]);
  await waitFor('the word', () => world.annotations[REDIRECTION] === undefined, { timeoutMs: 2_000, everyMs: 1 });
  assert.ok(world.listeners.has('u1'), 'callers have time to hear of it');
  plane.setPods([asSeen('off')]);
  await settled(plane);
  assert.deepEqual(said(), [`annotation u1 ${REDIRECTION}=null`, 'listener removed', 'unpin']);
  await plane.stop();
});

test('Dataplane: what somebody else said of a pod that was never enrolled stays', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('off'), { annotations: { [REDIRECTION]: 'enabled' } })]);
  plane.setInbound({ wanted: new Set(), ready: new Set(), certified: undefined, ...NO_TUNNELS });
  await settled(plane);
  assert.deepEqual(world.steps, []);
  await plane.stop();
});

test('Dataplane: redirection that another version set up is made anew', async () => {
  const world = new World();
  world.pins.add('u1');
  world.inbound.set('/pins/u1', 'active');
  world.outdated = true;
  const plane = world.dataplane();
  await plane.adopt([pod(mode('node'))]);
  const own = new Set(['u1']);
  plane.start({ bpfProblem: undefined });
  plane.setInbound({ wanted: own, ready: own, certified: undefined, ...NO_TUNNELS });
  await settled(plane);
  assert.deepEqual(world.steps.filter((step) => step.startsWith('inbound')), ['inbound rules start']);
  await plane.stop();
});

test('Dataplane: where a program of the pod has the port of HBONE, the proxy is told before it tries to have it too', async () => {
  for (const taken of [true, false]) {
    const world = new World();
    world.taken = taken;
    const plane = await started(world, [pod(mode('node'))]);
    plane.setInbound({ wanted: new Set(), ready: new Set(), certified: undefined, ...NO_TUNNELS });
    await settled(plane);
    assert.equal(world.listeners.get('u1')?.hbonePortFree, !taken);
    assert.deepEqual(status(plane).notes, taken ? ["takes no HBONE, since port 15008 is a program's of its own"] : []);
    await plane.stop();
  }
});
