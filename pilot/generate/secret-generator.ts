/**
 * Certificates of gateways, from Kubernetes Secrets over ADS. A gateway reads Secrets of its own namespace only; a pair
 * that does not fit together leaves the last good one in force. Contents are in no log and no message.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import type { Secret as KubeSecret } from '../../common/kube/types.js';
import { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import { isGranted } from '../gateway-api/grants.js';
import { GATEWAY_API } from '../gateway-api/parents.js';
import type { ChangeSet } from '../model/changes.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import type { Generator, Names } from './generator.js';
import { makeResource, TYPE, type Resource } from './resource.js';

/** Appended to a credential's name for the authority that clients' certificates are checked against. */
const CA_SUFFIX = '-cacert';
const SCHEME = /^(kubernetes|kubernetes-gateway):\/\//;

interface Reference {
  namespace: string;
  name: string;
}

/** `kubernetes://name`, `kubernetes://namespace/name`; without a namespace the proxy's own. */
function referenceOf(resource: string, proxy: Proxy): Reference | undefined {
  if (!SCHEME.test(resource)) return undefined;
  const path = resource.replace(SCHEME, '');
  const slash = path.indexOf('/');
  return slash < 0 ? { namespace: proxy.namespace, name: path } : { namespace: path.slice(0, slash), name: path.slice(slash + 1) };
}

const text = (value: string | undefined): string | undefined => (value === undefined ? undefined : Buffer.from(value, 'base64').toString('utf8'));

/** The first of these keys that the Secret has. */
function entry({ data = {}, stringData = {} }: KubeSecret, ...keys: string[]): string | undefined {
  for (const key of keys) {
    const value = stringData[key] ?? text(data[key]);
    if (value !== undefined && value !== '') return value;
  }
  return undefined;
}

/** Why no server can use the certificate of a Secret; undefined when it can. */
export function certificateProblem(secret: KubeSecret | undefined): string | undefined {
  return secret ? pairProblem(...pairOf(secret)) : 'there is no such Secret';
}

const pairOf = (secret: KubeSecret): [certificate: string | undefined, key: string | undefined] => [entry(secret, 'tls.crt', 'cert'), entry(secret, 'tls.key', 'key')];

function pairProblem(certificate: string | undefined, key: string | undefined): string | undefined {
  if (certificate === undefined) return 'found no certificate, expected tls.crt (or cert)';
  if (key === undefined) return 'found no private key, expected tls.key (or key)';
  let leaf: X509Certificate;
  try {
    leaf = new X509Certificate(certificate);
  } catch {
    return 'the certificate is no PEM certificate';
  }
  try {
    if (!leaf.checkPrivateKey(createPrivateKey(key))) return 'certificate and private key do not match';
  } catch {
    return 'the private key is no PEM key';
  }
  return undefined;
}

const inline = (pem: string) => ({ specifier: { $case: 'inline_bytes' as const, value: Buffer.from(pem) } });

function secretOf(name: string, type: NonNullable<Parameters<typeof Secret.fromPartial>[0]['type']>): Resource {
  return makeResource(name, Secret, Secret.fromPartial({ name, type }));
}

export interface SecretProblem {
  /** `namespace/name` of the Secret. */
  secret: string;
  message: string;
}

export class SecretGenerator implements Generator {
  readonly typeUrl = TYPE.secret;
  readonly wildcard = false;
  /** By Secret and what is asked of it; kept after the Secret has become unusable. */
  readonly #good = new Map<string, { object: KubeSecret; owner?: KubeSecret | undefined; resource: Resource }>();
  readonly #problems = new Map<string, string>();

  /** @param report told once of each Secret that can't be used, and why */
  constructor(readonly model: Model, readonly report: (problem: SecretProblem) => void = () => undefined) {}

