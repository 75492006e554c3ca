/**
 * Traces in a real Zipkin server: what sidecars and the node's proxy send is asked for by its API, as its pages do. The server is a
 * pod of the lab, which scripts/setup-zipkin.sh brings the program of.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildDir } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { threeServices } from '../collector/three-services.js';
import { meshConfig } from '../collector/world.js';
import { MeshWorld, MODES, type Mode } from '../mesh/world.js';

const JAR = join(buildDir, 'zipkin', 'zipkin.jar');
const SERVER = 'zipkin.outside.svc.cluster.local';
const START_MS = 120_000;

/** Of Zipkin's API v2: https://zipkin.io/zipkin-api/ */
interface ZipkinSpan {
  traceId: string;
  id: string;
  parentId?: string;
  kind: 'CLIENT' | 'SERVER';
  name: string;
  timestamp: number;
  duration: number;
  localEndpoint: { serviceName: string };
  tags: Record<string, string>;
}
interface DependencyLink {
  parent: string;
  child: string;
  callCount: number;
  errorCount?: number;
}

const mesh = new MeshWorld('zipkin', {
  bare: true,
  yaml: threeServices,
  outside: `apiVersion: v1
kind: Pod
metadata: {name: zipkin, namespace: outside, labels: {app: zipkin}}
spec: {containers: [{name: zipkin, image: java, command: [java, -Xmx192m, -XX:+UseSerialGC, -XX:TieredStopAtLevel=1, -jar, ${JAR}], env: [{name: STORAGE_TYPE, value: mem}, {name: SELF_TRACING_ENABLED, value: "false"}], ports: [{containerPort: 9411}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: zipkin, namespace: outside}
spec: {selector: {app: zipkin}, ports: [{name: http, port: 9411}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: outside}
spec: {containers: [{name: curl, image: curl}]}
`,
});

const asked = async (path: string): Promise<string> => (await mesh.lab.exec('outside/client', ['curl', '-s', '--max-time', '10', `http://${SERVER}:9411${path}`])).stdout;
/** Undefined: there is no such trace, or no server yet. */
const answer = async <T>(path: string): Promise<T | undefined> => {
  const text = await asked(path);
  return /^[[{]/.test(text) ? (JSON.parse(text) as T) : undefined;
};

before(async () => {
  await mesh.up();
  await mesh.apply('mesh', meshConfig(`extensionProviders: [{name: zipkin, zipkin: {service: ${SERVER}, port: 9411}}]`));
  for (const mode of MODES) await mesh.apply(mode, 'apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: own}\nspec: {tracing: [{providers: [{name: zipkin}], randomSamplingPercentage: 100}]}\n');
  await waitFor('the Zipkin server to be up', async () => (await answer<{ status: string }>('/health'))?.status === 'UP', { timeoutMs: START_MS, everyMs: 500 });
});
after(() => mesh.down());

/** Of the trace of a request, once the server has all four of its spans; the first is nobody's child. */
async function traceOf(traceId: string): Promise<ZipkinSpan[]> {
  let spans: ZipkinSpan[] = [];
  await waitFor(`the trace ${traceId}`, async () => (spans = (await answer<ZipkinSpan[]>(`/api/v2/trace/${traceId}`)) ?? []).length >= 4, { timeoutMs: START_MS, everyMs: 500 }).catch((error: unknown) => {
    throw new Error(`${String(error)}: ${JSON.stringify(spans)}`);
  });
  const first = spans.filter(({ parentId }) => parentId === undefined);
  assert.equal(first.length, 1, JSON.stringify(spans));
  const chain = first;
  for (let next = first[0]; next; next = spans.find(({ parentId }) => parentId === next!.id)) if (next !== first[0]) chain.push(next);
  assert.deepEqual(new Set(chain), new Set(spans), 'each span is the only child of the one before');
  return chain;
}

for (const mode of MODES) {
  test(`a Zipkin server has service0 -> service1 -> service2 as one trace, with client and server spans, parents and names (${mode})`, async () => {
    const { status, body } = await mesh.curl(mode, 'http://service1/way', { from: `${mode}/service0` });
    assert.equal(status, 200);
    const chain = await traceOf(String(body['second']['x-b3-traceid']));
    const name = (service: string): string => `${service}.${mode}`;
    assert.deepEqual(chain.map(({ kind, localEndpoint, name: span }) => [kind, localEndpoint.serviceName, span]), [
      ['CLIENT', name('service0'), spanName(mode, 'service1')],
      ['SERVER', name('service1'), spanName(mode, 'service1')],
      ['CLIENT', name('service1'), spanName(mode, 'service2')],
      ['SERVER', name('service2'), spanName(mode, 'service2')],
    ], JSON.stringify(chain));
    assert.equal(new Set(chain.map(({ tags }) => tags['guid:x-request-id'])).size, 1);
    for (const [index, { timestamp, duration, tags }] of chain.entries()) {
      const inside = chain[index + 1];
      assert.ok(duration > 0 && (inside === undefined || (inside.timestamp >= timestamp && inside.timestamp + inside.duration <= timestamp + duration)), JSON.stringify(chain));
      assert.deepEqual([tags['http.method'], tags['http.status_code'], tags['istio.namespace']], ['GET', '200', mode]);
    }
  });
}

const spanName = (mode: Mode, service: string): string => `${service}.${mode}.svc.cluster.local:80/*`;

test('its search finds traces by service and by tag, and knows the services', async () => {
  const names = await answer<string[]>('/api/v2/services');
  assert.deepEqual(names?.filter((name) => /^service\d\./.test(name)).sort(), ['service0', 'service1', 'service2'].flatMap((name) => MODES.map((mode) => `${name}.${mode}`)).sort());
  for (const mode of MODES) {
    const found = await answer<ZipkinSpan[][]>(`/api/v2/traces?${new URLSearchParams({ serviceName: `service2.${mode}`, annotationQuery: 'http.status_code=200', limit: '10' })}`);
    assert.deepEqual(found?.map(({ length }) => length), [4]);
  }
});

test('its graph of services has who asks whom, in both modes, with as many calls as were made', async () => {
  const links = await answer<DependencyLink[]>(`/api/v2/dependencies?endTs=${Date.now() + 60_000}&lookback=3600000`);
  const wanted = MODES.flatMap((mode) => [['service0', 'service1'], ['service1', 'service2']].map(([parent, child]) => ({ parent: `${parent}.${mode}`, child: `${child}.${mode}`, callCount: 1 })));
  const inOrder = (some: DependencyLink[] = []): string[] => some.map((link) => JSON.stringify(link)).sort();
  assert.deepEqual(inOrder(links), inOrder(wanted));
});
