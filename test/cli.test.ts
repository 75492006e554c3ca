/**
 * The commands that look into a running node, on one lab: what they say is held against what requests really do. One world for
 * all cases, since each takes seconds to start.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { run, type RunResult } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { CLI, enrolled, NodeUnderTest } from './agent-harness.js';

const instance = `up-cli-${process.pid}`;
const node = new NodeUnderTest(instance);
const pod = (namespace: string, name: string, labels: string, container: string, account = name): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {${labels}}}
spec: {serviceAccountName: ${account}, containers: [{${container}}]}
---
`;
/** Stands in Envoy's configuration, as people write tokens into routes. */
const PLANTED = 'planted7secret9token';
const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}]';
const WORLD = `apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {underpass.io/mode: node}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {underpass.io/mode: node}}
---
${pod('shop', 'client', 'app: client', 'name: curl, image: curl')}${pod('other', 'client', 'app: client', 'name: curl, image: curl')}${pod('shop', 'web-v1', 'app: web, version: v1', ECHO, 'web')}${pod('shop', 'web-v2', 'app: web, version: v2', ECHO, 'web')}apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - {name: jesse, match: [{headers: {user: {exact: jesse}}}], route: [{destination: {host: web, subset: v2}}]}
  - {name: old, match: [{uri: {prefix: /old/}}], rewrite: {uri: /new/}, route: [{destination: {host: web, subset: v2}}]}
  - {name: gone, match: [{uri: {exact: /gone}}], directResponse: {status: 410}}
  - {name: digits, match: [{uri: {regex: "/[0-9]+"}, queryParams: {q: {exact: x}}}], route: [{destination: {host: web, subset: v2}}]}
  - {name: rest, headers: {request: {set: {authorization: "Bearer ${PLANTED}"}}}, route: [{destination: {host: web, subset: v1}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {paths: ["/secret*", "/new/hidden"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: shop-only, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - {from: [{source: {principals: ["cluster.local/ns/shop/sa/client"]}}]}
  - {from: [{source: {namespaces: ["other"]}}], to: [{operation: {methods: ["GET"], paths: ["/open"]}}], when: [{key: "request.headers[x-pass]", values: ["yes"]}]}
`;

interface Explained {
  request: { verdict: string; reason: string; route?: { name: string; config?: string; index: number }; clusters: { subset: string }[]; endpoints: { pod?: string; share: number }[] };
}

const cli = (args: readonly string[], okCodes: readonly number[] = [0]): Promise<RunResult> => run(process.execPath, [CLI, ...args, '--instance', instance], { okCodes, timeoutMs: 120_000 });

before(async () => {
  await node.up([], WORLD);
  node.startAgent();
  const isThere = async (): Promise<boolean> => {
    const { ready, pods } = await node.status();
    return ready && pods.length === 4 && pods.every(enrolled('bpf'));
  };
  await waitFor('the pods are enrolled', () => isThere().catch(() => false), { timeoutMs: 300_000, everyMs: 500 });
  await waitFor('routes and policies are in force', async () => (await ask('shop/client', 'GET /secret')).status === 403 && (await ask('shop/client', 'GET /', { user: 'jesse' })).version === 'v2', { timeoutMs: 120_000, everyMs: 500 });
});
after(() => node.down());

async function ask(from: string, line: string, headers: Readonly<Record<string, string>> = {}, host = 'web.shop'): Promise<{ status: number; version: string }> {
  const [method = '', path = ''] = line.split(' ');
  const { stdout } = await node.lab.exec(from, ['curl', '-s', '-m', '20', '-X', method, ...Object.entries(headers).flatMap(([name, value]) => ['-H', `${name}: ${value}`]), '-w', '\n%{http_code}', `http://${host}${path}`], { timeoutMs: 60_000 });
  const lines = stdout.trimEnd().split('\n');
  const status = Number(lines.pop());
  const version = /"version":\s*"([^"]*)"/.exec(lines.join('\n'))?.[1] ?? '';
  return { status, version };
}

