/**
 * The whole agent beside an istiod: pods of a lab at the recorded addresses, the kernel's hooks, the node's Envoy, and a server
 * that judges callers and answers as the recorded istiod did.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, test, before, after } from 'node:test';
import type { AgentStatus } from '../agent/index.js';
import { RecordedIstiod } from '../agent/testing/istiod.js';
import { IstiodSecurity } from '../agent/testing/istiod-security.js';
import { Recording } from '../agent/testing/recording.js';
import { projectRoot } from '../common/paths.js';
import { waitFor } from '../common/retry.js';
import { NodeUnderTest } from './agent-harness.js';
import type { Keys, Seen } from './hbone-server.js';

// A busy machine has its time: the kernel's part alone takes ten seconds there.
const WAIT = { timeoutMs: 120_000, everyMs: 50 };
const NODE = 'node-1';
const AGENT = { namespace: 'underpass-system', serviceAccount: 'underpass-agent', name: 'underpass-agent-x', nodeName: NODE };
/** Says on these ports who was called, over HTTP or in a line. */
const SERVER = `
  const http = require('node:http'), net = require('node:net'); const name = require('node:os').hostname();
  http.createServer((req, res) => res.end(req.socket.localAddress.replace('::ffff:', ''))).listen(80, '::');
  net.createServer((socket) => { socket.on('error', () => {}); socket.end(socket.localAddress.replace('::ffff:', '')); }).listen(6379, '::');`;

interface LabPod {
  name: string;
  ip: string;
  labels: string;
  serviceAccount?: string;
  node?: string;
  namespace?: string;
  image?: string;
}

/** One scenario, from its first step on. */
class Beside extends NodeUnderTest {
  readonly recording: Recording;
  security!: IstiodSecurity;
  istiod!: RecordedIstiod;

  constructor(readonly scenario: string, readonly namespace: string, readonly pods: readonly LabPod[], readonly services: Readonly<Record<string, string>>) {
    super(`up-istiod-${scenario.slice(0, 6)}-${process.pid}`);
    this.recording = Recording.open(scenario)!;
  }

