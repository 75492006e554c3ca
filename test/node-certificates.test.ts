// Certificates of a node's service accounts from a control plane's CA, over real gRPC.
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { getEventListeners } from 'node:events';
import { after, before, test } from 'node:test';
import { Server, ServerCredentials } from '@grpc/grpc-js';
import { pino } from 'pino';
import { NodeCertificates } from '../agent/identity/certificates.js';
import type { Entry } from '../agent/proxy/snapshot.js';
import { ManualClock } from '../common/clock.js';
import { CaIdentitySource } from '../common/identity/ca-client.js';
import { CertificateAuthority } from '../common/identity/ca.js';
import { issueServerCertificate } from '../common/identity/server-certificate.js';
import { sleep, waitFor } from '../common/retry.js';
import { securePilot, type SecurePilot } from '../pilot/ca/testing.js';
import { Pilot } from '../pilot/index.js';
import { IstioCertificateServiceService, type IstioCertificateServiceServer } from '../proto/generated/istio/v1/auth/ca.js';
import { Secret } from '../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';

const WEB = 'spiffe://cluster.local/ns/shop/sa/web';
const CLIENT = 'spiffe://cluster.local/ns/shop/sa/client';
const ELSEWHERE = 'spiffe://cluster.local/ns/shop/sa/elsewhere';
const pod = (namespace: string, account: string, node: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${account}, namespace: ${namespace}, uid: ${account}-1}
spec: {nodeName: ${node}, serviceAccountName: ${account}, containers: [{name: c, image: c}]}
status: {phase: Running, podIP: 10.0.0.1}
---`;

let plane: SecurePilot;
let ca: CertificateAuthority;
before(async () => {
  ca = await CertificateAuthority.create();
  plane = await securePilot([pod('underpass-system', 'underpass-agent', 'n1'), pod('shop', 'web', 'n1'), pod('shop', 'client', 'n1'), pod('shop', 'elsewhere', 'n2')].join(''), { ca });
});
after(() => plane.store.close());

interface Stage {
  certificates: NodeCertificates;
  changes: () => number;
  log: string[];
}

async function stage(context: { after(done: () => Promise<void>): void }, { clock = new ManualClock(), address = plane.address } = {}): Promise<Stage> {
  const token = await plane.issuer.issue({ namespace: 'underpass-system', serviceAccount: 'underpass-agent', pod: { name: 'underpass-agent', uid: 'underpass-agent-1' } });
  let changes = 0;
  const log: string[] = [];
  const certificates = new NodeCertificates({
    ca: (onError) => Object.assign(new CaIdentitySource({ address, rootPem: ca.rootPem, token: () => token, onError, backoff: { initialMs: 20, maxMs: 100, factor: 1.5, jitter: 0 } }), { description: address }),
    onChange: () => changes++,
    logger: pino({ level: 'trace' }, { write: (line: string) => void log.push(line) }),
    rotation: { clock, jitter: 0 },
  });
  context.after(() => certificates.close());
  return { certificates, changes: () => changes, log };
}

const has = (certificates: NodeCertificates, ...ids: string[]): Promise<unknown> => waitFor(`certificates of ${ids.join(' and ')}`, () => ids.every((id) => certificates.secrets.has(id)), { timeoutMs: 120_000, everyMs: 5 });
const pem = (secret: Entry | undefined): string => {
  const type = Secret.decode(secret!.any.value).type;
  assert.ok(type?.$case === 'tls_certificate' && type.value.certificate_chain?.specifier?.$case === 'inline_string');
  return type.value.certificate_chain.specifier.value;
};

test('each account of the node gets a certificate of its own from the CA, and keeps it for as long as it is wanted', async (context) => {
  const { certificates } = await stage(context);
  certificates.want(new Set([WEB, CLIENT]));
  await has(certificates, WEB, CLIENT);
  for (const id of [WEB, CLIENT]) assert.equal(new X509Certificate(pem(certificates.secrets.get(id))).subjectAltName, `URI:${id}`);
  assert.deepEqual([...certificates.secrets.keys()].sort(), ['ROOTCA', CLIENT, WEB]);
  certificates.want(new Set([WEB]));
  assert.deepEqual([...certificates.secrets.keys()].sort(), ['ROOTCA', WEB]);
  assert.deepEqual(certificates.status().identities.map(({ id }) => id), [WEB]);
});

test('a certificate is renewed at half of its life; versions and the log hold nothing of the keys', async (context) => {
  const clock = new ManualClock();
  const { certificates, changes, log } = await stage(context, { clock });
  certificates.want(new Set([WEB]));
  await has(certificates, WEB);
  const first = certificates.secrets.get(WEB);
  clock.advance(clock.nextMs! - 1_000);
  assert.equal(certificates.secrets.get(WEB), first);
  assert.ok(clock.now() - Date.now() > 11.5 * 3_600_000 && clock.now() - Date.now() < 12 * 3_600_000, 'half of a day');
  const before = changes();
  clock.advance(1_000);
  await waitFor('another certificate', () => certificates.secrets.get(WEB) !== first, { timeoutMs: 120_000, everyMs: 5 });
  assert.equal(changes(), before + 1);
  assert.notEqual(certificates.secrets.get(WEB)!.version, first!.version);
  assert.doesNotMatch(`${log.join('')}${JSON.stringify(certificates.status())}${first!.version}`, /PRIVATE|BEGIN|eyJ/);
});

test('an account of another node is refused and asked for again, the others are served', async (context) => {
  const { certificates } = await stage(context);
  certificates.want(new Set([WEB]));
  await has(certificates, WEB);
  certificates.want(new Set([WEB, ELSEWHERE]));
  const refused = (): string | undefined => certificates.status().identities.find(({ id }) => id === ELSEWHERE)?.problem;
  await waitFor('the refusal', () => refused(), { timeoutMs: 120_000, everyMs: 5 });
  assert.match(refused()!, /PERMISSION_DENIED/);
  assert.ok(!certificates.secrets.has(ELSEWHERE));
  certificates.want(new Set([WEB]));
  assert.equal(certificates.status().problem, undefined, 'its problem went with it');
});

test('a CA that does not answer: none at the start, said so, and one as soon as it answers; later what is there stays in use', async (context) => {
  const other = new Pilot({ sources: [`${plane.folder}/config`], listen: ['127.0.0.1:0'], security: { listen: ['127.0.0.1:0'], hosts: ['127.0.0.1'], tokenJwks: `${plane.folder}/jwks.json`, ca }, logger: pino({ level: 'silent' }) });
  await other.start();
  const address = other.secureAddresses[0]!;
  await other.stop();
  const clock = new ManualClock();
  const { certificates } = await stage(context, { address, clock });
  certificates.want(new Set([WEB]));
  await waitFor('the problem to be told', () => certificates.status().problem, { timeoutMs: 60_000, everyMs: 5 });
  assert.match(certificates.status().problem!, /UNAVAILABLE/);
  assert.deepEqual([certificates.status().identities, [...certificates.secrets.keys()]], [[{ id: WEB }], ['ROOTCA']]);

  const again = async (): Promise<Pilot> => {
    const pilot = new Pilot({ sources: [`${plane.folder}/config`], listen: ['127.0.0.1:0'], security: { listen: [address], hosts: ['127.0.0.1'], tokenJwks: `${plane.folder}/jwks.json`, ca }, logger: pino({ level: 'silent' }) });
    await pilot.start();
    return pilot;
  };
  const back = await again();
  await has(certificates, WEB);
  assert.equal(certificates.status().problem, undefined);
  await back.stop();
  const first = certificates.secrets.get(WEB);
  clock.advance(clock.nextMs!);
  await waitFor('the problem to be told', () => certificates.status().problem, { timeoutMs: 60_000, everyMs: 5 });
  assert.equal(certificates.secrets.get(WEB), first);
  const third = await again();
  context.after(() => third.stop());
  await waitFor('another certificate', () => certificates.secrets.get(WEB) !== first, { timeoutMs: 60_000, everyMs: 5 });
});

test('a certificate that nobody wants any more is not asked for again', async () => {
  const gone = new AbortController();
  let tries = 0;
  const source = new CaIdentitySource({ address: 'localhost:1', rootPem: ca.rootPem, onError: () => tries++ === 1 && gone.abort(new Error('gone')), backoff: { initialMs: 5, maxMs: 5, factor: 1, jitter: 0 } });
  await assert.rejects(source.issue({ trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: 'web' }, gone.signal), /gone/);
  assert.equal(tries, 2);
  source.close();
});

test('a certificate of the agent itself, from a CA that knows nothing of its pods, is nobody\'s', async (context) => {
  const server = new Server();
  const { certificatePem, privateKeyPem } = await issueServerCertificate(ca, { dnsNames: ['localhost'], ips: ['127.0.0.1'] });
  const answersForCaller: IstioCertificateServiceServer = {
    createCertificate: (_call, callback) => void ca.issue({ namespace: 'underpass-system', serviceAccount: 'underpass-agent' }).then(({ chainPem }) => callback(null, { cert_chain: [chainPem, ca.rootPem] })),
  };
  server.addService(IstioCertificateServiceService, answersForCaller);
  const port = await new Promise<number>((resolve, reject) => server.bindAsync('127.0.0.1:0', ServerCredentials.createSsl(null, [{ cert_chain: Buffer.from(certificatePem), private_key: Buffer.from(privateKeyPem) }]), (error, bound) => (error ? reject(error) : resolve(bound))));
  context.after(() => server.forceShutdown());
  const { certificates } = await stage(context, { address: `127.0.0.1:${port}` });
  certificates.want(new Set([WEB]));
  await waitFor('the problem to be told', () => certificates.status().problem, { timeoutMs: 120_000, everyMs: 5 });
  assert.match(certificates.status().problem!, /found one of URI:spiffe:\S+\/sa\/underpass-agent, expected URI:spiffe:\S+\/sa\/web/);
  assert.deepEqual([...certificates.secrets.keys()], ['ROOTCA']);
});

test('accounts that are refused for long, and what is said of it, keep nothing of the tries', async (context) => {
  const clock = new ManualClock();
  let signal: AbortSignal | undefined;
  let tries = 0;
  const log: string[] = [];
  const certificates = new NodeCertificates({
    ca: () => ({
      description: 'none', rootPem: ca.rootPem, onRootChange: () => () => undefined, close: () => undefined,
      issue: ({ serviceAccount }, gone) => {
        signal = gone;
        tries++;
        return Promise.reject(new Error(`refused: ${serviceAccount}`));
      },
    }),
    onChange: () => undefined, logger: pino({ level: 'trace' }, { write: (line: string) => void log.push(line) }), rotation: { clock },
  });
  context.after(() => certificates.close());
  certificates.want(new Set([WEB, CLIENT]));
  for (const end = clock.now() + 60_000; clock.now() < end; ) {
    await sleep(1);
    clock.advance(1_000);
  }
  await sleep(1);
  assert.ok(tries > 20, `${tries} tries`);
  assert.deepEqual([getEventListeners(signal!, 'abort').length, log.length], [1, 2]);
});

test('other roots reach those who verify by them, without another certificate', async (context) => {
  const { certificates } = await stage(context);
  certificates.want(new Set([WEB]));
  await has(certificates, WEB);
  const [root, own] = [certificates.secrets.get('ROOTCA'), certificates.secrets.get(WEB)];
  await ca.introduceRoot();
  await waitFor('both roots', () => certificates.secrets.get('ROOTCA')!.version !== root!.version, { timeoutMs: 120_000, everyMs: 5 });
  assert.equal(certificates.secrets.get(WEB), own);
});
