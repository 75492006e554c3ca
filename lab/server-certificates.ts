/** A CA for tests of gateways and TLS origination, and what it signs. */
import { issueServerCertificate, selfSignedRoot, type ServerCertificate, type ServerCertificateOptions, type Signer } from '../common/identity/server-certificate.js';

export type { ServerCertificate } from '../common/identity/server-certificate.js';

export class ServerCertificates {
  private constructor(readonly signer: Signer) {}

  /** A CA of its own, good for a day. */
  static async create(options: { commonName: string }): Promise<ServerCertificates> {
    return new ServerCertificates(await selfSignedRoot(options.commonName));
  }

  get rootPem(): string {
    return this.signer.root.toString('pem');
  }

  /** For servers and clients alike; the first name is the subject's common name too. */
  issue(options: ServerCertificateOptions): Promise<ServerCertificate> {
    return issueServerCertificate(this.signer, options);
  }
}
