// Pods with their own sidecars, a node without BPF, and what dies or goes away while it is in use.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildDir } from '../common/paths.js';
import { processStartTime } from '../common/process-id.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import type { TrafficEdge, TrafficReport } from '../common/traffic.js';
import { askAgent } from '../agent/client.js';
import { CLI, NodeUnderTest, enrolled } from './agent-harness.js';

const node = new NodeUnderTest(`up-agentm-${process.pid}`);
const { instance, paths } = node;

before(() => node.up(['shop.yaml', 'legacy.yaml']));
after(() => node.down());

test('pods with sidecars: captured by hooks instead of NAT and short-circuited under load, and back, with no failed request', async () => {
  await node.label('legacy', { mode: 'off' });
  node.startAgent();
  await node.podsAre('shop', 'shop to be enrolled', enrolled('bpf'));
  await node.lab.whenReady({ sidecars: true });
  // The pods are ready a moment before the client's sidecar has heard so.
  await waitFor('the client\'s sidecar to know both endpoints', async () => (await node.lab.proxyAdmin('legacy/client', '/clusters')).match(/outbound\|80\|v[12]\|nginx\.legacy.*health_flags::healthy/g)?.length === 2, { timeoutMs: 60_000 });
  const some = node.load('legacy/client');
  await some.run(100);
  await node.label('legacy', { mode: 'sidecar', acceleration: 'force' });
  await node.podsAre('legacy', 'legacy to be captured', (pod) => enrolled('bpf')(pod) && pod.mode === 'sidecar' && !pod.listener);
  const before = await node.counters();
  const captured = await some.run(200);
  assert.deepEqual(captured.failures, {});
  assert.equal(captured.fresh.direct + captured.kept.direct, 0);
  const moved = await node.counters();
  assert.ok((moved['connections_short_circuited'] ?? 0) > (before['connections_short_circuited'] ?? 0), JSON.stringify(moved));
  // Who looks at the node's traffic has the sidecars' word for theirs.
  const told = async (): Promise<TrafficEdge[]> => (JSON.parse(await askAgent(paths.adminSocket, '/v1/traffic')) as TrafficReport).edges.filter(({ way, protocol, source, destination }) => way === 'sidecar' && protocol === 'http' && source.namespace === 'legacy' && source.workload === 'client' && destination.namespace === 'legacy');
  await waitFor("the sidecars' traffic", async () => {
    const edges = await told();
    return ['source', 'destination'].every((reporter) => edges.filter((edge) => edge.reporter === reporter).reduce((sum, { totals }) => sum + totals.count, 0) >= 100) && edges.every(({ totals: { times, sent } }) => sent > 0 && times.some((count) => count > 0));
  }, { timeoutMs: 60_000 });
  assert.ok((await told()).every(({ totals: { failed } }) => failed === 0), JSON.stringify(await told()));
  await node.label('legacy', { redirection: 'iptables' });
  await node.podsAre('legacy', 'legacy to go by its own rules', (pod) => pod.state === 'enrolled' && pod.way === 'iptables');
  await some.run(100);
  await node.label('legacy', { mode: 'off', redirection: null, acceleration: null });
  await node.podsAre('legacy', 'legacy to be let go', (pod) => pod.way === 'plain');
  await some.run(100);
  assert.deepEqual((await some.end()).failures, {});
  // What the client's sidecar keeps in its pools stays captured until it is idle for Envoy's own time; servers have nothing left.
  await node.podsAre('legacy', 'legacy to be off', (pod) => (pod.name.startsWith('client') ? ['draining', 'off'].includes(pod.state) : pod.state === 'off' && pod.settled));
});

test('a pod with a sidecar is left alone in mode node, and the reason is shown', async () => {
  await node.label('legacy', { mode: 'node' });
  await node.podsAre('legacy', 'legacy to be left alone', (pod) => pod.mode === 'off' && /sidecar of its own/.test(pod.reason ?? ''));
  await node.label('legacy', { mode: 'off' });
});

