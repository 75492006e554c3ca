/** Public keys that RequestAuthentications refer to by URI, as they were fetched last. */
import type { JwtRule, RequestAuthentication } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';

/** How an issuer without a jwksUri says where its keys are (OpenID Connect discovery). */
const DISCOVERY_PATH = '/.well-known/openid-configuration';

const KEY_TYPES: ReadonlySet<unknown> = new Set(['RSA', 'EC', 'oct', 'OKP']);

/** Whether Envoy would take it: it refuses the whole listener for keys that it can't read. */
export function isJwks(text: string): boolean {
  try {
    const { keys } = JSON.parse(text) as { keys?: unknown };
    return Array.isArray(keys) && keys.length > 0 && keys.every((key: unknown) => typeof key === 'object' && key !== null && KEY_TYPES.has((key as { kty?: unknown }).kty));
  } catch {
    return false;
  }
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
