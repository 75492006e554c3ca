/** Certificates with DNS names, for servers that no SPIFFE id is looked for at: webhooks, gateways in tests. */
import 'reflect-metadata'; // @peculiar/x509 finds its parts through it
import * as x509 from '@peculiar/x509';
import { webcrypto } from 'node:crypto';
import type { SigningAlgorithm } from './signing-key.js';

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const DAY_MS = 86_400_000;
/** Clocks of machines differ. */
const BACKDATE_MS = 2 * 60_000;

/** A certificate authority as far as signing goes; CertificateAuthority is one. */
export interface Signer {
  readonly root: x509.X509Certificate;
  /** What is to be trusted; default `root`. */
  readonly rootPem?: string;
  readonly keys: Pick<webcrypto.CryptoKeyPair, 'privateKey'>;
  /** Of its key; default ECDSA P-256. */
  readonly signingAlgorithm?: SigningAlgorithm;
  /** What leads from it to the root that is trusted; none when it is that root itself. */
  readonly intermediatePems?: readonly string[];
}

export interface ServerCertificate {
  /** The leaf, and what leads to the root if the signer is an intermediate. */
  certificatePem: string;
  /** PKCS #8. */
  privateKeyPem: string;
  notBefore: Date;
  notAfter: Date;
}

export interface ServerCertificateOptions {
  /** The first is the subject's common name too. */
  dnsNames: readonly string[];
  ips?: readonly string[];
  uris?: readonly string[];
  /** In the subject: to Kubernetes' API server a client's group. */
  organization?: string;
  /** Default: a day. */
  ttlMs?: number;
}

/** For servers and clients alike. */
export async function issueServerCertificate(signer: Signer, options: ServerCertificateOptions): Promise<ServerCertificate> {
  x509.cryptoProvider.set(webcrypto);
  const keys = await generateKeys();
  const { dnsNames, ips = [], uris = [], organization, ttlMs = DAY_MS } = options;
  const general = (type: 'dns' | 'ip' | 'url') => (value: string): x509.JsonGeneralName => ({ type, value });
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serialNumber(),
    subject: [{ CN: [dnsNames[0] ?? ips[0] ?? 'unnamed'] }, ...(organization === undefined ? [] : [{ O: [organization] }])],
    issuer: signer.root.subjectName,
    notBefore: new Date(Date.now() - BACKDATE_MS),
    notAfter: new Date(Date.now() + ttlMs),
    signingAlgorithm: signer.signingAlgorithm ?? ALGORITHM,
    publicKey: keys.publicKey,
    signingKey: signer.keys.privateKey,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature | x509.KeyUsageFlags.keyEncipherment, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
      new x509.SubjectAlternativeNameExtension([...dnsNames.map(general('dns')), ...ips.map(general('ip')), ...uris.map(general('url'))]),
      await x509.AuthorityKeyIdentifierExtension.create(signer.root.publicKey),
    ],
  });
  const privateKey = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey);
  const { notBefore, notAfter } = certificate;
  return { certificatePem: [`${certificate.toString('pem').trimEnd()}\n`, ...(signer.intermediatePems ?? [])].join(''), privateKeyPem: x509.PemConverter.encode(privateKey, 'PRIVATE KEY'), notBefore, notAfter };
}

/** A root of its own, good for a day: for tests. */
export async function selfSignedRoot(commonName: string): Promise<Signer> {
  x509.cryptoProvider.set(webcrypto);
  const keys = await generateKeys();
  const root = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    name: [{ CN: [commonName] }],
    notBefore: new Date(Date.now() - BACKDATE_MS),
    notAfter: new Date(Date.now() + DAY_MS),
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { root, keys };
}

function generateKeys(): Promise<webcrypto.CryptoKeyPair> {
  return webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']) as Promise<webcrypto.CryptoKeyPair>;
}

function serialNumber(): string {
  const bytes = webcrypto.getRandomValues(new Uint8Array(16));
  bytes[0] = (bytes[0] as number) & 0x7f; // a positive integer
  return Buffer.from(bytes).toString('hex');
}
