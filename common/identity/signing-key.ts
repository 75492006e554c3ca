/** A CA certificate with its key and what leads from it to its root: read, checked, and used to sign. */
import 'reflect-metadata'; // @peculiar/x509 finds its parts through it
import * as x509 from '@peculiar/x509';
import { createPrivateKey, webcrypto, X509Certificate, type KeyObject } from 'node:crypto';
import { UnderpassError, errorMessage } from '../errors.js';

x509.cryptoProvider.set(webcrypto);

export const LEAF_KEY_ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
/** Clocks of machines differ; Istio dates back as well. */
export const BACKDATE_MS = 2 * 60_000;

/** PEM texts under the names of Istio's `cacerts`. */
export interface CaMaterial {
  certificatePem: string;
  privateKeyPem: string;
  /** The CA's certificate and those above it; the root may be among them. Empty for a self-signed CA. */
  chainPem: string;
  /** One or more roots, all of which are to be trusted. */
  rootPem: string;
}

export type SigningAlgorithm = { name: 'ECDSA'; namedCurve: string; hash: string } | { name: 'RSASSA-PKCS1-v1_5'; hash: string };

export interface SigningKey {
  readonly certificate: x509.X509Certificate;
  readonly key: webcrypto.CryptoKey;
  readonly algorithm: SigningAlgorithm;
  /** From this CA upwards, without the root; empty when this CA is the root itself. */
  readonly intermediatePems: readonly string[];
  /** Of the material it was read from. */
  readonly rootPems: readonly string[];
  readonly material: CaMaterial;
}

export function splitPem(text: string): string[] {
  return (text.match(/-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g) ?? []).map((pem) => `${pem}\n`);
}

export function generateKeys(): Promise<webcrypto.CryptoKeyPair> {
  return webcrypto.subtle.generateKey(LEAF_KEY_ALGORITHM, true, ['sign', 'verify']) as Promise<webcrypto.CryptoKeyPair>;
}

export async function privateKeyPem(key: webcrypto.CryptoKey): Promise<string> {
  return x509.PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', key), 'PRIVATE KEY');
}

export function serialNumber(): string {
  const bytes = webcrypto.getRandomValues(new Uint8Array(16));
  bytes[0] = (bytes[0] as number) & 0x7f; // a positive integer
  return Buffer.from(bytes).toString('hex');
}

/** A new self-signed root, P-256. */
export async function selfSignedRoot(options: { trustDomain: string; now: number; ttlMs: number }): Promise<SigningKey> {
  const { trustDomain, now, ttlMs } = options;
  const keys = await generateKeys();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    name: `O=${trustDomain}`,
    notBefore: new Date(now - BACKDATE_MS),
    notAfter: new Date(now + ttlMs),
    signingAlgorithm: LEAF_KEY_ALGORITHM,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  const pem = `${certificate.toString('pem').trimEnd()}\n`;
  return readSigningKey({ certificatePem: pem, privateKeyPem: await privateKeyPem(keys.privateKey), chainPem: '', rootPem: pem }, 'a new root', now);
}

/**
 * Reads and checks a CA: EC P-256, P-384, P-521 or RSA key in any of OpenSSL's PEM forms.
 * @param origin for messages: the directory or the Secret
 * @throws UnderpassError `UNDERPASS_CA` naming the part that does not fit; nothing of the key is in it
 */
export async function readSigningKey(material: CaMaterial, origin: string, now: number): Promise<SigningKey> {
  const wrong = (what: string): UnderpassError => new UnderpassError('UNDERPASS_CA', `reading the CA of ${origin}: ${what}`);
  const parse = (pem: string, name: string): X509Certificate[] => {
    try {
      return splitPem(pem).map((each) => new X509Certificate(each));
    } catch (error) {
      throw wrong(`${name}: ${errorMessage(error)}`);
    }
  };
  const [own] = parse(material.certificatePem, 'ca-cert.pem');
  if (!own) throw wrong('ca-cert.pem: no certificate in it');
  const roots = parse(material.rootPem, 'root-cert.pem');
  if (roots.length === 0) throw wrong('root-cert.pem: no certificate in it');
  let key: KeyObject;
  try {
    key = createPrivateKey(material.privateKeyPem);
  } catch {
    throw wrong('ca-key.pem: no private key in PEM');
  }
  if (!own.ca) throw wrong('ca-cert.pem: it is no CA certificate (basicConstraints CA:TRUE expected)');
  if (!own.checkPrivateKey(key)) throw wrong('ca-key.pem: it is not the key of ca-cert.pem');
  if (Date.parse(own.validTo) <= now) throw wrong(`ca-cert.pem: expired on ${own.validTo}`);
  const intermediates = chainToRoot(own, parse(material.chainPem, 'cert-chain.pem'), roots);
  if (!intermediates) throw wrong('cert-chain.pem: it does not lead from ca-cert.pem to a certificate of root-cert.pem');
  const algorithm = signingAlgorithm(key);
  if (!algorithm) throw wrong(`ca-key.pem: found a key of type ${key.asymmetricKeyType}, expected RSA or EC P-256, P-384 or P-521`);
  const der = key.export({ type: 'pkcs8', format: 'der' });
  return {
    certificate: new x509.X509Certificate(own.raw),
    key: await webcrypto.subtle.importKey('pkcs8', der, algorithm, false, ['sign']),
    algorithm,
    intermediatePems: intermediates.map((each) => each.toString()),
    rootPems: roots.map((each) => each.toString()),
    material,
  };
}

/** `own` and what lies between it and a root, in this order; undefined when no way leads there. */
function chainToRoot(own: X509Certificate, chain: readonly X509Certificate[], roots: readonly X509Certificate[]): X509Certificate[] | undefined {
  const isRoot = (candidate: X509Certificate): boolean => roots.some(({ fingerprint256 }) => fingerprint256 === candidate.fingerprint256);
  const found: X509Certificate[] = [];
  for (let current: X509Certificate = own; !isRoot(current); ) {
    if (found.includes(current)) return undefined;
    found.push(current);
    const issuer = [...chain, ...roots].find((candidate) => current.checkIssued(candidate) && current.verify(candidate.publicKey));
    if (!issuer) return undefined;
    current = issuer;
  }
  return found;
}

function signingAlgorithm(key: KeyObject): SigningAlgorithm | undefined {
  if (key.asymmetricKeyType === 'rsa') return { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' };
  const curves: Record<string, [string, string]> = { prime256v1: ['P-256', 'SHA-256'], secp384r1: ['P-384', 'SHA-384'], secp521r1: ['P-521', 'SHA-512'] };
  const [namedCurve, hash] = (key.asymmetricKeyType === 'ec' && curves[key.asymmetricKeyDetails?.namedCurve ?? '']) || [];
  return namedCurve && hash ? { name: 'ECDSA', namedCurve, hash } : undefined;
}
