// The tasks of Istio's documentation on localities: a service in four zones of three regions, each a node of the lab; its client in the first.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { parseAllDocuments } from 'yaml';
import { waitFor } from '../common/retry.js';
import { task } from './istio-tasks-world.js';
import { MeshWorld, MODES, type Mode } from './mesh/world.js';

const LOCALITIES = ['region1.zone1', 'region1.zone2', 'region2.zone3', 'region3.zone4'] as const;
type Where = (typeof LOCALITIES)[number];

const place = (locality: Where): Record<string, string> => {
  const [region = '', zone = ''] = locality.split('.');
  return { 'topology.kubernetes.io/region': region, 'topology.kubernetes.io/zone': zone };
};
/** The Deployments of these files as the task's own script makes them for a locality, on its node. */
function deployments(locality: Where, ...files: string[]): string {
  return parseAllDocuments(task('sample', ...files).replaceAll('helloworld-v1\n', `helloworld-${locality}\n`).replaceAll('version: v1\n', `version: ${locality}\n`))
    .filter((document) => document.get('kind') === 'Deployment')
    .map((document) => {
      const pod = ['spec', 'template', 'spec'];
      document.setIn([...pod, 'nodeSelector'], place(locality));
      if (files[0] === HELLOWORLD) document.setIn([...pod, 'containers', 0, 'env'], [{ name: 'SERVICE_VERSION', value: locality }]);
      return document.toString();
    })
    .join('---\n');
}
const HELLOWORLD = 'secure-ingress/helloworld';
const CURL = 'samples/curl/curl';

const world = (mode: Mode): string =>
  [
    `apiVersion: v1\nkind: Namespace\nmetadata: {name: sample, labels: {${mode === 'sidecar' ? 'istio-injection: enabled' : 'underpass.io/mode: node'}}}\n`,
    ...LOCALITIES.map((locality, index) => `apiVersion: v1\nkind: Node\nmetadata: {name: node-${index + 1}, labels: ${JSON.stringify(place(locality))}}\n`),
    ...LOCALITIES.map((locality) => deployments(locality, HELLOWORLD)),
    deployments('region1.zone1', CURL),
    ...[HELLOWORLD, CURL].flatMap((file) => parseAllDocuments(task('sample', file)).filter((document) => document.get('kind') !== 'Deployment').map(String)),
  ].join('---\n');

for (const mode of MODES) describe(mode, () => {
  const mesh = new MeshWorld(`zones-${mode}`, { bare: true, outside: world(mode), sidecarsOnly: mode === 'sidecar', nodes: LOCALITIES.length });
  before(() => mesh.up());
  after(() => mesh.down());

  /** How many of the calls each locality answered; what failed counts as its status. */
  async function calls(count: number): Promise<Record<string, number>> {
    const { stdout } = await mesh.lab.exec('sample/curl', ['curl', '-sL', '-w', '#%{http_code}\\n', `helloworld.sample:5000/hello?[1-${count}]`], { timeoutMs: 60_000 });
    const found: Record<string, number> = {};
    for (const answer of stdout.split(/(?<=#\d+\n)/)) {
      const key = /version: ([^,]+),/.exec(answer)?.[1] ?? /#(\d+)/.exec(answer)?.[1] ?? answer;
      found[key] = (found[key] ?? 0) + 1;
    }
    return found;
  }
  const server = (locality: Where): string => `sample/${mesh.lab.pods().find(({ labels }) => labels['version'] === locality)!.name}`;
  const until = async (locality: Where): Promise<void> => {
    let last: unknown;
    await waitFor(`all calls to be answered in ${locality}`, async () => (last = await calls(10), JSON.stringify(last) === JSON.stringify({ [locality]: 10 })), { timeoutMs: 120_000, everyMs: 100 }).catch((error: unknown) => {
      throw new Error(`${String(error)}; last ${JSON.stringify(last)}`);
    });
  };

  test(`locality weighted distribution: 70, 20 and 10 of 100 calls, none where there is no weight (${mode})`, async () => {
    await mesh.apply('mesh', task('sample', 'locality-load-balancing/distribute'));
    assert.deepEqual(await mesh.nacks(), []);
    const found = await calls(100);
    for (const [locality, share] of [['region1.zone1', 70], ['region1.zone2', 20], ['region3.zone4', 10]] as const) assert.ok(Math.abs((found[locality] ?? 0) - share) <= 5, JSON.stringify(found));
    assert.equal(Object.values(found).reduce((sum, count) => sum + count), 100);
    assert.equal(found['region2.zone3'], undefined, JSON.stringify(found));
  });

  test(`locality failover: calls stay in their zone; when it fails they go to the region's other, then the region named for it, then the last (${mode})`, async () => {
    await mesh.apply('mesh', task('sample', 'locality-load-balancing/failover'));
    assert.deepEqual(await mesh.nacks(), []);
    await until('region1.zone1');
    for (const [index, locality] of LOCALITIES.slice(1).entries()) {
      const failing = LOCALITIES[index]!;
      // In mode node there is no sidecar to drain.
      if (mode === 'sidecar') await mesh.proxyAdmin(server(failing), '/drain_listeners', 'POST');
      else await mesh.lab.apply(deployments(failing, HELLOWORLD).replace('replicas: 1', 'replicas: 0'));
      await until(locality);
    }
  });
});
