/** Public keys that RequestAuthentications refer to by URI, as they were fetched last. */
import { createPublicKey, generateKeyPairSync, type JsonWebKey } from 'node:crypto';
import type { JwtRule, RequestAuthentication } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';

/** How an issuer without a jwksUri says where its keys are (OpenID Connect discovery). */
const DISCOVERY_PATH = '/.well-known/openid-configuration';

interface Jwk {
  kty?: unknown;
  kid?: unknown;
  alg?: unknown;
  crv?: unknown;
  k?: unknown;
}

/** By key type what the name of an algorithm begins with. */
const ALGORITHMS: Readonly<Record<string, RegExp>> = { RSA: /^(RS|PS)(256|384|512)$/, EC: /^ES(256|384|512)$/, oct: /^HS(256|384|512)$/, OKP: /^EdDSA$/ };
const CURVES: ReadonlySet<unknown> = new Set(['P-256', 'P-384', 'P-521', 'Ed25519']);
const MIN_RSA_BITS = 1_024;

/**
 * The set without those keys that Envoy can't read: for one of them it refuses the whole listener, policies included. As it
 * is written if all are good; undefined if none is.
 */
export function usableJwks(text: string): string | undefined {
  let keys: unknown;
  let isSet = true;
  try {
    const parsed = JSON.parse(text) as { keys?: unknown; kty?: unknown };
    // A single key is taken as the set of it.
    isSet = parsed.kty === undefined;
    keys = isSet ? parsed.keys : [parsed];
  } catch {
    return undefined;
  }
  if (!Array.isArray(keys)) return undefined;
  const usable = keys.filter((key: unknown) => typeof key === 'object' && key !== null && isUsable(key));
  if (usable.length === 0) return undefined;
  return isSet && usable.length === keys.length ? text : JSON.stringify({ keys: usable });
}

function isUsable(key: Jwk): boolean {
  const { kty, kid, alg, crv, k } = key;
  const algorithms = typeof kty === 'string' ? ALGORITHMS[kty] : undefined;
  if (!algorithms || (kid !== undefined && typeof kid !== 'string') || (alg !== undefined && !(typeof alg === 'string' && algorithms.test(alg)))) return false;
  if (kty === 'oct') return typeof k === 'string' && /^[\w-]+$/.test(k);
  if (kty !== 'RSA' && !CURVES.has(crv)) return false;
  try {
    const { asymmetricKeyDetails } = createPublicKey({ key: key as JsonWebKey, format: 'jwk' });
    return kty !== 'RSA' || (asymmetricKeyDetails?.modulusLength ?? 0) >= MIN_RSA_BITS;
  } catch {
    return false;
  }
}

let nobodys: string | undefined;

/** A key whose private half is thrown away at once: with no other, every token is refused. */
export function nobodysJwks(): string {
  return (nobodys ??= JSON.stringify({ keys: [{ ...generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'jwk' }), kid: 'nobody' }] }));
}

/** The URI of the rule's keys, or of the document that names that URI. */
export function jwksSource({ issuer, jwksUri }: JwtRule): string {
  return jwksUri || issuer.replace(/\/$/, '') + DISCOVERY_PATH;
}

export function isDiscovery(source: string): boolean {
  return source.endsWith(DISCOVERY_PATH);
}

export interface WantedKeys {
  timeoutMs: number | undefined;
}

/** Sources of all rules that have no keys of their own. */
export function wantedKeys(policies: readonly LoadedObject<RequestAuthentication>[], durationMs: (text: string) => number | undefined): Map<string, WantedKeys> {
  const wanted = new Map<string, WantedKeys>();
  for (const { object } of policies) {
    for (const rule of object.spec?.jwtRules ?? []) if (!rule.jwks) wanted.set(jwksSource(rule), { timeoutMs: rule.timeout ? durationMs(rule.timeout) : undefined });
  }
  return wanted;
}
