/** What somebody else writes into the agent's maps, or takes from its hooks, is found, named, and as before after a round of the auditor. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { logger } from '../../common/log.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { cgroupId, linkInfo } from '../../native/index.js';
import { Auditor, type AuditorOptions } from '../consistency/auditor.js';
import { encodeAddress, u16, u64 } from './kernel-codec.js';
import type { PodPolicy } from './kernel-policies.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';

const VIP = '198.51.100.10';
let w: KernelWorld;
let auditor: Auditor;
let nowMs = 0;

const hex = (bytes: Buffer): string[] => [...bytes].map((byte) => byte.toString(16).padStart(2, '0'));
const bpftool = (...args: string[]): Promise<unknown> => run('bpftool', args, { timeoutMs: 60_000 });
const pinned = (map: string): string[] => ['pinned', join(TEST_BPFFS, w.world.name, 'maps', map)];
/** As an operator, or another program, would. */
const corrupt = (map: string, key: Buffer, value: Buffer): Promise<unknown> => bpftool('map', 'update', ...pinned(map), 'key', 'hex', ...hex(key), 'value', 'hex', ...hex(value));
const remove = (map: string, key: Buffer): Promise<unknown> => bpftool('map', 'delete', ...pinned(map), 'key', 'hex', ...hex(key));
async function read(map: string, key: Buffer): Promise<string | undefined> {
  // 254: ENOENT.
  const { stdout, code } = await run('bpftool', ['-j', 'map', 'lookup', ...pinned(map), 'key', 'hex', ...hex(key)], { timeoutMs: 60_000, okCodes: [0, 254] });
  return code === 0 ? (JSON.parse(stdout) as { value: string[] }).value.map((byte) => byte.slice(2)).join('') : undefined;
}
const uid = (index: number): string => w.podRecord(w.world.pod(index)).uid;
const serviceKey = (address = VIP, port = 80): Buffer => Buffer.concat([encodeAddress(address), u16(port), Buffer.alloc(2)]);

function newAuditor(more: Partial<AuditorOptions> = {}): Auditor {
  return new Auditor({ checks: w.kernel.checks(), logger: logger('test.audit').child({}, { level: 'fatal' }), now: () => nowMs, objectsOf: ({ kind, name }) => [`${kind}/${name}`], ...more });
}

/** One round finds exactly this, and the next nothing. */
async function comesBack(expected: Record<string, string>): Promise<void> {
  await auditor.round();
  const found = auditor.status.drifting;
  assert.deepEqual(Object.fromEntries(found.map(({ kind, name, state }) => [`${kind} ${name}`, state])), expected);
  assert.ok(found.every(({ repair, objects, kind, name }) => repair === 'done' && objects[0] === `${kind}/${name}`), JSON.stringify(found));
  await auditor.round();
  assert.deepEqual(auditor.status.drifting, []);
  assert.deepEqual(auditor.status.problems, []);
  nowMs += 600_000;
  // Calm for so long, it starts anew.
  await auditor.round();
}

const policy = (version: bigint): PodPolicy => ({
  version, behindProxy: false,
  compiled: { terms: [{ policy: 'ns/p', deny: false, classes: 2n, ports: [[0, 65_535]], sources: undefined, notSources: [], destinations: undefined, notDestinations: [] }], allowByDefault: false, classes: new Map([[uid(0), 1]]) },
});

before(async () => {
  w = await KernelWorld.create('audit', { pods: 2, pinned: true });
  w.put({ capture: true, acceleration: 'l4' });
  w.kernel.services.apply(Array.from({ length: 1_200 }, (_, index) => ({ address: index === 0 ? VIP : `203.0.113.${index % 200}`, port: 80 + Math.floor(index / 200), entry: { kind: 'tcp' as const, endpoints: [{ address: w.world.pod(1).ipv4, port: 8080, weight: 1 }, { address: w.world.pod(0).ipv4, port: 8080, weight: 3 }] } })));
  w.kernel.setPolicies(new Map([[uid(1), policy(7n)]]));
  w.kernel.setListenerPorts([80, 443], ['192.0.2.1']);
  auditor = newAuditor();
});
after(() => w.close());

