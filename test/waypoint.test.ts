/**
 * A waypoint from its Gateway alone: pilot brings its proxy up, the lab starts it, and an independent HBONE client finds by it
 * what TCP and TLS routes, EnvoyFilters and WasmPlugins say.
 */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { CertificateAuthority } from '../common/identity/ca.js';
import { logger } from '../common/log.js';
import { buildDir, projectRoot } from '../common/paths.js';
import { waitFor } from '../common/retry.js';
import { PEER_HEADER } from '../common/telemetry/peer-header.js';
import { Lab } from '../lab/index.js';
import { Pilot } from '../pilot/index.js';
import type { CollectedSpan } from './collector/collector.js';
import { COLLECTOR, collected, meshConfig, TRACERS } from './collector/world.js';
import type { Input, Outcome } from './hbone-client.js';
import { seriesOf, type Series } from './mesh/series.js';

/** Answers each byte with its name, whatever is said. */
const NAMED = (name: string): string => `require('node:net').createServer((s) => s.on('error', () => {}).on('data', (d) => s.write('${name}'.repeat(d.length)))).listen(7000, '::');`;
const server = (name: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: shop, labels: {app: ${name}}}
spec: {containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}]}, {name: named, image: node, command: [node, -e, ${JSON.stringify(NAMED(name))}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: shop}
spec: {selector: {app: ${name}}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 7000}, {name: tls, port: 7443, targetPort: 7000}]}
---`;
const WORLD = `apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: wp}}\n---${server('one')}${server('two')}
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: plain}
spec: {containers: [{name: curl, image: curl}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: outside}
spec: {containers: [{name: curl, image: curl}]}
---
${COLLECTOR}`;
const GATEWAY = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`;

let directory: string;
let lab: Lab;
let pilot: Pilot;
let ca: CertificateAuthority;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-waypoint-'));
  for (const path of ['world', 'config', 'provisioned']) mkdirSync(join(directory, path));
  writeFileSync(join(directory, 'world', 'world.yaml'), WORLD);
  ca = await CertificateAuthority.create();
  const [world, config, provisioned] = ['world', 'config', 'provisioned'].map((path) => join(directory, path)) as [string, string, string];
  const discovery = `unix:${join(directory, 'xds.sock')}`;
  lab = await Lab.up({ name: `up-lab-waypoint-${process.pid}`, ca, sources: [world, provisioned], discovery, purpose: 'test' });
  pilot = new Pilot({ sources: [world, config, lab.objectsDir], listen: [discovery], provisionDir: provisioned, logger: logger('pilot').child({}, { level: 'warn' }) });
  await pilot.start();
});
after(async () => {
  await pilot?.stop();
  await lab?.down();
  rmSync(directory, { recursive: true, force: true });
});

const apply = (yaml: string): void => writeFileSync(join(directory, 'config', 'config.yaml'), yaml);
const vip = (name: string): string => (pilot.object(`/Service/shop/${name}`) as unknown as { spec: { clusterIP: string } }).spec.clusterIP;

/** A TLS hello for a name, of bytes that are text. */
function hello(name: string): string {
  const u16 = (value: number): string => String.fromCharCode(value >> 8, value & 255);
  const sni = `\0${u16(name.length)}${name}`;
  const extension = `\0\0${u16(sni.length + 2)}${u16(sni.length)}${sni}`;
  const body = `\x03\x03${'r'.repeat(32)}\0\0\x02\0\x2f\x01\0${u16(extension.length)}${extension}`;
  return `\x16\x03\x01${u16(body.length + 4)}\x01\0${u16(body.length)}${body}`;
}

async function tunnels(...wanted: Input['tunnels']): Promise<Outcome[]> {
  const { chainPem: cert, privateKeyPem: key } = await ca.issue({ namespace: 'plain', serviceAccount: 'default' });
  const input: Input = { cert, key, ca: ca.rootPem, address: lab.pod('shop', waypoint()).ips[0]!, port: 15_008, tunnels: wanted };
  const { stdout, stderr } = await lab.exec('plain/client', [process.execPath, join(projectRoot, 'dist', 'test', 'hbone-client.js')], { input: JSON.stringify(input), timeoutMs: 60_000 });
  assert.equal(stderr, '');
  return stdout.trim().split('\n').map((line) => JSON.parse(line) as Outcome);
}

