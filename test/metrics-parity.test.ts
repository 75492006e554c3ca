/**
 * Istio's metrics are the same whichever mode a namespace is in: the same load between sidecars (scraped on port 15090 of each, as
 * Prometheus does), between pods of one Envoy, and over the HTTP fast path comes to the same sums under the same labels, but for
 * what docs/reference/metrics.md says differs.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { waitFor } from '../common/retry.js';
import { MeshWorld } from './mesh/world.js';

const gone = (namespace: string): string => `apiVersion: v1
kind: Service
metadata: {name: gone, namespace: ${namespace}}
spec: {selector: {app: gone}, ports: [{name: http, port: 80, targetPort: 8080}]}
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
${gone('fast')}`;

const mesh = new MeshWorld('parity', { yaml: gone, outside: FAST });
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
  for (let count = 0; count < CONNECTIONS; count++) {
    const { stdout, stderr } = await mesh.lab.exec(from, [process.execPath, '-e', TALK, 'other', '9000', String(BYTES)]);
    assert.equal(stdout.trim(), String(BYTES), stderr);
  }
}

interface Series {
  name: string;
  labels: Record<string, string>;
  value: number;
}

function seriesOf(text: string): Series[] {
  return text.split('\n').flatMap((line) => {
    const [, name, labels = '', value] = /^(istio_\w+)\{(.*)\} (\S+)$/.exec(line) ?? [];
    if (name === undefined || /_(?:bucket|sum)$/.test(name)) return [];
    return [{ name, labels: Object.fromEntries([...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key = '', text = '']) => [key, text])), value: Number(value) }];
  });
}

async function scrape(way: Way): Promise<Series[]> {
  if (way !== 'sidecar') return seriesOf(await mesh.agentMetrics()).filter(({ labels }) => labels['source_workload_namespace'] === way);
  const pods = (await mesh.lab.pods()).filter(({ namespace }) => namespace === way);
  return (await Promise.all(pods.map(async ({ ips }) => seriesOf((await mesh.lab.exec('outside/client', ['curl', '-sS', '-m', '20', `http://${ips[0]}:15090/stats/prometheus`])).stdout)))).flat();
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

/** By series; what is alike but for what differs is one. */
async function sums(way: Way): Promise<Record<string, number>> {
  const all = new Map<string, number>();
  for (const series of await scrape(way)) {
    const key = comparable(series);
    all.set(key, (all.get(key) ?? 0) + series.value);
  }
  return Object.fromEntries([...all].filter(([, value]) => value !== 0).sort(([a], [b]) => (a < b ? -1 : 1)));
}

const of = (all: Record<string, number>, what: RegExp): number => Object.entries(all).reduce((sum, [key, value]) => sum + (what.test(key) ? value : 0), 0);
const REQUESTS = 120 + 15 + 5 + 7 + 4;

/** Envoy merges what its threads counted every five seconds. */
async function counted(way: Way): Promise<Record<string, number>> {
  let now: Record<string, number> = {};
  await waitFor(`the load of ${way} to be counted`, async () => {
    now = await sums(way);
    return of(now, /^istio_request_bytes_count .*reporter=source/) === REQUESTS && of(now, /^istio_request_bytes_count .*reporter=destination/) === REQUESTS - 7
      && ['source', 'destination'].every((reporter) => of(now, new RegExp(`^istio_tcp_connections_closed_total .*reporter=${reporter}`)) === CONNECTIONS);
  }, { timeoutMs: 120_000, everyMs: 500 }).catch((error: unknown) => {
    throw new Error(`${String(error)}: ${JSON.stringify(now, undefined, 1)}`);
  });
  return now;
}

/** Of gRPC's messages no formatter of Envoy's gives a number that a counter could add. */
const withoutMessages = (all: Record<string, number>): Record<string, number> => Object.fromEntries(Object.entries(all).filter(([key]) => !/^istio_re\w+_messages_total/.test(key)));

test('the same load by sidecars, by the node\'s Envoy and by the fast path comes to the same sums under the same labels', async () => {
  assert.deepEqual(await mesh.nacks(), []);
  for (const way of WAYS) await load(way);
  const sidecar = await counted('sidecar');
  const unknown = Object.keys(sidecar).filter((key) => /(?:source|destination)_(?:workload|canonical_service|principal|cluster)=unknown/.test(key) && !/destination_service_name=gone/.test(key));
  assert.deepEqual(unknown, [], 'both ends of each request and connection are known');
  for (const way of ['node', 'fast'] as const) assert.deepEqual(withoutMessages(await counted(way)), sidecar, way);
});
