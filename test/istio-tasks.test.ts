// The tasks of Istio's documentation on traffic management: their YAML as it is, what they promise looked for in real traffic.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { waitFor } from '../common/retry.js';
import type { MeshWorld } from './mesh/world.js';
import { task, tasksWorld, type TasksWorld } from './istio-tasks-world.js';

let world: TasksWorld;
let mesh: MeshWorld;
before(async () => {
  world = await tasksWorld();
  ({ mesh } = world);
});
after(() => world?.down());

const INGRESS = 'istio-ingressgateway.istio-system';
const PLACES = ['default', 'node'] as const;
type Place = (typeof PLACES)[number];

/** A task's objects in both places; Bookinfo's Gateway leads to the one with sidecars. */
const everywhere = (...files: string[]): string => [task('default', 'samples/bookinfo/bookinfo-gateway'), ...PLACES.map((place) => task(place, ...files))].join('---\n');
const RULES = ['samples/bookinfo/destination-rule-all', 'samples/bookinfo/virtual-service-all-v1'];
/** What a task changes comes last: of the same object the later one counts. */
const applyBookinfo = (...files: string[]): Promise<void> => mesh.apply('mesh', newest(everywhere(...RULES, ...files)));

/** As repeated `kubectl apply`: of objects of one name the last stays. */
function newest(yaml: string): string {
  const found = new Map<string, string>();
  for (const document of yaml.split(/^---\n/m)) found.set(/kind: .*|^ {2}name: .*|^ {2}namespace: .*/gm[Symbol.match](document)?.slice(0, 3).join() ?? '', document);
  return [...found.values()].join('---\n');
}

async function pages(place: Place, { user = '', count = 1 } = {}): Promise<string[]> {
  const address = place === 'default' ? `${INGRESS}` : 'productpage:9080';
  const from = place === 'default' ? 'legacy/curl' : 'node/curl';
  const { code, stdout, stderr } = await mesh.lab.exec(from, ['curl', '-sS', '--max-time', '20', ...(user ? ['-H', `cookie: session=${user}`] : []), `http://${address}/productpage?[1-${count}]`], { timeoutMs: 60_000 });
  assert.equal(code, 0, stderr);
  return stdout.split('<!DOCTYPE html>').slice(1);
}

type Stars = 'none' | 'black' | 'red' | 'no ratings' | 'no reviews' | 'no page';
function starsOf(page: string): Stars {
  if (page.includes('Error fetching product reviews!')) return 'no reviews';
  if (page.includes('Ratings service is currently unavailable')) return 'no ratings';
  const color = /<font color="(black|red)">/.exec(page)?.[1] as Stars | undefined;
  return color ?? (page.includes('Book Reviews') ? 'none' : 'no page');
}
const stars = async (place: Place, user = ''): Promise<Stars> => starsOf((await pages(place, { user }))[0] ?? '');
/** What everybody, and what jason, sees in each place. */
const seen = async (): Promise<Stars[][]> => Promise.all(PLACES.map((place) => Promise.all([stars(place), stars(place, 'jason')])));
const both = (...row: Stars[]): Stars[][] => PLACES.map(() => row);

test('request routing: everybody sees reviews v1, jason v2 (sidecar, node)', async () => {
  await applyBookinfo();
  assert.deepEqual(await seen(), both('none', 'none'));
  await applyBookinfo('request-routing/virtual-service-reviews-test-v2');
  assert.deepEqual(await mesh.nacks(), []);
  assert.deepEqual(await seen(), both('none', 'black'));
});

test("fault injection: jason's ratings come too late for reviews, or not at all; nobody else notices (sidecar, node)", async () => {
  await applyBookinfo('request-routing/virtual-service-reviews-test-v2', 'fault-injection/virtual-service-ratings-test-delay');
  assert.deepEqual(await seen(), both('none', 'no reviews'));
  await applyBookinfo('request-routing/virtual-service-reviews-test-v2', 'fault-injection/virtual-service-ratings-test-abort');
  assert.deepEqual(await seen(), both('none', 'no ratings'));
});

test('traffic shifting: half of the requests, then all, go to reviews v3 (sidecar, node)', async () => {
  await applyBookinfo('traffic-shifting/virtual-service-reviews-50-v3');
  for (const place of PLACES) {
    const found = (await pages(place, { count: 40 })).map(starsOf);
    assert.deepEqual([...new Set(found)].sort(), ['none', 'red'], `${place}: ${found.join()}`);
  }
  await applyBookinfo('traffic-shifting/virtual-service-reviews-v3');
  for (const place of PLACES) assert.deepEqual(new Set((await pages(place, { count: 10 })).map(starsOf)), new Set(['red']));
});

