/** DESIGN section 4: who is led to which proxy, and what each end is told about it. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { run } from '../../common/process.js';
import { Action, Authorization } from '../../proto/generated/istio/security/authorization.js';
import type { TestPod } from '../../native/testing.js';
import { compilePolicy } from '../policy/compile.js';
import { markedAddress } from '../proxy/pod-calls.js';
import { KernelWorld } from './kernel-testing.js';

const OUTBOUND = '15001';
const INBOUND = '15006';
const SIDECAR_UID = '1337';

let w: KernelWorld;
let a: TestPod;
let b: TestPod;
before(async () => {
  w = await KernelWorld.create('capt');
  [a, b] = [w.world.pod(0), w.world.pod(1)];
});
after(() => w.close());

/** One connection of pod a to `connect`:80, with a proxy of the node behind 127.0.0.1:15001 and [::1]:15001. */
function toProxy(listen: string, connect: string, args: string[] = []) {
  return w.world.probe('addresses', { pod: a, cgroup: w.world.proxyCgroup, address: listen }, { pod: a, address: connect }, [
    '--port', OUTBOUND, '--connect-port', '80', ...args,
  ]);
}

test('capture: the proxy learns where an IPv4 connection was going, the client sees that address and its own', async () => {
  w.put({ capture: true });
  for (const acceleration of ['force', 'l4', 'off'] as const) {
    w.put({ capture: true, acceleration });
    const result = await toProxy('127.0.0.1', '198.51.100.7');
    assert.equal(result.ok, true, JSON.stringify(result));
    assert.equal(result['original4'], '198.51.100.7:80');
    assert.deepEqual([result['client_peer'], result['client_original4']], ['198.51.100.7:80', '198.51.100.7:80']);
    assert.match(String(result['client_name']), new RegExp(`^${a.ipv4.replaceAll('.', '\\.')}:\\d+$`));
  }
});

test('capture: IPv6 and mapped addresses', async () => {
  w.put({ capture: true });
  const v6 = await toProxy('::1', '2001:db8::7');
  assert.equal(v6['original6'], '[2001:db8::7]:80');
  assert.deepEqual([v6['client_peer'], v6['client_original6']], ['[2001:db8::7]:80', '[2001:db8::7]:80']);
  assert.match(String(v6['client_name']), new RegExp(`^\\[${a.ipv6}\\]:\\d+$`));
  const mapped = await toProxy('127.0.0.1', '::ffff:198.51.100.7');
  assert.equal(mapped['original4'], '198.51.100.7:80');
  assert.deepEqual([mapped['client_peer'], mapped['client_original4']], ['[::ffff:198.51.100.7]:80', '198.51.100.7:80']);
  assert.match(String(mapped['client_name']), new RegExp(`^\\[::ffff:${a.ipv4}\\]:\\d+$`));
});

test('capture: a client that is bound to its own address or port', async () => {
  w.put({ capture: true });
  const address = await toProxy('127.0.0.1', '198.51.100.7', ['--bind', a.ipv4]);
  assert.equal(address['original4'], '198.51.100.7:80');
  assert.equal(address.ok, true);
  const port = await toProxy('127.0.0.1', '198.51.100.7', ['--client-port', '23457']);
  assert.equal(port['client_name'], `${a.ipv4}:23457`);
});

test('capture: loopback, the unset address that stands for it, and the pod\'s own addresses stay', async () => {
  w.put({ capture: true });
  for (const address of ['127.0.0.1', '127.0.0.9', '::1', '0.0.0.0', '::', '::ffff:0.0.0.0', '::ffff:127.0.0.1', a.ipv4, a.ipv6]) {
    const { result, counters } = await w.counted(() => w.world.probe('addresses', { pod: a, address }, { pod: a }));
    assert.equal(result.ok, true, `${address}: ${JSON.stringify(result)}`);
    assert.equal(counters['connections_captured'], undefined, address);
  }
});

