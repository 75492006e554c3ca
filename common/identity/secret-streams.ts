/** The streams of Envoy's secret discovery service, both variants, for whatever server has the secrets. */
import type { ServerDuplexStream } from '@grpc/grpc-js';
import { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import {
  DeltaDiscoveryResponse as DeltaResponse,
  DiscoveryResponse as Response,
  type DeltaDiscoveryRequest,
  type DeltaDiscoveryResponse,
  type DiscoveryRequest,
  type DiscoveryResponse,
} from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import type { SecretDiscoveryServiceServer } from '../../proto/generated/envoy/service/secret/v3/sds.js';
import { pack, typeUrl } from '../xds/any.js';
import { subscriptionProblem } from '../xds/subscription.js';
import type { IssuedCertificate } from './ca.js';

export const WORKLOAD_SECRET = 'default';
export const ROOT_SECRET = 'ROOTCA';
/** Far more than any proxy has certificates. */
const MAX_NAMES = 1_000;

/** What one stream has asked for: `push` sends it the current secrets. */
interface Subscriber {
  push(): void;
}

/** The secret by which peers are verified. */
export function rootSecret(rootPem: string): Secret {
  const trusted = { specifier: { $case: 'inline_string' as const, value: rootPem } };
  return Secret.fromPartial({ name: ROOT_SECRET, type: { $case: 'validation_context', value: { trusted_ca: trusted } } });
}

/** The secret by which a peer is shown who this is. */
export function certificateSecret(name: string, { chainPem, privateKeyPem }: Pick<IssuedCertificate, 'chainPem' | 'privateKeyPem'>): Secret {
  const inline = (text: string) => ({ specifier: { $case: 'inline_string' as const, value: text } });
  return Secret.fromPartial({ name, type: { $case: 'tls_certificate', value: { certificate_chain: inline(chainPem), private_key: inline(privateKeyPem) } } });
}

export class SecretStreams {
  readonly #subscribers = new Set<Subscriber>();
  #version = 1;
  #nonce = 0;

  /** @param secret undefined for a name that is not known */
  constructor(readonly secret: (name: string) => Secret | undefined, readonly onError?: (error: unknown) => void) {}

  readonly implementation: SecretDiscoveryServiceServer = {
    streamSecrets: (stream) => this.onStream(stream),
    deltaSecrets: (stream) => this.onDelta(stream),
    fetchSecrets: (call, callback) => callback(null, this.response(call.request.resource_names)),
  };

  /** Sends everybody what they asked for anew. */
  refresh(): void {
    this.#version++;
    for (const subscriber of this.#subscribers) subscriber.push();
  }

  response(names: readonly string[]): DiscoveryResponse {
    const secrets = names.flatMap((name) => this.secret(name) ?? []);
    return Response.fromPartial({
      version_info: String(this.#version),
      resources: secrets.map((secret) => pack(Secret, secret)),
      type_url: typeUrl(Secret),
      nonce: String(++this.#nonce),
    });
  }

  onStream(stream: ServerDuplexStream<DiscoveryRequest, DiscoveryResponse>): void {
    let names: string[] = [];
    let nonce = '';
    const subscriber: Subscriber = {
      push: () => {
        const response = this.response(names);
        nonce = response.nonce;
        stream.write(response);
      },
    };
    stream.on('data', (request: DiscoveryRequest) => {
      if (request.error_detail) this.onError?.(new Error(`a secret was rejected: ${request.error_detail.message}`));
      const same = names.length === request.resource_names.length && names.every((name) => request.resource_names.includes(name));
      if (request.response_nonce && (request.response_nonce !== nonce || same)) return; // stale, an ACK or a NACK
      const problem = subscriptionProblem(request.resource_names, request.resource_names.length, MAX_NAMES);
      if (problem) return void stream.emit('error', problem);
      names = request.resource_names;
      if (names.length > 0) subscriber.push();
    });
    this.#attend(stream, subscriber);
  }

  onDelta(stream: ServerDuplexStream<DeltaDiscoveryRequest, DeltaDiscoveryResponse>): void {
    const names = new Set<string>();
    const send = (wanted: Iterable<string>): void => {
      const secrets = [...wanted].map((name) => ({ name, secret: this.secret(name) }));
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
      if (request.error_detail) this.onError?.(new Error(`a secret was rejected: ${request.error_detail.message}`));
      for (const name of request.resource_names_unsubscribe) names.delete(name);
      const fresh = request.resource_names_subscribe.filter((name) => !names.has(name));
      const problem = subscriptionProblem(fresh, names.size + fresh.length, MAX_NAMES);
      if (problem) return void stream.emit('error', problem);
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
    for (const event of ['finish', 'error', 'cancelled', 'close']) stream.on(event, leave);
  }
}
