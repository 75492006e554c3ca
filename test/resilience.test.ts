// DestinationRules with real traffic through real Envoys, by sidecars and by the node's proxy: circuit breakers, ejection, balancing, localities.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Pod } from '../common/kube/types.js';
import { MeshWorld, MODES, type CurlOptions, type Mode } from './mesh/world.js';

const placed = (namespace: string): string => `apiVersion: v1
kind: Pod
metadata: {name: placed, namespace: ${namespace}, labels: {app: placed, istio-locality: here.a}}
spec: {serviceAccountName: placed, containers: [{name: curl, image: curl}]}
`;
const server = (name: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: outside, labels: {app: ${name}, version: ${name}}}
spec: {containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}]}]}
`;
const mesh = new MeshWorld('resilience', { yaml: placed, outside: [server('near'), server('far')].join('---\n') });

before(() => mesh.up());
after(() => mesh.down());

const ip = (pod: string): string => (mesh.pilot.object(`/Pod/${pod}`) as Pod).status!.podIP!;
const rule = (policy: string, more = ''): string => `apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web, trafficPolicy: ${policy}${more}}\n`;
const routes = (http: string, host = 'web'): string => `---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ${host}}\nspec: {hosts: [${host}], http: [${http}]}\n`;
const NO_RETRIES = routes('{route: [{destination: {host: web}}], retries: {attempts: 0}}');

/** Straight to a server, past all proxies of the client's side. */
const control = (pod: string, method: string, path: string): Promise<{ body: Record<string, any> }> => mesh.curl('outside', `http://${ip(pod)}:8080${path}`, { method });
const requestsAt = async (pod: string): Promise<number> => Number((await control(pod, 'GET', '/count')).body['total']);

/** At the same time, each on a connection of its own. */
async function parallel(mode: Mode, url: string, count: number): Promise<Record<string, number>> {
  const answers = await Promise.all(Array.from({ length: count }, () => mesh.curl(mode, url)));
  const found: Record<string, number> = {};
  for (const { status, headers } of answers) {
    const key = `${status}${headers['x-envoy-overloaded'] ? ' overloaded' : ''}`;
    found[key] = (found[key] ?? 0) + 1;
  }
  return found;
}

async function podsOf(mode: Mode, count: number, options: CurlOptions = {}, url = 'http://web/'): Promise<string[]> {
  const found: string[] = [];
  for (let i = 0; i < count; i++) found.push((await mesh.curl(mode, url, options)).version);
  return found;
}

