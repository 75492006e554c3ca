// Several labs as clusters of one mesh: one network for all, or networks of their own with load balancers between.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Lab } from './lab.js';
import { labTraces, NO_TRACES } from './traces.js';

const NAMES = ['east', 'west', 'far'].map((name) => `up-lab-${name}-${process.pid}`) as [string, string, string];
const world = (cluster: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, version: ${cluster}}}
spec: {containers: [{name: main, image: echo, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: node-2, containers: [{name: curl, image: curl}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
`;

let directory: string;
const labs: Lab[] = [];

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-clusters-'));
  for (const [index, name] of NAMES.entries()) {
    const file = join(directory, `${name}.yaml`);
    writeFileSync(file, world(['east', 'west', 'far'][index] as string));
    // The third has a network of its own.
    const lab = await Lab.up({ name, sources: [file], nodes: 2, watch: false, clusterId: name, peers: [...labs], isolated: index === 2 });
    labs.push(lab);
    await lab.whenReady();
  }
});

after(async () => {
  for (const lab of labs.reverse()) await lab.down();
  rmSync(directory, { recursive: true, force: true });
});

async function answer(from: number, url: string): Promise<{ version: string; remote: string }> {
  const { code, stdout, stderr } = await (labs[from] as Lab).exec('shop/client', ['curl', '-sS', '--max-time', '3', url]);
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout) as { version: string; remote: string };
}
const podIp = (of: number): string => (labs[of] as Lab).pod('shop', 'web').ips[0] as string;

test('clusters: addresses of pods, services and load balancers are distinct', () => {
  const found = labs.flatMap((lab) => [...lab.pods().map(({ ips }) => ips[0]), lab.cluster.services.get('shop/web')?.address?.ipv4, lab.externalIp('shop', 'web')]);
  assert.equal(new Set(found).size, found.length);
});

test('clusters: on one network a pod reaches the other cluster\'s by its address, in both directions, and is seen as itself', async () => {
  for (const [from, to] of [[0, 1], [1, 0]] as const) {
    const { version, remote } = await answer(from, `http://${podIp(to)}:8080/`);
    assert.equal(version, ['east', 'west'][to]);
    assert.ok(remote.includes((labs[from] as Lab).pod('shop', 'client').ips[0] as string), remote);
  }
});

test('clusters: a network of its own is reached at its load balancer alone, and so reaches the others', async () => {
  for (const [from, to] of [[0, 2], [2, 1]] as const) {
    const direct = await (labs[from] as Lab).exec('shop/client', ['curl', '-sS', '--max-time', '1', `http://${podIp(to)}:8080/`]);
    assert.notEqual(direct.code, 0);
    assert.equal((await answer(from, `http://${(labs[to] as Lab).externalIp('shop', 'web')}/`)).version, ['east', 'west', 'far'][to]);
  }
  assert.equal((await answer(0, `http://${(labs[1] as Lab).externalIp('shop', 'web')}/`)).version, 'west');
});

test('Lab.down: clusters that are ended in reverse order leave nothing', async () => {
  for (const lab of [...labs].reverse()) await lab.down();
  for (const name of NAMES) assert.deepEqual(labTraces(name), NO_TRACES);
});
