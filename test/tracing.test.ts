/**
 * Traces as people who have sidecars know them: service0 asks service1, which asks service2 and hands the headers on that Istio asks
 * for. Sent to a collector that speaks Zipkin's and OpenTelemetry's protocols, by sidecars and by the node's proxy.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { waitFor } from '../common/retry.js';
import { answerAs, COLLECTOR, collected, meshConfig, settledSpans, TRACERS } from './collector/world.js';
import type { CollectedSpan } from './collector/collector.js';
import { threeServices } from './collector/three-services.js';
import { MeshWorld, MODES, type Mode } from './mesh/world.js';

const mesh = new MeshWorld('traces', {
  bare: true,
  yaml: threeServices,
  outside: `${COLLECTOR}---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: outside}
spec: {containers: [{name: curl, image: curl}]}
`,
});
/** A connection for each request: one that is kept stays with the tracer that its listener had before. */
const UNPOOLED = MODES.map((mode) => `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: unpooled, namespace: ${mode}}
spec: {host: "*.${mode}.svc.cluster.local", trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}}
---
`).join('');
before(async () => {
  await mesh.up();
  await mesh.apply('mesh', `${UNPOOLED}${meshConfig(`extensionProviders: [${TRACERS}]`)}`);
});
after(() => mesh.down());

const telemetry = (provider: string, more = 'randomSamplingPercentage: 100'): string => `apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: own}
spec: {tracing: [{providers: [{name: ${provider}}], ${more}, customTags: {mine: {header: {name: x-mine, defaultValue: none}}}}]}
`;
const ask = (mode: Mode, path: string, headers: Record<string, string> = {}) => mesh.curl(mode, `http://service1${path}`, { from: `${mode}/service0`, headers });
const of = (path: string) => ({ tags }: CollectedSpan): boolean => (tags['http.url'] ?? '').endsWith(path);

/** What two modes have alike: names in place of the mode's own, and of what is drawn or measured. */
function comparable(mode: Mode, { service, name, kind, tags }: CollectedSpan): object {
  const pods = ['service0', 'service1', 'service2'].map((each) => [mesh.lab.pod(mode, each).ips[0]!, each] as const);
  const plain = (text: string): string => pods.reduce((all, [ip, each]) => all.replaceAll(ip, each), text).replaceAll(`/${mode}`, '/MODE').replaceAll(`.${mode}`, '.MODE').replaceAll(`~${mode}`, '~MODE').replace(/^(?:sidecar|node)$/, 'MODE').replace(/^(service\d|127\.0\.0\.\d|10\.[\d.]+):\d+$/, '$1:PORT');
  const told = Object.entries(tags).filter(([key]) => key !== 'guid:x-request-id' && !/_size$/.test(key));
  return { service: plain(service), name: plain(name), kind, tags: Object.fromEntries(told.map(([key, value]) => [key, plain(value)]).sort()) };
}

/** From the first on, each the child of the one before. */
function asChain(spans: readonly CollectedSpan[]): CollectedSpan[] {
  const chain: CollectedSpan[] = spans.filter(({ parentId }) => !spans.some(({ id }) => id === parentId)).slice(0, 1);
  for (let next = chain[0]; next; next = spans.find(({ parentId }) => parentId === next!.id)) if (next !== chain[0]) chain.push(next);
  return chain;
}

