/** What comes to a pod of the node: through its policy, by mutual TLS and by HBONE, and in which order that begins and ends. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { PodRecord } from '../../common/lab-api.js';
import { waitFor } from '../../common/retry.js';
import { NO_TUNNELS, World, mode, pod, settled, started, status } from './dataplane-testing.js';

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

test('Dataplane: where the kernel can, callers are steered and no rule is made; a former agent\'s rules end once they are', async () => {
  const world = new World();
  world.steered = new Set();
  world.pins.add('u1');
  world.inbound.set('/pins/u1', 'active');
  const plane = await started(world, [pod(mode('node'))]);
  await settled(plane);
  const [none, wanted] = [new Set<string>(), new Set(['u1'])];
  plane.setInbound({ ...NO_TUNNELS, wanted, ready: wanted, certified: undefined });
  await settled(plane);
  assert.deepEqual([[...world.steered], world.inbound.get('/pins/u1'), status(plane).notes], [['u1'], 'stopped', []]);
  assert.deepEqual(world.steps.filter((step) => /steering|inbound/.test(step)), ['steering start', 'inbound rules stop']);
  // Its label asks for rules.
  plane.setPods([pod(mode('node', { 'underpass.io/redirection': 'iptables' }))]);
  await settled(plane);
  assert.deepEqual(world.steps.filter((step) => /steering|inbound/.test(step)).slice(2), ['inbound rules start', 'steering stop']);
  plane.setPods([pod(mode('node'))]);
  plane.setInbound({ ...NO_TUNNELS, wanted: none, ready: none, certified: undefined });
  await settled(plane);
  assert.deepEqual([world.steered.size, world.inbound.get('/pins/u1'), world.listeners.get('u1')?.redirected], [0, 'stopped', true]);
  await plane.stop();
});

test('Dataplane: a pod that the kernel does not steer is redirected by rules, its notes say why, and it is steered once the proxy listens', async () => {
  const world = new World();
  world.steered = new Set();
  world.failSteering = 'nobody listens';
  const plane = await started(world, [pod(mode('node'))]);
  const wanted = new Set(['u1']);
  plane.setInbound({ ...NO_TUNNELS, wanted, ready: wanted, certified: undefined });
  await settled(plane);
  assert.deepEqual([world.inbound.get('/pins/u1'), status(plane).notes], ['active', ['what comes to the pod is redirected by iptables: nobody listens']]);
  world.failSteering = undefined;
  // Any news of the pod.
  plane.setInbound({ ...NO_TUNNELS, wanted, ready: wanted, certified: wanted });
  await settled(plane);
  assert.deepEqual([[...world.steered], world.inbound.get('/pins/u1'), status(plane).notes], [['u1'], 'stopped', []]);
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
  await waitFor('the rules', () => world.inbound.get('/pins/u1') === 'active', { everyMs: 2 });
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
  await waitFor('the word', () => world.annotations[REDIRECTION] === undefined, { everyMs: 1 });
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

test('Dataplane: where a program of the pod has the port of HBONE or of redirected callers, the proxy is told before it tries to have it too', async () => {
  for (const taken of [true, false]) {
    const world = new World();
    if (taken) world.taken.add(15008).add(15006);
    const plane = await started(world, [pod(mode('node'))]);
    plane.setInbound({ wanted: new Set(), ready: new Set(), certified: undefined, ...NO_TUNNELS });
    await settled(plane);
    assert.deepEqual([world.listeners.get('u1')?.hbonePortFree, world.listeners.get('u1')?.inboundPortFree, world.looks], [!taken, !taken, 1], 'one look at its sockets tells of all three ports');
    assert.deepEqual(status(plane).notes, taken ? ["takes no HBONE, since port 15008 is a program's of its own"] : []);
    await plane.stop();
  }
});

test('Dataplane: a pod that has the port of the proxy is not tried, and is told so; it is captured when the port is free', async () => {
  const world = new World();
  world.taken.add(15001);
  const plane = world.dataplane();
  await plane.adopt([]);
  plane.start({ bpfProblem: undefined });
  plane.setPods([pod(mode('node'))]);
  await waitFor('the failure', () => status(plane).state === 'failed', { everyMs: 5 });
  assert.equal(status(plane).error, "port 15001 of the pod, where the proxy has to listen, is a program's of its own");
  assert.deepEqual([[...world.pins], world.listeners.size], [[], 0]);
  world.taken.clear();
  await waitFor('the capture', () => status(plane).state === 'enrolled', { everyMs: 5 });
  await plane.stop();
});