test('capture: a link-local address, which means something with its interface alone, is left alone', async () => {
  w.put({ capture: true });
  const { stdout } = await run('nsenter', [`--net=${b.netns}`, 'ip', '-6', '-o', 'address', 'show', 'dev', 'eth0', 'scope', 'link']);
  const [own] = /fe80::[0-9a-f:]+/.exec(stdout) as unknown as [string];
  const { result, counters } = await w.counted(() => w.world.probe('addresses', { pod: b, address: '::' }, { pod: a, address: `${own}%eth0` }));
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.match(String(result['client_peer']), new RegExp(`${own}.*7777$`));
  assert.equal(counters['connections_captured'], undefined);
});

test('capture: off, a connection goes where it says', async () => {
  w.put({ capture: false });
  const { result, counters } = await w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }));
  assert.equal(result.ok, true);
  assert.equal(result['client_peer'], `${b.ipv4}:7777`);
  assert.equal(counters['connections_captured'], undefined);
});

test('capture: a client bound to a device is left alone and counted', async () => {
  w.put({ capture: true });
  const { result, counters } = await w.counted(() =>
    w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }, ['--device', 'eth0']),
  );
  w.put();
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connection_bound_to_device'], 1);
  assert.equal(counters['connections_captured'], undefined);
});

test('capture: connections that exist keep their way when it is switched, new ones take the new', async () => {
  w.put({ capture: true });
  const uid = w.podRecord(a).uid;
  const held = await w.world.holding('addresses', { pod: a, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: a, address: '198.51.100.7' }, ['--port', OUTBOUND, '--connect-port', '80'], async () => {
    assert.equal(w.kernel.liveConnections(uid), 1);
    w.put({ capture: false });
    const direct = await w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a });
    assert.equal(direct.ok, true);
    assert.equal(w.kernel.liveConnections(uid), 1, 'still the one from before');
  });
  assert.equal(held.ok, true);
  assert.equal(w.kernel.liveConnections(uid), 0);
});

test('capture: 1,000 connections, each proxy socket told its own destination', async () => {
  w.put({ capture: true });
  const { result, counters } = await w.counted(() =>
    w.world.probe('churn', { pod: a, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: a, address: '198.51.100.7' }, [
      '--port', OUTBOUND, '--connect-port', '80', '--count', '1000',
    ]),
  );
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(counters['connections_captured'], 1000);
  assert.equal(counters['connections_short_circuited'], 1000);
  assert.equal(w.kernel.liveConnections(w.podRecord(a).uid), 0);
});

test('sidecar mode: an app is led to its own sidecar, which learns the destination', async () => {
  w.put({ mode: 'sidecar', capture: true });
  const { result, counters } = await w.counted(() =>
    w.world.probe('addresses', { pod: a, address: '127.0.0.1' }, { pod: a, address: b.ipv4 }, ['--port', OUTBOUND, '--connect-port', '80']),
  );
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(result['original4'], `${b.ipv4}:80`);
  assert.equal(counters['connections_short_circuited'], 1);
});

test('sidecar mode: a sidecar is led to port 15006 of another local sidecar, which learns the port', async () => {
  w.put({ mode: 'sidecar', capture: true });
  const { result, counters } = await w.counted(() =>
    w.world.probe('addresses', { pod: b, address: '0.0.0.0' }, { pod: a, address: b.ipv4 }, [
      '--port', INBOUND, '--connect-port', '8080', '--client-uid', SIDECAR_UID,
    ]),
  );
  assert.equal(result.ok, true, JSON.stringify(result));
  assert.equal(result['original4'], `${b.ipv4}:8080`);
  assert.equal(result['client_peer'], `${b.ipv4}:8080`);
  assert.equal(counters['connections_short_circuited'], 1);
});

test('sidecar mode: a sidecar reaches its own app, other nodes and exempt ports untouched', async () => {
  w.put({ mode: 'sidecar', capture: true });
  const uid = ['--client-uid', SIDECAR_UID];
  for (const address of ['127.0.0.1', a.ipv4]) {
    const own = await w.counted(() => w.world.probe('addresses', { pod: a, address }, { pod: a }, ['--bind', '127.0.0.6', ...uid]));
    assert.equal(own.result.ok, true, JSON.stringify(own.result));
    assert.equal(own.counters['connections_captured'], undefined);
  }
  for (const port of ['15021', '15090', '15008', '15020']) {
    const exempt = await w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }, ['--port', port, ...uid]));
    assert.equal(exempt.result.ok, true, port);
    assert.equal(exempt.counters['connections_captured'], undefined, port);
  }
  // A pod without a sidecar of its own.
  w.put({ mode: 'node', capture: false }, [b]);
  const plain = await w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }, uid));
  assert.equal(plain.result.ok, true);
  assert.equal(plain.counters['connections_captured'], undefined);
});

