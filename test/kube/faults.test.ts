// What can go wrong around a node's agent under a real API server: each fault has its outcome, and none stops what flows.
import assert from 'node:assert/strict';
import { createPrivateKey } from 'node:crypto';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { decodeJwt, SignJWT } from 'jose';
import { pino } from 'pino';
import { parse, parseAllDocuments, stringify } from 'yaml';
import { instancePaths, LabelEvents } from '../../agent/index.js';
import { KubeClient } from '../../common/kube/client.js';
import { parseKubeconfig } from '../../common/kube/kubeconfig.js';
import type { KubeObject } from '../../common/kube/types.js';
import { sleep, waitFor } from '../../common/retry.js';
import { AGENT_RBAC, AgentWorld } from './agent-world.js';

const WAIT = { everyMs: 50 };
const world = new AgentWorld();
type KubeEvent = KubeObject & { count: number; message: string; reason: string; involvedObject: { kind: string; name: string } };

before(async () => {
  await world.up('faults');
  world.startTraffic();
  await waitFor('the first answer', () => world.answered > 0, WAIT);
  world.failures.length = 0;
});
after(() => world.down());

const events = async (namespace: string): Promise<KubeEvent[]> => (await world.cluster.client.request<{ items: KubeEvent[] }>('GET', `/api/v1/namespaces/${namespace}/events`)).items.filter(({ reason }) => reason === 'UnknownLabelValue');
/** The agent's line to the API server is another one: it lists and watches anew where it was. */
const reconnect = (): void => {
  world.relay.cut(true);
  world.relay.cut(false);
};

test('a label with an unknown value is off, and one Event on its namespace says so, however many nodes see it; when it comes back its count grows', async () => {
  const since = world.answered;
  const config = await world.cluster.kubeconfigOf('underpass-system', 'underpass-agent');
  const client = new KubeClient(parseKubeconfig(config, { place: 'of the test' }));
  const [first, second] = Array.from({ length: 2 }, () => new LabelEvents({ client, component: 'underpass-agent', defaults: {}, delayMs: () => 500, logger: pino({ level: 'silent' }) }));
  /** The other nodes see what the agent sees. */
  const set = async (value: string | null): Promise<void> => {
    await world.label('Namespace', 'plain', value);
    const found = (await world.cluster.get('v1', 'Namespace', { name: 'plain' }))!;
    for (const each of [first!, second!]) each.look({ kind: 'Namespace', metadata: found.metadata }, true);
  };
  try {
    await set('nodes');
    await waitFor('the Event', async () => (await events('plain')).length > 0, WAIT);
    await world.node.settles('plain', 'client', 'off');
    await sleep(2_500);
    const [event, ...more] = await events('plain');
    assert.deepEqual([more.length, event!.count, event!.involvedObject.kind, event!.involvedObject.name], [0, 1, 'Namespace', 'plain']);
    assert.equal(event!.message, 'label underpass.io/mode: found "nodes", expected one of node, sidecar, off; until then it is as off');
    await set(null);
    await world.cluster.merge('v1', 'Event', { namespace: 'plain', name: event!.metadata.name }, { lastTimestamp: new Date(Date.now() - 600_000).toISOString() });
    await set('nodes');
    await waitFor('the count', async () => (await events('plain'))[0]!.count > 1, WAIT);
    await sleep(2_500);
    assert.deepEqual((await events('plain')).map(({ count }) => count), [2], 'of three nodes');
    await set(null);
  } finally {
    for (const each of [first!, second!]) each.close();
    client.close();
  }
  await world.label('Pod', 'client', 'on', 'plain');
  await waitFor('the Event of the pod', async () => (await events('plain')).some(({ involvedObject: { kind }, message }) => kind === 'Pod' && message.includes('"on"')), WAIT);
  await world.label('Pod', 'client', null, 'plain');
  world.flows(since);
});

test('watches that are closed in mid-stream are taken up where they were', async () => {
  const since = world.answered;
  for (const value of ['node', null] as const) {
    world.relay.cut(true);
    await waitFor('the agent to notice', async () => (await world.problem()) !== '', WAIT);
    await world.label('Namespace', 'plain', value);
    world.relay.cut(false);
    await world.node.settles('plain', 'client', value ?? 'off');
  }
  await waitFor('no problem', async () => (await world.problem()) === '', WAIT);
  world.flows(since);
});