test('request timeouts: a delay of ratings shows as missing reviews once reviews has a timeout (sidecar, node)', async () => {
  await applyBookinfo('request-timeouts/reviews-v2', 'request-timeouts/ratings-delay');
  assert.deepEqual(await seen(), both('black', 'black'));
  await applyBookinfo('request-timeouts/ratings-delay', 'request-timeouts/reviews-timeout');
  assert.deepEqual(await seen(), both('no reviews', 'no reviews'));
});

test('circuit breaking: what is more than the connection pool takes is turned away (sidecar, node)', async () => {
  await mesh.apply('mesh', everywhere('circuit-breaking/httpbin-destination-rule'));
  for (const place of PLACES) {
    const fortio = (...words: string[]): ReturnType<typeof mesh.lab.exec> => mesh.lab.exec(`${place}/fortio-deploy`, ['/usr/bin/fortio', ...words, 'http://httpbin:8000/get'], { timeoutMs: 30_000 });
    assert.match((await fortio('curl', '-quiet')).stdout, /^HTTP\/1\.1 200 OK/);
    const { stdout } = await fortio('load', '-c', '3', '-qps', '0', '-n', '30', '-loglevel', 'Warning');
    assert.match(stdout, /Code 200 : \d+/, place);
    assert.match(stdout, /Code 503 : \d+/, place);
    if (place === 'node') continue;
    const counted = await mesh.lab.proxyAdmin('default/fortio-deploy', '/stats?filter=httpbin.*pending_overflow');
    assert.match(counted, /outbound\|8000\|\|httpbin\.default\.svc\.cluster\.local.*upstream_rq_pending_overflow: [1-9]/);
  }
});

test('mirroring: v1 answers, v2 gets a copy', async () => {
  const apply = (...files: string[]): Promise<void> => mesh.apply('mesh', newest(task('mirroring', 'mirroring/all-v1', ...files)));
  const logged = (version: string, path: string): number => readFileSync(mesh.lab.pod('mirroring', `httpbin-${version}`).containers.find(({ name }) => name === 'httpbin')!.log!, 'utf8').split(path).length - 1;
  const get = (path: string): Promise<unknown> => mesh.curl('outside', `http://httpbin:8000${path}`, { from: 'mirroring/curl' });
  await apply();
  await get('/headers?before');
  await apply('mirroring/mirror-to-v2');
  for (let i = 0; i < 5; i++) await get('/headers?after');
  await waitFor('the copies', () => logged('v2', '?after') === 5, { timeoutMs: 10_000, everyMs: 50 });
  assert.deepEqual(['v1', 'v2'].map((version) => [logged(version, '?before'), logged(version, '?after')]), [[1, 5], [0, 5]]);
});

test('TCP traffic shifting: all connections to v1, then a fifth to v2', async () => {
  const namespace = 'istio-io-tcp-traffic-shifting';
  const words = async (count: number): Promise<Set<string>> => {
    const script = `for i in $(seq ${count}); do exec 3<>/dev/tcp/${INGRESS}/31400; echo hello >&3; head -n 1 <&3; exec 3>&-; done`;
    const { stdout, stderr } = await mesh.lab.exec('legacy/curl', ['bash', '-c', script], { timeoutMs: 30_000 });
    const lines = stdout.trim().split('\n');
    assert.equal(lines.length, count, stderr);
    return new Set(lines);
  };
  await mesh.apply('mesh', task(namespace, 'tcp-traffic-shifting/tcp-echo-all-v1'));
  await waitFor('the gateway to listen', async () => (await mesh.lab.exec('legacy/curl', ['bash', '-c', `exec 3<>/dev/tcp/${INGRESS}/31400; echo hello >&3; head -n 1 <&3`])).stdout !== '', { timeoutMs: 10_000, everyMs: 50 });
  assert.deepEqual(await words(20), new Set(['one hello']));
  await mesh.apply('mesh', newest(task(namespace, 'tcp-traffic-shifting/tcp-echo-all-v1', 'tcp-traffic-shifting/tcp-echo-20-v2')));
  assert.deepEqual(await words(60), new Set(['one hello', 'two hello']));
});