test('sidecar mode: app and sidecar pair without probation of the sidecar', async () => {
  w.put({ mode: 'sidecar', capture: true, acceleration: 'l4' });
  const [sidecar, app, args] = [{ pod: a, address: '127.0.0.1' }, { pod: a, address: b.ipv4 }, ['--port', OUTBOUND, '--connect-port', '80', '--count']];
  // The app's probation may have begun in a test before; its sidecar has none.
  const warm = await w.counted(() => w.warm(sidecar, app, [...args, '8'], { kinds: ['client'] }));
  assert.ok((warm.counters['connection_client_probation'] ?? 0) >= 1, JSON.stringify(warm.counters));
  const { counters } = await w.counted(() => w.world.probe('churn', sidecar, app, [...args, '20']));
  assert.equal(counters['connections_short_circuited'], 20, JSON.stringify(counters));
  const peers = await w.counted(() =>
    w.world.probe('churn', { pod: b, address: '0.0.0.0' }, { pod: a, address: b.ipv4 }, [
      '--port', INBOUND, '--connect-port', '8080', '--client-uid', SIDECAR_UID, '--count', '20',
    ]),
  );
  assert.equal(peers.counters['connections_short_circuited'], 20, JSON.stringify(peers.counters));
});

test('capture: a local pod\'s own address is left alone on ports that no listener asks for, once those are known', async () => {
  w.put({ capture: true });
  const direct = () => w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }));
  w.kernel.setListenerPorts([80, 443]);
  const plain = await direct();
  assert.equal(plain.result.ok, true, JSON.stringify(plain.result));
  assert.equal(plain.result['client_peer'], `${b.ipv4}:7777`);
  assert.equal(plain.counters['connections_captured'], undefined);
  // A port with a listener, and an address that is no pod's (a Service's), still meet the proxy.
  w.kernel.setListenerPorts([7777]);
  const asked = await w.counted(() =>
    w.world.probe('addresses', { pod: a, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: a, address: b.ipv4 }, ['--port', OUTBOUND, '--connect-port', '7777']),
  );
  assert.equal(asked.counters['connections_captured'], 1);
  w.kernel.setListenerPorts([]);
  const service = await toProxy('127.0.0.1', '198.51.100.7');
  assert.equal(service['original4'], '198.51.100.7:80');
});

test('capture: a local pod whose address is the proxy\'s is led there on every port, and no other pod', async () => {
  w.put({ capture: true });
  w.kernel.setListenerPorts([80], [b.ipv4]);
  assert.deepEqual([b.ipv4, b.ipv6].map((address) => w.kernel.isPlain(address, 7777)), [false, true]);
  const led = await w.counted(() =>
    w.world.probe('addresses', { pod: a, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: a, address: b.ipv4 }, ['--port', OUTBOUND, '--connect-port', '7777']),
  );
  assert.equal(led.counters['connections_captured'], 1);
  const other = await w.counted(() => w.world.probe('addresses', { pod: a, address: a.ipv4 }, { pod: b }));
  assert.deepEqual([other.result.ok, other.counters['connections_captured']], [true, undefined]);
  w.kernel.setListenerPorts([80]);
  const plain = await w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }));
  assert.deepEqual([plain.result.ok, plain.counters['connections_captured']], [true, undefined]);
});

test('capture: switching acceleration keeps the known listener ports', async () => {
  w.put({ capture: true });
  w.kernel.setListenerPorts([80]);
  w.kernel.setGlobalAcceleration(false);
  w.kernel.setGlobalAcceleration(true);
  const { result, counters } = await w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }));
  assert.equal(result.ok, true);
  assert.equal(counters['connections_captured'], undefined);
});