const waypoint = (): string => lab.pods().find(({ labels }) => labels['gateway.networking.k8s.io/gateway-name'] === 'wp')?.name ?? '';

/** Who answers what is sent to a port of a service. */
const answers = async (name: string, port: number, ...raws: string[]): Promise<string[]> => (await tunnels(...raws.map((raw) => ({ authorities: [`${vip(name)}:${port}`], raw })))).map(({ body, error, statuses }) => body?.slice(0, 3) ?? error ?? String(statuses));

/** A header that a request of the service's arrived with. */
async function header(name: string, key: string, headers: Record<string, string> = {}): Promise<string | undefined> {
  const [{ http, body, error }] = (await tunnels({ authorities: [`${vip(name)}:80`], path: '/', headers })) as [Outcome];
  assert.equal(http, 200, error);
  return (JSON.parse(body!) as { headers: Record<string, string> }).headers[key];
}

async function becomes<T>(what: string, look: () => Promise<T>, expected: T): Promise<void> {
  let found: T | undefined;
  await waitFor(what, async () => isDeepStrictEqual((found = await look().catch(() => undefined)), expected), { timeoutMs: 60_000, everyMs: 200 }).catch(() => assert.deepEqual(found, expected, what));
}

test('a Gateway of class istio-waypoint brings a waypoint up, and its removal takes it down; nobody else has to do anything', async () => {
  assert.equal(waypoint(), '');
  writeFileSync(join(directory, 'world', 'gateway.yaml'), GATEWAY);
  await waitFor('the waypoint', () => waypoint() !== '', { timeoutMs: 60_000 });
  await lab.whenReady({ sidecars: true, timeoutMs: 30_000 });
  assert.equal(lab.pod('shop', waypoint()).serviceAccount, 'wp');
  await becomes('one to answer through it', () => answers('one', 7000, 'abc'), ['one']);
  assert.deepEqual((await tunnels({ authorities: [`${vip('one')}:7000`], raw: 'abc' }))[0]!.peers, ['URI:spiffe://cluster.local/ns/shop/sa/wp']);
});

