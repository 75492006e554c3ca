/**
 * Istio's metrics are the same whichever mode a namespace is in: the same load between sidecars (scraped on port 15090 of each, as
 * Prometheus does), between pods of one Envoy, and over the HTTP fast path comes to the same sums under the same labels, but for
 * what docs/reference/metrics.md says differs.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { PEER_HEADER } from '../common/telemetry/peer-header.js';
import { TAG_ATTRIBUTES } from '../common/telemetry/metric-tags.js';
import { waitFor } from '../common/retry.js';
import { gatewayPodYaml, istioGateway } from './gateway-world.js';
import { seriesOf, type Series } from './mesh/series.js';
import { MeshWorld } from './mesh/world.js';

/** Beside what all worlds have: a service without an endpoint, and one of gRPC. */
const more = (namespace: string): string => `apiVersion: v1
kind: Service
metadata: {name: gone, namespace: ${namespace}}
spec: {selector: {app: gone}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: grpc, namespace: ${namespace}, labels: {app: grpc, version: v1}}
spec: {serviceAccountName: grpc, containers: [{name: grpc, image: grpc-echo, ports: [{name: grpc, containerPort: 7070}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: grpc, namespace: ${namespace}}
spec: {selector: {app: grpc}, ports: [{name: grpc, port: 7070}]}
`;
const FAST = `apiVersion: v1
kind: Namespace
metadata: {name: fast, labels: {underpass.io/mode: node, underpass.io/acceleration: l7}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: fast, labels: {app: client}}
spec: {serviceAccountName: client, containers: [{name: curl, image: curl}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: fast, labels: {app: other, version: v1}}
spec: {serviceAccountName: other, containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: fast}
spec: {selector: {app: other}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]}
---
${more('fast')}`;

const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}]';
/** Some of a service's pods have a sidecar; another's is an Envoy that can't count. */
const MIXED = `apiVersion: v1
kind: Namespace
metadata: {name: mixed, labels: {underpass.io/mode: sidecar}}
---
apiVersion: v1
kind: Pod
metadata: {name: with, namespace: mixed, labels: {app: mixed, version: with}}
spec: {containers: [{${ECHO}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: without, namespace: mixed, labels: {app: mixed, version: without, sidecar.istio.io/inject: "false"}}
spec: {containers: [{${ECHO}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: mixed, labels: {app: old}}
spec: {serviceAccountName: old, containers: [{${ECHO}}, {name: istio-proxy, image: auto, env: [{name: ENVOY_DISABLED_EXTENSIONS, value: envoy.access_loggers/envoy.access_loggers.stats}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: old, namespace: mixed}
spec: {selector: {app: old}, ports: [{name: http, port: 80, targetPort: 8080}]}
${['mixed', 'heads'].map((name) => `---
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: mixed}
spec: {${name === 'heads' ? 'clusterIP: None, ' : ''}selector: {app: mixed}, ports: [{name: http, port: ${name === 'heads' ? 8080 : 80}, targetPort: 8080}]}
`).join('')}${gatewayPodYaml(istioGateway('egress', '{name: http2, port: 80, targetPort: 8080}'))}`;

const mesh = new MeshWorld('parity', { yaml: more, outside: `${FAST}---\n${MIXED}` });
before(() => mesh.up());
after(() => mesh.down());

const WAYS = ['sidecar', 'node', 'fast'] as const;
type Way = (typeof WAYS)[number];

/** ADDRESS PORT BYTES: sends as many, waits until they are back, and closes. */
const TALK = `
const [address, port, bytes] = process.argv.slice(1);
let got = 0;
const s = require('node:net').connect(Number(port), address, () => s.write(Buffer.alloc(Number(bytes))));
s.on('data', (d) => { got += d.length; if (got >= Number(bytes)) s.end(); }).on('close', () => console.log(got)).on('error', (e) => console.log(e.code));`;
const [CONNECTIONS, BYTES] = [6, 1_000];
/** Of gRPC: not compressed, a length, and as many bytes. */
const MESSAGE = '\0\0\0\0\x05hello';

