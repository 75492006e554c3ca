/**
 * Pods whose runtime gives them no cgroup v2 directory: their processes are at the root of the hierarchy, with everybody else's, and
 * are told by their network namespace. `a` has a cgroup of its own, `b` and `c` have none, `d` has none and is not in the mesh.
 */
import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Action, Authorization } from '../../proto/generated/istio/security/authorization.js';
import { waitFor } from '../../common/retry.js';
import { cgroup2Root, cgroupId, linkInfo } from '../../native/index.js';
import type { ProbeResult, TestPod } from '../../native/testing.js';
import { compilePolicy } from '../policy/compile.js';
import type { KernelPod } from './kernel.js';
import { containerByNetns, ROOT_PROGRAMS } from './kernel-root.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';

const TO_PROXY = ['--port', '15001', '--connect-port', '80'];
const root = cgroup2Root();
let w: KernelWorld;
let [a, b, c, d] = [] as unknown as [TestPod, TestPod, TestPod, TestPod];
let pins: string;

before(async () => {
  w = await KernelWorld.create('root', { pods: 4, pinned: true });
  [a, b, c, d] = w.world.pods.map((pod) => (pod.name === 'a' ? pod : { ...pod, cgroup: root })) as typeof w.world.pods as [TestPod, TestPod, TestPod, TestPod];
  pins = join(TEST_BPFFS, w.world.name, 'links', 'root');
});
after(() => w.close());

const put = (changes: Partial<KernelPod> = {}): void => w.put(changes, [a, b, c]);

/** One connection of the pod to 198.51.100.7:80 (or another), with a proxy of the node behind the pod's port 15001. */
function toProxy(pod: TestPod, connect = '198.51.100.7', listen = '127.0.0.1'): Promise<ProbeResult> {
  return w.world.probe('addresses', { pod, cgroup: w.world.proxyCgroup, address: listen }, { pod, address: connect }, TO_PROXY);
}
const direct = (client: TestPod, server: TestPod, cgroup?: string, args: string[] = []): Promise<ProbeResult> => w.world.probe('addresses', { pod: server, address: server.ipv4 }, { pod: client, ...(cgroup === undefined ? {} : { cgroup }) }, args);

test('root: the hooks are there while there is such a pod, and no longer', () => {
  w.put({}, [a]);
  assert.equal(existsSync(pins), false, 'a pod with a cgroup of its own needs none');
  w.put({}, [b, c]);
  assert.deepEqual(readdirSync(pins).sort(), [...ROOT_PROGRAMS].sort());
  for (const name of ROOT_PROGRAMS) assert.equal(linkInfo(join(pins, name)).targetId, cgroupId(root), name);
  assert.deepEqual(readdirSync(join(pins, '..', 'pods')).length, 1, 'links of their own has only who has a cgroup');
  w.kernel.removePod(w.podRecord(b).uid);
  assert.equal(existsSync(pins), true);
  w.kernel.removePod(w.podRecord(c).uid);
  assert.equal(existsSync(pins), false);
});

test('root: captured as every other pod: the proxy learns where it was going, the client sees that and its own address', async () => {
  put({ capture: true });
  for (const pod of [a, b]) {
    for (const [connect, listen, original] of [['198.51.100.7', '127.0.0.1', 'original4'], ['2001:db8::7', '::1', 'original6'], ['::ffff:198.51.100.7', '127.0.0.1', 'original4']] as const) {
      const { result, counters } = await w.counted(() => toProxy(pod, connect, listen));
      assert.equal(result.ok, true, JSON.stringify(result));
      assert.equal(result[original], connect.includes(':') && !connect.includes('.') ? `[${connect}]:80` : '198.51.100.7:80', `${pod.name} ${connect}`);
      assert.equal(result['client_peer'], connect.includes(':') ? `[${connect}]:80` : `${connect}:80`);
      assert.match(String(result['client_name']), connect.includes('.') ? new RegExp(`${pod.ipv4.replaceAll('.', '\\.')}\\]?:\\d+$`) : new RegExp(`^\\[${pod.ipv6}\\]:\\d+$`));
      assert.equal(counters['connections_captured'], 1, `${pod.name} ${connect}: by one set of hooks, and not by two`);
      assert.equal(counters['connections_short_circuited'], 1);
    }
  }
});

test('root: who is not in the mesh, the node itself and the proxy in such a pod\'s namespace are left alone', async () => {
  put({ capture: true });
  for (const [client, server, cgroup] of [[d, b, undefined], [d, a, undefined], [b, c, w.world.proxyCgroup]] as const) {
    const { result, counters } = await w.counted(() => direct(client, server, cgroup));
    assert.equal(result.ok, true, JSON.stringify(result));
    assert.equal(result['client_peer'], `${server.ipv4}:7777`);
    assert.equal(counters['connections_captured'], undefined);
  }
  const neighbours = await w.counted(() => w.world.probe('churn', { pod: d, address: '127.0.0.1' }, { pod: d }, ['--count', '100']));
  assert.deepEqual([neighbours.result.ok, neighbours.counters], [true, {}]);
});