  async begin(): Promise<void> {
    const pods = this.pods.map(({ name, ip, labels, serviceAccount = 'default', node = NODE, namespace = this.namespace, image = 'node' }) => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {${labels}}, annotations: {lab.underpass.io/ip: ${ip}, lab.underpass.io/ip-families: IPv4}}
spec: {nodeName: ${node}, serviceAccountName: ${serviceAccount}, containers: [{name: app, image: ${image}${image === 'node' ? `, command: [node, -e, ${JSON.stringify(SERVER)}]` : ''}}]}
`);
    const nodes = ['node-0', 'node-1', 'node-2'].map((name) => `apiVersion: v1\nkind: Node\nmetadata: {name: ${name}}\n`);
    await this.up([], [...nodes, `apiVersion: v1\nkind: Namespace\nmetadata: {name: ${this.namespace}, labels: {istio.io/dataplane-mode: ambient}}\n`, ...pods].join('---\n'));
    for (const { name, ip, namespace = this.namespace } of this.pods) assert.deepEqual(this.lab.pod(namespace, name).ips, [ip]);
    this.security = await IstiodSecurity.create();
    this.security.trustedNodeAccounts = ['underpass-system/underpass-agent'];
    this.security.pods = [AGENT, ...this.pods.map(({ name, node = NODE, namespace = this.namespace, serviceAccount = 'default' }) => ({ name, namespace, serviceAccount, nodeName: node }))];
    const node = this.recording.sessions.find(({ name }) => name === 'ztunnel-node-1')!;
    this.istiod = new RecordedIstiod('127.0.0.1:0', this.recording, [...this.recording.sidecars, node], this.security);
    await this.istiod.start();
    await this.istiod.goTo(0);
    writeFileSync(join(this.sourceDir, 'root-cert.pem'), this.security.ca.rootPem);
    writeFileSync(join(this.sourceDir, 'token'), await this.security.token({ ...AGENT, pod: { name: AGENT.name } }), { mode: 0o600 });
    this.startAgent();
    await this.settled('the pods to be enrolled');
  }

  override startAgent(): void {
    this.start('agent', '--node', NODE, '--ambient-label', '--discovery', this.istiod.address, '--discovery-root', join(this.sourceDir, 'root-cert.pem'), '--ca-token', join(this.sourceDir, 'token'));
  }

  async settled(what: string): Promise<void> {
    let last: unknown;
    await waitFor(what, async () => {
      const status = await this.status().catch(() => undefined);
      const pods = status?.pods.filter(({ mode }) => mode === 'node') ?? [];
      last = { notReady: status?.notReady, pods, nacks: status?.proxy.nacks, policies: status?.policies };
      return status?.ready && status.proxy.settled && (status.policies?.settling ?? 0) === 0 && pods.length > 0 && pods.every(({ state, settled }) => state === 'enrolled' && settled);
    }, WAIT).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${JSON.stringify(last, undefined, 1)}\n${this.log.slice(-4000)}`);
    });
  }

  async goTo(step: number): Promise<void> {
    await this.istiod.goTo(step);
    await this.settled(`step ${step} to be in force`);
    assert.deepEqual((await this.status()).proxy.nacks, [], `step ${step}`);
    assert.deepEqual(this.istiod.streams.flatMap(({ nacks }) => nacks), [], `step ${step}`);
  }

  /** The address that answered, else the status; `refused` without an answer. */
  async http(from: string, host: string, ...args: string[]): Promise<string> {
    const { stdout } = await this.lab.exec(from, ['curl', '-s', '-m', '30', '-w', '\\n%{http_code}', ...args, `http://${this.services[host] ?? host}/`, '-H', `host: ${host}`], { timeoutMs: 60_000 });
    const [body = '', code = ''] = stdout.split('\n');
    return code === '200' ? body : code === '000' ? 'refused' : code;
  }

  async tcp(from: string, address: string, port: number): Promise<string> {
    const program = `const socket = require('net').connect(${port}, '${address}'); let text = ''; socket.setTimeout(1500, () => socket.destroy()); socket.on('data', (d) => (text += d)).on('error', () => {}).on('close', () => console.log(text || 'refused'));`;
    return (await this.lab.exec(from, [process.execPath, '-e', program], { timeoutMs: 60_000 })).stdout.trim();
  }

  /** An independent HBONE server in a pod. */
  async serveHbone(pod: string, identity: { namespace: string; serviceAccount: string }, seen: Seen[]): Promise<void> {
    const server = this.lab.spawnIn(pod, [process.execPath, join(projectRoot, 'dist', 'test', 'hbone-server.js')], { stdio: ['pipe', 'pipe', 'inherit'] });
    const { chainPem: cert, privateKeyPem: key } = await this.security.ca.issue(identity);
    server.stdin!.end(JSON.stringify({ cert, key, ca: this.security.ca.rootPem } satisfies Keys));
    const lines = createInterface({ input: server.stdout! });
    await once(lines, 'line');
    lines.on('line', (line) => seen.push(JSON.parse(line) as Seen));
  }

  override async down(): Promise<void> {
    await this.endAgent('SIGKILL');
    (this.istiod as RecordedIstiod | undefined)?.stop();
    await super.down();
  }
}

