/**
 * TLS of the secure port: a certificate of the mesh's own CA, and client certificates where there are any, verified against
 * its roots. Both are exchanged while connections and their streams go on.
 */
import { ServerCredentials } from '@grpc/grpc-js';
import { constants } from 'node:crypto';
import type { SecureContextOptions } from 'node:tls';
import type { CertificateAuthority } from '../../common/identity/ca.js';
import { CertificateRotation, type RotationOptions } from '../../common/identity/rotation.js';
import type { Closable } from '../../common/lifecycle.js';

export interface TlsMaterial {
  chainPem: string;
  privateKeyPem: string;
  rootPem: string;
}

function contextOptions({ chainPem, privateKeyPem, rootPem }: TlsMaterial): SecureContextOptions {
  return {
    cert: chainPem,
    key: privateKeyPem,
    ca: rootPem,
    minVersion: 'TLSv1.2',
    // A resumed session would carry on a client's verification by roots that may not count any more.
    secureOptions: constants.SSL_OP_NO_TICKET,
  };
}

class LiveServerCredentials extends ServerCredentials {
  constructor(material: TlsMaterial) {
    // A certificate that does not verify is none; whoever needs an identity finds none then.
    super({ requestCert: true, rejectUnauthorized: false }, contextOptions(material));
  }

  update(material: TlsMaterial): void {
    this.updateSecureContextOptions(contextOptions(material));
  }

  override _equals(other: ServerCredentials): boolean {
    return this === other;
  }
}

export interface ServerIdentityOptions extends RotationOptions {
  ca: CertificateAuthority;
  /** Names and addresses that clients call it by. */
  hosts: readonly string[];
  identity: { namespace: string; serviceAccount: string };
  onError: (error: Error) => void;
}

/** The control plane's own certificate: renewed at half of its life, and at once when the CA changes. */
export class ServerIdentity implements Closable {
  readonly credentials: ServerCredentials;
  readonly #forget: () => void;

  private constructor(readonly rotation: CertificateRotation, credentials: LiveServerCredentials, ca: CertificateAuthority, onError: (error: Error) => void) {
    this.credentials = credentials;
    this.#forget = ca.onChange(() => {
      // New roots count for clients at once, whatever becomes of the renewal.
      credentials.update({ ...rotation.current, rootPem: ca.rootPem });
      rotation.renew().catch((error: unknown) => onError(error as Error));
    });
  }

  static async start(options: ServerIdentityOptions): Promise<ServerIdentity> {
    const { ca, hosts, identity, onError } = options;
    let live: LiveServerCredentials | undefined;
    const rotation = new CertificateRotation({
      ...options,
      clock: options.clock ?? ca.clock,
      issue: () => ca.issueServer({ hosts, identity }),
      onRenewed: (certificate) => live?.update({ ...certificate, rootPem: ca.rootPem }),
    });
    await rotation.start();
    live = new LiveServerCredentials({ ...rotation.current, rootPem: ca.rootPem });
    return new ServerIdentity(rotation, live, ca, onError);
  }

  close(): void {
    this.#forget();
    this.rotation.close();
  }
}