test('with the embedded control plane the node\'s pods have certificates of the root that the lab\'s sidecars trust', async () => {
  const policy = join(node.sourceDir, 'policy.yaml');
  const strict = 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: legacy}\nspec: {mtls: {mode: STRICT}}\n';
  writeFileSync(policy, `${strict}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: shop, namespace: legacy}\nspec: {selector: {matchLabels: {app: nginx}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/default]}}]}]}\n`);
  const status = async (from: string): Promise<string> => (await node.lab.exec(from, ['curl', '-s', '-o', '/dev/null', '-w', '%{http_code}', '-m', '30', 'http://nginx.legacy/'])).stdout;
  await waitFor('the policy to be in force', async () => (await status('shop/client')) === '200' && (await status('legacy/client')) === '403', { timeoutMs: 60_000 });
  const { certificates } = (await node.status()).proxy;
  assert.equal(certificates?.ca, 'the embedded control plane');
  assert.ok(certificates.identities.some(({ id, notAfter }) => id === 'spiffe://cluster.local/ns/shop/sa/default' && notAfter !== undefined));
  assert.match((await node.cli(['ps', '--instance', instance])).stdout, /^certificates {3}(\d+) of \1 from the embedded control plane$/m);
  rmSync(policy);
  await waitFor('the policy to be gone', async () => (await status('legacy/client')) === '200', { timeoutMs: 60_000 });
});

for (const way of ['bpf', 'iptables'] as const) {
  test(`IPv6 and plain TCP to a pod's own address go through Envoy by ${way}`, async () => {
    await node.label('shop', { redirection: way });
    await node.podsAre('shop', `shop by ${way}`, enrolled(way));
    const server = await node.pod('shop', 'nginx-v1');
    const before = (await node.pod('shop', 'client')).uid;
    const accepted = async (): Promise<number> => {
      const text = (await run('curl', ['-s', '--unix-socket', join(paths.folder, 'envoy-admin.sock'), `http://envoy/stats?filter=pod_${before}.downstream_cx_total`])).stdout;
      return Number(/downstream_cx_total: (\d+)/.exec(text)?.[1] ?? NaN);
    };
    for (const ip of server.ips) {
      const count = await accepted();
      const url = `http://${ip.includes(':') ? `[${ip}]` : ip}/r1`;
      const answer = await node.lab.exec('shop/client', ['curl', '-s', '-m', '30', url]);
      assert.match(answer.stdout, /"path":"\/r1"/, `${url}: ${answer.stderr}`);
      assert.equal(await accepted(), count + 1, `${url} came through Envoy`);
    }
  });
}

test('TCP straight to an enrolled pod of this node and a port without a listener meets no proxy', async () => {
  await node.label('shop', { redirection: 'bpf' });
  await node.podsAre('shop', 'shop by bpf', enrolled('bpf'));
  const { ips, name } = await node.pod('shop', 'nginx-v1');
  const source = "require('node:http').createServer((q, r) => r.end(q.socket.remoteAddress)).listen(9999, '::', () => console.log('ready'))";
  const server = node.lab.spawnIn(`shop/${name}`, [process.execPath, '-e', source]);
  try {
    await once(server.stdout ?? assert.fail('no output'), 'data');
    const client = await node.pod('shop', 'client');
    const accepted = async (): Promise<string> => (await run('curl', ['-s', '--unix-socket', join(paths.folder, 'envoy-admin.sock'), `http://envoy/stats?filter=pod_${client.uid}.downstream_cx_total`])).stdout;
    const before = await accepted();
    assert.match(before, /downstream_cx_total: \d+/);
    for (const [index, ip] of ips.entries()) {
      const answer = await node.lab.exec('shop/client', ['curl', '-s', '-m', '30', `http://${ip.includes(':') ? `[${ip}]` : ip}:9999/`]);
      assert.equal(answer.stdout.replace('::ffff:', ''), client.ips[index], 'the server sees the client itself');
    }
    assert.equal(await accepted(), before);
  } finally {
    server.kill('SIGKILL');
  }
});

test('Envoy is killed: it is started again and pods go on', async () => {
  await node.label('shop', { redirection: null });
  await node.podsAre('shop', 'shop by bpf', enrolled('bpf'));
  const old = (await node.status()).proxy.envoy.pid ?? assert.fail('no Envoy');
  process.kill(old, 'SIGKILL');
  await waitFor('another Envoy', async () => {
    const { pid } = (await node.status()).proxy.envoy;
    return pid !== undefined && pid !== old;
  }, { timeoutMs: 60_000 });
  const some = node.load('shop/client', { keepAlive: 1, fresh: 1 });
  await waitFor('requests to go well', async () => {
    const before = (await some.report()).failures;
    const since = await some.run(50);
    return JSON.stringify(before) !== undefined && Object.keys(since.failures).length === 0;
  }, { timeoutMs: 60_000 });
  await some.end();
});