async function load(way: Way): Promise<void> {
  const from = `${way}/client`;
  const ask = async (path: string, count: number, status: number, headers: Record<string, string> = {}): Promise<void> => {
    assert.deepEqual((await mesh.load('outside', `http://${path}`, count, { from, headers })).statuses, { [status]: count }, `${way} ${path}`);
  };
  await ask('other/', 120, 200);
  await ask('other/status/404', 15, 404);
  await ask('other/status/503', 5, 503);
  await ask('gone/', 7, 503);
  await ask('other/headers?grpc-status=5', 4, 200, { 'content-type': 'application/grpc' });
  assert.equal((await mesh.lab.exec(from, ['curl', '-sS', '-o', '/dev/null', '-H', 'content-type: application/grpc', '--data-binary', '@-', 'http://other/headers?grpc-status=0'], { input: MESSAGE.repeat(3) })).code, 0);
  for (let count = 0; count < CONNECTIONS; count++) {
    const { stdout, stderr } = await mesh.lab.exec(from, [process.execPath, '-e', TALK, 'other', '9000', String(BYTES)]);
    assert.equal(stdout.trim(), String(BYTES), stderr);
  }
}

async function scrape(way: Way): Promise<Series[]> {
  if (way !== 'sidecar') return seriesOf(await mesh.agentMetrics()).filter(({ labels }) => labels['source_workload_namespace'] === way);
  const pods = (await mesh.lab.pods()).filter(({ namespace }) => namespace === way);
  return (await Promise.all(pods.map(async ({ ips }) => seriesOf((await mesh.lab.exec('outside/client', ['curl', '-sS', '-m', '20', `http://${ips[0]}:15090/stats/prometheus`])).stdout)))).flat();
}

/** Listeners are acknowledged before they have warmed, and until then those before them serve. */
async function inForce(): Promise<void> {
  assert.deepEqual(await mesh.nacks(), []);
  const pods = (await mesh.lab.pods()).filter(({ namespace }) => namespace === 'sidecar');
  for (const { name } of pods) await waitFor(`the listeners of ${name}`, async () => /total_listeners_warming: 0$/m.test(await mesh.proxyAdmin(`sidecar/${name}`, '/stats?filter=listener_manager.total_listeners_warming')), { timeoutMs: 120_000, everyMs: 50 });
}

const SOURCE = ['workload', 'workload_namespace', 'canonical_service', 'canonical_revision', 'app', 'version', 'cluster'].map((name) => `source_${name}`);

/** What is left without what docs/reference/metrics.md says differs. */
function comparable({ name, labels }: Series): string {
  const left = Object.fromEntries(Object.entries(labels).filter(([key, value]) => value !== '' && !/_(?:region|zone)$/.test(key) && key !== 'connection_security_policy'));
  // Mutual TLS proves it, and there was none.
  if (left['destination_workload'] === 'unknown') delete left['source_principal'];
  // Sidecars tell each other in HTTP alone who they are.
  if (name.startsWith('istio_tcp_') && left['reporter'] === 'destination') for (const key of SOURCE) delete left[key];
  // A server's proxy connects on before it knows who its client is.
  if (name === 'istio_tcp_connections_opened_total' && left['reporter'] === 'destination') delete left['source_principal'];
  const text = Object.entries(left).sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, value]) => `${key}=${value.replaceAll(/\b(?:sidecar|node|fast)\b/g, 'NS')}`).join(' ');
  return `${name} ${text}`;
}

type Sums = Record<string, number>;

/** By series, as they have grown; what is alike but for what differs is one. */
async function sums(way: Way, before: Sums): Promise<Sums> {
  const all = new Map<string, number>();
  for (const series of await scrape(way)) {
    const key = comparable(series);
    all.set(key, (all.get(key) ?? 0) + series.value);
  }
  const grown = [...all].map(([key, value]) => [key, value - (before[key] ?? 0)] as const);
  return Object.fromEntries(grown.filter(([, value]) => value !== 0).sort(([a], [b]) => (a < b ? -1 : 1)));
}

