// Services decided at connect(): a lab, an agent with its control plane, and programs that connect to Service VIPs.
import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Explanation } from '../agent/index.js';
import { waitFor } from '../common/retry.js';
import { NodeUnderTest, enrolled } from './agent-harness.js';

const node = new NodeUnderTest(`up-resolve-${process.pid}`);

/** Answers the first bytes of each connection with its pod's name, and closes. */
const SERVER = "require('node:net').createServer((s) => { s.on('error', () => {}); s.once('data', () => s.end(require('node:os').hostname() + ' ' + process.env.POD)); }).listen(7000, '::')";
const CLIENT = `
const [, host, port, count] = process.argv;
const once = () => new Promise((resolve) => {
  const socket = require('node:net').connect({ host, port: +port, timeout: 3000 });
  let text = '', peer = '', errno;
  socket.on('connect', () => { peer = socket.remoteAddress + ':' + socket.remotePort; socket.write('hello'); });
  socket.on('timeout', () => { errno = 'no answer'; socket.destroy(); });
  socket.on('data', (chunk) => (text += chunk)); socket.on('error', (error) => (errno = error.code));
  socket.on('close', () => resolve(errno ?? text.split(' ')[1] + ' ' + peer));
});
(async () => { const out = {}; for (let i = 0; i < +count; i++) { const key = await once(); out[key] = (out[key] ?? 0) + 1; } console.log(JSON.stringify(out)); })();`;

const server = (name: string, labels: string, node_ = 'node-1'): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: shop, labels: {${labels}}}
spec:
  nodeName: ${node_}
  containers:
    - name: server
      image: curl
      command: [${JSON.stringify(process.execPath)}, "-e", ${JSON.stringify(SERVER)}]
      env: [{name: POD, value: ${name}}]
      ports: [{name: tcp-db, containerPort: 7000}]
      readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}
`;

const pod = (name: string, port: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: shop, labels: {app: ${name}}}
spec: {nodeName: node-1, containers: [{name: nginx, image: nginx, ports: [${port}]}]}
`;

const service = (name: string, selector: string, ports: string, more = ''): string => `
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: shop}
spec: {selector: {${selector}}, ports: [${ports}]${more}}
`;

const WORLD = [
  'apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {underpass.io/mode: node}}\n',
  'apiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: shop, labels: {app: client}}\nspec: {nodeName: node-1, containers: [{name: curl, image: curl}]}\n',
  server('db-a', 'app: db, one: "true", wide: "true"'),
  server('db-b', 'app: db'),
  service('db', 'app: db', '{name: tcp, port: 5432, targetPort: tcp-db}'),
  service('one', 'one: "true"', '{name: tcp, port: 6000, targetPort: 7000}'),
  service('sticky', 'app: db', '{name: tcp, port: 5500, targetPort: 7000}', ', sessionAffinity: ClientIP'),
  server('db-far', 'app: far, wide: "true"', 'node-2'),
  service('wide', 'wide: "true"', '{name: tcp, port: 6100, targetPort: 7000}'),
  service('near', 'wide: "true"', '{name: tcp, port: 6200, targetPort: 7000}', ', trafficDistribution: PreferSameNode'),
  pod('web', '{name: http, containerPort: 80}'),
  service('web', 'app: web', '{name: http, port: 80}'),
  service('empty', 'app: nobody', '{name: tcp, port: 9000, targetPort: 9000}'),
].join('---\n');

const rule = (name: string, text: string): string => `apiVersion: networking.istio.io/v1\nkind: ${name}\n${text}`;

before(async () => {
  await node.up([], WORLD);
  node.startAgent('--node', 'node-1');
  await node.podsAre('shop', 'shop to be enrolled', enrolled('bpf'));
});
after(() => node.down());

async function vip(name: string): Promise<string> {
  const { stdout } = await node.lab.exec('shop/client', ['getent', 'hosts', `${name}.shop.svc.cluster.local`]);
  return stdout.trim().split(/\s+/)[0] as string;
}