test('an API server that is away for longer than all pauses between tries is come back to, and what changed meanwhile is caught up with', async () => {
  const since = world.answered;
  world.relay.cut(true);
  await world.label('Namespace', 'plain', 'node');
  await sleep(75_000);
  assert.notEqual(await world.problem(), '');
  world.flows(since);
  world.relay.cut(false);
  await world.node.settles('plain', 'client', 'node');
  await world.label('Namespace', 'plain', null);
  await world.node.settles('plain', 'client', 'off');
  world.flows(since);
});

test('a token that has expired is refused and said to be, and the next one is read without a restart', async () => {
  const since = world.answered;
  const token = readFileSync(world.tokenFile, 'utf8');
  const { alg, kid } = JSON.parse(Buffer.from(token.split('.')[0]!, 'base64url').toString()) as { alg: string; kid: string };
  const hourAgo = Math.floor(Date.now() / 1_000) - 3_600;
  const expired = await new SignJWT({ ...decodeJwt(token), iat: hourAgo - 600, nbf: hourAgo - 600, exp: hourAgo }).setProtectedHeader({ alg, kid }).sign(createPrivateKey(readFileSync(join(world.cluster.folder, 'accounts.key'))));
  writeFileSync(world.tokenFile, expired);
  reconnect();
  await waitFor('the refusal', async () => /401/.test(await world.problem()), WAIT);
  await world.label('Namespace', 'plain', 'node');
  writeFileSync(world.tokenFile, await world.cluster.token('underpass-system', 'underpass-agent'));
  await world.node.settles('plain', 'client', 'node');
  await waitFor('no problem', async () => (await world.problem()) === '', WAIT);
  await world.label('Namespace', 'plain', null);
  await world.node.settles('plain', 'client', 'off');
  for (const each of [token, expired]) assert.ok(!world.node.agentLog.includes(each.split('.')[2]!), 'no token is in the log');
  world.flows(since);
});

test('a verb that its role lacks is named, with the rule and the manifest that has it', async () => {
  const since = world.answered;
  const role = parseAllDocuments(readFileSync(AGENT_RBAC, 'utf8')).map((document) => document.toJS() as KubeObject & { rules: { resources: string[]; verbs: string[] }[] }).find(({ kind }) => kind === 'ClusterRole')!;
  const less = { ...role, rules: role.rules.map((rule) => (rule.resources.includes('pods') ? { ...rule, verbs: rule.verbs.filter((verb) => verb !== 'watch') } : rule)) };
  await world.cluster.apply(stringify(less));
  reconnect();
  await waitFor('the refusal', async () => (await world.problem()).match(/deploy\/agent-rbac\.yaml:\d+ has the rule that is missing: \{apiGroups: \[""\], resources: \[pods\], verbs: \[watch\]\}/) !== null, WAIT);
  await world.cluster.apply(stringify(parse(JSON.stringify(role))));
  await waitFor('no problem', async () => (await world.problem()) === '', WAIT);
  world.flows(since);
});

test('a pod that is deleted while it is being enrolled is let go at once, and nothing of it is left', async () => {
  const since = world.answered;
  const { netnsFolder } = instancePaths({ instance: world.node.instance });
  for (const [index, delayMs] of [0, 5, 20, 60, 150, 400].entries()) {
    const pod = await world.node.starting('shop', `brief-${index}`);
    const began = performance.now();
    const adding = world.node.addNetwork(pod, `10.99.1.${index + 1}`);
    await sleep(delayMs);
    await world.cluster.client.request('DELETE', `/api/v1/namespaces/shop/pods/${pod.name}`, { body: { gracePeriodSeconds: 0 } });
    await world.node.end(pod);
    const { code, answer } = await adding;
    assert.ok(code === 0 || answer.code === 11, JSON.stringify(answer));
    assert.ok(performance.now() - began < 15_000, 'before the time for an enrolment is over');
    await waitFor('its end', async () => !(await world.node.status()).pods.some(({ uid }) => uid === pod.uid) && !readdirSync(netnsFolder).includes(pod.uid), WAIT);
  }
  assert.ok((await world.node.status()).ready);
  world.flows(since);
});