const seen = new Map<string, Partial<Record<Mode, object[]>>>();
for (const provider of ['zipkin', 'otlp-grpc', 'otlp-http'] as const) {
  for (const mode of MODES) {
    test(`${provider}: a request through three services is one trace, of a span on each side of each hop (${mode})`, async () => {
      await mesh.apply(mode, telemetry(provider));
      const path = `/${provider}/${mode}`;
      const { status, body } = await ask(mode, path);
      assert.equal(status, 200);
      const spans = await settledSpans(mesh, of(path), 4);
      const chain = asChain(spans);
      const what = JSON.stringify(spans, undefined, 1);
      assert.deepEqual(chain.map(({ kind, service, by }) => [kind, service, by]), [['CLIENT', `service0.${mode}`, provider], ['SERVER', `service1.${mode}`, provider], ['CLIENT', `service1.${mode}`, provider], ['SERVER', `service2.${mode}`, provider]], what);
      assert.equal(new Set(spans.map(({ traceId }) => traceId)).size, 1, what);
      assert.equal(spans.length, 4, what);
      // The id of the request is one all the way, and the trace's id is what the last program was told.
      assert.equal(new Set([...spans.map(({ tags }) => tags['guid:x-request-id']), body['first']['x-request-id'], body['second']['x-request-id']]).size, 1, what);
      assert.equal(provider === 'zipkin' ? body['second']['x-b3-traceid'] : body['second'].traceparent?.split('-')[1], spans[0]!.traceId);
      for (const { tags, service } of chain) {
        const [name] = service.split('.');
        assert.deepEqual([tags['component'], tags['http.method'], tags['http.protocol'], tags['http.status_code'], tags['response_flags'], tags['user_agent'] !== undefined, tags['mine']], ['proxy', 'GET', 'HTTP/1.1', '200', '-', true, 'none'], what);
        assert.deepEqual([tags['istio.canonical_service'], tags['istio.canonical_revision'], tags['istio.namespace'], tags['istio.mesh_id'], tags['istio.cluster_id']], [name, 'v1', mode, 'cluster.local', 'Kubernetes'], what);
        assert.equal(tags['node_id'], `sidecar~${mesh.lab.pod(mode, name!).ips[0]}~${name}.${mode}~${mode}.svc.cluster.local`);
      }
      assert.deepEqual(chain.map(({ tags }) => tags['upstream_cluster']), [`outbound|80||service1.${mode}.svc.cluster.local`, 'inbound|8080||', `outbound|80||service2.${mode}.svc.cluster.local`, 'inbound|8080||']);
      assert.deepEqual(await mesh.nacks(), []);
      seen.set(provider, { ...seen.get(provider), [mode]: chain.map((span) => comparable(mode, span)) });
    });
  }

  test(`${provider}: the node's proxy says in its spans what sidecars say, tag for tag`, () => {
    const { sidecar, node } = seen.get(provider)!;
    assert.deepEqual(node, sidecar);
  });
}

for (const mode of MODES) {
  test(`what a request says of its trace is obeyed, by B3 and by W3C's headers, and x-ot-span-context goes on as it is (${mode})`, async () => {
    await mesh.apply(mode, telemetry('zipkin', 'randomSamplingPercentage: 0'));
    const trace = '4bf92f3577b34da6a3ce929d0e0e4736';
    const b3 = { 'x-b3-traceid': trace, 'x-b3-spanid': '00f067aa0ba902b7', 'x-b3-sampled': '1', 'x-request-id': '4bf92f35-77b3-4da6-a3ce-929d0e0e4736', 'x-ot-span-context': 'opaque' };
    const { body } = await ask(mode, `/b3/${mode}`, b3);
    // Envoy writes into one digit of the id why it traces.
    assert.deepEqual([body['second']['x-b3-traceid'], String(body['second']['x-request-id']).replace(/^(.{14})./, '$14'), body['second']['x-ot-span-context']], [trace, b3['x-request-id'], 'opaque']);
    const spans = await settledSpans(mesh, of(`/b3/${mode}`), 4);
    assert.deepEqual(asChain(spans).map(({ kind, traceId }) => [kind, traceId]), ['CLIENT', 'SERVER', 'CLIENT', 'SERVER'].map((kind) => [kind, trace]), JSON.stringify(spans));
    assert.equal(asChain(spans)[0]!.parentId, b3['x-b3-spanid']);
    // Of nobody's trace none is begun.
    assert.equal((await ask(mode, `/none/${mode}`)).status, 200);
    await mesh.apply(mode, telemetry('otlp-grpc'));
    const w3c = (flags: string): Record<string, string> => ({ traceparent: `00-${trace}-00f067aa0ba902b7-${flags}`, tracestate: 'a=b' });
    const asked = await ask(mode, `/w3c/${mode}`, w3c('01'));
    assert.deepEqual([asked.body['second'].traceparent.split('-')[1], asked.body['second'].tracestate], [trace, 'a=b']);
    assert.match((await ask(mode, `/not/${mode}`, w3c('00'))).body['second'].traceparent, new RegExp(`^00-${trace}-\\w{16}-00$`));
    const all = await settledSpans(mesh, of(`/w3c/${mode}`), 4);
    assert.equal(asChain(all).length, 4, JSON.stringify(all));
    assert.deepEqual(await settledSpans(mesh, of(`/not/${mode}`), 0), []);
    assert.deepEqual(await settledSpans(mesh, of(`/none/${mode}`), 0), []);
  });

  test(`tags by formatter, one side alone, and no reporting, as the Telemetry API says (${mode})`, async () => {
    await mesh.apply(mode, `apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: own}
spec:
  tracing:
  - {providers: [{name: zipkin}], randomSamplingPercentage: 100, enableIstioTags: false, customTags: {code: {formatter: {value: "%RESPONSE_CODE%-%REQ(:METHOD)%"}}}}
  - {match: {mode: SERVER}, disableSpanReporting: true}
`);
    assert.equal((await ask(mode, `/client/${mode}`)).status, 200);
    const spans = await settledSpans(mesh, of(`/client/${mode}`), 2);
    assert.deepEqual(asChain(spans).map(({ kind, tags }) => [kind, tags['code'], tags['istio.namespace']]), [['CLIENT', '200-GET', undefined], ['CLIENT', '200-GET', undefined]], JSON.stringify(spans));
  });
}