describe('authz-ambient: what istiod says in WDS is in force in the kernel, what it says of requests in Envoy', () => {
  const [redis, web, client, stranger] = ['10.244.1.72', '10.244.1.76', '10.244.1.80', '10.244.1.200'];
  const mesh = new Beside('authz-ambient', 'ambsec', [
    { name: 'redis-v1-6d9f', ip: redis, labels: 'app: redis, version: v1' },
    { name: 'web-v1-6d9f', ip: web, labels: 'app: web, version: v1' },
    { name: 'client-v1-6d9f', ip: client, labels: 'app: client, version: v1', serviceAccount: 'client' },
    { name: 'stranger', namespace: 'plain', ip: stranger, labels: 'app: stranger', image: 'node' },
  ], { web: '10.96.68.2' });
  before(() => mesh.begin());
  after(() => mesh.down());

  /** Who gets to redis, by its Service and past it, and to web: by GET, and by POST. */
  const ways = async (): Promise<Record<string, string>> => ({
    client: await mesh.tcp('ambsec/client-v1-6d9f', '10.96.68.1', 6379),
    web: await mesh.tcp('ambsec/web-v1-6d9f', '10.96.68.1', 6379),
    stranger: await mesh.tcp('plain/stranger', redis, 6379),
    get: await mesh.http('ambsec/client-v1-6d9f', 'web'),
    post: await mesh.http('ambsec/client-v1-6d9f', 'web', '-X', 'POST'),
    strangerGet: await mesh.http('plain/stranger', web),
  });
  const all = { client: redis, web: redis, stranger: redis, get: web, post: web, strangerGet: web };

  test('without a policy all get through, and streams are those of the recorded callers', async () => {
    assert.deepEqual(await ways(), all);
    assert.deepEqual([...new Set(mesh.security.admitted.map(({ caller, via }) => `${caller} ${via}`))].sort(), ['ambsec/client certificate', 'ambsec/default certificate', 'underpass-system/underpass-agent token']);
    assert.deepEqual(mesh.security.refused, []);
  });

  test('the pods of the ambient namespace say that they take HBONE, the other one does not', async () => {
    await waitFor('the annotations', () => ['redis', 'web', 'client'].every((app) => mesh.lab.pod('ambsec', `${app}-v1-6d9f`).annotations['ambient.istio.io/redirection'] === 'enabled'), WAIT);
    assert.equal(mesh.lab.pod('plain', 'stranger').annotations['ambient.istio.io/redirection'], undefined);
  });

  test('an ALLOW of an account on a port lets nobody else in there', async () => {
    await mesh.goTo(1);
    assert.deepEqual(await ways(), { ...all, web: 'refused', stranger: 'refused' });
  });

  test('an agent that is exchanged while istiod is away: what is in force stays, and goes on when istiod is back', async () => {
    const inForce = { ...all, web: 'refused', stranger: 'refused' };
    mesh.istiod.stop();
    assert.deepEqual(await ways(), inForce);
    await mesh.endAgent('SIGKILL');
    assert.deepEqual(await ways(), inForce);
    mesh.startAgent();
    const status = await waitFor('the new agent to have Envoy', async () => {
      const now = await mesh.status().catch(() => undefined);
      return now?.proxy.envoy.adopted && now.proxy.envoy.connected ? now : undefined;
    }, WAIT);
    assert.equal(status.proxy.controlPlane.connected, false);
    assert.deepEqual(await ways(), inForce);
    await mesh.istiod.start();
    await mesh.settled('istiod to be back');
    assert.deepEqual(await ways(), inForce);
  });

  test('a DENY of namespaces and addresses that nobody here has changes nothing', async () => {
    await mesh.goTo(2);
    assert.deepEqual(await ways(), { ...all, web: 'refused', stranger: 'refused' });
  });

  test('a rule about methods, which comes in WDS as one that lets nobody in, is Envoy\'s to judge', async () => {
    await mesh.goTo(3);
    assert.deepEqual(await ways(), { ...all, web: 'refused', stranger: 'refused', post: '403' });
  });

  test('a root namespace\'s DENY of all without an identity of the mesh', async () => {
    await mesh.goTo(4);
    assert.deepEqual(await ways(), { ...all, web: 'refused', stranger: 'refused', post: '403', strangerGet: '403' });
  });

  test('without policies all is as it was', async () => {
    await mesh.goTo(5);
    assert.deepEqual(await ways(), all);
  });

  test('beside Istio\'s label this project\'s own counts: pods leave, say why, and take back what they said', async () => {
    const pods = async (): Promise<AgentStatus['pods']> => (await mesh.status()).pods.filter(({ namespace }) => namespace === 'ambsec');
    const label = (value: string | null): Promise<void> => mesh.lab.label({ kind: 'Namespace', name: 'ambsec', labels: { 'underpass.io/mode': value } });
    await label('off');
    await waitFor('the pods to leave', async () => (await pods()).every(({ mode, state, settled }) => mode === 'off' && state === 'off' && settled), WAIT);
    for (const { reason } of await pods()) assert.equal(reason, 'the namespace has underpass.io/mode=off, which counts, and istio.io/dataplane-mode=ambient');
    for (const app of ['redis', 'web', 'client']) assert.equal(mesh.lab.pod('ambsec', `${app}-v1-6d9f`).annotations['ambient.istio.io/redirection'], undefined);
    await label(null);
    await mesh.settled('the pods to be back');
    assert.deepEqual(await ways(), all);
  });
});