async function connects(host: string, port: number, count: number): Promise<Record<string, number>> {
  const { stdout } = await node.lab.exec('shop/client', [process.execPath, '-e', CLIENT, host, String(port), String(count)]);
  return JSON.parse(stdout) as Record<string, number>;
}

/** How many of 3 connections the hook decided. */
async function resolved(host: string, port: number): Promise<number> {
  const before_ = (await node.counters())['connections_resolved'] ?? 0;
  await connects(host, port, 3);
  return ((await node.counters())['connections_resolved'] ?? 0) - before_;
}

const until = (what: string, host: string, port: number, count: number) => waitFor(what, async () => (await resolved(host, port)) === count, { timeoutMs: 120_000, everyMs: 100 });

test('connections to a TCP service reach all its pods without a proxy, and see the service as their peer', async () => {
  await until('the service to be decided at connect()', 'db', 5432, 3);
  const address = await vip('db');
  const before_ = await node.counters();
  const result = await connects('db', 5432, 300);
  const after_ = await node.counters();
  assert.deepEqual(Object.keys(result).sort(), [`db-a ${address}:5432`, `db-b ${address}:5432`]);
  // Ten standard deviations of a fair draw among two.
  assert.ok(Math.abs(result[`db-a ${address}:5432`]! - 150) < 87, JSON.stringify(result));
  assert.equal(after_['connections_resolved']! - before_['connections_resolved']!, 300);
  assert.equal(after_['connections_captured']! - before_['connections_captured']!, 0);
  assert.match((await node.cli(['ps', '--instance', node.instance])).stdout, /services +[1-9]\d* addresses and ports decided at connect\(\)\n/);
});

test('with sessionAffinity ClientIP a pod keeps to one endpoint of the service', async () => {
  await until('the service to be decided at connect()', 'sticky', 5500, 3);
  const [first, ...others] = Object.keys(await connects('sticky', 5500, 30));
  assert.deepEqual([first?.startsWith('db-'), others], [true, []]);
  assert.match((await explained('sticky', 5500)).reasons.join(), /its sessionAffinity is ClientIP: a pod keeps to one of them/);
  assert.deepEqual(Object.keys(await connects('sticky', 5500, 3)), [first]);
});

test('a service without endpoints refuses at once', async () => {
  await waitFor('the refusal', async () => (await connects('empty', 9000, 1))['ECONNREFUSED'] === 1, { timeoutMs: 60_000 });
  const before_ = (await node.counters())['connections_without_endpoint']!;
  assert.deepEqual(await connects('empty', 9000, 2), { ECONNREFUSED: 2 });
  assert.equal((await node.counters())['connections_without_endpoint']! - before_, 2);
});

test('a DestinationRule leads the service through Envoy for as long as it is there', async () => {
  const file = join(node.sourceDir, 'rule.yaml');
  writeFileSync(file, rule('DestinationRule', 'metadata: {name: db, namespace: shop}\nspec: {host: db, trafficPolicy: {connectionPool: {tcp: {maxConnections: 100}}}}\n'));
  await until('Envoy to have the service', 'db', 5432, 0);
  assert.equal(Object.values(await connects('db', 5432, 4)).reduce((sum, n) => sum + n, 0), 4);
  rmSync(file);
  await until('the kernel to have it again', 'db', 5432, 3);
});

test('a VirtualService leads the service through Envoy', async () => {
  const file = join(node.sourceDir, 'route.yaml');
  writeFileSync(file, rule('VirtualService', 'metadata: {name: db, namespace: shop}\nspec: {hosts: [db], tcp: [{match: [{port: 5432}], route: [{destination: {host: one, port: {number: 6000}}}]}]}\n'));
  const address = await vip('db');
  await waitFor('the route', async () => JSON.stringify(await connects('db', 5432, 10)) === JSON.stringify({ [`db-a ${address}:5432`]: 10 }), { timeoutMs: 60_000 });
  assert.equal(await resolved('db', 5432), 0);
  rmSync(file);
  await until('the kernel to have it again', 'db', 5432, 3);
});