test('a pod that is replaced leaves neither pin nor listener nor hooks behind', async () => {
  const old = await node.pod('shop', 'client');
  await node.lab.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: shop}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec: {containers: [{name: curl, image: curl, env: [{name: GENERATION, value: "2"}]}]}
`);
  await waitFor('the pod to be replaced', async () => !(await node.status()).pods.some(({ uid }) => uid === old.uid), { timeoutMs: 40_000 });
  await node.podsAre('shop', 'the new pod to be enrolled', enrolled('bpf'));
  await waitFor('the pin to go', () => !readdirSync(paths.netnsFolder).includes(old.uid), { timeoutMs: 60_000 });
  assert.equal(existsSync(join(paths.bpffsDir, instance, 'links', 'pods', old.uid)), false);
  const listeners = (await run('curl', ['-s', '--unix-socket', join(paths.folder, 'envoy-admin.sock'), 'http://envoy/listeners'])).stdout;
  assert.equal(listeners.includes(old.uid), false);
  assert.match((await node.lab.exec('shop/client', ['curl', '-s', '-m', '30', 'http://nginx/r2'])).stdout, /"path":"\/r2"/);
});

test('a pod that goes away while the agent is down is cleaned up after, and told by its name as orphaned', async () => {
  const old = await node.pod('shop', 'client');
  // Whose entries they are is written down beside them.
  await waitFor('the agent to have written down its pods', () => existsSync(join(paths.folder, 'pods.json')) && readFileSync(join(paths.folder, 'pods.json'), 'utf8').includes(old.uid), { timeoutMs: 60_000 });
  await node.endAgent('SIGKILL');
  await node.lab.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: shop}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec: {containers: [{name: curl, image: curl, env: [{name: GENERATION, value: "3"}]}]}
`);
  await waitFor('the pod to be replaced', () => !node.lab.pods().some(({ uid }) => uid === old.uid), { timeoutMs: 40_000 });
  assert.ok(readdirSync(paths.netnsFolder).includes(old.uid));
  node.startAgent();
  await node.podsAre('shop', 'the new pod to be enrolled', enrolled('bpf'));
  await waitFor('the pin to go', () => !readdirSync(paths.netnsFolder).includes(old.uid), { timeoutMs: 60_000 });
  const told = async (): Promise<unknown> => (await node.status()).consistency?.node?.recent.find(({ name }) => name === old.uid);
  await waitFor('it to be told', told, { timeoutMs: 60_000 });
  const { kind, state, objects, repair } = (await told()) as { kind: string; state: string; objects: string[]; repair: string };
  assert.deepEqual([kind, state, objects, repair], ['pod', 'orphaned', [`Pod/${old.name}.shop`], 'repaired']);
  const listeners = (await run('curl', ['-s', '--unix-socket', join(paths.folder, 'envoy-admin.sock'), 'http://envoy/listeners'])).stdout;
  assert.equal(listeners.includes(old.uid), false);
});

/** What leads to the chain is deleted, and then a rule of the chain replaced. */
async function rulesComeBack(): Promise<void> {
  const whole = await node.rulesOf('shop/client');
  const { uid, name } = await node.pod('shop', 'client');
  const found = async (): Promise<{ state: string; times: number; objects: readonly string[]; detail?: string } | undefined> => {
    const { drifting = [], recent = [] } = (await node.status()).consistency?.node ?? {};
    return [...drifting, ...recent].find((each) => each.kind === 'rule' && each.name === `${uid} outbound`);
  };
  await waitFor('the rules to be known', async () => ((await node.status()).consistency?.node?.rounds ?? 0) > 1, { timeoutMs: 60_000 });
  assert.equal(await found(), undefined);
  for (const [times, state, change] of [[1, 'missing', ['-D', 'OUTPUT', '-p', 'tcp', '-j', 'UNDERPASS_OUTPUT']], [2, 'wrong', ['-R', 'UNDERPASS_OUTPUT', '2', '-o', 'eth7', '-j', 'RETURN']]] as const) {
    assert.equal((await node.lab.exec('shop/client', ['iptables-nft', '-t', 'nat', ...change])).code, 0);
    assert.notEqual(await node.rulesOf('shop/client'), whole);
    await waitFor('the rules to be told', async () => (await found())?.times === times, { timeoutMs: 60_000 });
    await waitFor('the rules to come back', async () => (await node.rulesOf('shop/client')) === whole, { timeoutMs: 60_000 });
    const told = await found();
    assert.deepEqual([told?.state, told?.objects], [state, [`Pod/${name}.shop`]]);
    if (state === 'wrong') assert.match(told?.detail ?? '', /gone: .*-o lo.*; new: .*-o eth7/);
  }
}

