/** Tokens that an API server judges: the server is played, by HTTPS. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { issueServerCertificate } from '../../common/identity/server-certificate.js';
import { KubeClient } from '../../common/kube/client.js';
import { parseKubeconfig } from '../../common/kube/kubeconfig.js';
import { TokenReviewAuthenticator } from './token-review.js';
import { bearer } from './testing.js';

let server: Server;
let folder: string;
let answer: { code: number; body: string };
let asked: { url: string; authorization: string; spec: { token: string; audiences: string[] } } | undefined;

const call = (token: string) => ({ metadata: bearer(token), getPeer: () => 'x', getAuthContext: () => ({}) });
const status = (value: object): void => void (answer = { code: 201, body: JSON.stringify({ kind: 'TokenReview', status: value }) });
const reviewer = (ca = 'ca.crt'): TokenReviewAuthenticator => {
  const user = { clusters: [{ name: 'c', cluster: { server: `https://localhost:${(server.address() as AddressInfo).port}`, 'certificate-authority': ca } }], users: [{ name: 'u', user: { tokenFile: 'token' } }], contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }], 'current-context': 'x' };
  return new TokenReviewAuthenticator({ client: new KubeClient(parseKubeconfig(JSON.stringify(user), { place: 'test', folder })), trustDomain: () => 'td' });
};

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-review-'));
  const ca = await CertificateAuthority.create();
  const { certificatePem, privateKeyPem } = await issueServerCertificate(ca, { dnsNames: ['localhost'] });
  writeFileSync(join(folder, 'ca.crt'), ca.rootPem);
  writeFileSync(join(folder, 'other.crt'), (await CertificateAuthority.create()).rootPem);
  writeFileSync(join(folder, 'token'), 'own-token\n');
  server = createServer({ cert: certificatePem, key: privateKeyPem }, (request, response) => {
    let body = '';
    request.on('data', (chunk: Buffer) => (body += chunk.toString()));
    request.on('end', () => {
      asked = { url: request.url!, authorization: request.headers.authorization!, spec: (JSON.parse(body) as { spec: { token: string; audiences: string[] } }).spec };
      response.writeHead(answer.code, { 'content-type': 'application/json' }).end(answer.body);
    });
  });
  server.listen(0, 'localhost');
  await once(server, 'listening');
});
after(() => {
  server.close();
  rmSync(folder, { recursive: true });
});

test('TokenReviewAuthenticator: asks with its own token, takes who the API server says it is', async () => {
  const extra = { 'authentication.kubernetes.io/pod-name': ['web-1'], 'authentication.kubernetes.io/pod-uid': ['u'], 'authentication.kubernetes.io/node-name': ['node-1'] };
  status({ authenticated: true, audiences: ['istio-ca'], user: { username: 'system:serviceaccount:shop:web', extra } });
  const identity = await reviewer().authenticate(call('the-token'));
  assert.deepEqual(identity, { trustDomain: 'td', namespace: 'shop', serviceAccount: 'web', pod: 'web-1', podUid: 'u', nodeName: 'node-1', via: 'token-review' });
  assert.deepEqual(asked, { url: '/apis/authentication.k8s.io/v1/tokenreviews', authorization: 'Bearer own-token', spec: { token: 'the-token', audiences: ['istio-ca'] } });
});

test('TokenReviewAuthenticator: whatever is not a plain yes for this audience is a no, and says nothing of the token', async () => {
  const user = { username: 'system:serviceaccount:shop:web' };
  const refused: object[] = [
    {},
    { authenticated: false, error: 'the-token is bad' },
    { authenticated: true, user },
    { authenticated: true, audiences: ['other'], user },
    { authenticated: true, audiences: ['istio-ca'], user: { username: 'alice' } },
  ];
  for (const value of refused) {
    status(value);
    await assert.rejects(reviewer().authenticate(call('the-token')), (error: Error) => !error.message.includes('the-token'), JSON.stringify(value));
  }
  for (const wrong of [{ code: 403, body: 'the-token' }, { code: 201, body: 'no JSON: the-token' }]) {
    answer = wrong;
    await assert.rejects(reviewer().authenticate(call('the-token')), (error: Error) => !error.message.includes('the-token'));
  }
});

test('TokenReviewAuthenticator: an API server that is not of the given CA is not asked', async () => {
  status({ authenticated: true, audiences: ['istio-ca'], user: { username: 'system:serviceaccount:shop:web' } });
  asked = undefined;
  await assert.rejects(reviewer('other.crt').authenticate(call('the-token')), /asking the API server/);
  assert.equal(asked, undefined);
});