test('a pod whose policy only the proxy can judge is reached through Envoy, which holds to the policy', async () => {
  const files = ['policy.yaml', 'peer.yaml'].map((name) => join(node.sourceDir, name));
  // Nobody has an identity where no mutual TLS is taken: WDS says so of nobody.
  writeFileSync(files[1]!, 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: one, namespace: shop}\nspec: {selector: {matchLabels: {one: "true"}}, mtls: {mode: DISABLE}}\n');
  writeFileSync(files[0]!, 'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: one, namespace: shop}\nspec: {selector: {matchLabels: {one: "true"}}, action: ALLOW, rules: [{from: [{source: {namespaces: [shop]}}]}]}\n');
  const passes = async (): Promise<boolean> => Object.keys(await connects('one', 6000, 2)).some((key) => key.startsWith('db-a'));
  await waitFor('the policy to be in force', async () => !(await passes()), { timeoutMs: 120_000 });
  assert.equal(await resolved('one', 6000), 0);
  assert.equal(await resolved('db', 5432), 0, 'one of its two endpoints has the policy');
  assert.match((await explained('one', 6000)).reasons.join(), /its policy has a say in who calls it, and not the kernel's alone: it takes no mutual TLS/);
  for (const file of files) rmSync(file);
  await until('the kernel to have it again', 'one', 6000, 3);
  assert.ok(await passes());
});

test('a pod whose policy the kernel judges is decided at connect() all the same, and refuses there whom the policy denies', async () => {
  const file = join(node.sourceDir, 'policy.yaml');
  writeFileSync(file, 'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: one, namespace: shop}\nspec: {selector: {matchLabels: {one: "true"}}, action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}\n');
  await waitFor('the kernel to judge', async () => (await explained('one', 6000)).way === 'refused', { timeoutMs: 120_000 });
  const before_ = (await node.counters())['policy_connect_refused'] ?? 0;
  assert.deepEqual(await connects('one', 6000, 3), { ECONNREFUSED: 3 });
  assert.equal((await node.counters())['policy_connect_refused'], before_ + 3);
  assert.match((await node.cli(['ps', '--instance', node.instance])).stdout, /shop\/db-a: 7000 by the kernel for pods of this node/);
  rmSync(file);
  await until('the kernel to have it again', 'one', 6000, 3);
});

test('pods that ask their callers for mutual TLS are decided at connect() for the node\'s own pods, whose identity is known', async () => {
  const file = join(node.sourceDir, 'strict.yaml');
  writeFileSync(file, 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n');
  await waitFor('the kernel to judge', async () => judged(await explained('db', 5432)) === 'allow kernel,allow kernel', { timeoutMs: 120_000 });
  const before_ = (await node.counters())['policy_connect_let_past'] ?? 0;
  assert.equal(await resolved('db', 5432), 3);
  assert.equal((await node.counters())['policy_connect_let_past'], before_ + 3);
  assert.equal(Object.keys(await connects('db', 5432, 2)).filter((key) => key.startsWith('db-')).length > 0, true);
  rmSync(file);
  await waitFor('the pods to have no policy', async () => judged(await explained('db', 5432)) === 'none kernel,none kernel', { timeoutMs: 120_000 });
  await until('the kernel to have it again', 'db', 5432, 3);
});

test('a service with an endpoint on another node is Envoy\'s, one that prefers its own node is not', async () => {
  await until('the near service to be decided at connect()', 'near', 6200, 3);
  assert.deepEqual(Object.keys(await connects('near', 6200, 10)), [`db-a ${await vip('near')}:6200`]);
  const before_ = await node.counters();
  const result = await connects('wide', 6100, 20);
  assert.equal((await node.counters())['connections_resolved'], before_['connections_resolved']);
  const address = await vip('wide');
  assert.deepEqual(Object.keys(result).sort(), [`db-a ${address}:6100`, `db-far ${address}:6100`]);
});

test('HTTP that asks for nothing is decided at connect() for pods whose label says so, and goes through Envoy when a route asks', async () => {
  const get = async (): Promise<string> => (await node.lab.exec('shop/client', ['curl', '-s', '-o', '/dev/null', '-w', '%{http_code} %{remote_ip}', 'http://web/'])).stdout;
  const decided = async (): Promise<[string, number]> => {
    const before_ = (await node.counters())['connections_resolved']!;
    return [await get(), (await node.counters())['connections_resolved']! - before_];
  };
  const address = await vip('web');
  assert.deepEqual(await decided(), [`200 ${address}`, 0]);
  await node.lab.label({ kind: 'Pod', namespace: 'shop', name: 'client', labels: { 'underpass.io/l7': 'auto' } });
  await waitFor('HTTP to be decided at connect()', async () => (await decided())[1] === 1, { timeoutMs: 60_000 });
  assert.deepEqual(await decided(), [`200 ${address}`, 1]);
  const file = join(node.sourceDir, 'web.yaml');
  writeFileSync(file, rule('VirtualService', 'metadata: {name: web, namespace: shop}\nspec: {hosts: [web], http: [{fault: {abort: {percentage: {value: 100}, httpStatus: 418}}, route: [{destination: {host: web}}]}]}\n'));
  await waitFor('the route', async () => JSON.stringify(await decided()) === JSON.stringify([`418 ${address}`, 0]), { timeoutMs: 60_000 });
  rmSync(file);
  await waitFor('HTTP to be decided at connect() again', async () => (await decided())[1] === 1, { timeoutMs: 60_000 });
  await node.lab.label({ kind: 'Pod', namespace: 'shop', name: 'client', labels: { 'underpass.io/l7': null } });
});

/** What became of one connection, by what the kernel counted. */
async function wayTaken(host: string, port: number): Promise<string> {
  const before_ = await node.counters();
  const [result = ''] = Object.keys(await connects(host, port, 1));
  const after_ = await node.counters();
  const grew = (name: string): boolean => (after_[name] ?? 0) > (before_[name] ?? 0);
  if (grew('connections_without_endpoint')) return 'refused';
  if (grew('connections_resolved')) return 'endpoint';
  if (grew('connections_captured')) return 'envoy';
  return result.startsWith('db-') ? 'straight' : `untouched: ${result}`;
}

const judged = ({ destinations = [] }: Explanation['addresses'][number]): string => destinations.map(({ policy: { answer, judge } }) => `${answer} ${judge}`).join();

async function explained(host: string, port: number): Promise<Explanation['addresses'][number]> {
  const { stdout } = await node.cli(['explain', 'client', `${host.includes(':') ? `[${host}]` : host}:${port}`, '-n', 'shop', '-o', 'json', '--instance', node.instance]);
  const { addresses } = JSON.parse(stdout) as Explanation;
  return addresses.find(({ address }) => !address.includes(':')) ?? addresses[0]!;
}

test('explain says which way a connection takes, and it takes that way', async () => {
  const [own] = (await node.pod('shop', 'client')).ips;
  const [other] = (await node.pod('shop', 'db-a')).ips;
  const cases: [host: string, port: number, way: string, taken: string, why: RegExp][] = [
    ['db', 5432, 'endpoint', 'endpoint', /shop\/db\.shop.*TCP for which a proxy has nothing to do/],
    [await vip('db'), 5432, 'endpoint', 'endpoint', /all its endpoints are pods of this node/],
    ['empty', 9000, 'refused', 'refused', /no endpoint/],
    ['web', 80, 'envoy', 'envoy', /underpass\.io\/l7 is not auto/],
    ['wide', 6100, 'envoy', 'envoy', /db-far\): no enrolled pod of this node/],
    ['db', 5433, 'envoy', 'envoy', /no port 5433/],
    [other!, 7000, 'pod', 'straight', /own address/],
    [other!, 80, 'envoy', 'envoy', /a listener of the control plane asks for port 80/],
    [own!, 7000, 'untouched', 'untouched: ECONNREFUSED', /talks to itself/],
    ['198.51.100.1', 443, 'envoy', 'envoy', /no service has this address/],
  ];
  for (const [host, port, way, taken, why] of cases) {
    const said = await explained(host, port);
    assert.equal(said.way, way, `${host}:${port}: ${JSON.stringify(said)}`);
    assert.match(said.reasons.join(), why, `${host}:${port}`);
    assert.equal(await wayTaken(host, port), taken, `${host}:${port}`);
  }
  const { endpoints = [] } = await explained('db', 5432);
  assert.deepEqual(endpoints.map(({ port, share, leftOut }) => [port, share, leftOut]), [[7000, 0.5, false], [7000, 0.5, false]]);
});

test('explain says what the policy of the pod that is reached makes of the caller, and so it is', async () => {
  const [address] = (await node.pod('shop', 'db-a')).ips;
  const policyOf = async (host: string, port: number): Promise<string> => {
    const { destinations = [] } = await explained(host, port);
    const found = destinations.find(({ pod }) => pod === 'shop/db-a');
    return found ? `${found.policy.answer} by ${found.policy.judge}: ${found.policy.reason}` : 'no destination';
  };
  const passes = async (host: string, port: number): Promise<boolean> => Object.keys(await connects(host, port, 1)).some((key) => key.startsWith('db-a'));
  const rules = (action: string, text: string): string => `apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: one, namespace: shop}\nspec: {selector: {matchLabels: {one: "true"}}, action: ${action}, rules: [${text}]}\n`;
  const strict = 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n';
  const file = join(node.sourceDir, 'policy.yaml');
  assert.equal(await policyOf(address!, 7000), 'none by kernel: it takes all that comes');
  assert.equal(await policyOf('one', 6000), 'none by kernel: it takes all that comes');
  const cases: [yaml: string, said: RegExp][] = [
    [rules('DENY', '{from: [{source: {namespaces: [shop]}}]}'), /^deny by kernel: shop\/one fits$/],
    [rules('DENY', '{from: [{source: {namespaces: [elsewhere]}}]}'), /^allow by kernel: no DENY policy fits, and there is no ALLOW policy$/],
    [rules('ALLOW', '{from: [{source: {principals: ["*"]}}], to: [{operation: {ports: ["7000"]}}]}'), /^allow by kernel: shop\/one fits$/],
    [rules('ALLOW', '{to: [{operation: {ports: ["7001"]}}]}'), /^deny by kernel: no ALLOW policy fits$/],
    [strict, /^allow by kernel: no DENY policy fits, and there is no ALLOW policy$/],
  ];
  for (const [yaml, said] of cases) {
    writeFileSync(file, yaml);
    let last: unknown;
    await waitFor(`explain to say ${said}`, async () => said.test((last = await policyOf('one', 6000)) as string), { timeoutMs: 60_000 }).catch((error: unknown) => assert.fail(`${String(error)}: ${String(last)}`));
    // By the service and by the pod's own address alike it comes with the caller's identity.
    for (const [host, port] of [['one', 6000], [address!, 7000]] as const) {
      await waitFor(`${host} to be as explain says`, async () => {
        const [answer, isIn] = [await policyOf(host, port), await passes(host, port)];
        last = { answer, isIn };
        return answer.startsWith(isIn ? 'allow' : 'deny');
      }, { timeoutMs: 60_000 }).catch((error: unknown) => assert.fail(`${yaml}: ${String(error)}: ${JSON.stringify(last)}`));
    }
  }
  assert.match(await policyOf(address!, 7000), /^allow by kernel: no DENY policy fits/);
  // A log of connections is Envoy's to write: by the pod's own address, too, it knows who calls.
  writeFileSync(file, `${strict}---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: log, namespace: shop}\nspec: {accessLogging: [{providers: [{name: envoy}]}]}\n`);
  for (const [host, port] of [['one', 6000], [address!, 7000]] as const) {
    await waitFor(`Envoy to judge, and to let in by ${host}`, async () => (await policyOf(host, port)).startsWith('allow by envoy: no DENY policy fits') && (await passes(host, port)), { timeoutMs: 60_000 });
  }
  // More than the kernel's tables hold: Envoy has them all, and lets in whom they allow.
  const mine = (await node.pod('shop', 'client')).ips[0]!;
  writeFileSync(file, rules('ALLOW', `{from: [{source: {ipBlocks: [${Array.from({ length: 130 }, (_, i) => `"192.0.2.${i}"`).join()}, "${mine}"]}}]}`));
  await waitFor('Envoy alone to judge', async () => (await policyOf('one', 6000)).startsWith('unknown by envoy: the kernel has no room'), { timeoutMs: 60_000 });
  await waitFor('Envoy to let in', async () => (await passes('one', 6000)) && (await passes(address!, 7000)), { timeoutMs: 60_000 });
  assert.match((await node.cli(['explain', 'shop/client', 'one:6000', '--instance', node.instance])).stdout, /\n {4}at L4 not known here: the kernel has no room .*; the node's Envoy judges/);
  assert.match((await node.cli(['ps', '--instance', node.instance])).stdout, /shop\/db-a lets nobody new in without Envoy: its policies come to 131 blocks of addresses, the kernel's tables hold 128/);
  rmSync(file);
  await until('the kernel to have it again', 'one', 6000, 3);
  assert.equal(await policyOf('one', 6000), 'none by kernel: it takes all that comes');
});

test('explain says of a caller that rules redirect what comes of it: an identity by a service, none by a pod\'s own address', async () => {
  const [address] = (await node.pod('shop', 'db-a')).ips;
  const label = (value: string | null) => node.lab.label({ kind: 'Pod', namespace: 'shop', name: 'client', labels: { 'underpass.io/redirection': value } });
  const file = join(node.sourceDir, 'policy.yaml');
  writeFileSync(file, 'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: one, namespace: shop}\nspec: {selector: {matchLabels: {one: "true"}}, action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}\n');
  await label('iptables');
  let last: unknown;
  for (const [host, port, said] of [['one', 6000, 'deny envoy'], [address!, 7000, 'allow envoy']] as const) {
    await waitFor(`${host} to be as explain says`, async () => {
      const [found, isIn] = [await explained(host, port), Object.keys(await connects(host, port, 1)).some((key) => key.startsWith('db-a'))];
      last = { found, isIn };
      return found.way === 'envoy' && judged(found) === said && isIn === said.startsWith('allow');
    }, { timeoutMs: 60_000 }).catch((error: unknown) => assert.fail(`${String(error)}: ${JSON.stringify(last)}`));
  }
  for (const own of ['127.0.0.1', '0.0.0.0']) assert.equal((await explained(own, 7000)).way, 'untouched', own);
  await label(null);
  rmSync(file);
  await node.podsAre('shop', 'the client to be captured by BPF', enrolled('bpf'));
  await until('the kernel to have it again', 'one', 6000, 3);
});

test('explain shows the probation of both ends of a connection that no proxy is between', async () => {
  await connects('db', 5432, 40);
  const { destinations = [] } = await explained('db', 5432);
  assert.deepEqual(destinations.map(({ pod, port, probation }) => [pod, port, probation?.listener?.verdict]).sort(), [['shop/db-a', 7000, 'event-driven'], ['shop/db-b', 7000, 'event-driven']]);
  assert.ok(destinations.every(({ probation }) => probation!.clients.some(({ verdict }) => verdict === 'event-driven')), JSON.stringify(destinations));
  const { stdout } = await node.cli(['explain', 'client', 'db:5432', '-n', 'shop', '--instance', node.instance]);
  assert.match(stdout, /\n {2}shop\/db-a [\d.]+:7000\n {4}no policy: it takes all that comes\n {4}server: event-driven \(.+\)\n {4}client .+: event-driven \(.+\)\n/);
  const throughEnvoy = await explained('wide', 6100);
  assert.deepEqual(throughEnvoy.destinations?.map(({ pod, probation }) => [pod, probation]), [['shop/db-a', undefined]]);
});

test('explain names the rule that leads a service through Envoy, and what it can\'t explain', async () => {
  const file = join(node.sourceDir, 'rule.yaml');
  writeFileSync(file, rule('DestinationRule', 'metadata: {name: db, namespace: shop}\nspec: {host: db, trafficPolicy: {connectionPool: {tcp: {maxConnections: 100}}}}\n'));
  await until('Envoy to have the service', 'db', 5432, 0);
  const { stdout } = await node.cli(['explain', 'shop/client', 'db:5432', '--instance', node.instance]);
  assert.match(stdout, /through the node's Envoy\n {2}because shop\/db\.shop\.svc\.cluster\.local: .*destination-rule\/db has settings for it/);
  assert.equal(await wayTaken('db', 5432), 'envoy');
  rmSync(file);
  await until('the kernel to have it again', 'db', 5432, 3);
  for (const [args, exitCode, why] of [[['shop/client', 'nobody.example:80'], 5, /host name that WDS has a service for/], [['shop/nobody', 'db:5432'], 5, /pod shop\/nobody: not on node/], [['shop/client', 'db'], 2, /HOST:PORT/]] as const) {
    const { stderr, code } = await node.cli(['explain', ...args, '--instance', node.instance], [2, 5]);
    assert.deepEqual([code, why.test(stderr)], [exitCode, true], stderr);
  }
});

test('explain reads an address as the hooks do, however it is written, and a name as a resolver does', async () => {
  const address = await vip('db');
  const told = async (host: string): Promise<{ address: string; way: string; reasons: string[] }[]> => JSON.parse((await node.cli(['explain', 'shop/client', `${host.includes(':') ? `[${host}]` : host}:5432`, '--instance', node.instance, '-o', 'json'])).stdout).addresses;
  const [plain] = await told(address);
  const [a, b, c, d] = address.split('.').map(Number) as [number, number, number, number];
  for (const same of [`::ffff:${address}`, `::FFFF:${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`, 'DB', 'db.shop.svc.cluster.local.']) assert.deepEqual((await told(same))[0], plain, same);
  for (const own of ['0.0.0.0', '::', '::ffff:127.0.0.1', '0:0::1', 'FE80::1']) assert.equal((await told(own))[0]!.way, 'untouched', own);
});

test('a pod that leaves the mesh takes its services with it, and they come back with it', async () => {
  const label = (mode: string | null) => node.lab.label({ kind: 'Pod', namespace: 'shop', name: 'db-b', labels: { 'underpass.io/mode': mode } });
  await label('off');
  await until('Envoy to have the service', 'db', 5432, 0);
  assert.equal(await resolved('one', 6000), 3);
  await label(null);
  await until('the kernel to have it again', 'db', 5432, 3);
});

test('a restarted agent finds what was decided as it was, with no connection lost meanwhile', async () => {
  let done = false;
  const seen: Record<string, number> = {};
  const load = (async () => {
    while (!done) for (const [key, n] of Object.entries(await connects('db', 5432, 50))) seen[key] = (seen[key] ?? 0) + n;
  })();
  await node.endAgent('SIGKILL');
  const address = await vip('db');
  assert.deepEqual(Object.keys(await connects('db', 5432, 20)).sort(), [`db-a ${address}:5432`, `db-b ${address}:5432`]);
  node.startAgent('--node', 'node-1');
  await node.podsAre('shop', 'shop to be enrolled', enrolled('bpf'));
  await waitFor('the services', async () => (await node.status()).services?.firstSyncMs !== undefined, { timeoutMs: 60_000 });
  done = true;
  await load;
  assert.equal(await resolved('db', 5432), 3);
  assert.deepEqual(Object.keys(seen).sort(), [`db-a ${address}:5432`, `db-b ${address}:5432`]);
});
