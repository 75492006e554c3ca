/**
 * A certificate authority: a self-signed root or a given CA below one, and SPIFFE leaves, as Istio's citadel issues them.
 * Keys stay in memory; whoever wants them kept gives a RootStore. Roots can be exchanged without anybody losing trust: the
 * next one is introduced (all trust both), then it issues, then the old one leaves.
 */
import 'reflect-metadata'; // @peculiar/x509 finds its parts through it
import * as x509 from '@peculiar/x509';
import { webcrypto } from 'node:crypto';
import { isIP } from 'node:net';
import { systemClock, type Clock } from '../clock.js';
import { UnderpassError } from '../errors.js';
import { BACKDATE_MS, generateKeys, LEAF_KEY_ALGORITHM, privateKeyPem, readSigningKey, selfSignedRoot, serialNumber, type CaMaterial, type SigningAlgorithm, type SigningKey } from './signing-key.js';
import { DEFAULT_TRUST_DOMAIN, parseSpiffeId, spiffeId, type WorkloadIdentity } from './spiffe.js';

export { DEFAULT_TRUST_DOMAIN, spiffeId, type WorkloadIdentity } from './spiffe.js';
export type { CaMaterial } from './signing-key.js';

const DAY_MS = 86_400_000;
const ROOT_TTL_MS = 3650 * DAY_MS;
export const DEFAULT_LEAF_TTL_MS = DAY_MS;
/** Istio's default for MAX_WORKLOAD_CERT_TTL. */
export const DEFAULT_MAX_LEAF_TTL_MS = 90 * DAY_MS;
const MIN_RSA_BITS = 2048;
const MAX_RSA_BITS = 8192;

export interface IssuedCertificate {
  /** Leaf first, then what leads to the root, without it. */
  chainPem: string;
  privateKeyPem: string;
  notBefore: Date;
  notAfter: Date;
}

/** Where a self-signed root and its rotation survive a restart. Without one they live as long as the process. */
export interface RootStore {
  load(): Promise<StoredRoots | undefined>;
  /** @throws RootsChangedError when another process that shares the store was faster */
  save(roots: StoredRoots): Promise<void>;
}

/** Other roots are in the store than those that were loaded or saved last; nothing was saved. */
export class RootsChangedError extends UnderpassError {
  constructor() {
    super('UNDERPASS_CA', 'keeping the root: another process has kept another state of it meanwhile');
  }
}

export interface StoredRoots {
  issuing: CaMaterial;
  /** Trusted already, not issuing yet. */
  next?: CaMaterial;
  /** Trusted still, issuing no more. */
  retiring: string[];
  /** When this state began, milliseconds since 1970. */
  since: number;
}

export interface CaOptions {
  trustDomain?: string;
  /** Without a request's own wish. */
  leafTtlMs?: number;
  /** More is not given, whatever is asked for. */
  maxLeafTtlMs?: number;
  rootTtlMs?: number;
  clock?: Clock;
}

interface RootState {
  issuing: SigningKey;
  next: SigningKey | undefined;
  retiring: string[];
  since: number;
}

/** Where an exchange of roots stands. */
export type RotationPhase = 'steady' | 'introduced' | 'retiring';

export class CertificateAuthority {
  readonly trustDomain: string;
  readonly clock: Clock;
  readonly #options: CaOptions;
  readonly #store: RootStore | undefined;
  readonly #listeners = new Set<() => void>();
  #issuing: SigningKey;
  #next: SigningKey | undefined;
  #retiring: string[];
  #since: number;

  private constructor(options: CaOptions, store: RootStore | undefined, state: Partial<RootState> & { issuing: SigningKey }) {
    this.#options = options;
    this.#store = store;
    this.trustDomain = options.trustDomain ?? DEFAULT_TRUST_DOMAIN;
    this.clock = options.clock ?? systemClock;
    this.#issuing = state.issuing;
    this.#next = state.next;
    this.#retiring = state.retiring ?? [];
    this.#since = state.since ?? this.clock.now();
  }

