/**
 * Istio's certificate service: signs requests of callers that have proven who they are, for that identity and no other. Only
 * a node's proxy may ask for pods' identities, and only for those of pods on its own node.
 */
import { status as GrpcStatus, type sendUnaryData, type ServerUnaryCall } from '@grpc/grpc-js';
import { systemClock, type Clock } from '../../common/clock.js';
import { errorCode, errorMessage } from '../../common/errors.js';
import { namesOf, parseCertificateRequest, type CertificateAuthority } from '../../common/identity/ca.js';
import { parseSpiffeId, spiffeId, type WorkloadIdentity } from '../../common/identity/spiffe.js';
import type { Logger } from '../../common/log.js';
import { IstioCertificateResponse, type IstioCertificateRequest, type IstioCertificateServiceServer } from '../../proto/generated/istio/v1/auth/ca.js';
import type { Authenticators } from './authenticate.js';
import type { NodeProxies } from './node-proxies.js';
import type { PeerIdentity } from './peer-identity.js';
import { RateLimit } from './rate-limit.js';

/** In the request's metadata: the SPIFFE id that a node's proxy asks for. */
const IMPERSONATED = 'ImpersonatedIdentity';
/** An RSA key of 8192 bits with names is under 4 KiB. */
const MAX_CSR_BYTES = 16 << 10;
const DEFAULT_RATE = { perSecond: 20, burst: 100 };
export interface CertificateServiceOptions {
  ca: CertificateAuthority;
  authenticators: Authenticators;
  nodeProxies: NodeProxies;
  /** Requests that one identity may make; a node's proxy asks for many pods. */
  rate?: { perSecond: number; burst: number };
  clock?: Clock;
  logger: Logger;
}

class Refusal extends Error {
  constructor(readonly code: GrpcStatus, message: string) {
    super(message);
  }
}

export class CertificateService {
  readonly #options: CertificateServiceOptions;
  readonly #rate: RateLimit;

  constructor(options: CertificateServiceOptions) {
    this.#options = options;
    const { perSecond, burst } = options.rate ?? DEFAULT_RATE;
    this.#rate = new RateLimit(perSecond, burst, (options.clock ?? systemClock).now);
  }

  readonly implementation: IstioCertificateServiceServer = {
    createCertificate: (call: ServerUnaryCall<IstioCertificateRequest, IstioCertificateResponse>, callback: sendUnaryData<IstioCertificateResponse>) => {
      this.#create(call).then(
        (chain) => callback(null, IstioCertificateResponse.fromPartial({ cert_chain: chain })),
        (error: unknown) => {
          if (error instanceof Refusal) return callback({ code: error.code, details: error.message });
          this.#options.logger.error({ reason: errorMessage(error) }, 'a certificate could not be issued');
          callback({ code: GrpcStatus.INTERNAL, details: 'the certificate could not be issued' });
        },
      );
    },
  };

  async #create(call: ServerUnaryCall<IstioCertificateRequest, IstioCertificateResponse>): Promise<string[]> {
    const { ca, authenticators, logger } = this.#options;
    const caller = await authenticators.identify(call);
    if (!caller) throw new Refusal(GrpcStatus.UNAUTHENTICATED, 'authentication failed');
    const callerId = spiffeId(caller);
    const { csr, validity_duration: seconds, metadata } = call.request;
    if (!this.#rate.take(callerId)) throw new Refusal(GrpcStatus.RESOURCE_EXHAUSTED, 'too many certificate requests; try again later');
    if (csr.length > MAX_CSR_BYTES) throw new Refusal(GrpcStatus.INVALID_ARGUMENT, `csr: found ${csr.length} bytes, expected at most ${MAX_CSR_BYTES}`);
    const identity = this.#identityFor(caller, metadata?.[IMPERSONATED], call.getPeer());
    try {
      const request = parseCertificateRequest(csr);
      this.#checkNames(namesOf(request), identity, callerId, call.getPeer());
      const ttlMs = seconds > 0n ? Number(seconds) * 1000 : undefined;
      const chain = await ca.sign(request, identity, ttlMs === undefined ? {} : { ttlMs });
      logger.info({ identity: spiffeId({ ...identity, trustDomain: ca.trustDomain }), caller: callerId, via: caller.via }, 'issued a certificate');
      // Roots are one element, the last, as with Istio's plugged-in CAs: clients take it for their trust anchors.
      return [...chain, ca.rootPem];
    } catch (error) {
      if (errorCode(error) === 'UNDERPASS_CSR') throw new Refusal(GrpcStatus.INVALID_ARGUMENT, errorMessage(error));
      throw error;
    }
  }

  /** Whose certificate it will be: the caller's, or the pod's that a node's proxy speaks for. */
  #identityFor(caller: PeerIdentity, wanted: unknown, peer: string): Pick<WorkloadIdentity, 'namespace' | 'serviceAccount'> {
    if (wanted === undefined || wanted === null || wanted === '') return caller;
    const { nodeProxies, ca, logger } = this.#options;
    const refuse = (reason: string): never => {
      logger.warn({ caller: spiffeId(caller), wanted, peer, reason }, 'refused a certificate for another identity');
      throw new Refusal(GrpcStatus.PERMISSION_DENIED, `${IMPERSONATED}: ${reason}`);
    };
    const identity = typeof wanted === 'string' ? parseSpiffeId(wanted) : undefined;
    if (!identity) return refuse('expected a SPIFFE id');
    if (identity.trustDomain !== ca.trustDomain) return refuse(`expected an identity of ${ca.trustDomain}`);
    const found = nodeProxies.nodeOf(caller);
    if ('refusal' in found) return refuse(found.refusal);
    if (!nodeProxies.directory.runsOnNode(found.node, identity)) return refuse("no pod of that identity runs on the caller's node");
    return identity;
  }

  /** A request that names nobody is fine; one that names somebody else is an attack or an error, and said so. */
  #checkNames({ ids, identities }: ReturnType<typeof namesOf>, identity: Pick<WorkloadIdentity, 'namespace' | 'serviceAccount'>, caller: string, peer: string): void {
    const { ca, logger } = this.#options;
    const own = spiffeId({ ...identity, trustDomain: ca.trustDomain });
    if (identities.every((named) => named && spiffeId(named) === own)) return;
    logger.warn({ caller, peer, asked: ids.slice(0, 5).map((id) => id.slice(0, 256)), allowed: own }, "refused a request for somebody else's identity");
    throw new Refusal(GrpcStatus.PERMISSION_DENIED, `csr: it names an identity that is not the caller's (${own})`);
  }
}
