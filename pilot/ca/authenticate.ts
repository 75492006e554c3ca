/**
 * Proves who calls: by a client certificate of the mesh, else by a bearer token. The caller learns nothing but that it was
 * not recognized; the log learns which way failed and why, never anything of the token.
 */
import type { Metadata, ServerInterceptingCall } from '@grpc/grpc-js';
import { X509Certificate } from 'node:crypto';
import { errors as joseErrors, createLocalJWKSet, createRemoteJWKSet, jwtVerify, type JSONWebKeySet, type JWTPayload, type JWTVerifyGetKey } from 'jose';
import { errorMessage, UnderpassError } from '../../common/errors.js';
import { CA_AUDIENCE } from '../../common/identity/service-account-token.js';
import { parseSpiffeId } from '../../common/identity/spiffe.js';
import type { Logger } from '../../common/log.js';
import type { PeerIdentity } from './peer-identity.js';

/** What of a gRPC call proves who made it. */
export interface AuthenticatedCall {
  readonly metadata: Metadata;
  getPeer(): string;
  getAuthContext(): ReturnType<ServerInterceptingCall['getAuthContext']>;
}

export interface Authenticator {
  readonly name: string;
  /** @returns undefined when the call brings no credential of this kind. @throws Error when it brings one that does not hold; nothing of it is in the message */
  authenticate(call: AuthenticatedCall): Promise<PeerIdentity | undefined>;
}

const BEARER = /^Bearer (\S+)$/i;
const MAX_TOKEN_BYTES = 16 << 10;
/** Between this clock and the issuer's. */
const CLOCK_TOLERANCE_S = 5;
const SUBJECT = /^system:serviceaccount:([^:]+):([^:]+)$/;
/** No symmetric ones: a public key must never serve as a secret. */
const ALGORITHMS = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA'];

export class Authenticators {
  constructor(readonly all: readonly Authenticator[], readonly logger: Logger) {}

  /** @returns the first that any of them proves; undefined when none does, which is the same to the caller whatever the reason */
  async identify(call: AuthenticatedCall): Promise<PeerIdentity | undefined> {
    const reasons: string[] = [];
    for (const authenticator of this.all) {
      try {
        const identity = await authenticator.authenticate(call);
        if (identity) return identity;
      } catch (error) {
        reasons.push(`${authenticator.name}: ${errorMessage(error)}`);
      }
    }
    this.logger.warn({ peer: call.getPeer(), reasons: reasons.length > 0 ? reasons : ['no credentials'] }, 'a caller could not be authenticated');
    return undefined;
  }
}

/** A certificate that the TLS handshake has verified against the mesh's roots. */
export class CertificateAuthenticator implements Authenticator {
  readonly name = 'certificate';

  /** @param trustDomains the mesh's own and its aliases */
  constructor(readonly trustDomains: () => readonly string[], readonly now: () => number = Date.now) {}

  async authenticate(call: AuthenticatedCall): Promise<PeerIdentity | undefined> {
    const raw = call.getAuthContext().sslPeerCertificate?.raw;
    if (!raw) return undefined;
    const certificate = new X509Certificate(raw);
    // The handshake may be long ago: a connection does not outlive its certificate's power.
    const expiresAt = Date.parse(certificate.validTo);
    if (expiresAt <= this.now()) throw new Error('the certificate has expired since the connection was made');
    const names = (certificate.subjectAltName ?? '').split(', ').filter((name) => name.startsWith('URI:'));
    const identity = names.length === 1 ? parseSpiffeId(names[0]!.slice('URI:'.length)) : undefined;
    if (!identity) throw new Error('the certificate has no SPIFFE id, or several');
    if (!this.trustDomains().includes(identity.trustDomain)) throw new Error(`the certificate is of trust domain ${identity.trustDomain}`);
    return { ...identity, expiresAt, via: 'certificate' };
  }
}

/** The token of `authorization: Bearer …`. */
export function bearerToken(call: AuthenticatedCall): string | undefined {
  const values = call.metadata.get('authorization');
  if (values.length === 0) return undefined;
  const [, token] = values.length === 1 ? (BEARER.exec(String(values[0])) ?? []) : [];
  if (!token || token.length > MAX_TOKEN_BYTES) throw new Error('the authorization header is no bearer token');
  return token;
}

export interface JwtAuthenticatorOptions {
  issuer: string;
  /** Keys, or the https URL where they are; fetched ones are cached and looked for again when a key is unknown. */
  keys: JSONWebKeySet | URL;
  audiences?: readonly string[];
  trustDomain: () => string;
  now?: () => number;
}

/** Service account tokens, verified with their issuer's public keys. */
export class JwtAuthenticator implements Authenticator {
  readonly name = 'token';
  readonly #keys: JWTVerifyGetKey;

  constructor(readonly options: JwtAuthenticatorOptions) {
    this.#keys = options.keys instanceof URL ? createRemoteJWKSet(options.keys) : createLocalJWKSet(options.keys);
  }

  async authenticate(call: AuthenticatedCall): Promise<PeerIdentity | undefined> {
    const token = bearerToken(call);
    if (token === undefined) return undefined;
    const { issuer, audiences = [CA_AUDIENCE], trustDomain, now = Date.now } = this.options;
    let payload: JWTPayload;
    try {
      ({ payload } = await jwtVerify(token, this.#keys, { issuer, audience: [...audiences], algorithms: ALGORITHMS, requiredClaims: ['exp', 'sub'], clockTolerance: CLOCK_TOLERANCE_S, currentDate: new Date(now()) }));
    } catch (error) {
      throw new Error(tokenProblem(error));
    }
    const [, namespace, serviceAccount] = SUBJECT.exec(payload.sub ?? '') ?? [];
    if (!namespace || !serviceAccount) throw new Error('the subject is no service account');
    const { pod, node } = (payload['kubernetes.io'] ?? {}) as { pod?: { name?: string; uid?: string }; node?: { name?: string } };
    return {
      trustDomain: trustDomain(),
      namespace,
      serviceAccount,
      ...(pod?.name ? { pod: pod.name } : {}),
      ...(pod?.uid ? { podUid: pod.uid } : {}),
      ...(node?.name ? { nodeName: node.name } : {}),
      expiresAt: (payload.exp! + CLOCK_TOLERANCE_S) * 1_000,
      via: 'token',
    };
  }
}

/** A reason in fixed words: messages of the library may quote claims. */
function tokenProblem(error: unknown): string {
  if (error instanceof joseErrors.JWTExpired) return 'the token has expired';
  if (error instanceof joseErrors.JWTClaimValidationFailed) return `its claim ${error.claim} is not what is expected`;
  if (error instanceof joseErrors.JWSSignatureVerificationFailed) return "the token's signature is wrong";
  if (error instanceof joseErrors.JWKSNoMatchingKey) return 'no key of its issuer fits the token';
  if (error instanceof joseErrors.JOSEError) return `the token can't be verified (${error.code})`;
  return "the keys of the token's issuer can't be had";
}

/** For settings that a user gives. @throws UnderpassError `UNDERPASS_PILOT_TOKENS` */
export function parseJwks(text: string, origin: string): JSONWebKeySet {
  try {
    const parsed = JSON.parse(text) as JSONWebKeySet;
    createLocalJWKSet(parsed);
    return parsed;
  } catch {
    throw new UnderpassError('UNDERPASS_PILOT_TOKENS', `reading ${origin}: expected a JSON Web Key Set, {"keys": [...]}`);
  }
}