  /** A self-signed root: the store's, if there is one, else a new one. */
  static async create(options: CaOptions & { store?: RootStore } = {}): Promise<CertificateAuthority> {
    const { store } = options;
    const now = (options.clock ?? systemClock).now();
    const kept = async (): Promise<CertificateAuthority | undefined> => {
      const stored = await store?.load();
      return stored && new CertificateAuthority(options, store, await readRoots(stored, now));
    };
    const found = await kept();
    if (found) return found;
    const issuing = await selfSignedRoot({ trustDomain: options.trustDomain ?? DEFAULT_TRUST_DOMAIN, now, ttlMs: options.rootTtlMs ?? ROOT_TTL_MS });
    const ca = new CertificateAuthority(options, store, { issuing });
    try {
      await ca.#keep(ca.#state);
    } catch (error) {
      // Of several that start at once one has made the root of all.
      const others = error instanceof RootsChangedError ? await kept() : undefined;
      if (others) return others;
      throw error;
    }
    return ca;
  }

  /** A CA that was given, e.g. an intermediate below an organization's root. @throws UnderpassError `UNDERPASS_CA` */
  static async from(material: CaMaterial, origin: string, options: CaOptions = {}): Promise<CertificateAuthority> {
    return new CertificateAuthority(options, undefined, { issuing: await readSigningKey(material, origin, (options.clock ?? systemClock).now()) });
  }

  /** What signs, for another process that is to be the same CA: it has the key in it. */
  get material(): CaMaterial {
    return this.#issuing.material;
  }