  all(): Resource[] {
    return [];
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    const reference = proxy.isTrusted && (proxy.type === 'router' || proxy.type === 'sidecar') ? referenceOf(name, proxy) : undefined;
    if (!reference || !this.#mayRead(proxy, reference)) return undefined;
    const { configs } = this.model;
    const plain = configs.get<KubeSecret>('Secret', reference.namespace, reference.name)?.object;
    // A Secret may itself be called something-cacert; Istio keeps authorities in one of that name as well.
    if (name.endsWith(CA_SUFFIX)) {
      const owner = configs.get<KubeSecret>('Secret', reference.namespace, reference.name.slice(0, -CA_SUFFIX.length))?.object;
      return this.#authority(name, plain ?? owner, owner);
    }
    return plain && this.#certificate(name, plain);
  }

  /** By the Gateway API's ReferenceGrant a Secret can be offered to Gateways of another namespace. */
  #mayRead({ namespace }: Proxy, reference: Reference): boolean {
    return isGranted(this.model.configs, { group: GATEWAY_API, kind: 'Gateway', namespace }, { group: '', kind: 'Secret', ...reference });
  }

  #certificate(name: string, object: KubeSecret): Resource | undefined {
    const key = `${object.metadata.namespace}/${object.metadata.name}`;
    const known = this.#good.get(`${key} ${name}`);
    if (known?.object === object) return known.resource;
    const [certificate, privateKey] = pairOf(object);
    const problem = pairProblem(certificate, privateKey);
    this.#note(key, problem);
    if (problem !== undefined) return known?.resource;
    const resource = secretOf(name, { $case: 'tls_certificate', value: { certificate_chain: inline(certificate!), private_key: inline(privateKey!) } });
    this.#good.set(`${key} ${name}`, { object, resource });
    return resource;
  }

  #authority(name: string, object: KubeSecret | undefined, owner: KubeSecret | undefined): Resource | undefined {
    if (!object) return undefined;
    const key = `${object.metadata.namespace}/${object.metadata.name}`;
    const known = this.#good.get(`${key} ${name}`);
    if (known?.object === object && known.owner === owner) return known.resource;
    const bundle = entry(object, 'ca.crt', 'cacert') ?? (owner && entry(owner, 'ca.crt', 'cacert'));
    const revoked = entry(object, 'ca.crl', 'crl');
    let problem: string | undefined;
    try {
      if (bundle === undefined) problem = 'found no authority for clients, expected ca.crt (or cacert)';
      else new X509Certificate(bundle);
    } catch {
      problem = 'the authority is no PEM certificate';
    }
    this.#note(`${key} (authority)`, problem);
    if (problem !== undefined) return known?.resource;
    const resource = secretOf(name, { $case: 'validation_context', value: { trusted_ca: inline(bundle!), ...(revoked === undefined ? {} : { crl: inline(revoked) }) } });
    this.#good.set(`${key} ${name}`, { object, owner, resource });
    return resource;
  }

  #note(secret: string, message: string | undefined): void {
    if (this.#problems.get(secret) === message) return;
    if (message === undefined) this.#problems.delete(secret);
    else {
      this.#problems.set(secret, message);
      this.report({ secret, message });
    }
  }

  *affected(proxy: Proxy, change: ChangeSet, names: Names): Iterable<string> {
    if (change.full || change.configs.has('ReferenceGrant')) return void (yield* names);
    const changed = change.configs.get('Secret');
    if (!changed) return;
    for (const name of names) {
      const reference = referenceOf(name, proxy);
      if (!reference) continue;
      const key = `${reference.namespace}/${reference.name}`;
      if (changed.has(key) || (name.endsWith(CA_SUFFIX) && changed.has(key.slice(0, -CA_SUFFIX.length)))) yield name;
    }
  }

  /** A changed Secret is another object, which tells that what was made from the old one is old; nothing is kept of one that is gone. */
  invalidate(change: ChangeSet): void {
    for (const secret of change.configs.get('Secret') ?? []) {
      const slash = secret.indexOf('/');
      if (this.model.configs.get('Secret', secret.slice(0, slash), secret.slice(slash + 1))) continue;
      for (const key of this.#good.keys()) if (key.startsWith(`${secret} `)) this.#good.delete(key);
      this.#problems.delete(secret);
      this.#problems.delete(`${secret} (authority)`);
    }
  }
}
