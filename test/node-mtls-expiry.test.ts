/** The certificates of a node's pods when they really expire, since the CA is away, and when it is back: with real traffic. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { CLI } from './agent-harness.js';
import { MeshWorld } from './mesh/world.js';
import { Relay } from './relay.js';

/** Renewed after ten. */
const LEAF_TTL_MS = 20_000;
const NODE = 'node-1';
const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]';

const pod = (namespace: string, name: string, node: string, container = 'name: curl, image: curl'): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: ${name}}}
spec: {nodeName: ${node}, serviceAccountName: ${name}, containers: [{${container}}]}
---`;
const service = (namespace: string, name: string): string => `
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: ${namespace}}
spec: {selector: {app: ${name}}, ports: [{name: tcp-echo, port: 9000}]}
---`;

const relay = new Relay();
const world = new MeshWorld('mtls-exp', {
  nodes: 2,
  bare: true,
  leafTtlMs: LEAF_TTL_MS,
  // The first node's agent finds the CA through the relay, the other one directly.
  caAddress: (address) => (relay.isOpen ? Promise.resolve(address) : relay.open(Number(address.split(':')[1]))),
  outside: [
    ...['alice', 'bob'].map((name) => pod('node', name, 'node-1')),
    ...['carol', 'dave'].map((name) => pod('node', name, 'node-2')),
    pod('node', 'near', 'node-1', ECHO), pod('node', 'far', 'node-2', ECHO),
    pod('sidecar', 'client', 'node-2'), pod('sidecar', 'web', 'node-2', ECHO),
    ...['near', 'far'].map((name) => service('node', name)), service('sidecar', 'web'),
  ].join(''),
});
before(async () => {
  await world.up();
  await world.apply('mesh', ['sidecar', 'node'].map((namespace) => `apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: ${namespace}}\nspec: {mtls: {mode: STRICT}}\n`).join('---\n'));
  await waitFor('HBONE to be announced', () => ['near', 'far'].every((name) => world.lab.pod('node', name).annotations['ambient.istio.io/redirection'] === 'enabled'), { timeoutMs: 60_000 });
  await waitFor('the policy to be in force everywhere', async () => ((await world.agentStatus(NODE)).policies?.settling ?? 0) === 0, { timeoutMs: 60_000 });
  await world.settled();
});
after(async () => {
  await world.down();
  await relay.close();
});

/** What a line that is sent on a new connection is answered by; `refused` when by nothing. */
async function call(from: string, host: string): Promise<string> {
  const script = `
const s = require('node:net').connect(9000, '${host}', () => s.write('word\\n'));
const end = (word) => { console.log(word); process.exit(); };
s.on('data', (d) => end(String(d).trim())).on('error', () => end('refused')).on('close', () => end('refused'));
setTimeout(() => end('silence'), 8000);`;
  return (await world.lab.exec(from, [process.execPath, '-e', script])).stdout.trim();
}

/** A connection that says a line ten times a second. */
class Talk {
  answers = 0;
  ended = false;
  readonly #child;

  constructor(from: string, host: string) {
    const script = `
