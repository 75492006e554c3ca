// What injection's annotations do to real traffic: pods of the lab with stock Envoy, pilot as their control plane.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { logger } from '../common/log.js';
import { waitFor } from '../common/retry.js';
import { Lab } from '../lab/index.js';
import { Pilot } from '../pilot/index.js';

const NAME = `up-lab-inject-${process.pid}`;
const pod = (name: string, container: string, annotations = '{}', labels = ''): string =>
  `apiVersion: v1\nkind: Pod\nmetadata: {name: ${name}, namespace: shop, labels: {app: ${name}${labels}}, annotations: ${annotations}}\nspec: {containers: [{name: main, ${container}}]}\n`;
const echo = 'image: echo, ports: [{name: http, containerPort: 8080}]';
const service = (name: string): string => `apiVersion: v1\nkind: Service\nmetadata: {name: ${name}, namespace: shop}\nspec: {selector: {app: ${name}}, ports: [{name: http, port: 8080}]}\n`;
const WORLD = [
  'apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio-injection: enabled}}\n',
  pod('server', echo),
  pod('open', echo, '{traffic.sidecar.istio.io/excludeInboundPorts: "8080"}'),
  pod('plain', echo, '{}', ', sidecar.istio.io/inject: "false"'),
  service('server'),
  service('open'),
  service('plain'),
  pod('client', 'image: curl'),
  pod('past', 'image: curl', '{traffic.sidecar.istio.io/excludeOutboundPorts: "8080"}'),
  pod('nowhere', 'image: curl', '{traffic.sidecar.istio.io/includeOutboundIPRanges: "192.0.2.0/24"}'),
  pod('uncaptured', 'image: curl', '{sidecar.istio.io/interceptionMode: NONE}'),
].join('---\n');

interface Answer {
  remote: string;
  headers: Record<string, string>;
}

let directory: string;
let lab: Lab;
let pilot: Pilot;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-inject-'));
  const world = join(directory, 'world.yaml');
  writeFileSync(world, WORLD);
  const discovery = `unix:${join(directory, 'xds.sock')}`;
  lab = await Lab.up({ name: NAME, sources: [world], discovery, watch: false, sidecarConcurrency: 1 });
  pilot = new Pilot({ sources: [world, lab.objectsDir], listen: [discovery], logger: logger('pilot') });
  await pilot.start();
  await lab.whenReady({ sidecars: true, timeoutMs: 60_000 });
  await waitFor('the endpoints in the sidecar', async () => (await ask('client', 'server')) !== undefined, { timeoutMs: 120_000 });
});

after(async () => {
  await pilot?.stop();
  await lab?.down();
  rmSync(directory, { recursive: true, force: true });
});

async function ask(from: string, to: string): Promise<Answer | undefined> {
  const { stdout } = await lab.exec(`shop/${from}`, ['curl', '-s', '--max-time', '30', `http://${to}:8080/`]);
  try {
    return JSON.parse(stdout) as Answer;
  } catch {
    return undefined;
  }
}
const throughEnvoy = (answer: Answer | undefined): boolean => {
  assert.ok(answer);
  return answer.headers['x-request-id'] !== undefined;
};
const ip = (name: string): string => lab.pod('shop', name).ips[0] as string;

test('injection: an ordinary client goes through its Envoy, which speaks mTLS to the other pod\'s', async () => {
  const answer = await ask('client', 'server');
  assert.ok(throughEnvoy(answer));
  assert.match(answer?.headers['x-forwarded-client-cert'] ?? '', /spiffe:/);
  assert.match(answer?.remote ?? '', /127\.0\.0\.6:/);
});

test('injection: excluded outbound ports, ranges that include nothing, and interception NONE leave a client without its Envoy', async () => {
  for (const client of ['past', 'nowhere', 'uncaptured']) {
    const answer = await ask(client, 'plain');
    assert.equal(throughEnvoy(answer), false, client);
    assert.ok(answer?.remote.includes(ip(client)), `${client}: ${answer?.remote}`);
  }
  assert.ok(throughEnvoy(await ask('client', 'plain')));
});

test("injection: an excluded inbound port is the application's own, seen with the client's address", async () => {
  const answer = await ask('past', 'open');
  assert.equal(throughEnvoy(answer), false);
  assert.ok(answer?.remote.includes(ip('past')), answer?.remote);
});