for (const mode of MODES) {
  test(`connectionPool: what is beyond one connection and one pending request is answered with 503 (${mode})`, async () => {
    const one = '{connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}';
    await mesh.apply(mode, rule(one) + NO_RETRIES);
    const found = await parallel(mode, 'http://web/delay/2', 8);
    assert.ok((found['503 overloaded'] ?? 0) >= 4, JSON.stringify(found));
    assert.ok((found['200'] ?? 0) >= 1, JSON.stringify(found));
    if (mode === 'sidecar') {
      const overflow = /upstream_rq_pending_overflow: ([1-9]\d*)/.exec(await mesh.lab.proxyAdmin('sidecar/client', '/stats?filter=outbound.80.*web.sidecar.*pending_overflow'));
      assert.ok(Number(overflow?.[1]) >= 4, 'the client\'s Envoy counts what overflowed');
    }
    await mesh.clear(mode);
    assert.deepEqual(await parallel(mode, 'http://web/delay/1', 8), { 200: 8 });
  });

  test(`connectionPool: maxRequestsPerConnection is one, and is not inherited by a port's own settings (${mode})`, async () => {
    const connections = async (): Promise<number> => {
      const seen = await mesh.lab.exec(`${mode}/client`, ['curl', '-s', '--max-time', '10', ...Array.from({ length: 6 }, () => 'http://web/')]);
      const all = [...seen.stdout.matchAll(/"remote":\s*"([^"]+)"/g)].map(([, remote]) => remote);
      assert.equal(all.length, 6, seen.stdout);
      return new Set(all).size;
    };
    const v1 = routes('{route: [{destination: {host: web, subset: v1}}]}');
    const subsets = ', subsets: [{name: v1, labels: {version: v1}}]';
    const single = 'connectionPool: {http: {maxRequestsPerConnection: 1}}';
    await mesh.apply(mode, rule(`{${single}}`, subsets) + v1);
    assert.equal(await connections(), 6);
    await mesh.apply(mode, rule(`{${single}, portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: ROUND_ROBIN}}]}`, subsets) + v1);
    assert.equal(await connections(), 1);
  });

  test(`connectionPool: a subset's own limits count for that subset, a port's own before them (${mode})`, async () => {
    const one = 'connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}';
    const subset = (policy: string): string => rule('{loadBalancer: {simple: ROUND_ROBIN}}', `, subsets: [{name: v1, labels: {version: v1}, trafficPolicy: ${policy}}]`);
    const toV1 = routes('{route: [{destination: {host: web, subset: v1}}], retries: {attempts: 0}}');
    await mesh.apply(mode, subset(`{${one}}`) + toV1);
    const limited = await parallel(mode, 'http://web/delay/2', 6);
    assert.ok((limited['503 overloaded'] ?? 0) >= 2, JSON.stringify(limited));
    await mesh.apply(mode, subset(`{${one}, portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}`) + toV1);
    assert.deepEqual(await parallel(mode, 'http://web/delay/1', 6), { 200: 6 });
  });

  test(`outlierDetection: an endpoint that fails twice in a row gets no more requests (${mode})`, async () => {
    const bad = `${mode}/web-v2`;
    await mesh.apply(mode, rule('{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}}') + NO_RETRIES);
    await control(bad, 'PUT', '/fail/500');
    try {
      const first = await mesh.load(mode, 'http://web/', 12);
      assert.equal(first.statuses['500'], 2, JSON.stringify(first));
      const before = await requestsAt(bad);
      const second = await mesh.load(mode, 'http://web/', 20);
      assert.deepEqual([second.statuses, second.versions], [{ 200: 20 }, { v1: 20 }]);
      assert.equal(await requestsAt(bad), before);
    } finally {
      await control(bad, 'DELETE', '/fail');
      await mesh.clear(mode);
    }
  });

  test(`loadBalancer: ROUND_ROBIN is even, RANDOM and LEAST_REQUEST reach all (${mode})`, async () => {
    await mesh.apply(mode, rule('{loadBalancer: {simple: ROUND_ROBIN}}'));
    assert.deepEqual((await mesh.load(mode, 'http://web/', 40)).versions, { v1: 20, v2: 20 });
    for (const simple of ['RANDOM', 'LEAST_REQUEST']) {
      await mesh.apply(mode, rule(`{loadBalancer: {simple: ${simple}}}`));
      const { versions, statuses } = await mesh.load(mode, 'http://web/', 60);
      assert.deepEqual([Object.keys(versions).sort(), statuses], [['v1', 'v2'], { 200: 60 }]);
    }
  });

  test(`consistentHash: the same key leads to the same server, by header, cookie and source address (${mode})`, async () => {
    const hash = (key: string): Promise<void> => mesh.apply(mode, rule(`{loadBalancer: {consistentHash: ${key}}}`));
    for (const table of ['', ', ringHash: {minimumRingSize: 64}', ', maglev: {tableSize: 257}']) {
      await hash(`{httpHeaderName: x-user${table}}`);
      const owners = new Set<string>();
      for (let user = 0; user < 12; user++) {
        const found = await podsOf(mode, 3, { headers: { 'x-user': `user-${user}` } });
        assert.equal(new Set(found).size, 1, `user-${user}: ${found.join(' ')}`);
        owners.add(found[0]!);
      }
      assert.deepEqual([...owners].sort(), ['v1', 'v2'], table);
    }
    await hash('{httpCookie: {name: sid, ttl: 60s}}');
    const { headers, version } = await mesh.curl(mode, 'http://web/');
    const cookie = /sid="?([^";]+)"?/.exec(headers['set-cookie'] ?? '')?.[0] ?? assert.fail(JSON.stringify(headers));
    assert.deepEqual(new Set(await podsOf(mode, 8, { headers: { cookie } })), new Set([version]));
    await hash('{useSourceIp: true}');
    assert.equal(new Set(await podsOf(mode, 10)).size, 1);
  });

  test(`warm-up, TCP keepalive, idle time-outs and HTTP/2 upgrade are taken by Envoy and let requests through (${mode})`, async () => {
    const policy = `{loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 5s, minimumPercent: 20, aggression: 2}},
      connectionPool: {tcp: {connectTimeout: 3s, idleTimeout: 60s, maxConnectionDuration: 300s, tcpKeepalive: {probes: 3, time: 60s, interval: 10s}}, http: {idleTimeout: 30s, h2UpgradePolicy: UPGRADE, http2MaxRequests: 100, maxRetries: 5, maxConcurrentStreams: 10, http2KeepAlive: {interval: 30s, timeout: 5s}}},
      outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 4, consecutiveGatewayErrors: 3, consecutive5xxErrors: 0, minHealthPercent: 30, interval: 5s}, retryBudget: {percent: 30, minRetryConcurrency: 4}}`;
    await mesh.apply(mode, rule(policy));
    assert.deepEqual(await mesh.nacks(), []);
    assert.deepEqual((await mesh.load(mode, 'http://web/', 10)).statuses, { 200: 10 });
  });

  const places = (policy: string): string => `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: places}
spec:
  hosts: [places.example]
  addresses: [10.77.${mode === 'node' ? 1 : 2}.1]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: ${ip('outside/near')}, locality: here/a}, {address: ${ip('outside/far')}, locality: here/b}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: places}
spec: {host: places.example, trafficPolicy: ${policy}}
`;
  const toPlaces: CurlOptions = { from: `${mode}/placed`, args: ['--resolve', `places.example:80:10.77.${mode === 'node' ? 1 : 2}.1`] };
  const load = async (count: number): Promise<Record<string, number>> => {
    const found: Record<string, number> = {};
    for (const version of await podsOf(mode, count, toPlaces, 'http://places.example/')) found[version] = (found[version] ?? 0) + 1;
    return found;
  };

  test(`locality failover: the client's own zone serves it until that zone fails, then retries reach the next (${mode})`, async () => {
    await mesh.apply(mode, places('{outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100}}') + routes('{route: [{destination: {host: places.example}}], retries: {attempts: 2, retryOn: 5xx}}', 'places.example'));
    assert.deepEqual(await load(12), { near: 12 });
    await control('outside/near', 'PUT', '/fail/503');
    try {
      assert.deepEqual(await load(12), { far: 12 });
    } finally {
      await control('outside/near', 'DELETE', '/fail');
    }
  });

  test(`locality distribution: requests are shared out by weight, near or far (${mode})`, async () => {
    await mesh.apply(mode, places('{loadBalancer: {localityLbSetting: {distribute: [{from: here/a/*, to: {here/a/*: 75, here/b/*: 25}}]}}}'));
    const found = await load(60);
    // Envoy picks localities by a weighted schedule, which is as good as exact.
    assert.ok(found['near']! >= 40 && found['near']! <= 50, JSON.stringify(found));
    await mesh.apply(mode, places('{loadBalancer: {localityLbSetting: {distribute: [{from: here/a/*, to: {here/b/*: 100}}]}}}'));
    assert.deepEqual(await load(8), { far: 8 });
  });
}
