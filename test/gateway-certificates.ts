/** Certificates of a test's sites, as PEM and as files that curl reads. */
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ServerCertificates, type ServerCertificate } from '../lab/server-certificates.js';

export interface SiteCertificate {
  certificate: string;
  key: string;
  certificateFile: string;
  keyFile: string;
  /** In lower case hexadecimal. */
  serial: string;
}

export interface SiteCertificates {
  /** File with the authority of all but `stranger`. */
  ca: string;
  caPem: string;
  one: SiteCertificate;
  two: SiteCertificate;
  /** Another one for the first site. */
  renewed: SiteCertificate;
  client: SiteCertificate;
  /** Of an authority that nobody asks for. */
  stranger: SiteCertificate;
  remove(): void;
}

export async function siteCertificates(): Promise<SiteCertificates> {
  const folder = mkdtempSync(join(tmpdir(), 'up-sites-'));
  const [authority, foreign] = await Promise.all([ServerCertificates.create({ commonName: 'sites' }), ServerCertificates.create({ commonName: 'strangers' })]);
  const ca = join(folder, 'ca.pem');
  writeFileSync(ca, authority.rootPem);
  const issue = async (by: ServerCertificates, file: string, ...names: string[]): Promise<SiteCertificate> => {
    const made: ServerCertificate = await by.issue({ dnsNames: names });
    const [certificateFile, keyFile] = [join(folder, `${file}.pem`), join(folder, `${file}.key`)];
    writeFileSync(certificateFile, made.certificatePem);
    writeFileSync(keyFile, made.privateKeyPem, { mode: 0o600 });
    return { certificate: made.certificatePem, key: made.privateKeyPem, certificateFile, keyFile, serial: new X509Certificate(made.certificatePem).serialNumber.toLowerCase() };
  };
  return {
    ca,
    caPem: authority.rootPem,
    one: await issue(authority, 'one', 'one.example.com'),
    two: await issue(authority, 'two', 'two.example.com'),
    renewed: await issue(authority, 'renewed', 'one.example.com'),
    client: await issue(authority, 'client', 'client'),
    stranger: await issue(foreign, 'stranger', 'client'),
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}
