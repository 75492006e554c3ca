import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { test } from 'node:test';
import { Metadata } from '@grpc/grpc-js';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { TokenIssuer } from '../../common/identity/service-account-token.js';
import { CertificateAuthenticator, JwtAuthenticator, type AuthenticatedCall } from './authenticate.js';
import { bearer } from './testing.js';

const WEB = { namespace: 'shop', serviceAccount: 'web' };
const call = (metadata: Metadata, raw?: Buffer): AuthenticatedCall => ({ metadata, getPeer: () => 'test', getAuthContext: () => (raw ? { sslPeerCertificate: { raw } } : {}) as ReturnType<AuthenticatedCall['getAuthContext']> });

test('JwtAuthenticator: an identity lasts as long as the token is taken, the tolerance for clocks included', async () => {
  const issuer = await TokenIssuer.create();
  const tokens = new JwtAuthenticator({ issuer: issuer.issuer, keys: issuer.jwks, trustDomain: () => 'td' });
  const nowSeconds = Math.floor(Date.now() / 1_000);
  const identity = await tokens.authenticate(call(bearer(await issuer.issue(WEB, { nowSeconds, ttlSeconds: 600 }))));
  assert.equal(identity?.expiresAt, (nowSeconds + 600 + 5) * 1_000);
});

test('CertificateAuthenticator: an identity lasts as long as the certificate', async () => {
  const ca = await CertificateAuthority.create({ trustDomain: 'td' });
  const { raw, validTo } = new X509Certificate((await ca.issue(WEB)).chainPem);
  const identity = await new CertificateAuthenticator(() => ['td']).authenticate(call(new Metadata(), raw));
  assert.equal(identity?.expiresAt, Date.parse(validTo));
});
