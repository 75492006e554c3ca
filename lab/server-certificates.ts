/** Certificates with DNS names for servers and their clients, as tests of gateways and TLS origination need them. */
import 'reflect-metadata'; // @peculiar/x509 finds its parts through it
import * as x509 from '@peculiar/x509';
import { webcrypto } from 'node:crypto';

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const DAY_MS = 86_400_000;
const BACKDATE_MS = 2 * 60_000;

export interface ServerCertificate {
  /** The leaf alone; the CA that signed it is `rootPem`. */
  certificatePem: string;
  /** PKCS #8. */
  privateKeyPem: string;
}

export class ServerCertificates {
  private constructor(
    readonly root: x509.X509Certificate,
    readonly keys: webcrypto.CryptoKeyPair,
  ) {}

  /** A CA of its own, good for a day. */
  static async create(options: { commonName: string }): Promise<ServerCertificates> {
    x509.cryptoProvider.set(webcrypto);
    const keys = await generateKeys();
    const root = await x509.X509CertificateGenerator.createSelfSigned({
      serialNumber: serialNumber(),
      name: [{ CN: [options.commonName] }],
      notBefore: new Date(Date.now() - BACKDATE_MS),
      notAfter: new Date(Date.now() + DAY_MS),
      signingAlgorithm: ALGORITHM,
      keys,
      extensions: [new x509.BasicConstraintsExtension(true, undefined, true), new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true), await x509.SubjectKeyIdentifierExtension.create(keys.publicKey)],
    });
    return new ServerCertificates(root, keys);
  }

  get rootPem(): string {
    return this.root.toString('pem');
  }

  /** For servers and clients alike; the first name is the subject's common name too. */
  async issue(options: { dnsNames: readonly string[]; uris?: readonly string[]; ttlMs?: number }): Promise<ServerCertificate> {
    const keys = await generateKeys();
    const { dnsNames, uris = [], ttlMs = DAY_MS } = options;
    const names: x509.JsonGeneralName[] = [...dnsNames.map((value) => ({ type: 'dns' as const, value })), ...uris.map((value) => ({ type: 'url' as const, value }))];
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: serialNumber(),
      subject: [{ CN: [dnsNames[0] ?? 'unnamed'] }],
      issuer: this.root.subject,
      notBefore: new Date(Date.now() - BACKDATE_MS),
      notAfter: new Date(Date.now() + ttlMs),
      signingAlgorithm: ALGORITHM,
      publicKey: keys.publicKey,
      signingKey: this.keys.privateKey,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature | x509.KeyUsageFlags.keyEncipherment, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
        new x509.SubjectAlternativeNameExtension(names),
        await x509.AuthorityKeyIdentifierExtension.create(this.root.publicKey),
      ],
    });
    const privateKey = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey);
    return { certificatePem: certificate.toString('pem'), privateKeyPem: x509.PemConverter.encode(privateKey, 'PRIVATE KEY') };
  }
}

function generateKeys(): Promise<webcrypto.CryptoKeyPair> {
  return webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']) as Promise<webcrypto.CryptoKeyPair>;
}

function serialNumber(): string {
  const bytes = webcrypto.getRandomValues(new Uint8Array(16));
  bytes[0] = (bytes[0] as number) & 0x7f; // a positive integer
  return Buffer.from(bytes).toString('hex');
}