const s = require('node:net').connect(9000, '${host}', () => setInterval(() => s.write('word\\n'), 100));
s.on('data', () => console.log('answer')).on('error', () => process.exit()).on('close', () => process.exit());
process.stdin.on('end', () => process.exit()).resume();`;
    this.#child = world.lab.spawnIn(from, [process.execPath, '-e', script], { stdio: ['pipe', 'pipe', 'inherit'] });
    createInterface({ input: this.#child.stdout! }).on('line', () => this.answers++);
    this.#child.once('exit', () => (this.ended = true));
  }

  async goesOn(): Promise<void> {
    const before = this.answers;
    await waitFor('more answers', () => this.answers > before + 5 || this.ended, { timeoutMs: 60_000, everyMs: 50 });
    assert.equal(this.ended, false, 'the connection was ended');
  }

  async end(): Promise<void> {
    if (this.ended) return;
    this.#child.stdin!.end();
    await once(this.#child, 'exit');
  }
}

/** Who needs a certificate of the first node's: as a client by HBONE and by Istio's mutual TLS, and as a server. */
const OUT = [['node/bob', 'far.node'], ['node/alice', 'web.sidecar']] as const;
const IN = [['node/dave', 'near.node'], ['sidecar/client', 'near.node']] as const;
const identity = (account: string): string => `spiffe://cluster.local/ns/node/sa/${account}`;
const ACCOUNTS = ['alice', 'bob', 'near'];
const expired = async (): Promise<string[]> => ((await world.agentStatus(NODE)).proxy.certificates?.identities ?? []).filter((item) => item.expired).map(({ id }) => id).sort();
const gauges = async (): Promise<string[]> => (await world.agentMetrics(NODE)).match(/^underpass_certificate_expired\{.*$/gm)?.sort() ?? [];
const becomes = (from: string, host: string, answer: string): Promise<unknown> => waitFor(`${host} to say ${answer} to ${from}`, async () => (await call(from, host)) === answer, { timeoutMs: 40_000, everyMs: 100 });

test('certificates that expire while the CA is away: said in status, metrics and log; new connections are refused both ways, open ones go on, within the node all goes on; and with the CA all is as before', async () => {
  // Each way once, also so that TLS has sessions that could be resumed; bob and dave come for the first time when it is too late.
  for (const [from, host] of [...OUT.slice(1), ...IN.slice(1)]) await becomes(from, host, 'word');
  assert.deepEqual(await gauges(), ACCOUNTS.map((account) => `underpass_certificate_expired{identity="${identity(account)}"} 0`));
  const talks = [new Talk('node/alice', 'far.node'), new Talk('node/carol', 'near.node'), new Talk('node/alice', 'web.sidecar'), new Talk('sidecar/client', 'near.node')];
  for (const talk of talks) await talk.goesOn();
  await relay.close();
  await waitFor('the certificates to expire', async () => String(await expired()) === String(ACCOUNTS.map(identity)), { timeoutMs: 40_000, everyMs: 50 });
  const { proxy: { certificates }, ready } = await world.agentStatus(NODE);
  for (const { id, notAfter } of certificates!.identities) assert.ok(Date.parse(notAfter!) <= Date.now(), `${id}: ${notAfter}`);
  assert.equal(ready, true, 'a restart of the agent would mend nothing');
  assert.deepEqual(await gauges(), ACCOUNTS.map((account) => `underpass_certificate_expired{identity="${identity(account)}"} 1`));
  for (const account of ACCOUNTS) assert.match(world.agentLog(NODE), new RegExp(`"level":"error".*"identity":"${identity(account)}".*a certificate has expired before the CA gave another one`));
  const { stdout } = await run(process.execPath, [CLI, 'ps', '--instance', world.name], { timeoutMs: 60_000 });
  for (const account of ACCOUNTS) assert.match(stdout, new RegExp(`certificates +0 of 3 from localhost:\\d+, .*that of ${identity(account)} expired at \\S+Z.*: its new connections are refused - .*UNAVAILABLE`));

  for (const [from, host] of [...OUT, ...IN]) assert.equal(await call(from, host), 'refused', `${from} to ${host}`);
  assert.equal(await call('node/alice', 'near.node'), 'word', 'within the node nobody is shown a certificate');
  for (const talk of talks) await talk.goesOn();

  await relay.open();
  await waitFor('other certificates', async () => (await expired()).length === 0, { timeoutMs: 40_000, everyMs: 50 });
  for (const [from, host] of [...OUT, ...IN]) await becomes(from, host, 'word');
  for (const talk of talks) await talk.goesOn();
  assert.deepEqual(await gauges(), ACCOUNTS.map((account) => `underpass_certificate_expired{identity="${identity(account)}"} 0`));
  assert.equal((world.agentLog(NODE).match(/a certificate again after one that had expired/g) ?? []).length, 3);
  assert.equal((await world.agentStatus(NODE)).proxy.certificates?.problem, undefined);
  for (const talk of talks) await talk.end();
});