test('TCP and TLS routes of a service count at its waypoint, TLS by the name in the hello; what no route takes is the service\'s', async () => {
  assert.deepEqual(await answers('one', 7443, hello('a.example'), hello('b.example')), ['one', 'one']);
  apply(`
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: moved, namespace: shop}
spec: {parentRefs: [{kind: Service, group: "", name: one, port: 7000}], rules: [{backendRefs: [{name: two, port: 7000}]}]}
---
apiVersion: gateway.networking.k8s.io/v1alpha3
kind: TLSRoute
metadata: {name: named, namespace: shop}
spec: {parentRefs: [{kind: Service, group: "", name: one, port: 7443}], hostnames: [b.example], rules: [{backendRefs: [{name: two, port: 7443}]}]}`);
  assert.deepEqual(pilot.status().problems.filter(({ severity }) => severity === 'error'), []);
  await becomes('the TCPRoute', () => answers('one', 7000, 'abc'), ['two']);
  await becomes('the route by name', () => answers('one', 7443, hello('a.example'), hello('b.example')), ['one', 'two']);
  assert.deepEqual(await answers('two', 7000, 'abc'), ['two']);
  apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: subnet, namespace: shop}
spec: {hosts: [one], tcp: [{match: [{port: 7000, destinationSubnets: ["${vip('one')}/32"]}], route: [{destination: {host: two, port: {number: 7000}}}]}]}`);
  await becomes('the route by address', async () => [...(await answers('one', 7000, 'abc')), ...(await answers('one', 7443, hello('b.example')))], ['two', 'one']);
  apply('');
  await becomes('no route', () => answers('one', 7000, 'abc'), ['one']);
});

test('what a caller\'s proxy says of its workload ends at the waypoint', async () => {
  assert.deepEqual(await Promise.all([PEER_HEADER, 'x-other'].map((name) => header('one', name, { [name]: 'a;b;c;d;e' }))), [undefined, 'a;b;c;d;e']);
});

/** As ztunnel writes it. */
const BAGGAGE = 'k8s.cluster.name=Far,k8s.namespace.name=elsewhere,k8s.deployment.name=caller,service.name=called,service.version=v9';

test('requests and connections through the waypoint are counted by Istio\'s names; the caller is who its tunnel says, in its certificate\'s namespace', async () => {
  const other = { 'content-type': 'text/plain' };
  const get = (path: string, connect?: Record<string, string>): Parameters<typeof tunnels>[0] => ({ authorities: [`${vip('two')}:80`], path, headers: other, ...(connect ? { connect } : {}) });
  const told = await tunnels(get('/', { baggage: BAGGAGE }), get('/', { baggage: BAGGAGE }), get('/status/404', { baggage: BAGGAGE }), get('/', { baggage: 'nothing of the kind' }), { authorities: [`${vip('two')}:7000`], raw: 'abc', connect: { baggage: BAGGAGE } });
  assert.deepEqual(told.map(({ http, body, error }) => error ?? http ?? body), [200, 200, 404, 200, 'twotwotwo']);
  let found: Series[] = [];
  const of = (name: string): Series[] => found.filter((series) => series.name === name).sort((a, b) => b.value - a.value || (a.labels['response_code']! < b.labels['response_code']! ? 1 : -1));
  await waitFor('them to be counted', async () => {
    found = seriesOf(await lab.proxyAdmin(`shop/${waypoint()}`, '/stats/prometheus')).filter(({ labels }) => labels['destination_service_name'] === 'two');
    return ['istio_requests_total', 'istio_request_duration_milliseconds_count'].every((name) => of(name).reduce((sum, { value }) => sum + value, 0) === 4) && of('istio_tcp_connections_closed_total').some(({ labels }) => labels['source_workload'] === 'caller');
  }, { timeoutMs: 60_000, everyMs: 500 }).catch((error: unknown) => assert.fail(`${String(error)}: ${JSON.stringify(found, undefined, 1)}`));
  const caller = { source_workload: 'caller', source_canonical_service: 'called', source_canonical_revision: 'v9', source_app: 'called', source_version: 'v9', source_cluster: 'Far', source_workload_namespace: 'plain', source_principal: 'spiffe://cluster.local/ns/plain/sa/default' };
  const common = {
    reporter: 'waypoint', connection_security_policy: 'mutual_tls', response_flags: '-', destination_service: 'two.shop.svc.cluster.local', destination_service_name: 'two', destination_service_namespace: 'shop',
  };
  const destination = { destination_workload: 'two', destination_workload_namespace: 'shop', destination_canonical_service: 'two', destination_canonical_revision: 'latest', destination_app: 'two', destination_version: 'latest', destination_cluster: 'Kubernetes' };
  const labels = (series: Series | undefined): Record<string, string> => {
    // The waypoint's own connection to the pod is within a tunnel, whose other end another listener of its Envoy knows.
    const { destination_principal: principal, ...rest } = series!.labels;
    assert.equal(principal, 'unknown');
    return rest;
  };
  const http = { ...common, ...caller, ...destination, request_protocol: 'http' };
  const nobody = Object.fromEntries(Object.keys(caller).map((key) => [key, /namespace|principal/.test(key) ? caller[key as keyof typeof caller] : 'unknown']));
  for (const name of ['istio_requests_total', 'istio_request_duration_milliseconds_count']) {
    assert.deepEqual(of(name).map(({ value }) => value), [2, 1, 1], name);
    const [twice, ...once] = of(name).map(labels);
    assert.deepEqual(twice, { ...http, response_code: '200' });
    assert.deepEqual(once.map((each) => each['response_code']), ['404', '200']);
    assert.deepEqual(once, [{ ...http, response_code: '404' }, { ...http, ...nobody, response_code: '200' }]);
  }
  assert.deepEqual(labels(of('istio_tcp_connections_closed_total').find((each) => each.labels['source_workload'] === 'caller')), { ...common, ...caller, ...destination, request_protocol: 'tcp' });
});

test('spans of the waypoint name both ends, as Istio\'s do', async () => {
  apply(`${meshConfig(`extensionProviders: [${TRACERS}]`)}---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: traced, namespace: shop}
