/**
 * A certificate authority in memory: a self-signed root and SPIFFE leaves, as Istio's citadel issues them. Keys never
 * touch a disk.
 */
import 'reflect-metadata'; // @peculiar/x509 finds its parts through it
import * as x509 from '@peculiar/x509';
import { webcrypto } from 'node:crypto';

export const DEFAULT_TRUST_DOMAIN = 'cluster.local';

const KEY_ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const DAY_MS = 86_400_000;
const ROOT_TTL_MS = 3650 * DAY_MS;
const LEAF_TTL_MS = DAY_MS;
/** Clocks of machines differ; Istio dates back as well. */
const BACKDATE_MS = 2 * 60_000;

export interface WorkloadIdentity {
  trustDomain: string;
  namespace: string;
  serviceAccount: string;
}

export interface IssuedCertificate {
  /** Leaf first, then what leads to the root. */
  chainPem: string;
  privateKeyPem: string;
  notBefore: Date;
  notAfter: Date;
}

export function spiffeId({ trustDomain, namespace, serviceAccount }: WorkloadIdentity): string {
  return `spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`;
}

export class CertificateAuthority {
  private constructor(
    readonly trustDomain: string,
    readonly root: x509.X509Certificate,
    readonly keys: webcrypto.CryptoKeyPair,
  ) {}

  static async create(options: { trustDomain?: string } = {}): Promise<CertificateAuthority> {
    x509.cryptoProvider.set(webcrypto);
    const trustDomain = options.trustDomain ?? DEFAULT_TRUST_DOMAIN;
    const keys = await generateKeys();
    const root = await x509.X509CertificateGenerator.createSelfSigned({
      serialNumber: serialNumber(),
      name: `O=${trustDomain}`,
      notBefore: new Date(Date.now() - BACKDATE_MS),
      notAfter: new Date(Date.now() + ROOT_TTL_MS),
      signingAlgorithm: KEY_ALGORITHM,
      keys: keys,
      extensions: [
        new x509.BasicConstraintsExtension(true, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      ],
    });
    return new CertificateAuthority(trustDomain, root, keys);
  }

  get rootPem(): string {
    return this.root.toString('pem');
  }

  /** A new key and its certificate with the workload's SPIFFE id as only name, 24 h unless told. */
  async issue(identity: Omit<WorkloadIdentity, 'trustDomain'>, options: { ttlMs?: number } = {}): Promise<IssuedCertificate> {
    const keys = await generateKeys();
    const privateKey = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey);
    const certificate = await this.#sign(keys.publicKey, identity, options.ttlMs ?? LEAF_TTL_MS);
    return {
      chainPem: certificate.toString('pem'),
      privateKeyPem: x509.PemConverter.encode(privateKey, 'PRIVATE KEY'),
      notBefore: certificate.notBefore,
      notAfter: certificate.notAfter,
    };
  }

  /**
   * Signs a PKCS #10 request for this identity; what the request itself says of names is not looked at.
   * @throws Error when the request's own signature is wrong
   */
  async sign(
    requestPem: string,
    identity: Omit<WorkloadIdentity, 'trustDomain'>,
    options: { ttlMs?: number } = {},
  ): Promise<string> {
    const request = new x509.Pkcs10CertificateRequest(requestPem);
    if (!(await request.verify())) throw new Error('signing a certificate request: its signature does not fit its key');
    const certificate = await this.#sign(await request.publicKey.export(), identity, options.ttlMs ?? LEAF_TTL_MS);
    return certificate.toString('pem');
  }

  async #sign(
    publicKey: webcrypto.CryptoKey,
    identity: Omit<WorkloadIdentity, 'trustDomain'>,
    ttlMs: number,
  ): Promise<x509.X509Certificate> {
    const now = Date.now();
    return x509.X509CertificateGenerator.create({
      serialNumber: serialNumber(),
      // Istio leaves the subject empty, which makes the alternative name critical (RFC 5280, 4.2.1.6).
      subject: '',
      issuer: this.root.subject,
      notBefore: new Date(now - BACKDATE_MS),
      notAfter: new Date(now + ttlMs),
      signingAlgorithm: KEY_ALGORITHM,
      publicKey: publicKey,
      signingKey: this.keys.privateKey,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature | x509.KeyUsageFlags.keyEncipherment, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
        new x509.SubjectAlternativeNameExtension(
          [{ type: 'url', value: spiffeId({ trustDomain: this.trustDomain, ...identity }) }],
          true,
        ),
        await x509.AuthorityKeyIdentifierExtension.create(this.root.publicKey),
      ],
    });
  }
}

function generateKeys(): Promise<webcrypto.CryptoKeyPair> {
  return webcrypto.subtle.generateKey(KEY_ALGORITHM, true, ['sign', 'verify']) as Promise<webcrypto.CryptoKeyPair>;
}

function serialNumber(): string {
  const bytes = webcrypto.getRandomValues(new Uint8Array(16));
  bytes[0] = (bytes[0] as number) & 0x7f; // a positive integer
  return Buffer.from(bytes).toString('hex');
}
