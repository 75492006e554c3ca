// The order of steps, with stand-ins that record them; test/agent-*.test.ts does the same with the real kernel and Envoy.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { waitFor } from '../../common/retry.js';
import { World, mode, pod, settled, started, status } from './dataplane-testing.js';

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
  await waitFor('draining', () => status(plane).drainingConnections === 2, { everyMs: 2 });
  assert.deepEqual(world.steps, ['kernel node capture=false redirected=false off'], 'hooks, listener and pin stay while connections live');
  assert.equal(status(plane).way, 'plain');
  world.live = 0;
  await settled(plane);
  assert.deepEqual(world.steps, ['kernel node capture=false redirected=false off', 'listeners 0', 'listener removed', 'kernel removed', 'unpin']);
  assert.equal(status(plane).state, 'off');
  await plane.stop();
});

test('Dataplane: a pod comes into the mesh when its policies are known, says what it waits for, and one that is in it goes on', async () => {
  const world = new World();
  world.policiesKnown = false;
  const plane = world.dataplane();
  await plane.adopt([pod(mode('node'))]);
  plane.start({ bpfProblem: undefined });
  await waitFor('the reason', () => status(plane).error !== undefined, { everyMs: 2 });
  assert.match(status(plane).error ?? '', /stays outside of the mesh: the control plane did not say which policies hold for it/);
  assert.deepEqual([status(plane).way, world.kernelPods.size], ['plain', 0]);
  world.policiesKnown = true;
  await settled(plane);
  assert.deepEqual([status(plane).way, status(plane).error], ['bpf', undefined]);
  world.policiesKnown = false;
  plane.setPods([pod(mode('node', { 'underpass.io/acceleration': 'off' }))]);
  await settled(plane);
  assert.equal(world.kernelPods.get('u1')?.acceleration, 'off');
  await plane.stop();
});

test('Dataplane: back to node while draining captures again without taking anything down', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('node'))]);
  world.live = 1;
  plane.setPods([pod({})]);
  await waitFor('draining', () => status(plane).state === 'draining', { everyMs: 2 });
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
  await waitFor('bpf', () => status(plane).drainingConnections === 3, { everyMs: 2 });
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
  await waitFor('failure', () => status(plane).state === 'failed', { everyMs: 2 });
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
  await waitFor('failure', () => status(plane).state === 'failed', { everyMs: 2 });
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
  await waitFor('unpinned', () => world.pins.size === 0, { everyMs: 2 });
  assert.deepEqual(world.steps, ['connections closed', 'kernel removed', 'listeners 0', 'listener removed', 'connections closed', 'unpin']);
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
  await waitFor('unpinned', () => world.pins.size === 0, { everyMs: 2 });
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
  await waitFor('the third pod to be buried', () => !world.pins.has('u3'), { everyMs: 2 });
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
  await waitFor('the verdicts', () => plane.status().some((row) => row.settled) && plane.status().some((row) => row.state === 'failed'), { everyMs: 2 });
  const [left, strict] = plane.status();
  assert.match(left?.reason ?? '', /left to its sidecar's own iptables rules, since the kernel refuses this pod: E2BIG/);
  assert.deepEqual([left?.state, strict?.state, strict?.error, strict?.way], ['off', 'failed', 'E2BIG', 'plain']);
  world.failPut = undefined;
  await waitFor('the kernel to take it', () => plane.status()[1]?.way === 'bpf', { everyMs: 2 });
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
    await waitFor('failure', () => status(plane).state === 'failed', { everyMs: 2 });
    assert.deepEqual([...world.touched], ['u1']);
    plane.setPods(end === 'leaves' ? [pod(mode('off', labels))] : []);
    await waitFor('the pin to go', () => world.pins.size === 0, { everyMs: 2 });
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
  await waitFor('the pin to go', () => world.pins.size === 0, { everyMs: 2 });
  assert.deepEqual(world.steps, ['connections closed', 'rules stop', 'kernel removed', 'listeners 0', 'listener removed', 'connections closed', 'unpin']);
  await plane.stop();
});

test('Dataplane: a pod that leaves its sidecar\'s hooks says what it waits for', async () => {
  const world = new World();
  const plane = await started(world, [pod(mode('sidecar'), { hasSidecar: true })]);
  world.live = 4;
  plane.setPods([pod(mode('off'), { hasSidecar: true })]);
  await waitFor('draining', () => status(plane).drainingConnections === 4, { everyMs: 2 });
  assert.match(status(plane).reason ?? '', /^its sidecar keeps 4 upstream connections in its pools/);
  plane.setPods([pod(mode('node'), { hasSidecar: true })]);
  assert.match(status(plane).reason ?? '', /sidecar of its own.*; its sidecar keeps 4 upstream connections/, 'one reason does not hide the other');
  plane.setPods([pod(mode('off'), { hasSidecar: true })]);
  world.live = 0;
  await settled(plane);
  assert.equal(status(plane).reason, undefined);
  await plane.stop();
});
