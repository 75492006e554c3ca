// A Deployment is rolled while its programs go on during their grace period: what serves a pod stays until its processes are gone.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { projectRoot } from '../common/paths.js';
import { waitFor } from '../common/retry.js';
import { NodeUnderTest, enrolled } from './agent-harness.js';
import type { RolloutReport } from './rollout-client.js';

const node = new NodeUnderTest(`up-agentr-${process.pid}`);
const { instance, paths } = node;
const folder = mkdtempSync(join(tmpdir(), `${instance}-`));

before(() => node.up(['shop.yaml']));
after(async () => {
  await node.down();
  rmSync(folder, { recursive: true, force: true });
});

function deployment(generation: number): string {
  const command = [process.execPath, join(projectRoot, 'dist', 'test', 'rollout-client.js'), 'http://nginx/', folder];
  return `
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: caller}}
  template:
    metadata: {labels: {app: caller}}
    spec: {containers: [{name: caller, image: curl, command: ${JSON.stringify(command)}, env: [{name: GENERATION, value: "${generation}"}]}]}
`;
}

for (const way of ['bpf', 'iptables'] as const) {
  test(`pods that are replaced and go on requesting until they end lose no request, by ${way}`, async () => {
    if (way === 'bpf') node.startAgent();
    await node.label('shop', { redirection: way });
    await node.lab.apply(deployment(way === 'bpf' ? 1 : 3));
    await node.podsAre('shop', `shop by ${way}`, enrolled(way));
    const callers = node.lab.pods().filter(({ labels }) => labels['app'] === 'caller');
    assert.equal(callers.length, 2);
    await new Promise((resolve) => setTimeout(resolve, 500));
    const seenTerminating = new Set<string>();
    const watch = setInterval(() => {
      for (const { uid, terminating, ready } of node.lab.records()) if (terminating && !ready) seenTerminating.add(uid);
    }, 20);
    try {
      await node.lab.apply(deployment(way === 'bpf' ? 2 : 4));
      const files = callers.map(({ name }) => join(folder, `${name}.json`));
      await waitFor('the old pods to end', () => files.every((file) => existsSync(file)), { timeoutMs: 40_000 });
      const reports = files.map((file) => JSON.parse(readFileSync(file, 'utf8')) as RolloutReport);
      for (const { before: earlier, after: later, afterProxied, failures } of reports) {
        assert.deepEqual(failures, []);
        assert.ok(earlier > 20 && later > 20, `${earlier} requests before SIGTERM, ${later} after`);
        assert.equal(afterProxied, later, 'the mesh decides until the end');
      }
    } finally {
      clearInterval(watch);
    }
    const uids = callers.map(({ uid }) => uid);
    assert.deepEqual([...seenTerminating].filter((uid) => uids.includes(uid)).sort(), [...uids].sort(), 'told as terminating and not ready');
    await waitFor('the old pods to be buried', () => !readdirSync(paths.netnsFolder).some((uid) => uids.includes(uid)), { timeoutMs: 60_000 });
    assert.deepEqual(uids.filter((uid) => existsSync(join(paths.bpffsDir, instance, 'links', 'pods', uid))), []);
    assert.deepEqual(node.lab.records().filter(({ uid }) => uids.includes(uid)), []);
  });
}
