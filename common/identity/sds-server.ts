/**
 * Envoy's secret discovery service on a Unix socket for one workload identity: `default` is its certificate, `ROOTCA` the
 * trust anchors, as Istio's agent serves them. Certificates are renewed at half of their life and pushed, roots when they change.
 */
import { Server, ServerCredentials } from '@grpc/grpc-js';
import { rmSync } from 'node:fs';
import type { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import { SecretDiscoveryServiceService } from '../../proto/generated/envoy/service/secret/v3/sds.js';
import type { Closable } from '../lifecycle.js';
import type { IssuedCertificate } from './ca.js';
import { CertificateRotation, type RotationOptions } from './rotation.js';
import { certificateSecret, ROOT_SECRET, rootSecret, SecretStreams, WORKLOAD_SECRET } from './secret-streams.js';

export { ROOT_SECRET, WORKLOAD_SECRET } from './secret-streams.js';

export interface IdentitySource {
  /** All roots that count now. */
  readonly rootPem: string;
  issue(): Promise<IssuedCertificate>;
  /** Tells of other roots than before. @returns what ends it. */
  onRootChange?(listener: () => void): () => void;
}

export interface SdsServerOptions {
  socketPath: string;
  source: IdentitySource;
  /** Secrets beside the workload's own, e.g. those in files. */
  more?: (name: string) => Secret | undefined;
  rotation?: RotationOptions;
  onError?: (error: unknown) => void;
}

export class SdsServer implements Closable {
  readonly #options: SdsServerOptions;
  readonly #server = new Server();
  readonly #rotation: CertificateRotation;
  readonly #streams: SecretStreams;
  #forgetSource: (() => void) | undefined;

  private constructor(options: SdsServerOptions) {
    this.#options = options;
    this.#streams = new SecretStreams((name) => this.#secret(name), options.onError);
    this.#rotation = new CertificateRotation({ ...options.rotation, issue: () => options.source.issue(), onRenewed: () => this.refresh(), onError: (error) => options.onError?.(error) });
  }

  static async listen(options: SdsServerOptions): Promise<SdsServer> {
    const server = new SdsServer(options);
    await server.#rotation.start();
    server.#server.addService(SecretDiscoveryServiceService, server.#streams.implementation);
    rmSync(options.socketPath, { force: true });
    await new Promise<void>((resolve, reject) => {
      server.#server.bindAsync(`unix:${options.socketPath}`, ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      );
    });
    server.#forgetSource = options.source.onRootChange?.(() => server.refresh());
    return server;
  }

  get certificate(): IssuedCertificate {
    return this.#rotation.current;
  }

  /** Gets a new certificate and pushes it to whoever asked for one. */
  async renew(): Promise<void> {
    await this.#rotation.renew();
  }

  /** Sends everybody what they asked for anew: another secret than the workload's own has changed. */
  refresh(): void {
    this.#streams.refresh();
  }

  #secret(name: string): Secret | undefined {
    if (name === WORKLOAD_SECRET) return certificateSecret(name, this.#rotation.current);
    if (name === ROOT_SECRET) return rootSecret(this.#options.source.rootPem);
    return this.#options.more?.(name);
  }

  close(): void {
    this.#rotation.close();
    this.#forgetSource?.();
    this.#server.forceShutdown();
    rmSync(this.#options.socketPath, { force: true });
  }
}