const CASES: { from: string; line: string; headers?: Record<string, string>; host?: string; rule?: string }[] = [
  { from: 'shop/client', line: 'GET /', rule: 'rest' },
  { from: 'shop/client', line: 'GET /', headers: { user: 'jesse' }, rule: 'jesse' },
  { from: 'shop/client', line: 'GET /old/x', rule: 'old' },
  { from: 'shop/client', line: 'GET /old/hidden', rule: 'old' },
  { from: 'shop/client', line: 'GET /12?q=x', rule: 'digits' },
  { from: 'shop/client', line: 'GET /12?q=y', rule: 'rest' },
  { from: 'shop/client', line: 'GET /gone', rule: 'gone' },
  { from: 'shop/client', line: 'POST /secrets', rule: 'rest' },
  { from: 'other/client', line: 'GET /open', headers: { 'x-pass': 'yes' }, rule: 'rest' },
  { from: 'other/client', line: 'GET /open', rule: 'rest' },
  { from: 'other/client', line: 'POST /open', headers: { 'x-pass': 'yes' }, rule: 'rest' },
];

test('explain --http: it says denied where the request is, and the subset where it arrives', async () => {
  for (const { from, line, headers = {}, rule } of CASES) {
    const what = `${from} ${line} ${JSON.stringify(headers)}`;
    const { request } = JSON.parse((await cli(['explain', from, 'web.shop:80', '--http', line, ...Object.entries(headers).flatMap(([name, value]) => ['-H', `${name}: ${value}`]), '-o', 'json'])).stdout) as Explained;
    const real = await ask(from, line, headers);
    assert.equal(request.route?.name, rule, what);
    assert.equal(request.route?.config, 'VirtualService shop/web', what);
    if (rule === 'gone') {
      assert.equal(request.verdict, 'answered-by-envoy', what);
      assert.equal(real.status, 410, what);
      continue;
    }
    assert.equal(request.verdict, real.status === 403 ? 'deny' : 'allow', `${what}: ${real.status}, ${request.reason}`);
    assert.deepEqual(request.endpoints.filter(({ share }) => share > 0).map((each) => each.pod), [`shop/web-${request.clusters[0]!.subset}`], what);
    if (real.status === 200) assert.equal(real.version, request.clusters[0]!.subset, what);
  }
});