spec: {tracing: [{providers: [{name: zipkin}], randomSamplingPercentage: 100}]}
`);
  const traced = ({ tags }: CollectedSpan): boolean => (tags['http.url'] ?? '').endsWith('/traced');
  await becomes('a span', async () => {
    await tunnels({ authorities: [`${vip('two')}:80`], path: '/traced', connect: { baggage: BAGGAGE } });
    return (await collected({ lab })).some(traced);
  }, true);
  const { tags } = (await collected({ lab })).find(traced)!;
  const named = Object.fromEntries(Object.entries(tags).filter(([tag]) => /^istio[.](?:source|destination)_/.test(tag)));
  const ends = (end: string, workload: string, namespace: string, cluster: string, service: string, revision: string): Record<string, string> => ({
    [`istio.${end}_workload`]: workload, [`istio.${end}_namespace`]: namespace, [`istio.${end}_cluster_id`]: cluster, [`istio.${end}_canonical_service`]: service, [`istio.${end}_canonical_revision`]: revision, [`istio.${end}_app`]: service, [`istio.${end}_app_version`]: revision,
  });
  assert.deepEqual(named, { ...ends('source', 'caller', 'plain', 'Far', 'called', 'v9'), ...ends('destination', 'two', 'shop', 'Kubernetes', 'two', 'latest') });
  apply('');
});

test('EnvoyFilters and WasmPlugins that name the waypoint, or a service of it, work there; those with selectors do not', async () => {
  const lua = (name: string, match: string, spec: string): string => `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: ${name}, namespace: shop}
spec:
  ${spec}
  configPatches:
  - applyTo: HTTP_FILTER
    match: ${match}
    patch:
      operation: INSERT_BEFORE
      value: {name: ${name}, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, default_source_code: {inline_string: "function envoy_on_request(h) h:headers():add('x-${name}', 'yes') end"}}}
---`;
  const plugin = (name: string, ref: string): string => `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: ${name}, namespace: shop}
spec: {url: "file://${join(buildDir, 'test-plugin.wasm')}", targetRefs: [${ref}], pluginConfig: {word: ${name}}}
---`;
  const TO_GATEWAY = '{kind: Gateway, group: gateway.networking.k8s.io, name: wp}';
  const FILTER = 'filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}';
  apply(lua('here', `{context: WAYPOINT, waypoint: {portNumber: 80, ${FILTER}}}`, `targetRefs: [${TO_GATEWAY}]`)
    + lua('elsewhere', `{context: WAYPOINT, waypoint: {portNumber: 81, ${FILTER}}}`, `targetRefs: [${TO_GATEWAY}]`)
    + lua('selected', `{context: ANY, listener: {filterChain: {${FILTER}}}}`, 'workloadSelector: {labels: {app: one}}')
    + plugin('mine', '{kind: Service, group: "", name: one}'));
  const word = (text: string): string => JSON.stringify({ word: text });
  const seen = async (name: string): Promise<(string | undefined)[]> => Promise.all(['x-here', 'x-elsewhere', 'x-selected', 'x-wasm-order'].map((key) => header(name, key)));
  await becomes('filter and plugin', () => seen('one'), ['yes', undefined, undefined, word('mine')]);
  assert.deepEqual(await seen('two'), ['yes', undefined, undefined, undefined]);
  apply(plugin('all', TO_GATEWAY));
  await becomes('another plugin', async () => [...(await seen('one')), ...(await seen('two'))], [undefined, undefined, undefined, word('all'), undefined, undefined, undefined, word('all')]);
  const nacks = pilot.status().ads.connections.flatMap(({ types }) => Object.values(types).flatMap(({ nack }) => nack?.message ?? []));
  assert.deepEqual(nacks, []);
  rmSync(join(directory, 'world', 'gateway.yaml'));
  await waitFor('the waypoint to go', () => waypoint() === '', { timeoutMs: 60_000 });
});
