/**
 * Certificates from a CA that speaks Istio's certificate service. The key is made here and stays in memory; who asks is
 * proven by a token or by a certificate of before. New roots come by a subscription to `ROOTCA` where the CA's server has
 * one (istiod has none), else with the next certificate.
 */
import { credentials, Metadata, status as GrpcStatus, type ChannelCredentials, type ClientDuplexStream, type ServiceError } from '@grpc/grpc-js';
import { X509Certificate } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import { DeltaDiscoveryRequest, type DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { SecretDiscoveryServiceClient } from '../../proto/generated/envoy/service/secret/v3/sds.js';
import { IstioCertificateRequest, IstioCertificateServiceClient, type IstioCertificateResponse } from '../../proto/generated/istio/v1/auth/ca.js';
import { systemClock, type Clock } from '../clock.js';
import { UnderpassError } from '../errors.js';
import type { Closable } from '../lifecycle.js';
import { Backoff, DEFAULT_BACKOFF, type BackoffOptions } from '../retry.js';
import { typeUrl, unpack } from '../xds/any.js';
import { createCertificateRequest, type IssuedCertificate } from './ca.js';
import type { IdentitySource } from './sds-server.js';
import { ROOT_SECRET } from './secret-streams.js';
import { splitPem } from './signing-key.js';
import { spiffeId, type WorkloadIdentity } from './spiffe.js';

const CALL_TIMEOUT_MS = 10_000;
/** What may be otherwise in a moment; anything else is for whoever asked to hear. */
const WORTH_A_RETRY: readonly GrpcStatus[] = [GrpcStatus.UNAVAILABLE, GrpcStatus.DEADLINE_EXCEEDED, GrpcStatus.RESOURCE_EXHAUSTED, GrpcStatus.INTERNAL, GrpcStatus.ABORTED];

/** istiod says no more than the first, whatever its reason. */
const REFUSALS: readonly GrpcStatus[] = [GrpcStatus.UNAUTHENTICATED, GrpcStatus.PERMISSION_DENIED];

export interface CaClientOptions {
  /** `host:port` of the CA. */
  address: string;
  /** Roots to begin with, by which the CA's server is verified; a function is asked before each call. */
  rootPem: string | (() => string);
  /** Its name in its certificate, where that is not the address's host. */
  serverName?: string;
  /** A bearer token, read anew for each call: projected tokens are renewed in place. */
  token?: () => string | Promise<string>;
  /** Of the identity that is asked for, in place of one of the caller's that speaks for it. */
  tokenOf?: (identity: WorkloadIdentity, signal?: AbortSignal) => Promise<string>;
  /** Istio's header of clusters other than the CA's own. */
  clusterId?: string;
  /** A certificate of before, in place of a token; undefined while there is none. */
  clientCertificate?: () => Pick<IssuedCertificate, 'chainPem' | 'privateKeyPem'> | undefined;
  /** The identity that a node's proxy asks for; absent: its own. */
  impersonate?: WorkloadIdentity;
  /** Asked for; the CA may give less. Default: the CA's own. */
  ttlMs?: number;
  backoff?: BackoffOptions;
  clock?: Clock;
  onError?: (error: unknown) => void;
}

export class CaIdentitySource implements IdentitySource, Closable {
  readonly #options: CaClientOptions;
  readonly #clock: Clock;
  readonly #listeners = new Set<() => void>();
  readonly #closed = new AbortController();
  #rootPem: string;
  /** The CA's server pushes its roots: those of an answer are older at best. */
  #subscribed = false;
  #bundleClient: SecretDiscoveryServiceClient | undefined;
  #bundleStream: ClientDuplexStream<DeltaDiscoveryRequest, DeltaDiscoveryResponse> | undefined;
  readonly #bundleBackoff: Backoff;

  constructor(options: CaClientOptions) {
    this.#options = options;
    // One for each account that is asked for, and gone with the answer: of a node with many accounts that is no leak.
    setMaxListeners(0, this.#closed.signal);
    this.#clock = options.clock ?? systemClock;
    this.#rootPem = givenRoots(options);
    this.#bundleBackoff = new Backoff(options.backoff ?? DEFAULT_BACKOFF);
  }

  get rootPem(): string {
    return this.#rootPem;
  }

  onRootChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    if (!this.#bundleStream) void this.#follow();
    return () => void this.#listeners.delete(listener);
  }

  /**
   * Tries until the CA answers.
   * @param impersonate as the option says, or another identity that a node's proxy asks for
   * @param signal nobody wants it any more: it is not asked for again
   * @throws UnderpassError `UNDERPASS_CA_REFUSED` when it refuses or answers for another identity, or when this was closed
   */
  async issue(impersonate = this.#options.impersonate, signal?: AbortSignal): Promise<IssuedCertificate> {
    const { ttlMs, tokenOf } = this.#options;
    const { requestPem, privateKeyPem } = await createCertificateRequest(impersonate);
    const request = IstioCertificateRequest.fromPartial({
      csr: requestPem,
      validity_duration: BigInt(Math.round((ttlMs ?? 0) / 1000)),
      ...(impersonate && !tokenOf ? { metadata: { ImpersonatedIdentity: spiffeId(impersonate) } } : {}),
    });
    const backoff = new Backoff(this.#options.backoff ?? DEFAULT_BACKOFF);
    for (;;) {
      signal?.throwIfAborted();
      try {
        const own = impersonate && tokenOf && (await tokenOf(impersonate, signal));
        return this.#accept(await this.#call(request, own), privateKeyPem, impersonate);
      } catch (error) {
        const { code, details } = error as ServiceError;
        if (typeof code !== 'number' || this.#closed.signal.aborted) throw error;
        const hint = impersonate && !tokenOf && REFUSALS.includes(code) ? '; does the CA trust this account to ask for its node\'s pods (istiod: CA_TRUSTED_NODE_ACCOUNTS, pilot: --node-account)?' : '';
        const failure = new UnderpassError('UNDERPASS_CA_REFUSED', `asking ${this.#options.address} for a certificate: ${GrpcStatus[code] ?? code}: ${details}${hint}`);
        if (!WORTH_A_RETRY.includes(code)) throw failure;
        this.#options.onError?.(failure);
        await this.#wait(backoff.next());
      }
    }
  }

  /** A CA that knows nothing of impersonation answers with the caller's own identity, which is not a pod's to show. */
  #accept({ cert_chain: chain }: IstioCertificateResponse, privateKeyPem: string, impersonate: WorkloadIdentity | undefined): IssuedCertificate {
    const [leaf, ...above] = chain;
    const rootPem = above.at(-1);
    if (!leaf || rootPem === undefined) throw new UnderpassError('UNDERPASS_CA_REFUSED', `asking ${this.#options.address} for a certificate: found ${chain.length} certificates, expected the leaf first and the root last`);
    const { validFrom, validTo, subjectAltName } = new X509Certificate(leaf);
    const wanted = impersonate && `URI:${spiffeId(impersonate)}`;
    if (wanted !== undefined && subjectAltName !== wanted) throw new UnderpassError('UNDERPASS_CA_REFUSED', `asking ${this.#options.address} for a certificate: found one of ${subjectAltName}, expected ${wanted}; does the CA let this account ask for its node's pods?`);
    if (!this.#subscribed) this.#setRoots(rootPem);
    return { chainPem: [leaf, ...above.slice(0, -1)].map((pem) => `${pem.trimEnd()}\n`).join(''), privateKeyPem, notBefore: new Date(validFrom), notAfter: new Date(validTo) };
  }

  #setRoots(rootPem: string): void {
    const normal = splitPem(rootPem).join('');
    if (normal === '' || normal === this.#rootPem) return;
    this.#rootPem = normal;
    for (const listener of this.#listeners) listener();
  }

  #call(request: IstioCertificateRequest, token?: string): Promise<IstioCertificateResponse> {
    const { address } = this.#options;
    return this.#metadata(token).then(
      (metadata) =>
        new Promise((resolve, reject) => {
          // One client a call: roots and the client's certificate may be others by the next.
          const client = new IstioCertificateServiceClient(address, this.#credentials(token !== undefined), this.#channelOptions());
          const close = (): void => client.close();
          this.#closed.signal.addEventListener('abort', close, { once: true });
          client.createCertificate(request, metadata, { deadline: Date.now() + CALL_TIMEOUT_MS }, (error, response) => {
            this.#closed.signal.removeEventListener('abort', close);
            client.close();
            if (error) reject(error);
            else resolve(response);
          });
        }),
    );
  }

  /** @param isAnothers whoever's token is shown: a certificate beside it would be who calls */
  #credentials(isAnothers = false): ChannelCredentials {
    const own = isAnothers ? undefined : this.#options.clientCertificate?.();
    const roots = Buffer.from([...new Set([...splitPem(this.#rootPem), ...splitPem(givenRoots(this.#options))])].join(''));
    return own ? credentials.createSsl(roots, Buffer.from(own.privateKeyPem), Buffer.from(own.chainPem)) : credentials.createSsl(roots);
  }

  #channelOptions(): Record<string, string | number> {
    const { serverName } = this.#options;
    return { 'grpc.use_local_subchannel_pool': 1, ...(serverName === undefined ? {} : { 'grpc.ssl_target_name_override': serverName, 'grpc.default_authority': serverName }) };
  }

  async #metadata(given?: string): Promise<Metadata> {
    const metadata = new Metadata();
    const { clusterId } = this.#options;
    const token = given ?? (await this.#options.token?.());
    if (clusterId !== undefined) metadata.set('clusterid', clusterId);
    if (token !== undefined) metadata.set('authorization', `Bearer ${token.trim()}`);
    return metadata;
  }

  /** Subscribes to the roots, and again when the stream ends. */
  async #follow(): Promise<void> {
    if (this.#closed.signal.aborted) return;
    const again = (error?: { code?: GrpcStatus }): void => {
      this.#bundleClient?.close();
      this.#bundleClient = this.#bundleStream = undefined;
      if (error?.code === GrpcStatus.UNIMPLEMENTED || this.#closed.signal.aborted) return;
      this.#clock.after(this.#bundleBackoff.next(), () => void this.#follow());
    };
    try {
      const metadata = await this.#metadata();
      if (this.#closed.signal.aborted) return;
      this.#bundleClient = new SecretDiscoveryServiceClient(this.#options.address, this.#credentials(), this.#channelOptions());
      const stream = (this.#bundleStream = this.#bundleClient.deltaSecrets(metadata));
      stream.on('data', (response: DeltaDiscoveryResponse) => {
        const secret = response.resources.find(({ name }) => name === ROOT_SECRET)?.resource;
        const value = secret && unpack(Secret, secret)?.type;
        const roots = value?.$case === 'validation_context' ? value.value.trusted_ca?.specifier : undefined;
        this.#bundleBackoff.reset();
        if (roots?.$case === 'inline_string') {
          this.#subscribed = true;
          this.#setRoots(roots.value);
        }
        stream.write(DeltaDiscoveryRequest.fromPartial({ type_url: typeUrl(Secret), response_nonce: response.nonce }));
      });
      let ended = false;
      const end = (error?: { code?: GrpcStatus }): void => {
        if (ended) return;
        ended = true;
        this.#subscribed = false;
        again(error);
      };
      stream.once('error', end);
      stream.once('end', () => end());
      stream.write(DeltaDiscoveryRequest.fromPartial({ type_url: typeUrl(Secret), resource_names_subscribe: [ROOT_SECRET] }));
    } catch (error) {
      this.#options.onError?.(error);
      again();
    }
  }

  #wait(ms: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const { signal } = this.#closed;
      if (signal.aborted) return reject(signal.reason as Error);
      const cancel = this.#clock.after(ms, () => {
        signal.removeEventListener('abort', stop);
        resolve();
      });
      const stop = (): void => {
        cancel();
        reject(signal.reason as Error);
      };
      signal.addEventListener('abort', stop, { once: true });
    });
  }

  close(): void {
    this.#closed.abort(new UnderpassError('UNDERPASS_CA_REFUSED', `asking ${this.#options.address} for a certificate: closed`));
    this.#bundleStream?.cancel();
    this.#bundleClient?.close();
    this.#listeners.clear();
  }
}

function givenRoots({ rootPem }: CaClientOptions): string {
  return typeof rootPem === 'string' ? rootPem : rootPem();
}