  /** All roots that count now, the issuing one's first. */
  get rootPem(): string {
    return [...new Set([...this.#issuing.rootPems, ...(this.#next?.rootPems ?? []), ...this.#retiring])].join('');
  }

  /** The certificate that signs; a root only when no intermediate was given. */
  get root(): x509.X509Certificate {
    return this.#issuing.certificate;
  }

  get keys(): { privateKey: webcrypto.CryptoKey } {
    return { privateKey: this.#issuing.key };
  }

  get signingAlgorithm(): SigningAlgorithm {
    return this.#issuing.algorithm;
  }

  /** From the certificate that signs upwards, without the root. */
  get intermediatePems(): readonly string[] {
    return this.#issuing.intermediatePems;
  }

  /** End of the signing certificate's life, milliseconds since 1970. */
  get notAfter(): number {
    return this.#issuing.certificate.notAfter.getTime();
  }

  get phase(): RotationPhase {
    return this.#next ? 'introduced' : this.#retiring.length > 0 ? 'retiring' : 'steady';
  }

  /** When the phase began, milliseconds since 1970. */
  get since(): number {
    return this.#since;
  }

  get maxLeafTtlMs(): number {
    return this.#options.maxLeafTtlMs ?? DEFAULT_MAX_LEAF_TTL_MS;
  }

  /** Called when other roots count than before, or another key signs. @returns what ends it. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Takes over another given CA; what it trusts is what `material` says, so both roots have to be in it while they are exchanged. */
  async replace(material: CaMaterial, origin: string): Promise<void> {
    await this.#become({ issuing: await readSigningKey(material, origin, this.clock.now()), next: undefined, retiring: [] });
  }

  /** Takes over what another process has put into the store that they share. @throws UnderpassError `UNDERPASS_CA`; what was before stays */
  async adopt(stored: StoredRoots): Promise<void> {
    const state = await readRoots(stored, this.clock.now());
    if (state.since === this.#since && state.issuing.material.certificatePem === this.material.certificatePem) return;
    this.#take(state);
  }

  /** What is in the store, or would be: it has the keys in it. */
  get stored(): StoredRoots {
    return storedOf(this.#state);
  }

  /** First step: everybody is to trust a new root; it signs nothing yet. */
  async introduceRoot(): Promise<void> {
    if (this.phase !== 'steady') throw new UnderpassError('UNDERPASS_CA', `introducing a root: an exchange is under way (${this.phase})`);
    await this.#become({ ...this.#state, next: await selfSignedRoot({ trustDomain: this.trustDomain, now: this.clock.now(), ttlMs: this.#options.rootTtlMs ?? ROOT_TTL_MS }) });
  }

  /** Second step, when all have the bundle: the new root signs; the old one stays trusted for what it signed. */
  async switchRoot(): Promise<void> {
    if (!this.#next) throw new UnderpassError('UNDERPASS_CA', 'switching to the next root: none was introduced');
    await this.#become({ issuing: this.#next, next: undefined, retiring: [...this.#issuing.rootPems] });
  }

  /** Third step, when what the old root signed has expired. */
  async retireRoot(): Promise<void> {
    if (this.#retiring.length === 0) throw new UnderpassError('UNDERPASS_CA', 'retiring the old root: there is none');
    await this.#become({ ...this.#state, retiring: [] });
  }

  get #state(): RootState {
    return { issuing: this.#issuing, next: this.#next, retiring: this.#retiring, since: this.#since };
  }

  /** Kept first: a state that a restart would not find must not be told of to anybody. */
  async #become(changed: Omit<RootState, 'since'>): Promise<void> {
    const state = { ...changed, since: this.clock.now() };
    await this.#keep(state);
    this.#take(state);
  }

  #take({ issuing, next, retiring, since }: RootState): void {
    [this.#issuing, this.#next, this.#retiring, this.#since] = [issuing, next, retiring, since];
    for (const listener of this.#listeners) listener();
  }

  async #keep(state: RootState): Promise<void> {
    await this.#store?.save(storedOf(state));
  }

  /** A new key and its certificate with the workload's SPIFFE id as only name, 24 h unless told. */
  async issue(identity: Omit<WorkloadIdentity, 'trustDomain'>, options: { ttlMs?: number } = {}): Promise<IssuedCertificate> {
    return this.#issueFor([{ type: 'url', value: spiffeId({ trustDomain: this.trustDomain, ...identity }) }], options.ttlMs);
  }

  /** A new key and a certificate for a server of the control plane: host names, addresses and a SPIFFE id. */
  async issueServer(names: { hosts: readonly string[]; identity: Omit<WorkloadIdentity, 'trustDomain'> }, options: { ttlMs?: number } = {}): Promise<IssuedCertificate> {
    const id = spiffeId({ trustDomain: this.trustDomain, ...names.identity });
    return this.#issueFor([{ type: 'url', value: id }, ...names.hosts.map((value) => ({ type: isIP(value) ? ('ip' as const) : ('dns' as const), value }))], options.ttlMs);
  }

  async #issueFor(names: x509.JsonGeneralName[], ttlMs: number | undefined): Promise<IssuedCertificate> {
    const keys = await generateKeys();
    const { certificate, chain } = await this.#sign(keys.publicKey, names, ttlMs);
    return { chainPem: chain.join(''), privateKeyPem: await privateKeyPem(keys.privateKey), notBefore: certificate.notBefore, notAfter: certificate.notAfter };
  }

  /**
   * Signs a PKCS #10 request for this identity; what the request itself says of names is not looked at.
   * @returns the certificate and what leads to the root, leaf first, without the root
   * @throws UnderpassError `UNDERPASS_CSR` when its own signature is wrong or its key is none that is signed
   */
  async sign(request: string | x509.Pkcs10CertificateRequest, identity: Omit<WorkloadIdentity, 'trustDomain'>, options: { ttlMs?: number } = {}): Promise<string[]> {
    const parsed = typeof request === 'string' ? parseCertificateRequest(request) : request;
    const publicKey = await checkRequest(parsed);
    return (await this.#sign(publicKey, [{ type: 'url', value: spiffeId({ trustDomain: this.trustDomain, ...identity }) }], options.ttlMs)).chain;
  }

  async #sign(publicKey: webcrypto.CryptoKey, names: x509.JsonGeneralName[], ttlMs: number | undefined): Promise<{ certificate: x509.X509Certificate; chain: string[] }> {
    const now = this.clock.now();
    const issuing = this.#issuing;
    const wanted = Math.min(ttlMs ?? this.#options.leafTtlMs ?? DEFAULT_LEAF_TTL_MS, this.maxLeafTtlMs);
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: serialNumber(),
      // Istio leaves the subject empty, which makes the alternative name critical (RFC 5280, 4.2.1.6).
      subject: '',
      issuer: issuing.certificate.subjectName,
      notBefore: new Date(now - BACKDATE_MS),
      // A leaf that outlives its issuer is one that stops working by surprise.
      notAfter: new Date(Math.min(now + wanted, this.notAfter)),
      signingAlgorithm: issuing.algorithm,
      publicKey,
      signingKey: issuing.key,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature | x509.KeyUsageFlags.keyEncipherment, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
        new x509.SubjectAlternativeNameExtension(names, true),
        await x509.AuthorityKeyIdentifierExtension.create(issuing.certificate.publicKey),
      ],
    });
    return { certificate, chain: [`${certificate.toString('pem').trimEnd()}\n`, ...issuing.intermediatePems] };
  }
}

function storedOf({ issuing, next, retiring, since }: RootState): StoredRoots {
  return { issuing: issuing.material, ...(next ? { next: next.material } : {}), retiring, since };
}

async function readRoots({ issuing, next, retiring, since }: StoredRoots, now: number): Promise<RootState> {
  return { issuing: await readSigningKey(issuing, 'the kept root', now), next: next && (await readSigningKey(next, 'the kept next root', now)), retiring, since };
}

/** @throws UnderpassError `UNDERPASS_CSR` */
export function parseCertificateRequest(pem: string): x509.Pkcs10CertificateRequest {
  try {
    return new x509.Pkcs10CertificateRequest(pem);
  } catch {
    throw new UnderpassError('UNDERPASS_CSR', 'reading a certificate request: expected PKCS #10 in PEM');
  }
}

/** The identities that a request names, and whether it names anything else. */
export function namesOf(request: x509.Pkcs10CertificateRequest): { ids: string[]; identities: (WorkloadIdentity | undefined)[] } {
  const extension = request.extensions.find((each) => each instanceof x509.SubjectAlternativeNameExtension);
  const ids = (extension?.names.items ?? []).map(({ value }) => value);
  return { ids, identities: (extension?.names.items ?? []).map(({ type, value }) => (type === 'url' ? parseSpiffeId(value) : undefined)) };
}

/** A request for a key of one's own; the names in it are a wish, the CA decides. */
export async function createCertificateRequest(identity?: WorkloadIdentity): Promise<{ requestPem: string; privateKeyPem: string }> {
  const keys = await generateKeys();
  const names = identity ? [new x509.SubjectAlternativeNameExtension([{ type: 'url', value: spiffeId(identity) }], true)] : [];
  const request = await x509.Pkcs10CertificateRequestGenerator.create({ name: '', keys, signingAlgorithm: LEAF_KEY_ALGORITHM, extensions: names });
  return { requestPem: request.toString('pem'), privateKeyPem: await privateKeyPem(keys.privateKey) };
}

async function checkRequest(request: x509.Pkcs10CertificateRequest): Promise<webcrypto.CryptoKey> {
  const wrong = (what: string): UnderpassError => new UnderpassError('UNDERPASS_CSR', `signing a certificate request: ${what}`);
  let key: webcrypto.CryptoKey;
  try {
    key = await request.publicKey.export();
    if (!(await request.verify())) throw new Error('wrong');
  } catch {
    throw wrong('its signature does not fit its key');
  }
  const algorithm = key.algorithm as { name: string; namedCurve?: string; modulusLength?: number };
  if (algorithm.name.startsWith('RSA')) {
    const bits = algorithm.modulusLength ?? 0;
    if (bits < MIN_RSA_BITS || bits > MAX_RSA_BITS) throw wrong(`found an RSA key of ${bits} bits, expected ${MIN_RSA_BITS} to ${MAX_RSA_BITS}`);
  } else if (algorithm.name !== 'ECDSA' || !['P-256', 'P-384', 'P-521'].includes(algorithm.namedCurve ?? '')) {
    throw wrong(`found a ${algorithm.name} ${algorithm.namedCurve ?? ''} key, expected RSA or EC P-256, P-384 or P-521`);
  }
  return key;
}