test('root: payload is moved between such pods, and between them and others, both ways, once', async () => {
  put();
  for (const [client, server] of [[b, c], [a, b], [b, a]] as const) {
    const order = await w.counted(() => w.world.probe('order', { pod: server, address: server.ipv4 }, { pod: client }, ['--bytes', '30000000']));
    assert.equal(order.result.ok, true, JSON.stringify(order.result));
    assert.ok((order.counters['bytes_short_circuited'] ?? 0) > 0, `${client.name} to ${server.name}: ${JSON.stringify(order.counters)}`);
    assert.equal((order.counters['bytes_short_circuited'] ?? 0) + (order.counters['bytes_tcp'] ?? 0), 60_000_000, 'each byte is counted once');
    const churn = await w.counted(() => w.world.probe('churn', { pod: server, address: server.ipv4 }, { pod: client }, ['--count', '200']));
    assert.deepEqual([churn.result.ok, churn.counters['connections_short_circuited']], [true, 200]);
  }
  assert.deepEqual([w.kernel.tables()['establishing']!.entries, w.kernel.tables()['peers']!.entries], [0, 0]);
});

test('root: programs of such pods come through probation, each pod by itself', async () => {
  put({ acceleration: 'l4' });
  assert.equal((await w.warm({ pod: c, address: c.ipv4 }, { pod: b })).ok, true);
  assert.equal(w.kernel.probation().map(({ kind, verdict }) => `${kind} ${verdict}`).sort().join(), 'client event-driven,listener event-driven');
  const { result, counters } = await w.counted(() => w.world.probe('churn', { pod: c, address: c.ipv4 }, { pod: b }, ['--count', '50']));
  assert.equal(result.ok, true, JSON.stringify(result));
  const found = w.kernel.probation();
  assert.match(found.find(({ kind }) => kind === 'client')!.key, new RegExp(`^cgroup ${containerByNetns(b.netnsCookie)} exe `));
  assert.ok((counters['connections_short_circuited'] ?? 0) > 0, JSON.stringify(counters));
});

test('root: policy holds at connect() and where a connection arrives; callers that it does not name come in', async () => {
  put();
  const addresses = [b, d].map(({ ipv4 }) => ({ address: Buffer.from(ipv4.split('.').map(Number)), length: 32 }));
  const denied = Authorization.fromPartial({ name: 'no-b', namespace: 'shop', action: Action.DENY, groups: [{ rules: [{ matches: [{ source_ips: addresses }] }] }] });
  w.kernel.setPolicies(new Map([[w.podRecord(c).uid, { compiled: compilePolicy([denied], new Map([a, b].map((pod) => [w.podRecord(pod).uid, { trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: pod.name }]))), behindProxy: false, version: 1n }]]));
  try {
    const refused = await w.counted(() => direct(b, c).catch((error: unknown) => String(error)));
    assert.equal(refused.counters['policy_connect_refused'], 1, JSON.stringify(refused));
    const arrival = await w.counted(() => direct(d, c, undefined, ['--timeout', '2']).catch((error: unknown) => String(error)));
    assert.ok((arrival.counters['policy_arrival_refused'] ?? 0) >= 1, JSON.stringify(arrival));
    assert.equal((await direct(a, c)).ok, true);
  } finally {
    w.kernel.setPolicies(new Map());
  }
});

test('root: a pod that gets a cgroup of its own, or loses it, is captured by one set of hooks before and after', async () => {
  put({ capture: true });
  const own = w.world.pod(1);
  for (const place of [own, b, own, b]) {
    w.put({ capture: true }, [place]);
    const { result, counters } = await w.counted(() => w.world.probe('churn', { pod: place, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: place, address: '198.51.100.7' }, [...TO_PROXY, '--count', '50']));
    assert.deepEqual([result.ok, counters['connections_captured']], [true, 50], JSON.stringify(counters));
    assert.equal(existsSync(join(pins, '..', 'pods', w.podRecord(b).uid)), place === own);
  }
  assert.equal(w.kernel.liveConnections(w.podRecord(b).uid), 0);
});

test('root: without an agent it goes on; the next one replaces the programs in place, and cleanup leaves none', async () => {
  put({ capture: true });
  const first = w.kernel.pods().sort((x, y) => x.uid.localeCompare(y.uid));
  const before = ROOT_PROGRAMS.map((name) => linkInfo(join(pins, name)));
  const running = w.world.probe('order', { pod: b, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: b, address: '192.0.2.1' }, [...TO_PROXY, '--bytes', '100000000']);
  await w.kernel.close();
  assert.equal((await w.world.probe('addresses', { pod: c, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: c, address: '192.0.2.1' }, TO_PROXY))['original4'], '192.0.2.1:80');
  w.kernel = await w.open(TEST_BPFFS);
  assert.deepEqual(w.kernel.pods().sort((x, y) => x.uid.localeCompare(y.uid)), first);
  ROOT_PROGRAMS.forEach((name, index) => {
    const now = linkInfo(join(pins, name));
    assert.equal(now.targetId, before[index]!.targetId);
    assert.notEqual(now.programId, before[index]!.programId, name);
  });
  assert.equal((await running).ok, true);
  assert.equal((await toProxy(c))['original4'], '198.51.100.7:80');
  for (const pod of w.kernel.pods()) w.kernel.removePod(pod.uid);
  assert.equal(existsSync(pins), false);
});
