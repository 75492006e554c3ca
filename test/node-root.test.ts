/**
 * Pods whose runtime makes no cgroup v2 directory, beside one that has one, on a node as a user runs it: real pods, BPF, Envoy and
 * xDS. The hooks are at the root of the hierarchy, where the neighbours' programs are too.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { projectRoot } from '../common/paths.js';
import { NodeUnderTest, enrolled } from './agent-harness.js';

const node = new NodeUnderTest(`up-root-${process.pid}`);
const { instance } = node;
const rootPins = `/sys/fs/bpf/underpass/${instance}/links/root`;
const hooks = async (): Promise<Record<string, string | undefined>> => Object.fromEntries((await node.status()).pods.filter(({ namespace }) => namespace === 'shop').map(({ name, hooks: at }) => [/^[a-z]+(-v\d)?/.exec(name)![0], at]));

/** Callers without an identity of the namespace reach no version 2. */
const POLICY = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: own, namespace: shop}
spec: {selector: {matchLabels: {version: v2}}, action: DENY, rules: [{from: [{source: {notNamespaces: [shop]}}]}]}
`;

before(async () => {
  const canary = (file: string): string => readFileSync(join(projectRoot, 'examples', 'canary', file), 'utf8');
  const without = (yaml: string, labels: string): string => yaml.replace(`      labels: {${labels}}\n    spec:`, `      labels: {${labels}}\n      annotations: {lab.underpass.io/cgroup: none}\n    spec:`);
  await node.up([], [without(without(canary('shop.yaml'), 'app: client'), 'app: nginx, version: v2'), without(canary('plain.yaml'), 'app: client')].join('\n---\n') + POLICY);
});
after(() => node.down());

test('pods at the root are enrolled like the others, ps and explain say so, and their neighbour there is left alone', async () => {
  node.startAgent();
  await node.podsAre('shop', 'shop to be enrolled', enrolled('bpf'));
  assert.match((await node.lab.exec('shop/client', ['cat', '/proc/self/cgroup'])).stdout, /^0::\/$/m);
  assert.deepEqual(await hooks(), { client: 'root', 'nginx-v1': 'cgroup', 'nginx-v2': 'root' });
  const some = node.load('shop/client');
  const { failures, fresh, kept, versions } = await some.run(300);
  assert.deepEqual([failures, fresh.direct + kept.direct, Object.keys(versions).sort()], [{}, 0, ['v1', 'v2']]);
  await some.end();
  const neighbour = node.load('plain/client');
  const plain = await neighbour.run(100);
  assert.deepEqual([plain.failures, plain.fresh.proxied + plain.kept.proxied], [{}, 0]);
  await neighbour.end();
  const ps = (await node.cli(['ps', '--instance', instance])).stdout;
  assert.match(ps, /client\S* +node +enrolled +bpf \(at the root\)/);
  assert.match(ps, /nginx-v1\S* +node +enrolled +bpf  /);
  assert.match(ps, /2 pods have no cgroup v2 directory/);
  const client = (await node.pod('shop', 'client')).name;
  assert.match((await node.cli(['explain', `shop/${client}`, 'nginx:80', '--instance', instance])).stdout, /has no cgroup v2 directory/);
  assert.doesNotMatch(ps, / plain .*bpf/);
});

test('what a policy forbids does not get into a pod at the root, and what it allows does', async () => {
  const [v1, v2] = await Promise.all(['nginx-v1', 'nginx-v2'].map(async (name) => (await node.pod('shop', name)).ips[0]!));
  const answer = async (pod: string, ip: string): Promise<string> => (await node.lab.exec(pod, ['curl', '-s', '-o', '/dev/null', '-m', '20', '-w', '%{http_code}', `http://${ip}/`])).stdout;
  assert.deepEqual([await answer('plain/client', v1!), await answer('shop/client', v2!)], ['200', '200']);
  assert.equal(await answer('plain/client', v2!), '403', 'its callers are led to Envoy, which refuses');
});

test('the agent is killed and started again: no request fails, and each pod has its hooks where they were', async () => {
  const some = node.load('shop/client');
  await some.run(100);
  await node.endAgent('SIGKILL');
  const without = await some.run(200);
  assert.deepEqual([without.failures, without.fresh.direct, without.kept.direct], [{}, 0, 0]);
  assert.equal(existsSync(rootPins), true);
  node.startAgent();
  await node.podsAre('shop', 'shop to be enrolled again', enrolled('bpf'));
  const after_ = await some.run(200);
  assert.deepEqual([after_.failures, after_.fresh.direct, after_.kept.direct], [{}, 0, 0]);
  assert.deepEqual(await hooks(), { client: 'root', 'nginx-v1': 'cgroup', 'nginx-v2': 'root' });
  assert.deepEqual((await some.end()).failures, {});
});

test('the last of them leaves the mesh: nothing is at the root any more', async () => {
  await node.label('shop', { mode: 'off' });
  await node.podsAre('shop', 'shop to be off', (pod) => pod.state === 'off' && pod.settled);
  assert.equal(existsSync(rootPins), false);
  const some = node.load('shop/client');
  const { failures, fresh, kept } = await some.run(50);
  assert.deepEqual([failures, fresh.proxied + kept.proxied], [{}, 0]);
  await some.end();
});