test('without BPF pods are redirected by iptables, the reason is shown, rules that somebody deletes come back and are told, and nothing prints a stack trace', async () => {
  await node.endAgent('SIGTERM');
  await node.cli(['agent', '--cleanup', '--instance', instance]);
  node.startAgent('--bpffs', '/etc/passwd/no-place-for-pins', '--cleanup-on-exit');
  await node.podsAre('shop', 'shop to be redirected by iptables', enrolled('iptables'));
  const { redirection, acceleration, pods, proxy } = await node.status();
  assert.match(redirection.bpfProblem ?? '', /not usable/);
  assert.equal(acceleration.on, false);
  assert.match(pods.find((pod) => pod.namespace === 'shop')?.reason ?? '', /redirected by iptables, since/);
  const some = node.load('shop/client');
  const { failures, fresh, kept } = await some.run(200);
  assert.deepEqual([failures, fresh.direct + kept.direct], [{}, 0]);
  await some.end();
  await rulesComeBack();
  await node.endAgent('SIGTERM');
  assert.doesNotMatch(node.log, /\n\s+at /);
  assert.equal(existsSync(paths.folder), false, 'cleaned up on exit');
  assert.equal(processStartTime(proxy.envoy.pid ?? 0), undefined);
  assert.doesNotMatch(await node.rulesOf('shop/client'), /UNDERPASS/);
});

test('without its capabilities the agent says which are missing and what for, and exits', async () => {
  const result = await run(join(buildDir, 'underpass-exec'), ['--gid', '65534', '--uid', '65534', '--', process.execPath, CLI, 'agent', '--discovery', '127.0.0.1:9', '--lab-socket', '/nowhere', '--node', 'n', '--run-dir', `/tmp/${instance}-nobody`], { okCodes: [1], timeoutMs: 60_000 });
  assert.equal(existsSync(`/tmp/${instance}-nobody`), false);
  assert.match(result.stderr, /lacks CAP_SYS_ADMIN .* and CAP_NET_ADMIN .*UNDERPASS_MISSING_CAPABILITY/);
  assert.doesNotMatch(result.stderr, /\n\s+at /);
});

test('an Envoy that does not start ends the agent with its reason, and pods keep their plain way', async () => {
  const args = ['node', '--embedded-pilot', '--lab-socket', node.lab.socket, '--instance', instance, '--cleanup-on-exit'];
  const result = await run(process.execPath, [CLI, ...args], { okCodes: [1], timeoutMs: 180_000, env: { ...process.env, ENVOY_BIN: '/bin/false' } });
  assert.match(result.stderr, /starting Envoy \(\/bin\/false\): exit 1 \(UNDERPASS_ENVOY_START\)/);
  assert.equal(existsSync(paths.folder), false);
  assert.match((await node.lab.exec('shop/client', ['curl', '-s', '-m', '30', 'http://nginx/r3'])).stdout, /"path":"\/r3"/);
});

test('agent and pilot run as two processes, and pods do not notice when pilot ends and comes back', async () => {
  await node.label('shop', { redirection: null });
  const folder = mkdtempSync(join(tmpdir(), `${instance}-`));
  const address = `unix:${join(folder, 'pilot.sock')}`;
  const startPilot = (): ChildProcess => spawn(process.execPath, [CLI, 'pilot', '--source', node.sourceDir, '--source', node.lab.objectsDir, '--listen', address, '--monitoring-listen', 'none'], { stdio: 'ignore' });
  let pilot = startPilot();
  try {
    node.start('agent', '--discovery', address);
    await node.podsAre('shop', 'shop to be enrolled', enrolled('bpf'));
    assert.match((await node.status()).proxy.certificates?.ca ?? '', /^the lab at /);
    const some = node.load('shop/client');
    await some.run(50);
    pilot.kill('SIGKILL');
    await once(pilot, 'exit');
    await waitFor('the loss to be seen', async () => !(await node.status()).proxy.controlPlane.connected, { timeoutMs: 120_000 });
    assert.equal((await some.run(100)).fresh.direct, 0);
    pilot = startPilot();
    await waitFor('the control plane to be back', async () => (await node.status()).proxy.controlPlane.connected, { timeoutMs: 40_000 });
    await some.run(100);
    assert.deepEqual((await some.end()).failures, {});
  } finally {
    pilot.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  }
});