test('Auditor: nothing is reported while the kernel has what it was given', async () => {
  await auditor.round();
  assert.deepEqual(auditor.status.drifting, []);
  assert.deepEqual(auditor.status.drifts, {});
});

test('Auditor: a service whose entry was overwritten, deleted or added by somebody else comes back', async () => {
  const index = await read('service_indexes', serviceKey());
  await remove('service_indexes', serviceKey());
  await comesBack({ [`service ${VIP}:80`]: 'missing' });
  assert.equal(await read('service_indexes', serviceKey()), index);

  await corrupt('service_indexes', serviceKey(), Buffer.from('ff000000', 'hex'));
  await comesBack({ [`service ${VIP}:80`]: 'wrong' });
  assert.equal(await read('service_indexes', serviceKey()), index);

  await corrupt('service_indexes', serviceKey('192.0.2.99'), Buffer.from('00000000', 'hex'));
  await comesBack({ 'service 192.0.2.99:80': 'orphaned' });
  assert.equal(await read('service_indexes', serviceKey('192.0.2.99')), undefined);
});

test('Auditor: endpoints that were overwritten lead where the service says again', async () => {
  const place = Buffer.from((await read('service_indexes', serviceKey()))!, 'hex');
  const entry = Buffer.from((await read('services', place))!, 'hex');
  const first = Buffer.from(entry.subarray(0, 4));
  const before_ = w.kernel.services.live({ address: VIP, port: 80 });
  const row = Buffer.from((await read('endpoints', first))!, 'hex');
  row.fill(0xaa, 0, 16);
  await corrupt('endpoints', first, row);
  assert.notDeepEqual(w.kernel.services.live({ address: VIP, port: 80 }), before_);
  await comesBack({ [`service ${VIP}:80`]: 'wrong' });
  assert.deepEqual(w.kernel.services.live({ address: VIP, port: 80 }), before_);

  await corrupt('services', place, Buffer.alloc(entry.length));
  await comesBack({ [`service ${VIP}:80`]: 'wrong' });
  assert.deepEqual(w.kernel.services.live({ address: VIP, port: 80 }), before_);
});

test("Auditor: pods' entries and addresses come back, and those of pods that are not there go", async () => {
  const { netnsCookie, ipv4 } = w.world.pod(0);
  const key = u64(netnsCookie);
  const value = (await read('pods', key))!;
  const other = Buffer.from(value, 'hex');
  other[other.length - 600] = 0xff;
  await corrupt('pods', key, other);
  await comesBack({ [`pod ${uid(0)}`]: 'wrong' });
  assert.equal(await read('pods', key), value);

  await remove('pods', key);
  await corrupt('pods', u64(0xdead_beefn), Buffer.from(value, 'hex'));
  await remove('netns_of_address', encodeAddress(ipv4));
  await corrupt('netns_of_address', encodeAddress('192.0.2.77'), key);
  await comesBack({ [`pod ${uid(0)}`]: 'missing', [`pod netns ${0xdead_beef}`]: 'orphaned', [`address ${ipv4}`]: 'missing', 'address 192.0.2.77': 'orphaned' });
  assert.equal(await read('pods', key), value);
  assert.equal(await read('pods', u64(0xdead_beefn)), undefined);
  assert.equal(w.kernel.netnsOf(ipv4), netnsCookie);
});