const of = (all: Sums, what: RegExp): number => Object.entries(all).reduce((sum, [key, value]) => sum + (what.test(key) ? value : 0), 0);
const REQUESTS = 120 + 15 + 5 + 7 + 4 + 1;

/** Envoy merges what its threads counted every five seconds. */
async function counted(way: Way, before: Sums = {}): Promise<Sums> {
  let now: Sums = {};
  await waitFor(`the load of ${way} to be counted`, async () => {
    now = await sums(way, before);
    if (of(now, /^istio_request_messages_total/) !== 2 * 3) return false;
    return of(now, /^istio_request_bytes_count .*reporter=source/) === REQUESTS && of(now, /^istio_request_bytes_count .*reporter=destination/) === REQUESTS - 7
      && ['source', 'destination'].every((reporter) => of(now, new RegExp(`^istio_tcp_connections_closed_total .*reporter=${reporter}`)) === CONNECTIONS);
  }, { timeoutMs: 120_000, everyMs: 500 }).catch((error: unknown) => {
    throw new Error(`${String(error)}: ${JSON.stringify(now, undefined, 1)}`);
  });
  return now;
}

test('the same load by sidecars, by the node\'s Envoy and by the fast path comes to the same sums under the same labels', async () => {
  assert.deepEqual(await mesh.nacks(), []);
  for (const way of WAYS) await load(way);
  const sidecar = await counted('sidecar');
  const unknown = Object.keys(sidecar).filter((key) => /(?:source|destination)_(?:workload|canonical_service|principal|cluster)=unknown/.test(key) && !/destination_service_name=gone/.test(key));
  assert.deepEqual(unknown, [], 'both ends of each request and connection are known');
  for (const way of ['node', 'fast'] as const) assert.deepEqual(await counted(way), sidecar, way);
});

/** Of a gRPC program: the method, what the client sends, and how many messages each end sends by that. */
const CALLS: readonly (readonly [method: string, messages: readonly string[], request: number, response: number])[] = [
  ['ServerStream', ['{"count":7}'], 1, 7],
  ['ClientStream', Array.from({ length: 5 }, (_, index) => `{"message":"${index}"}`), 5, 1],
  ['BidiStream', ['{}', '{}', '{}'], 3, 3],
];

test('messages of gRPC streams are counted one by one, in both directions and by both reporters, whichever mode a pod is in', async () => {
  const [request, response] = CALLS.reduce(([asked, answered], call) => [asked + call[2], answered + call[3]], [0, 0]) as [number, number];
  for (const way of WAYS) {
    const before = await sums(way, {});
    for (const [method, messages] of CALLS) {
      const { code, stdout, stderr } = await mesh.lab.exec(`${way}/client`, ['grpc-client', '--timeout', '60000', 'grpc:7070', method, ...messages], { timeoutMs: 90_000 });
      assert.equal(code, 0, stderr);
      assert.equal(stdout.trim().split('\n').length, CALLS.find(([name]) => name === method)![3]);
    }
    const failed = await mesh.lab.exec(`${way}/client`, ['grpc-client', 'grpc:7070', 'Unary', '{"fail":9}'], { timeoutMs: 60_000 });
    assert.match(failed.stderr, /^code 9:/);
    let now: Sums = {};
    const told = (): unknown => Object.fromEntries(['source', 'destination'].map((reporter) => [reporter, Object.fromEntries(['0', '9'].map((status) => {
      const series = (name: string): number => of(now, new RegExp(`^istio_${name}_total .*destination_service_name=grpc .*grpc_response_status=${status} .*reporter=${reporter} .*request_protocol=grpc`));
      return [status, [series('requests'), series('request_messages'), series('response_messages')]];
    }))]));
    const expected = { 0: [CALLS.length, request, response], 9: [1, 1, 0] };
    await waitFor(`the messages of ${way} to be counted`, async () => {
      now = await sums(way, before);
      return isDeepStrictEqual(told(), { source: expected, destination: expected });
    }, { timeoutMs: 60_000, everyMs: 500 }).catch(() => assert.deepEqual(told(), { source: expected, destination: expected }, `${way}: ${JSON.stringify(now, undefined, 1)}`));
  }
});

