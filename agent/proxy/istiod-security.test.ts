// Port 15012 of istiod: who the agent says it is there, for itself and for its pods, and what becomes of roots and tokens that change.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { CaIdentitySource } from '../../common/identity/ca-client.js';
import { spiffeId } from '../../common/identity/spiffe.js';
import { waitFor } from '../../common/retry.js';
import { IstiodSecurity } from '../testing/istiod-security.js';
import { IstiodWorld } from '../testing/istiod-world.js';
import type { NodeProxyOptions } from './node-proxy.js';

const AGENT = { namespace: 'underpass-system', serviceAccount: 'underpass-agent' };
const AGENT_POD = { ...AGENT, name: 'underpass-agent-x', nodeName: 'node-1' };
const PODS = ['alpha', 'beta', 'default'].map((serviceAccount) => ({ namespace: 'pernode', name: `${serviceAccount}-1`, serviceAccount, nodeName: 'node-1' }));
const WAIT = { everyMs: 20 };
const id = (serviceAccount: string): string => spiffeId({ trustDomain: 'cluster.local', namespace: 'pernode', serviceAccount });

let security: IstiodSecurity;
let world: IstiodWorld;
/** Files, as the agent sees them. */
let token: string;
let roots: string;

const agentToken = (ttlSeconds?: number): Promise<string> => security.token({ ...AGENT, pod: { name: AGENT_POD.name } }, ttlSeconds);
const options = (address: string): Partial<NodeProxyOptions> => ({
  discoveryTls: { roots: () => roots, token: () => (token === '' ? Promise.reject(new Error('ENOENT')) : Promise.resolve(token)), account: AGENT },
  ca: (onError) => Object.assign(new CaIdentitySource({ address, rootPem: () => roots, token: () => token, onError, backoff: { initialMs: 20, maxMs: 200, factor: 1.5, jitter: 0 } }), { description: address }),
});

/** All connections end, as when istiod is exchanged for another pod, and new ones are made. */
async function reconnect(): Promise<void> {
  security.admitted.length = security.refused.length = 0;
  world.istiod.stop();
  await world.istiod.start();
}
const connected = (count: number): Promise<unknown> => waitFor(`${count} streams`, () => world.istiod.live.length === count && security.admitted.length === count, WAIT);
const admitted = (): string[] => security.admitted.map(({ nodeId, caller, via }) => `${nodeId.split('~')[2]!.split('-')[0]} ${caller} ${via}`).sort();
const EXPECTED = ['alpha pernode/alpha certificate', 'beta pernode/beta certificate', 'gamma pernode/default certificate', 'underpass underpass-system/underpass-agent token'];

before(async () => {
  security = await IstiodSecurity.create();
  security.pods = [AGENT_POD, ...PODS];
  token = await agentToken();
  roots = security.ca.rootPem;
  world = new IstiodWorld('node-streams', { security });
  await world.start(options);
});
after(() => world.close());

