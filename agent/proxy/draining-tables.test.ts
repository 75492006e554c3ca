import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '../../common/retry.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { echoServer, type TestNetns } from '../testing/netns.js';
import { ENDPOINT, ProxyWorld, SERVICE_CLUSTER, SERVICE_VIP } from '../testing/proxy-world.js';
import { assignment, edsCluster, routes } from '../testing/resources.js';
import type { ProxyPod } from './node-proxy.js';
import { CDS, RDS } from './snapshot.js';

const DRAIN_SECONDS = 4;
const OWN = 'outbound|80|own|web.shop.svc.cluster.local';

describe('a table of routes that gets another name', () => {
  const world = new ProxyWorld();
  const folder = mkdtempSync(join(tmpdir(), 'up-draining-'));
  let a: { pod: ProxyPod; netns: TestNetns };
  let b: { pod: ProxyPod; netns: TestNetns };

  before(async () => {
    await world.start({ execPath: world.drainingAfter(DRAIN_SECONDS) });
    a = await world.pod('pod-a');
    b = await world.pod('pod-b', { labels: { app: 'other' } });
    for (const { netns } of [a, b]) await netns.serve(echoServer(80));
    world.running.setPods([a.pod, b.pod]);
    await world.ready(a.pod, b.pod);
    await world.settled();
  });
  after(async () => {
    await world.close();
    rmSync(folder, { recursive: true });
  });

  function send(type: string, resources: Record<string, Any>, removed: string[] = []): void {
    const stream = world.controlPlane.streams.find((item) => item.nodeId.includes('~pod-b.') && !item.ended);
    assert.ok(stream);
    stream.send({ type_url: type, resources: Object.entries(resources).map(([name, resource]) => ({ name, resource, version: '' }) as never), removed_resources: removed });
  }
  const clusters = (): Promise<string> => world.running.envoy.admin.get('/clusters');
  const modified = async (): Promise<number> => (await world.running.envoy.admin.stats('^listener_manager\\.listener_modified$')).get('listener_manager.listener_modified') ?? 0;

  it('a connection that was silent meanwhile goes by the former one, and finds the cluster that it leads to, until it has drained', async () => {
    const start = await modified();
    world.controlPlane.set(assignment(OWN, [`${ENDPOINT}:80`]), OWN);
    send(CDS, { [OWN]: edsCluster(OWN) });
    send(RDS, { 80: routes(80, { web: OWN }) });
    await waitFor('a table of one class\'s own', async () => (await modified()) > start && (await clusters()).includes(OWN));
    await world.settled();
    const [first, go] = [join(folder, 'first'), join(folder, 'go')];
    const asked = b.netns.script<{ statuses: number[]; reused: boolean }>(`
      const http = require('http'), fs = require('fs'); const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
      const get = () => new Promise((resolve, reject) => { const req = http.get({ host: '${SERVICE_VIP}', agent, headers: { host: 'web' } }, (res) => res.resume().on('end', () => resolve([res.statusCode, req.reusedSocket]))); req.on('error', reject); });
      const until = async (path) => { while (!fs.existsSync(path)) await new Promise((r) => setTimeout(r, 5)); };
      (async () => { const [one] = await get(); fs.writeFileSync('${first}', ''); await until('${go}'); const [two, reused] = await get(); console.log(JSON.stringify({ statuses: [one, two], reused })); process.exit(0); })();`);
    await waitFor('the first answer', () => existsSync(first), { everyMs: 5 });
    const before = await modified();
    send(RDS, { 80: routes(80, { web: SERVICE_CLUSTER }) });
    send(CDS, {}, [OWN]);
    await waitFor('one table for both classes', async () => (await modified()) > before, { everyMs: 5 });
    await world.settled();
    writeFileSync(go, '');
    assert.deepEqual(await asked, { statuses: [200, 200], reused: true });
    await waitFor('the cluster to go', async () => !(await clusters()).includes(OWN), { timeoutMs: DRAIN_SECONDS * 1_000 + 10_000 });
  });
});