/** Connections that clients' Envoys keep stay with the chains of listeners before: with another cluster they open new ones. */
const renewing = (timeout: string): string => `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: other, namespace: sidecar}
spec: {host: other, trafficPolicy: {connectionPool: {tcp: {connectTimeout: ${timeout}}}}}
`;

/** Beside Istio's metrics for both sides: one off, one off on one side, one with a label more and one less, in the root namespace and in the workload's. */
const TELEMETRY = `apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: istio-system}
spec:
  metrics:
  - overrides:
    - {match: {metric: RESPONSE_SIZE}, disabled: true}
    - {match: {metric: REQUEST_COUNT, mode: CLIENT}, tagOverrides: {tier: {value: "'none'"}, outcome: {value: "'http ' + string(response.code)"}, status: {value: response.grpc_status}, request_protocol: {operation: REMOVE}}}
    - {match: {metric: TCP_SENT_BYTES, mode: SERVER}, disabled: true}
    - {match: {metric: TCP_CLOSED_CONNECTIONS}, tagOverrides: {destination_service: {operation: REMOVE}}}
---
${WAYS.map((way) => `apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: own, namespace: ${way}}
spec: {metrics: [{providers: [{name: prometheus}], overrides: [{match: {metric: REQUEST_COUNT, mode: CLIENT}, tagOverrides: {tier: {value: "'gold'"}}}]}]}
`).join('---\n')}---
${renewing('7s')}`;

test('Telemetry\'s overrides of metrics come to the same series, whichever way requests and connections took', async () => {
  await mesh.apply('mesh', TELEMETRY);
  await inForce();
  const before = new Map<Way, Sums>();
  for (const way of WAYS) before.set(way, await sums(way, {}));
  for (const way of WAYS) await load(way);
  const sidecar = await counted('sidecar', before.get('sidecar'));
  const names = (reporter: string): string[] => [...new Set(Object.keys(sidecar).filter((key) => key.includes(`reporter=${reporter}`)).map((key) => key.slice(0, key.indexOf(' '))))].sort();
  const HTTP = ['istio_request_bytes_count', 'istio_request_duration_milliseconds_count', 'istio_requests_total'];
  const TCP = ['istio_tcp_connections_closed_total', 'istio_tcp_connections_opened_total', 'istio_tcp_received_bytes_total'];
  const messages = 'istio_request_messages_total';
  HTTP.splice(2, 0, messages);
  assert.deepEqual([names('source'), names('destination')], [[...HTTP, ...TCP, 'istio_tcp_sent_bytes_total'], [...HTTP, ...TCP]]);
  for (const key of Object.keys(sidecar).filter((series) => series.startsWith('istio_requests_total'))) assert.deepEqual([/tier=gold/.test(key), /request_protocol=/.test(key)], /reporter=source/.test(key) ? [true, false] : [false, true], key);
  for (const key of Object.keys(sidecar).filter((series) => series.startsWith('istio_tcp_connections_closed'))) assert.doesNotMatch(key, /destination_service=/);
  for (const way of ['node', 'fast'] as const) assert.deepEqual(await counted(way, before.get(way)), sidecar, way);
});