test('istiod that does not trust the agent\'s account gives it workloads, and the status says what to set', async () => {
  await waitFor('the refusal', () => world.proxy.status().certificates?.identities.every(({ problem }) => problem !== undefined), WAIT);
  assert.match(world.proxy.status().certificates!.problem!, /UNAUTHENTICATED: request impersonation authentication failure; .*CA_TRUSTED_NODE_ACCOUNTS/);
  assert.deepEqual(admitted(), EXPECTED.slice(3));
  assert.deepEqual(security.refused, []);
  await waitFor('the reason', () => /waiting for a certificate of spiffe:\/\/cluster\.local\/ns\/pernode\/sa\//.test(world.proxy.status().controlPlane.lastError ?? ''), WAIT);
});

test('once it is trusted, each class\'s stream is opened with the certificate of its account, and Envoy takes all that comes', async () => {
  security.trustedNodeAccounts = ['istio-system/ztunnel', 'underpass-system/underpass-agent'];
  await world.ready();
  assert.deepEqual(admitted(), EXPECTED);
  assert.deepEqual(security.issued.map(({ identity, caller, impersonated }) => `${identity} ${caller} ${impersonated}`).sort(), ['alpha', 'beta', 'default'].map((account) => `${id(account)} underpass-system/underpass-agent true`));
  for (const { step } of world.recording.steps) await world.goTo(step);
  assert.deepEqual(await world.refusals(), []);
  assert.deepEqual(security.refused, []);
});

test('streams that end are opened again as the same callers, by the token that is there then', async () => {
  token = await agentToken(-3600);
  await reconnect();
  await waitFor('an expired token to be refused', () => security.refused.some((line) => /underpass-node-1.*authentication failure/.test(line)), WAIT);
  token = '';
  await waitFor('a token that is not there to be said', () => /reading this agent's token: ENOENT/.test(world.proxy.status().controlPlane.lastError ?? ''), WAIT);
  assert.ok(world.proxy.workloads.addresses.size > 0, 'what was there stays');
  token = await agentToken();
  await connected(4);
  assert.deepEqual(admitted(), EXPECTED);
  await world.settled();
});

test('a root that is exchanged is read anew: istiod\'s new certificate is trusted when the file says so, and not before', async () => {
  await security.ca.introduceRoot();
  await security.ca.switchRoot();
  await reconnect();
  await waitFor('the certificate to be refused', () => /certificate|self.signed|issuer/i.test(world.proxy.status().controlPlane.lastError ?? ''), WAIT);
  assert.deepEqual(security.admitted, []);
  roots = security.ca.rootPem;
  await connected(4);
  assert.deepEqual(admitted(), EXPECTED);
});

test('a certificate that was renewed is the one that the next connection shows', async () => {
  // Dated back by two minutes: at half of its life after five seconds, if it has come by then.
  security.leafTtlMs = 130_000;
  const shown = (): string[] => world.istiod.live.flatMap(({ call }) => (call as unknown as { getAuthContext(): { sslPeerCertificate?: { serialNumber?: string } } }).getAuthContext().sslPeerCertificate?.serialNumber ?? []).filter(Boolean);
  world.proxy.setPods([]);
  await waitFor('the classes to be given up', () => world.istiod.live.length === 1, WAIT);
  world.proxy.setPods(world.pods);
  await waitFor('the classes to be back', () => world.istiod.live.length === 4, WAIT);
  const old = shown();
  assert.equal(old.length, 3);
  const count = security.issued.length;
  await waitFor('all to be renewed', () => new Set(security.issued.slice(count).map(({ identity }) => identity)).size === 3, WAIT);
  security.leafTtlMs = undefined;
  assert.deepEqual(shown(), old, 'streams that are open stay');
  await reconnect();
  await connected(4);
  assert.deepEqual(shown().filter((serial) => old.includes(serial)), []);
  assert.deepEqual(admitted(), EXPECTED);
});

test('where the CA trusts no agent, tokens of the pods\' own accounts serve', async () => {
  const own = await IstiodSecurity.create();
  own.pods = PODS;
  const other = new IstiodWorld('node-streams', { security: own });
  const shown = await own.token(AGENT);
  try {
    await other.start((address) => ({
      discoveryTls: { roots: () => own.ca.rootPem, token: () => Promise.resolve(shown), account: AGENT, clusterId: 'west' },
      ca: (onError) => Object.assign(new CaIdentitySource({ address, rootPem: own.ca.rootPem, token: () => shown, tokenOf: (identity) => own.token({ ...identity, pod: { name: `${identity.serviceAccount}-1` } }), clusterId: 'west', onError }), { description: address }),
    }));
    await other.ready();
    assert.deepEqual(own.issued.map(({ identity, caller, impersonated }) => `${identity} ${caller} ${impersonated}`).sort(), ['alpha', 'beta', 'default'].map((account) => `${id(account)} pernode/${account} false`));
    assert.deepEqual([...own.clusters], ['west']);
    assert.deepEqual(own.admitted.map(({ caller, via }) => `${caller} ${via}`).sort(), ['pernode/alpha certificate', 'pernode/beta certificate', 'pernode/default certificate', 'underpass-system/underpass-agent token']);
  } finally {
    await other.close();
  }
});

test('a certificate of the agent\'s own serves in place of its token, the one that is there when the connection is made', async () => {
  const own = await IstiodSecurity.create();
  own.pods = PODS;
  const other = new IstiodWorld('node-streams', { security: own });
  let certificate = await own.ca.issue(AGENT);
  try {
    await other.start((address) => ({
      discoveryTls: { roots: () => own.ca.rootPem, token: () => Promise.reject(new Error('there is none')), certificate: () => certificate, account: AGENT },
      ca: (onError) => Object.assign(new CaIdentitySource({ address, rootPem: own.ca.rootPem, clientCertificate: () => certificate, tokenOf: (identity) => own.token({ ...identity, pod: { name: `${identity.serviceAccount}-1` } }), onError }), { description: address }),
    }));
    await other.ready();
    const callers = (): string[] => own.admitted.map(({ caller, via }) => `${caller} ${via}`).sort();
    const expected = ['pernode/alpha certificate', 'pernode/beta certificate', 'pernode/default certificate', 'underpass-system/underpass-agent certificate'];
    assert.deepEqual(callers(), expected);
    certificate = await own.ca.issue(AGENT);
    own.admitted.length = 0;
    other.istiod.stop();
    await other.istiod.start();
    await waitFor('all to be back', () => own.admitted.length === 4, WAIT);
    assert.deepEqual(callers(), expected);
  } finally {
    await other.close();
  }
});

test('without a CA all streams show the agent\'s token, and istiod\'s refusal of the pods\' classes is in the status', async () => {
  const own = await IstiodSecurity.create();
  const other = new IstiodWorld('node-streams', { security: own });
  const shown = await own.token(AGENT);
  try {
    await other.start({ discoveryTls: { roots: () => own.ca.rootPem, token: () => Promise.resolve(shown), account: AGENT } });
    await waitFor('the refusal', () => /authorization failed/.test(other.proxy.status().controlPlane.lastError ?? ''), WAIT);
    assert.ok(own.refused.every((line) => /sidecar~.*no identities \(\[underpass-system\/underpass-agent\]\) matched pernode/.test(line)), own.refused.join('\n'));
  } finally {
    await other.close();
  }
});