test('Auditor: a policy that was taken away or changed is enforced again, and one of no pod goes', async () => {
  const { netnsCookie } = w.world.pod(1);
  const judged = (): boolean | undefined => w.kernel.policies.judge(uid(0), netnsCookie, w.world.pod(0).ipv4, w.world.pod(1).ipv4, 80)?.allowed;
  const value = Buffer.from((await read('policies', u64(netnsCookie)))!, 'hex');
  assert.equal(judged(), true);
  await remove('policies', u64(netnsCookie));
  assert.equal(judged(), undefined, 'all are let in');
  await comesBack({ [`policy ${uid(1)}`]: 'missing' });
  assert.equal(judged(), true);

  w.kernel.setPolicies(new Map([[uid(1), { ...policy(8n), compiled: undefined }]]));
  assert.equal(judged(), false);
  await corrupt('policies', u64(netnsCookie), value);
  assert.equal(judged(), true, 'the former policy');
  await corrupt('policies', u64(0xdead_beefn), value);
  await comesBack({ [`policy ${uid(1)}`]: 'wrong', [`policy netns ${0xdead_beef}`]: 'orphaned' });
  assert.equal(judged(), false);
});

test("Auditor: a hook that was detached, replaced or unpinned is the agent's again", async () => {
  const pin = (program: string): string => join(TEST_BPFFS, w.world.name, 'links', 'pods', uid(0).replaceAll('.', '_'), program);
  const own = linkInfo(pin('connect4'));
  assert.equal(own.targetId, cgroupId(w.world.pod(0).cgroup));
  await bpftool('link', 'detach', 'pinned', pin('connect4'));
  rmSync(pin('pod_sockops'));
  await comesBack({ [`hook ${uid(0)} connect4`]: 'missing', [`hook ${uid(0)} pod_sockops`]: 'missing' });
  for (const program of ['connect4', 'pod_sockops']) assert.equal(linkInfo(pin(program)).targetId, own.targetId, program);
  assert.equal(linkInfo(pin('connect4')).programId, own.programId);
});

test("Auditor: what leads callers to a steered pod's proxy, and the hooks of Envoy and of the node, come back where somebody detached or unpinned them", async () => {
  const folder = join(TEST_BPFFS, w.world.name, 'links');
  const pod = w.world.pod(1);
  await w.kernel.host.attach('/proc/self/ns/net', w.world.proxyCgroup);
  const [command, ...args] = w.world.inPod({ ...pod, cgroup: w.world.proxyCgroup }, [process.execPath, '-e', "for (const host of ['0.0.0.0', '::']) require('node:net').createServer().listen({ port: 15006, host, ipv6Only: host === '::' })"]);
  const proxy = spawn(command!, args, { stdio: 'ignore' });
  try {
    await waitFor('the pod to be steered', () => w.kernel.steering.start({ uid: uid(1), netnsPath: pod.netns, netnsCookie: pod.netnsCookie, ipv6: true }).then(() => true, () => false), { timeoutMs: 60_000 });
    await auditor.round();
    assert.deepEqual(auditor.status.drifting, []);
    const steering = join(folder, 'steering', uid(1).replaceAll('.', '_'));
    const pins = [steering, join(folder, 'proxy', 'proxy_sockops'), join(folder, 'proxy', 'bind4'), join(folder, 'host', 'host_sockops')];
    const before_ = pins.map((pin) => linkInfo(pin));
    for (const pin of pins.slice(0, 2)) await bpftool('link', 'detach', 'pinned', pin);
    for (const pin of pins.slice(2)) rmSync(pin);
    await comesBack({ [`hook ${uid(1)} steer_inbound`]: 'missing', 'hook envoy proxy_sockops': 'missing', 'hook envoy bind4': 'missing', 'hook node host_sockops': 'missing' });
    assert.deepEqual(pins.map((pin) => linkInfo(pin)), before_);
    w.kernel.steering.forget(uid(1));
    await auditor.round();
    assert.deepEqual(auditor.status.drifting, [], 'a pod that is no longer steered is not missed');
  } finally {
    proxy.kill('SIGKILL');
  }
});

test("Auditor: programs of others on a pod's cgroup are told, left alone, and are no drift", async () => {
  const other = await w.open(null);
  other.putPod(w.podRecord(w.world.pod(0)));
  await auditor.round();
  assert.deepEqual(auditor.status.drifting, []);
  const { foreign } = auditor.status;
  assert.ok(foreign.some(({ name, repair, state }) => name.startsWith(`${uid(0)} connect4 (`) && repair === 'unsafe' && state === 'foreign'), JSON.stringify(foreign));
  assert.ok(foreign.every(({ name }) => name.startsWith(`${uid(0)} `)));
  other.removePod(uid(0));
  await auditor.round();
  assert.deepEqual([auditor.status.foreign, auditor.status.drifting], [[], []]);
});