test('Telemetry: a label of any attribute that is documented is taken by Envoy, and says what requests said', async () => {
  const tags = { ...Object.fromEntries(TAG_ATTRIBUTES.map((attribute, index) => [`t${index}`, { value: attribute.replace('…', 'x-who') }])), line: { value: "request.method + ' ' + request.url_path + ' 100%'" } };
  const telemetry = JSON.stringify({ apiVersion: 'telemetry.istio.io/v1', kind: 'Telemetry', metadata: { name: 'all', namespace: 'sidecar' }, spec: { metrics: [{ overrides: [{ tagOverrides: tags }] }] } });
  await mesh.apply('mesh', `${telemetry}\n---\n${renewing('8s')}`);
  await inForce();
  assert.equal((await mesh.curl('sidecar', 'http://other/some/path?a=b', { headers: { 'x-who': 'me "x"' } })).status, 200);
  const label = (attribute: string): string => `t${TAG_ATTRIBUTES.indexOf(attribute)}`;
  let found: Series[] = [];
  await waitFor('the request to be counted', async () => {
    found = (await scrape('sidecar')).filter(({ name, labels }) => name === 'istio_requests_total' && labels['line'] === 'GET /some/path 100%');
    return found.length === 2;
  }, { timeoutMs: 60_000, everyMs: 500 }).catch(async (error: unknown) => assert.fail(`${String(error)}: ${JSON.stringify((await scrape('sidecar')).filter(({ name, labels }) => name === 'istio_requests_total' && 'line' in labels))}`));
  for (const { labels } of found) {
    const said = ['request.host', "request.headers['…']", 'request.query', 'response.code', 'response.grpc_status', 'destination.port'].map((attribute) => labels[label(attribute)]);
    assert.deepEqual(said, ['other', 'me \\"x\\"', 'a=b', '200', 'unknown', labels['reporter'] === 'source' ? '80' : '8080']);
  }
});

/** As Istio's tasks have it; the endpoint is what the host's address would be. */
const egress = (address: string): string => `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext, namespace: sidecar}
spec: {hosts: [ext.example.com], addresses: [10.250.0.1], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, location: MESH_EXTERNAL, endpoints: [{address: ${address}, ports: {http: 8080}}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: egress, namespace: sidecar}
spec: {selector: {istio: egress}, servers: [{hosts: [ext.example.com], port: {number: 80, name: http, protocol: HTTP}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ext, namespace: sidecar}
spec:
  hosts: [ext.example.com]
  gateways: [egress, mesh]
  http:
  - {match: [{gateways: [mesh], port: 80}], route: [{destination: {host: egress.edge.svc.cluster.local, port: {number: 80}}}]}
  - {match: [{gateways: [egress], port: 80}], route: [{destination: {host: ext.example.com, port: {number: 80}}}]}
`;

test('what sidecars tell each other of their workloads comes to no application, in whichever mode it is, and to nobody outside', async () => {
  await mesh.apply('mesh', egress(mesh.lab.pod('outside', 'web').ips[0]!));
  await inForce();
  const seen: string[] = [];
  const ask = async (url: string, from = 'sidecar/client', args: string[] = []): Promise<string> => {
    const { status, body, headers, version } = await mesh.curl('outside', url, { from, args });
    assert.equal(status, 200, url);
    if (PEER_HEADER in (body['headers'] as object)) seen.push(`${url} (${version}) was told ${String(body['headers'][PEER_HEADER])}`);
    if (PEER_HEADER in headers) seen.push(`${url} (${version}) was answered ${headers[PEER_HEADER]}`);
    return version;
  };
  for (const url of ['http://other/', 'http://other.node/', 'http://other.fast/', 'http://web.outside/', 'http://old.mixed/']) await ask(url);
  for (const from of ['node/client', 'fast/client']) for (const url of ['http://other.sidecar/', 'http://other.node/', 'http://other.fast/']) await ask(url, from);
  const versions = new Set<string>();
  for (let count = 0; count < 40 && versions.size < 2; count++) versions.add(await ask('http://mixed.mixed/'));
  assert.deepEqual([...versions].sort(), ['with', 'without']);
  for (const name of ['with', 'without']) assert.equal(await ask('http://heads.mixed:8080/', 'sidecar/client', ['--connect-to', `heads.mixed:8080:${mesh.lab.pod('mixed', name).ips[0]}:8080`]), name);
  assert.equal(await ask('http://ext.example.com/', 'sidecar/client', ['--connect-to', 'ext.example.com:80:10.250.0.1:80']), 'out', 'through the egress gateway');
  await mesh.apply('mesh', `${egress(mesh.lab.pod('outside', 'web').ips[0]!)}---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: none, namespace: sidecar}
spec: {selector: {matchLabels: {app: other}}, metrics: [{overrides: [{disabled: true}]}]}
`);
  await inForce();
  await ask('http://other/');
  assert.deepEqual(seen, []);
});

