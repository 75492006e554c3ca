/**
 * Envoy's secret discovery service on a Unix socket for one workload identity: `default` is its certificate, `ROOTCA` the
 * trust anchor, as Istio's agent serves them. Certificates are renewed at half of their life and pushed.
 */
import { Server, ServerCredentials, type ServerDuplexStream } from '@grpc/grpc-js';
import { rmSync } from 'node:fs';
import { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import type {
  DeltaDiscoveryRequest,
  DeltaDiscoveryResponse,
  DiscoveryRequest,
  DiscoveryResponse,
} from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import {
  SecretDiscoveryServiceService,
  type SecretDiscoveryServiceServer,
} from '../../proto/generated/envoy/service/secret/v3/sds.js';
import {
  DeltaDiscoveryResponse as DeltaResponse,
  DiscoveryResponse as Response,
} from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { errorMessage } from '../errors.js';
import type { Closable } from '../lifecycle.js';
import { pack, typeUrl } from '../xds/any.js';
import type { IssuedCertificate } from './ca.js';

export const WORKLOAD_SECRET = 'default';
export const ROOT_SECRET = 'ROOTCA';

const RENEW_RETRY_MS = 10_000;
/** setTimeout's own limit is 2^31 ms. */
const MAX_TIMER_MS = 2 ** 31 - 1;

export interface IdentitySource {
  rootPem: string;
  issue(): Promise<IssuedCertificate>;
}

export interface SdsServerOptions {
  socketPath: string;
  source: IdentitySource;
  /** Secrets beside the workload's own, e.g. those in files. */
  more?: (name: string) => Secret | undefined;
  onError?: (error: unknown) => void;
}

/** What one stream has asked for: `push` sends it the current secrets. */
interface Subscriber {
  push(): void;
}

export class SdsServer implements Closable {
  readonly #options: SdsServerOptions;
  readonly #server = new Server();
  readonly #subscribers = new Set<Subscriber>();
  #certificate: IssuedCertificate;
  #version = 1;
  #nonce = 0;
  #timer: NodeJS.Timeout | undefined;

  private constructor(options: SdsServerOptions, certificate: IssuedCertificate) {
    this.#options = options;
    this.#certificate = certificate;
  }

  static async listen(options: SdsServerOptions): Promise<SdsServer> {
    const server = new SdsServer(options, await options.source.issue());
    const implementation: SecretDiscoveryServiceServer = {
      streamSecrets: (stream) => server.#onStream(stream),
      deltaSecrets: (stream) => server.#onDelta(stream),
      fetchSecrets: (call, callback) => callback(null, server.#response(call.request.resource_names)),
    };
    server.#server.addService(SecretDiscoveryServiceService, implementation);
    rmSync(options.socketPath, { force: true });
    await new Promise<void>((resolve, reject) => {
      server.#server.bindAsync(`unix:${options.socketPath}`, ServerCredentials.createInsecure(), (error) =>
        error ? reject(error) : resolve(),
      );
    });
    server.#schedule();
    return server;
  }

  get certificate(): IssuedCertificate {
    return this.#certificate;
  }

  /** Gets a new certificate and pushes it to whoever asked for one. */
  async renew(): Promise<void> {
    this.#certificate = await this.#options.source.issue();
    this.#schedule();
    this.refresh();
  }

  /** Sends everybody what they asked for anew: another secret than the workload's own has changed. */
  refresh(): void {
    this.#version++;
    for (const subscriber of this.#subscribers) subscriber.push();
  }

  #schedule(retryMs?: number): void {
    clearTimeout(this.#timer);
    const { notBefore, notAfter } = this.#certificate;
    const halfLifeMs = (notBefore.getTime() + notAfter.getTime()) / 2 - Date.now();
    this.#timer = setTimeout(
      () => {
        this.renew().catch((error: unknown) => {
          this.#options.onError?.(new Error(`renewing a certificate: ${errorMessage(error)}`));
          this.#schedule(RENEW_RETRY_MS);
        });
      },
      Math.min(MAX_TIMER_MS, Math.max(retryMs ?? 0, halfLifeMs, 0)),
    );
    this.#timer.unref();
  }

  #secret(name: string): Secret | undefined {
    if (name === WORKLOAD_SECRET) {
      const { chainPem, privateKeyPem } = this.#certificate;
      return Secret.fromPartial({
        name,
        type: {
          $case: 'tls_certificate',
          value: {
            certificate_chain: { specifier: { $case: 'inline_string', value: chainPem } },
            private_key: { specifier: { $case: 'inline_string', value: privateKeyPem } },
          },
        },
      });
    }
    if (name === ROOT_SECRET) {
      const trusted = { specifier: { $case: 'inline_string' as const, value: this.#options.source.rootPem } };
      return Secret.fromPartial({ name, type: { $case: 'validation_context', value: { trusted_ca: trusted } } });
    }
    return this.#options.more?.(name);
  }

  #response(names: readonly string[]): DiscoveryResponse {
    const secrets = names.flatMap((name) => this.#secret(name) ?? []);
    return Response.fromPartial({
      version_info: String(this.#version),
      resources: secrets.map((secret) => pack(Secret, secret)),
      type_url: typeUrl(Secret),
      nonce: String(++this.#nonce),
    });
  }

  #onStream(stream: ServerDuplexStream<DiscoveryRequest, DiscoveryResponse>): void {
    let names: string[] = [];
    let nonce = '';
    const subscriber: Subscriber = {
      push: () => {
        const response = this.#response(names);
        nonce = response.nonce;
        stream.write(response);
      },
    };
    stream.on('data', (request: DiscoveryRequest) => {
      if (request.error_detail) this.#options.onError?.(new Error(`a secret was rejected: ${request.error_detail.message}`));
      const same = names.length === request.resource_names.length && names.every((name) => request.resource_names.includes(name));
      if (request.response_nonce && (request.response_nonce !== nonce || same)) return; // stale, an ACK or a NACK
      names = request.resource_names;
      if (names.length > 0) subscriber.push();
    });
    this.#attend(stream, subscriber);
  }

  #onDelta(stream: ServerDuplexStream<DeltaDiscoveryRequest, DeltaDiscoveryResponse>): void {
    const names = new Set<string>();
    const send = (wanted: Iterable<string>): void => {
      const secrets = [...wanted].map((name) => ({ name, secret: this.#secret(name) }));
      const known = secrets.flatMap(({ secret }) => secret ?? []);
      stream.write(
        DeltaResponse.fromPartial({
          system_version_info: String(this.#version),
          resources: known.map((secret) => ({
            name: secret.name,
            version: String(this.#version),
            resource: pack(Secret, secret),
          })),
          removed_resources: secrets.filter(({ secret }) => !secret).map(({ name }) => name),
          type_url: typeUrl(Secret),
          nonce: String(++this.#nonce),
        }),
      );
    };
    stream.on('data', (request: DeltaDiscoveryRequest) => {
      if (request.error_detail) this.#options.onError?.(new Error(`a secret was rejected: ${request.error_detail.message}`));
      for (const name of request.resource_names_unsubscribe) names.delete(name);
      const fresh = request.resource_names_subscribe.filter((name) => !names.has(name));
      for (const name of fresh) names.add(name);
      if (fresh.length > 0) send(fresh);
    });
    this.#attend(stream, { push: () => send(names) });
  }

  #attend(
    stream:
      | ServerDuplexStream<never, never>
      | ServerDuplexStream<DiscoveryRequest, DiscoveryResponse>
      | ServerDuplexStream<DeltaDiscoveryRequest, DeltaDiscoveryResponse>,
    subscriber: Subscriber,
  ): void {
    this.#subscribers.add(subscriber);
    const leave = (): void => void this.#subscribers.delete(subscriber);
    stream.on('end', () => {
      leave();
      stream.end();
    });
    stream.on('error', leave);
    stream.on('cancelled', leave);
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#server.forceShutdown();
    rmSync(this.#options.socketPath, { force: true });
  }
}