test('Auditor: settings and the ports of listeners come back', async () => {
  const settings = (await read('settings', Buffer.alloc(4)))!;
  await corrupt('settings', Buffer.alloc(4), Buffer.alloc(settings.length / 2));
  await corrupt('listener_ports', u16(9_999), Buffer.from([1]));
  await remove('listener_ports', u16(80));
  await remove('proxied_addresses', encodeAddress('192.0.2.1'));
  await comesBack({ 'setting settings': 'wrong', 'listener-port port 80': 'missing', 'listener-port port 9999': 'orphaned', 'listener-port address 192.0.2.1': 'missing' });
  assert.equal(await read('settings', Buffer.alloc(4)), settings);
  assert.ok(w.kernel.isPlain('192.0.2.5', 9_999) && !w.kernel.isPlain('192.0.2.5', 80) && !w.kernel.isPlain('192.0.2.1', 9_999));
});

test('Auditor: what drifts again and again is repaired ever more seldom, and reported as such', async () => {
  auditor = newAuditor();
  const states: string[] = [];
  for (let turn = 0; turn < 4; turn++) {
    await remove('service_indexes', serviceKey()).catch(() => undefined);
    await auditor.round();
    const [found] = auditor.status.drifting;
    states.push(`${found!.times} ${found!.repair}`);
    nowMs += 5_000;
  }
  assert.deepEqual(states, ['1 done', '2 done', '3 withheld', '3 done']);
  nowMs += 5_000;
  await auditor.round();
  assert.deepEqual(auditor.status.drifting, []);
  assert.deepEqual([auditor.status.drifts, auditor.status.repairs], [{ 'service missing': 3 }, { 'service done': 3, 'service withheld': 1 }]);
});

test('Auditor: a check that fails is named, and the others go on', async () => {
  const failing = { name: 'failing', parts: () => { throw new Error('no such map'); } };
  const checked = newAuditor({ checks: [failing, ...w.kernel.checks()] });
  await remove('service_indexes', serviceKey());
  await checked.round();
  assert.deepEqual(checked.status.problems, [{ check: 'failing', reason: 'no such map' }]);
  assert.deepEqual(checked.status.drifting.map(({ name, repair }) => `${name} ${repair}`), [`${VIP}:80 done`]);
});

test('Auditor: it takes no more than its share of a CPU', async () => {
  const paced = newAuditor({ share: 0.5 });
  await paced.round(true);
  const { tookMs, busyMs } = paced.status;
  assert.ok(tookMs! >= busyMs! * 2, `${busyMs} ms within ${tookMs} ms`);
});

test('Auditor: what an agent that was killed left of pods that are not there is removed at the start of the next, and told once, as orphaned', async () => {
  const { netnsCookie, ipv4, ipv6 } = w.world.pod(0);
  await w.kernel.close();
  // It died after the first of the two steps by which a pod goes.
  await remove('pods', u64(netnsCookie));
  await corrupt('netns_of_address', encodeAddress('192.0.2.88'), u64(0xdead_beefn));
  w.kernel = await w.open(TEST_BPFFS);
  auditor = newAuditor();
  const folder = uid(0).replaceAll('.', '_');
  await comesBack({ [`pod netns ${netnsCookie}`]: 'orphaned', [`pod netns ${0xdead_beef}`]: 'orphaned', [`hook ${folder}`]: 'orphaned' });
  for (const address of [ipv4, ipv6, '192.0.2.88']) assert.equal(w.kernel.netnsOf(address), undefined, address);
  assert.equal(existsSync(join(TEST_BPFFS, w.world.name, 'links', 'pods', folder)), false);
  assert.deepEqual(auditor.status.drifts, { 'pod orphaned': 2, 'hook orphaned': 1 });
  w.kernel.services.apply([]);
});