test('an application does not speak in the place of a sidecar that can\'t count, nor of the node\'s Envoy', async () => {
  assert.ok(!(await mesh.proxyAdmin('mixed/old', '/config_dump')).includes('"underpass.metrics"'), 'it counts');
  await mesh.apply('mesh', renewing('9s'));
  await inForce();
  for (const from of ['mixed/old', 'node/client', 'fast/client']) {
    const { status } = await mesh.curl('outside', 'http://other.sidecar/', { from, headers: { [PEER_HEADER]: 'mine;mixed;mine;v7;Kubernetes' } });
    assert.equal(status, 200);
  }
  const told = async (account: string): Promise<unknown[]> => (await scrape('sidecar')).filter(({ name, labels }) => name === 'istio_requests_total' && labels['source_principal']?.endsWith(account)).map(({ labels }) => [labels['source_workload'], labels['source_workload_namespace'], labels['source_version']]);
  for (const [account, namespace] of [['/mixed/sa/old', 'mixed'], ['/node/sa/client', 'node'], ['/fast/sa/client', 'fast']] as const) {
    await waitFor(`what ${account} asked to be counted`, async () => (await told(account)).length > 0, { timeoutMs: 60_000, everyMs: 500 });
    assert.deepEqual(await told(account), [['unknown', namespace, 'unknown']]);
  }
});

/** ADDRESS CERT KEY HEADER VALUE: one request by mutual TLS, as a sidecar would send it. */
const AS_SIDECAR = `
const [host, cert, key, name, value] = process.argv.slice(1);
require('node:https').get({ host, port: 8080, path: '/lie', cert, key, rejectUnauthorized: false, ALPNProtocols: ['istio-http/1.1', 'http/1.1'], headers: { [name]: value, 'x-forwarded-client-cert': 'URI=spiffe://cluster.local/ns/node/sa/other' } }, (answer) => { console.log(answer.statusCode); process.exit(0); }).on('error', (error) => { console.log(error.message); process.exit(1); });`;

test('a caller\'s word counts for its own workload alone: its namespace is its certificate\'s, and what is not of the form is unknown', async () => {
  const { chainPem, privateKeyPem } = await mesh.ca.issue({ namespace: 'sidecar', serviceAccount: 'liar' });
  const say = async (value: string): Promise<void> => {
    const { stdout } = await mesh.lab.exec('outside/client', [process.execPath, '-e', AS_SIDECAR, mesh.lab.pod('sidecar', 'other').ips[0]!, chainPem, privateKeyPem, PEER_HEADER, value]);
    assert.equal(stdout.trim(), '200');
  };
  await say('mine;node;mine;v7;Kubernetes');
  await say('node');
  const told = async (): Promise<string[]> => (await scrape('sidecar')).filter(({ name, labels }) => name === 'istio_requests_total' && labels['source_principal']?.endsWith('/sa/liar')).map(({ labels }) => `${labels['source_workload']} of ${labels['source_workload_namespace']} ${labels['source_version']}`).sort();
  await waitFor('both to be counted', async () => (await told()).length === 2, { timeoutMs: 60_000, everyMs: 500 });
  assert.deepEqual(await told(), ['mine of sidecar v7', 'unknown of sidecar unknown']);
});