test('explain --http for people: route, policy by name, and the verdict', async () => {
  const { stdout } = await cli(['explain', 'shop/client', 'web:80', '--http', 'GET /old/hidden']);
  assert.match(stdout, /route +2 of 5 "old", of VirtualService shop\/web: forwards, path rewritten to \/new\//);
  assert.match(stdout, /denied \(403\): AuthorizationPolicy shop\/no-secrets, rule 0 denies it/);
  assert.match((await cli(['explain', 'shop/client', 'web:80', '--http', 'nonsense'], [2])).stderr, /expected a method and a path/);
});

test('proxy-config: a pod\'s own listeners, tables, clusters and endpoints, filtered, and Envoy\'s objects with -o json', async () => {
  const listeners = (await cli(['pc', 'listeners', 'shop/client'])).stdout;
  assert.match(listeners, /^LISTENER +ADDRESSES +MATCH +LEADS TO\n/);
  assert.match(listeners, /^outbound +127\.0\.0\.1:15001.*port 80.* routes 80$/m);
  const routes = (await cli(['proxy-config', 'routes', 'client', '-n', 'shop', '--name', '80', '--fqdn', 'web.shop'])).stdout;
  assert.match(routes, /\/\*, user exact jesse +web\.shop\.svc\.cluster\.local:80 v2 +virtual-service shop\/web "jesse"/);
  const clusters = (await cli(['pc', 'c', 'shop/client', '--fqdn', 'web.shop', '--direction', 'outbound'])).stdout;
  assert.match(clusters, /^web\.shop\.svc\.cluster\.local +80 +v2 +outbound +EDS +\S+ +destination-rule shop\/web$/m);
  const address = node.lab.pod('shop', 'web-v2').ips[0]!;
  const endpoints = JSON.parse((await cli(['pc', 'endpoints', 'shop/client', '--address', address, '-o', 'json'])).stdout) as { address: string; health: string; cluster: string }[];
  assert.ok(endpoints.length > 0 && endpoints.every((each) => each.address === address && each.health === 'healthy'), JSON.stringify(endpoints));
  const secrets = (await cli(['pc', 'secrets', 'shop/client', '-o', 'yaml'])).stdout;
  assert.doesNotMatch(secrets, /PRIVATE KEY/);
  const own = JSON.parse((await cli(['pc', 'listeners', 'shop/client', '-o', 'json'])).stdout) as { name: string }[];
  const foreign = (await node.status()).pods.filter(({ namespace, name }) => `${namespace}/${name}` !== 'shop/client').map(({ uid }) => uid);
  assert.ok(own.every(({ name }) => foreign.every((uid) => !name.includes(uid))));
});

test('proxy-config log: Envoy\'s levels, set and set back', async () => {
  assert.match((await cli(['pc', 'log', 'shop/client', '--level', 'rbac:debug'])).stdout, /^rbac +debug$/m);
  assert.match((await cli(['pc', 'log', 'shop/client', '--level', 'warning'])).stdout, /^rbac +warning$/m);
  assert.match((await cli(['pc', 'log', 'shop/client', '--level', 'rbac:loud'], [1])).stderr, /UNDERPASS_BAD_OPTION/);
});

test('names: two pods of one name are both named, a mistyped one brings the nearest, with exit code 5', async () => {
  assert.match((await cli(['pc', 'routes', 'client'], [5])).stderr, /other\/client, shop\/client.*UNDERPASS_AMBIGUOUS_POD/s);
  assert.match((await cli(['describe', 'pod', 'shop/web-v3'], [5])).stderr, /did you mean shop\/web-v1, shop\/web-v2/);
  assert.match((await cli(['describe', 'service', 'wbe.shop'], [5])).stderr, /UNDERPASS_UNKNOWN_SERVICE/);
});

test('wait: in sync, enrolled, off; with 6 when the time has passed, and what is missing', async () => {
  assert.equal((await cli(['wait', '--timeout', '60s'])).stdout, '1 node in-sync\n');
  assert.equal((await cli(['wait', '--for=enrolled', 'shop/web-v1'])).stdout, 'pod shop/web-v1 enrolled\n');
  assert.match((await cli(['wait', '--for=off', 'shop/web-v1', '--timeout', '1s'], [6])).stderr, /not so after 1 s: pod shop\/web-v1 is enrolled.*UNDERPASS_TIMED_OUT/);
  assert.match((await cli(['wait', '--for=enrolled'], [1])).stderr, /expected a pod/);
  assert.match((await cli(['wait', '--for=ready', 'shop/web-v1'], [1])).stderr, /it is of nodes/);
});

test('wait KIND/NAME: until an object is in force, or gone; with 6 when it is not, and the node that lacks it', async () => {
  assert.equal((await cli(['wait', 'VirtualService/web.shop'])).stdout, 'VirtualService/web.shop in-force\n');
  assert.equal((await cli(['wait', '--for=in-force', 'authorizationpolicy/shop-only', '-n', 'shop'])).stdout, 'authorizationpolicy/shop-only.shop in-force\n');
  assert.equal((await cli(['wait', '--for=gone', 'VirtualService/none.shop'])).stdout, 'VirtualService/none.shop gone\n');
  assert.match((await cli(['wait', '--for=gone', 'VirtualService/web.shop', '--timeout', '1s'], [6])).stderr, /not so after 1 s: \S+: \d+ resources? ha(s|ve) something of it.*UNDERPASS_TIMED_OUT/);
  assert.match((await cli(['wait', 'VirtualService/none.shop', '--timeout', '1s'], [6])).stderr, /nothing of it is in any resource of the node/);
  assert.match((await cli(['wait', 'VirtualService/web'], [1])).stderr, /expected KIND\/NAME\.NAMESPACE/);
});

test('describe: services, rules, routes and policies of a pod and of a service', async () => {
  const { stdout } = await cli(['describe', 'pod', 'shop/web-v2']);
  assert.match(stdout, /identity +spiffe:\/\/cluster\.local\/ns\/shop\/sa\/web, certificate until /);
  assert.match(stdout, /service +web\.shop\.svc\.cluster\.local:80, subsets v2\n +rules +destination-rule shop\/web\n +routes +.*virtual-service shop\/web "jesse"/);
  assert.match(stdout, /policies +.*AuthorizationPolicy shop\/no-secrets, rule 0/);
  assert.match(stdout, /mutual TLS +not asked for \(PERMISSIVE, or DISABLE\)/);
  const mutualTls = async (pod: string): Promise<string> => /mutual TLS +(.*)/.exec((await cli(['describe', 'pod', pod])).stdout)?.[1] ?? '';
  const strict = join(node.sourceDir, 'strict.yaml');
  writeFileSync(strict, 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: other}\nspec: {mtls: {mode: STRICT}}\n');
  await waitFor('STRICT to be told', async () => (await mutualTls('other/client')) === 'STRICT', { timeoutMs: 60_000, everyMs: 200 });
  writeFileSync(strict, 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: ports, namespace: other}\nspec: {selector: {matchLabels: {app: client}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}\n');
  await waitFor('ports to be told', async () => (await mutualTls('other/client')) === 'by port: PeerAuthentication/ports.other', { timeoutMs: 60_000, everyMs: 200 });
  rmSync(strict);
  const service = JSON.parse((await cli(['describe', 'service', 'web', '-n', 'shop', '-o', 'json'])).stdout) as { service: string; ports: unknown[]; endpoints: { pod?: string }[] };
  assert.equal(service.service, 'web.shop.svc.cluster.local');
  assert.deepEqual(service.ports, [{ port: 80, subsets: ['v1', 'v2'] }]);
  assert.deepEqual([...new Set(service.endpoints.map((each) => each.pod))].sort(), ['shop/web-v1', 'shop/web-v2']);
});

test('version and completion: of client and node; pods\' names', async () => {
  const { nodes } = JSON.parse((await cli(['version', '-o', 'json'])).stdout) as { nodes: { node: string; agent: string; envoy: string; kernel: string }[] };
  assert.equal(nodes.length, 1);
  assert.match(`${nodes[0]!.agent} ${nodes[0]!.envoy} ${nodes[0]!.kernel}`, /^\d+\.\d+\.\d+\S* 1\.\d+\.\d+ \d/);
  const words = async (...typed: string[]): Promise<string[]> => (await run(process.execPath, [CLI, 'completion', 'words', '--', ...typed], { timeoutMs: 60_000 })).stdout.trim().split('\n');
  assert.deepEqual(await words('explain', '--instance', instance, 'shop/w'), ['shop/web-v1', 'shop/web-v2']);
  assert.deepEqual(await words('pc', 'li'), ['listeners']);
  assert.deepEqual(await words('ps', '-o', 'y'), ['yaml']);
  assert.ok((await words('')).includes('proxy-config'));
});

test('bug-report: what was asked for is there, and no secret: not those planted in routes, not keys', async () => {
  const folder = mkdtempSync(join(tmpdir(), `${instance}-report-`));
  const archive = join(folder, 'report.tar.gz');
  try {
    // One is in Envoy's configuration as a route's header, keys are its certificates'.
    assert.match(await node.proxyAdmin('/config_dump?include_eds'), new RegExp(PLANTED));
    assert.match((await cli(['bug-report', '--file', archive])).stdout, /report\.tar\.gz\n$/);
    assert.equal(statSync(archive).mode & 0o777, 0o600);
    await run('tar', ['-xzf', archive, '-C', folder]);
    const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile() && entry.name !== 'report.tar.gz').map((entry) => join(entry.parentPath ?? entry.path, entry.name));
    const names = files.map((file) => file.split('/').pop());
    for (const name of ['status.json', 'metrics.txt', 'agent.log', 'envoy-config.json', 'envoy-clusters.json', 'facts.json', 'maps.json', 'about.json']) assert.ok(names.includes(name), `${name} is missing`);
    const log = readFileSync(files.find((file) => file.endsWith('/agent.log'))!, 'utf8');
    assert.match(log, /^\{"level":"info".*"msg":"agent starts"\}$/m);
    for (const file of files) assert.doesNotMatch(readFileSync(file, 'utf8'), new RegExp(`${PLANTED}|PRIVATE KEY-----\\s*[A-Za-z0-9+/]`), file);
    assert.match((await cli(['bug-report', '--file', archive], [1])).stderr, /it is there already/);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test('top: requests of the interval, at their destination', async () => {
  const load = node.lab.exec('shop/client', ['sh', '-c', 'i=0; while [ $i -lt 400 ]; do curl -s -o /dev/null http://web/; i=$((i+1)); done'], { timeoutMs: 120_000 }).catch(() => undefined);
  await waitFor('requests in the table', async () => ((JSON.parse((await cli(['top', '-n', 'shop', '--interval', '4', '-o', 'json'])).stdout) as { name: string; requests: number }[]).find(({ name }) => name === 'shop/web')?.requests ?? 0) > 0, { timeoutMs: 100_000, everyMs: 10 });
  await load;
});
