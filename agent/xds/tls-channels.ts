/**
 * How streams reach a control plane by TLS. istiod (port 15012) and pilot (--secure-listen) let a caller ask only as a node of
 * its own namespace and service account, so the agent has a connection of its own, by its token or certificate, and one for each service
 * account of its pods, by that account's certificate. A connection is there for as long as streams are on it; the next one is
 * made with the roots and the certificate that count then.
 */
import { credentials, Metadata, type CallCredentials, type ChannelCredentials, type ClientDuplexStream } from '@grpc/grpc-js';
import type { Closable } from '../../common/lifecycle.js';
import { errorMessage } from '../../common/errors.js';
import type { HealthCheckRequestOrEndpointHealthResponse, HealthCheckSpecifier } from '../../proto/generated/envoy/service/health/v3/hds.js';
import { AdsChannel, type DeltaStream, type StreamOpener } from './channel.js';

/** What shows a control plane who the agent is, and the agent that it is the control plane. */
export interface DiscoveryTls {
  /** PEM of the roots that count now. */
  roots(): string;
  /** The agent's own, read anew for each stream. */
  token(): Promise<string>;
  /** Shown in place of the token, where there is one. */
  certificate?(): ClientCertificate;
  /** Of the token, or of the certificate. */
  account?: { namespace: string; serviceAccount: string };
  /** Istio's header of clusters other than the control plane's own. */
  clusterId?: string;
}

export interface ClientCertificate {
  chainPem: string;
  privateKeyPem: string;
}

export interface TlsChannelsOptions {
  address: string;
  /** Default: plaintext, and all streams share one connection. */
  tls?: DiscoveryTls;
  /** By SPIFFE id, undefined while there is none; absent: all streams are opened by the agent's own token. */
  certificateOf?: (id: string) => ClientCertificate | undefined;
}

interface Connection {
  readonly channel: AdsChannel;
  /** What it was made with. */
  readonly material: string;
  streams: number;
}

export class TlsChannels implements Closable {
  readonly #options: TlsChannelsOptions;
  readonly #plain: AdsChannel | undefined;
  /** The newest, by SPIFFE id; the agent's own by the empty name. */
  readonly #connections = new Map<string, Connection>();
  readonly #all = new Set<Connection>();
  readonly #waiting = new Set<() => void>();

  constructor(options: TlsChannelsOptions) {
    this.#options = options;
    // Also where it is TLS: an address that is none is said at once.
    const plain = new AdsChannel(options.address);
    if (options.tls) plain.close();
    else this.#plain = plain;
  }

  /** As the agent itself. */
  readonly own: StreamOpener = { open: () => this.#open('', (channel) => channel.open(), this.#options.tls?.certificate?.()) };

  openHealth(): ClientDuplexStream<HealthCheckRequestOrEndpointHealthResponse, HealthCheckSpecifier> {
    return this.#open('', (channel) => channel.openHealth(), this.#options.tls?.certificate?.());
  }

  /** @param id asked for at each opening: what is known of a pod's trust domain may change */
  as(id: () => string): StreamOpener {
    return {
      open: (wake): DeltaStream | undefined => {
        const { tls, certificateOf } = this.#options;
        if (!tls || !certificateOf) return this.own.open(wake);
        const identity = id();
        const certificate = certificateOf(identity);
        if (certificate) return this.#open(identity, (channel) => channel.open(), certificate);
        this.#waiting.add(wake);
        return undefined;
      },
      waitsFor: () => `a certificate of ${id()} to show to the control plane`,
    };
  }

  /** Streams that wait for a certificate look again. */
  certificatesChanged(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const wake of waiting) wake();
  }

  #open<Stream extends DeltaStream | ReturnType<AdsChannel['openHealth']>>(name: string, open: (channel: AdsChannel) => Stream, certificate?: ClientCertificate): Stream {
    if (this.#plain) return open(this.#plain);
    const tls = this.#options.tls!;
    const roots = tls.roots();
    const material = `${roots}${certificate?.chainPem ?? ''}`;
    let connection = this.#connections.get(name);
    if (connection?.material !== material) {
      connection = { channel: new AdsChannel(this.#options.address, credentialsOf(tls, roots, certificate), { isAlone: true }), material, streams: 0 };
      this.#connections.set(name, connection);
      this.#all.add(connection);
    }
    const used = connection;
    used.streams++;
    const stream = open(used.channel);
    // The last event of a stream, however it ends.
    stream.once('status', () => {
      used.streams--;
      if (used.streams > 0) return;
      if (this.#connections.get(name) === used) this.#connections.delete(name);
      this.#all.delete(used);
      used.channel.close();
    });
    return stream;
  }

  close(): void {
    this.#waiting.clear();
    this.#plain?.close();
    for (const { channel } of this.#all) channel.close();
  }
}

function credentialsOf(tls: DiscoveryTls, roots: string, certificate: ClientCertificate | undefined): ChannelCredentials {
  if (certificate) return credentials.createSsl(Buffer.from(roots), Buffer.from(certificate.privateKeyPem), Buffer.from(certificate.chainPem));
  return credentials.combineChannelCredentials(credentials.createSsl(Buffer.from(roots)), shownToken(tls));
}

function shownToken({ token, clusterId }: DiscoveryTls): CallCredentials {
  return credentials.createFromMetadataGenerator((_, callback) => {
    token().then(
      (value) => {
        const metadata = new Metadata();
        metadata.set('authorization', `Bearer ${value.trim()}`);
        if (clusterId !== undefined) metadata.set('clusterid', clusterId);
        callback(null, metadata);
      },
      (error: unknown) => callback(new Error(`reading this agent's token: ${errorMessage(error)}`)),
    );
  });
}
