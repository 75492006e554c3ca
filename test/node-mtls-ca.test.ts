/** The certificates of a node's pods while they are renewed, the agent is exchanged, and the CA is away, with real traffic. */
import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { instancePaths } from '../agent/index.js';
import { TLS_MODE_LABEL } from '../common/identity/announcements.js';
import { waitFor } from '../common/retry.js';
import { Load } from './load.js';
import { MeshWorld } from './mesh/world.js';
import { Relay } from './relay.js';

/** Certificates are dated back by two minutes, so these are at half of their life after six seconds. */
const LEAF_TTL_MS = 132_000;
const NODE = 'node-1';

const relay = new Relay();
let isAway = false;
const world = new MeshWorld('mtls-ca', { leafTtlMs: LEAF_TTL_MS, caAddress: (address) => (isAway ? Promise.resolve(relay.address) : relay.open(Number(address.split(':')[1]))) });
before(async () => {
  await world.up();
  await world.apply('mesh', ['sidecar', 'node'].map((namespace) => `apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: ${namespace}}\nspec: {mtls: {mode: STRICT}}\n`).join('---\n'));
  await becomes('node/client', 'web.sidecar', 'cluster.local/ns/node/sa/client');
  await becomes('sidecar/client', 'web.node', 'cluster.local/ns/sidecar/sa/client');
  // Until then what Envoy has open to a pod may be ended for the new policy's sake.
  await waitFor('the policy to be in force everywhere', async () => ((await world.agentStatus(NODE)).policies?.settling ?? 0) === 0, { timeoutMs: 60_000 });
});
after(async () => {
  await world.down();
  await relay.close();
});

/** The caller's principal as the server was told, `nobody`, or the status; `refused` without an answer. */
async function caller(from: string, host: string): Promise<string> {
  const { code, answer } = await world.tryCurl('node', `http://${host}/`, { from });
  if (code !== 0 || !answer) return 'refused';
  if (answer.status !== 200) return String(answer.status);
  return /URI=spiffe:\/\/([^;"\\]*)/.exec(answer.text.replace(/^.*By=spiffe[^;]*;/s, ''))?.[1] ?? 'nobody';
}

async function becomes(from: string, host: string, expected: string): Promise<void> {
  let found = '';
  await waitFor(`${host} to answer ${from}`, async () => (found = await caller(from, host)) === expected, { timeoutMs: 60_000, everyMs: 50 }).catch(() => assert.equal(found, expected));
}

const expiries = async (): Promise<string[]> => (await world.agentMetrics(NODE)).match(/^underpass_certificate_expiry_timestamp_seconds\{.*$/gm) ?? [];

const WAYS = [['node/client', 'web.sidecar'], ['sidecar/client', 'web.node']] as const;

/** Requests both ways while `work` is done; none of them may fail. */
async function underLoad(work: () => Promise<void>): Promise<void> {
  const loads = WAYS.map(([from, host]) => Load.start(world.lab, from, { url: `http://${host}/`, keepAlive: 1, fresh: 1, pauseMs: 20 }));
  await work();
  for (const load of loads) {
    await load.run(5);
    assert.deepEqual((await load.end()).failures, {});
  }
}

/** Of the node's certificates in Envoy. */
const serials = async (): Promise<string> => [...(await world.nodeProxyAdmin('/certs', NODE)).matchAll(/"serial_number": "([^"]*)"/g)].map(([, serial]) => serial).sort().join();
const ready = async (): Promise<boolean> => (await world.agentStatus(NODE).catch(() => undefined))?.ready === true;

test('certificates are renewed, and reach Envoy, without a failed request in either direction', async () => {
  await underLoad(async () => {
    for (let round = 0; round < 2; round++) {
      const before = [await expiries(), await serials()];
      await waitFor('other certificates', async () => String(await expiries()) !== String(before[0]) && (await serials()) !== before[1], { timeoutMs: 120_000, everyMs: 100 });
    }
  });
});

test('an agent that ends and starts again interrupts no mutual TLS, also while the CA is away', async () => {
  await underLoad(async () => {
    const before = await serials();
    await world.stopAgent(NODE);
    isAway = true;
    await relay.close();
    await world.startAgent(NODE);
    await waitFor('the agent to say so', async () => (await world.agentStatus(NODE).catch(() => undefined))?.proxy.certificates?.problem, { timeoutMs: 60_000, everyMs: 50 });
    await waitFor('the agent to be heard by Envoy', async () => (await world.agentStatus(NODE)).proxy.settled, { timeoutMs: 60_000, everyMs: 50 });
    assert.equal(await serials(), before, 'the certificates of before stay in use');
    isAway = false;
    await relay.open();
    await waitFor('the agent to be ready', ready, { timeoutMs: 60_000, everyMs: 50 });
    await waitFor('new certificates', async () => (await serials()) !== before, { timeoutMs: 60_000, everyMs: 50 });
  });
});

test('certificates are of the accounts of the node\'s pods alone, and no file of the agent\'s or Envoy\'s has a key', async () => {
  const { identities } = (await world.agentStatus(NODE)).proxy.certificates!;
  assert.deepEqual(identities.map(({ id }) => id).sort(), ['client', 'other', 'web'].map((account) => `spiffe://cluster.local/ns/node/sa/${account}`));
  const { folder } = instancePaths({ instance: world.name });
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile() && !entry.parentPath.endsWith('/netns')).map(({ parentPath, name }) => join(parentPath, name));
  assert.ok(files.some((file) => file.endsWith('envoy.json')), files.join());
  // PEM, PKCS #8 in base64, and PKCS #8 of P-256 as it is.
  const isKey = (content: Buffer): boolean => /PRIVATE KEY|MIGHAgEA/.test(content.toString('latin1')) || content.includes(Buffer.from('308187020100', 'hex'));
  assert.ok(isKey(Buffer.from(generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ type: 'pkcs8', format: 'pem' }))));
  assert.deepEqual(files.filter((file) => isKey(readFileSync(file))), []);
});

