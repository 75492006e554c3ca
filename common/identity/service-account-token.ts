/**
 * Projected service account tokens as Kubernetes' API server issues them, for places without one: the lab, and tests. The
 * signing key lives in memory; its public half is a JWKS for whoever verifies.
 */
import { decodeJwt, exportJWK, generateKeyPair, SignJWT, type JSONWebKeySet } from 'jose';
import { randomUUID, type webcrypto } from 'node:crypto';

/** Istio's audience of tokens for its CA. */
export const CA_AUDIENCE = 'istio-ca';
export const LOCAL_ISSUER = 'https://kubernetes.default.svc.cluster.local';
const ALGORITHM = 'ES256';
const DEFAULT_TTL_S = 3600;
const SUBJECT = /^system:serviceaccount:([^:]+):([^:]+)$/;

export interface TokenSubject {
  namespace: string;
  serviceAccount: string;
  pod?: { name: string; uid?: string };
  nodeName?: string;
}

export class TokenIssuer {
  private constructor(readonly issuer: string, readonly jwks: JSONWebKeySet, readonly key: webcrypto.CryptoKey, readonly keyId: string) {}

  static async create(issuer = LOCAL_ISSUER): Promise<TokenIssuer> {
    const keyId = randomUUID();
    const { publicKey, privateKey } = await generateKeyPair(ALGORITHM);
    return new TokenIssuer(issuer, { keys: [{ ...(await exportJWK(publicKey)), kid: keyId, alg: ALGORITHM, use: 'sig' }] }, privateKey as webcrypto.CryptoKey, keyId);
  }

  async issue(subject: TokenSubject, options: { audience?: string; ttlSeconds?: number; nowSeconds?: number } = {}): Promise<string> {
    const { namespace, serviceAccount, pod, nodeName } = subject;
    const now = options.nowSeconds ?? Math.floor(Date.now() / 1000);
    const claims = { namespace, serviceaccount: { name: serviceAccount }, ...(pod ? { pod } : {}), ...(nodeName === undefined ? {} : { node: { name: nodeName } }) };
    return new SignJWT({ 'kubernetes.io': claims })
      .setProtectedHeader({ alg: ALGORITHM, kid: this.keyId })
      .setIssuer(this.issuer)
      .setSubject(`system:serviceaccount:${namespace}:${serviceAccount}`)
      .setAudience(options.audience ?? CA_AUDIENCE)
      .setIssuedAt(now)
      .setExpirationTime(now + (options.ttlSeconds ?? DEFAULT_TTL_S))
      .sign(this.key);
  }
}

/** Whose token it is, by what it says itself: for the one whose own it is. Undefined when it is no service account's. */
export function accountOfToken(token: string): Pick<TokenSubject, 'namespace' | 'serviceAccount'> | undefined {
  try {
    const [, namespace, serviceAccount] = SUBJECT.exec(decodeJwt(token.trim()).sub ?? '') ?? [];
    return namespace && serviceAccount ? { namespace, serviceAccount } : undefined;
  } catch {
    return undefined;
  }
}