test('capture: the own address of a pod whose policy the proxy judges is led to it on every port, marked as such; what can not be led is refused', async () => {
  w.put({ capture: true });
  w.kernel.setListenerPorts([80]);
  const behind = (behindProxy: boolean): void => w.kernel.setPolicies(new Map([[w.podRecord(b).uid, { compiled: compilePolicy([], new Map([[w.podRecord(a).uid, { trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: 'a' }]])), behindProxy, version: 1n }]]));
  const toPod = (listen: string, address: string, port: number, args: string[] = []) => w.counted(() => w.world.probe('addresses', { pod: a, cgroup: w.world.proxyCgroup, address: listen }, { pod: a, address }, ['--port', OUTBOUND, '--connect-port', String(port), ...args]));
  behind(true);
  for (const port of [80, 7777]) {
    const v4 = await toPod('127.0.0.1', b.ipv4, port);
    assert.deepEqual([v4.result['original4'], v4.result['client_peer']], [`${markedAddress(b.ipv4)}:${port}`, `${b.ipv4}:${port}`]);
    const v6 = await toPod('::1', b.ipv6, port);
    assert.deepEqual([v6.result['original6'], v6.result['client_peer']], [`[${markedAddress(b.ipv6)}]:${port}`, `[${b.ipv6}]:${port}`]);
    const mapped = await toPod('127.0.0.1', `::ffff:${b.ipv4}`, port);
    assert.deepEqual([mapped.result['original4'], mapped.result['client_peer']], [`${markedAddress(b.ipv4)}:${port}`, `[::ffff:${b.ipv4}]:${port}`]);
  }
  const { result, counters } = await w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }, ['--device', 'eth0']).catch(String));
  assert.match(JSON.stringify(result), /ECONNREFUSED|refused/i);
  assert.ok(counters['policy_connect_refused']! >= 1, JSON.stringify(counters));
  // Who comes there with a certificate is known by it.
  const tunnel = await w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }, ['--port', '15008']));
  assert.deepEqual([tunnel.result.ok, tunnel.counters['connections_captured']], [true, undefined]);
  behind(false);
  const direct = await w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }));
  assert.deepEqual([direct.result.ok, direct.counters['connections_captured']], [true, undefined]);
  w.kernel.setPolicies(new Map());
});

test('capture: the own address of a pod is not led to the proxy on a port whose policy the kernel judges, also where a listener asks for the port: passed on it would have no identity', async () => {
  w.put({ capture: true });
  w.kernel.setListenerPorts([7777]);
  const callers = new Map([[w.podRecord(a).uid, { trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: 'a' }]]);
  const deny = (namespace: string): Authorization => Authorization.fromPartial({ name: 'p', namespace: 'shop', action: Action.DENY, groups: [{ rules: [{ matches: [{ namespaces: [{ match_type: { $case: 'exact', value: namespace } }] }] }] }] });
  const tried = async (namespace: string, behindProxy: boolean) => {
    w.kernel.setPolicies(new Map([[w.podRecord(b).uid, { compiled: compilePolicy([deny(namespace)], callers), behindProxy, judgedPorts: [7777], version: 1n }]]));
    const { result, counters } = await w.counted(() => w.world.probe('addresses', { pod: b, address: b.ipv4 }, { pod: a }).catch(String));
    return [typeof result === 'string' ? /refused/i.test(result) : result.ok, counters['connections_captured'], counters['policy_connect_refused']];
  };
  for (const behindProxy of [true, false]) {
    assert.deepEqual(await tried('elsewhere', behindProxy), [true, undefined, undefined]);
    assert.equal((await tried('shop', behindProxy))[2], 1);
  }
  // But never past a waypoint.
  w.kernel.setPolicies(new Map([[w.podRecord(b).uid, { compiled: compilePolicy([deny('elsewhere')], callers), behindProxy: false, judgedPorts: [7777], version: 2n }]]));
  w.kernel.setListenerPorts([80], [b.ipv4]);
  const led = await w.counted(() =>
    w.world.probe('addresses', { pod: a, cgroup: w.world.proxyCgroup, address: '127.0.0.1' }, { pod: a, address: b.ipv4 }, ['--port', OUTBOUND, '--connect-port', '7777']),
  );
  assert.equal(led.counters['connections_captured'], 1);
  w.kernel.setListenerPorts([80]);
  w.kernel.setPolicies(new Map());
});