/** Of the node's agent, by the value of its one label. */
async function counted(metric: string): Promise<Record<string, number>> {
  return Object.fromEntries([...(await mesh.agentMetrics()).matchAll(new RegExp(`^${metric}\\{\\w+="([^"]*)"\\} (\\d+)$`, 'gm'))].map(([, label = '', value]) => [label, Number(value)]));
}

for (const provider of ['zipkin', 'otlp-grpc'] as const) {
  test(`${provider}: a collector that never answers, or refuses, costs no request; what finds no room is dropped and counted, and spans come again`, async () => {
    await mesh.apply('node', telemetry(provider));
    const before = await counted('underpass_envoy_span_batches_total');
    const lost = (counts: Record<string, number>): number => (counts['failed'] ?? 0) + (counts['no_room'] ?? 0);
    // Which of the two it is depends on how fast this machine is.
    const grown = async (by: number): Promise<unknown> => waitFor(`${by} batches of spans to be lost`, async () => lost(await counted('underpass_envoy_span_batches_total')) >= lost(before) + by, { timeoutMs: 120_000, everyMs: 500 }).catch(async (error: unknown) => {
      throw new Error(`${String(error)} ${JSON.stringify([before, await counted('underpass_envoy_span_batches_total')])} ${await mesh.nodeProxyAdmin('/stats?usedonly&filter=underpass_tracing|^tracing')}`);
    });
    await answerAs(mesh, 'never');
    // Kept connections, so that spans come faster than they are given up.
    await mesh.apply('mesh', meshConfig(`extensionProviders: [${TRACERS}]`));
    for (const { statuses } of await Promise.all([1, 2].map(() => mesh.load('node', 'http://service2/silent', 600, { from: 'node/service0' })))) assert.deepEqual(statuses, { 200: 600 });
    await grown(200);
    // So many may wait, and no more.
    const { configs } = JSON.parse(await mesh.nodeProxyAdmin('/config_dump?resource=dynamic_active_clusters')) as { configs: { cluster: { name: string; circuit_breakers?: { thresholds: { max_requests?: number; max_pending_requests?: number }[] } } }[] };
    const bounds = configs.filter(({ cluster }) => cluster.name.includes('~spans')).map(({ cluster }) => cluster.circuit_breakers?.thresholds.map(({ max_requests: requests, max_pending_requests: pending }) => [requests, pending]));
    assert.ok(bounds.length > 0 && bounds.every((bound) => JSON.stringify(bound) === '[[64,64]]'), JSON.stringify(bounds));
    await answerAs(mesh, 'refused');
    assert.deepEqual((await mesh.load('node', 'http://service2/refused', 200, { from: 'node/service0' })).statuses, { 200: 200 });
    await answerAs(mesh, 'ok');
    const path = `/again/${provider}`;
    await waitFor('spans at the collector again', async () => {
      assert.equal((await ask('node', path)).status, 200);
      return (await collected(mesh)).some(of(path));
    }, { timeoutMs: 120_000, everyMs: 1_000 });
    assert.ok(((await counted('underpass_envoy_spans_total'))[provider === 'zipkin' ? 'zipkin' : 'opentelemetry'] ?? 0) > 1_000);
  });
}