describe('waypoint: by the kernel and Envoy to the pods, and through the waypoint while the namespace uses it', () => {
  const [v1, v2, ratings] = ['10.244.1.84', '10.244.2.85', '10.244.1.88'];
  const far: Seen[] = [];
  const passed: Seen[] = [];
  const mesh = new Beside('waypoint', 'wayp', [
    { name: 'reviews-v1-6d9f', ip: v1, labels: 'app: reviews, version: v1', serviceAccount: 'reviews' },
    { name: 'reviews-v2-6d9f', ip: v2, labels: 'app: reviews, version: v2', serviceAccount: 'reviews', node: 'node-2', image: 'sleep' },
    { name: 'ratings-v1-6d9f', ip: ratings, labels: 'app: ratings, version: v1' },
    { name: 'client-v1-6d9f', ip: '10.244.1.92', labels: 'app: client, version: v1', serviceAccount: 'client' },
    { name: 'waypoint-5d7f-aaaaa', ip: '10.244.2.199', labels: '"gateway.networking.k8s.io/gateway-name": waypoint', serviceAccount: 'waypoint', node: 'node-2', image: 'sleep' },
  ], { reviews: '10.96.80.1' });
  before(async () => {
    await mesh.begin();
    await mesh.serveHbone('wayp/reviews-v2-6d9f', { namespace: 'wayp', serviceAccount: 'reviews' }, far);
    await mesh.serveHbone('wayp/waypoint-5d7f-aaaaa', { namespace: 'wayp', serviceAccount: 'waypoint' }, passed);
  });
  after(() => mesh.down());

  const CLIENT = 'URI:spiffe://cluster.local/ns/wayp/sa/client';
  async function calls(): Promise<{ answers: string[]; far: string[]; passed: string[] }> {
    far.length = passed.length = 0;
    const answers: string[] = [];
    for (let count = 0; count < 16; count++) answers.push(await mesh.http('wayp/client-v1-6d9f', 'reviews'));
    const of = (seen: Seen[]): string[] => [...new Set(seen.map(({ authority, peer }) => `${authority} ${peer}`))];
    return { answers: [...new Set(answers)].sort(), far: of(far), passed: of(passed) };
  }

  test('without it half of the requests are the node\'s own pod\'s, and half go to the other node by HBONE, as the caller', async () => {
    const found = await calls();
    assert.ok(found.answers.includes(v1), found.answers.join());
    assert.deepEqual([found.far, found.passed], [[`${v2}:80 ${CLIENT}`], []]);
  });

  for (const [step, what] of [[1, 'namespace label'], [2, 'weights'], [3, 'other weights'], [4, 'a policy on the service']] as const) {
    test(`with it (${what}) all go there, by HBONE, to the service's own address, as the caller`, async () => {
      await mesh.goTo(step);
      const found = await calls();
      assert.deepEqual([found.far, found.passed], [[], [`10.96.80.1:80 ${CLIENT}`]]);
      assert.ok(!found.answers.includes(v1) && !found.answers.includes(ratings), found.answers.join());
    });
  }

  test('when it is given up they go to the pods again', async () => {
    await mesh.goTo(5);
    const found = await calls();
    assert.ok(found.answers.includes(v1), found.answers.join());
    assert.deepEqual([found.far, found.passed], [[`${v2}:80 ${CLIENT}`], []]);
  });
});