test('a CA that goes away leaves what is there in use, and status and metrics say so', async () => {
  await relay.close();
  const problem = async (): Promise<string | undefined> => (await world.agentStatus(NODE)).proxy.certificates?.problem;
  await waitFor('a renewal that fails', problem, { timeoutMs: 60_000, everyMs: 50 });
  assert.match((await problem())!, /asking localhost:\d+ for a certificate: UNAVAILABLE/);
  assert.match(await world.agentMetrics(NODE), /^underpass_ca_up 0$/m);
  for (const [from, host] of WAYS) assert.equal(await caller(from, host), `cluster.local/ns/${from.replace('/', '/sa/')}`);
  assert.equal(await ready(), true, 'with certificates there is nothing that it lacks');
  await relay.open();
  await waitFor('the CA to be there again', async () => (await problem()) === undefined, { timeoutMs: 60_000, everyMs: 50 });
  assert.match(await world.agentMetrics(NODE), /^underpass_ca_up 1$/m);
});

test('without a CA at the start the node\'s pods reach what asks for no certificate, and nothing is open that a certificate would guard', async () => {
  const labelled = (): string[] => world.lab.records(NODE).filter(({ namespace, labels }) => namespace === 'node' && labels[TLS_MODE_LABEL] !== undefined).map(({ name }) => name).sort();
  assert.deepEqual(labelled(), ['client', 'other', 'web-v1', 'web-v2']);
  await world.removeAgent(NODE);
  assert.deepEqual(labelled(), [], 'a clean-up leaves nobody to speak mutual TLS to a pod that can not end it');
  isAway = true;
  await relay.close();
  await world.startAgent(NODE);
  const enrolled = async (): Promise<boolean> => (await world.agentStatus(NODE).catch(() => undefined))?.pods.filter(({ mode }) => mode === 'node').every(({ state }) => state === 'enrolled') ?? false;
  await waitFor('the pods to be enrolled', enrolled, { timeoutMs: 120_000, everyMs: 50 });
  await becomes('node/client', 'web.sidecar', '503');
  await becomes('sidecar/client', 'web.node', '503');
  await becomes('outside/client', 'web.node', 'refused');
  assert.deepEqual(labelled(), []);
  await becomes('node/client', 'web.outside', 'nobody');
  await becomes('node/client', 'web.node', 'cluster.local/ns/node/sa/client');
  const { notReady } = await world.agentStatus(NODE);
  assert.ok(notReady.some((reason) => /no certificate for spiffe:\/\/cluster\.local\/ns\/node\/sa\/client: asking .* UNAVAILABLE/.test(reason)), notReady.join());
  assert.match(await world.agentMetrics(NODE), /^underpass_certificate_expiry_timestamp_seconds\{identity="spiffe:\/\/cluster\.local\/ns\/node\/sa\/client"\} 0$/m);

  isAway = false;
  await relay.open();
  for (const [from, host] of WAYS) await becomes(from, host, `cluster.local/ns/${from.replace('/', '/sa/')}`);
  await world.enrolled();
});
