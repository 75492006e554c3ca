/**
 * Who istiod lets in on port 15012, and what its CA gives to whom: callers show a certificate of the mesh or a token, ask as
 * nodes of their own namespace and account, and only accounts that it trusts speak for the pods of their node. Its refusals say
 * what istiod's say.
 */
import { ServerCredentials, status, type Server, type ServerUnaryCall, type sendUnaryData, type Metadata, type ServerInterceptingCall } from '@grpc/grpc-js';
import { X509Certificate } from 'node:crypto';
import { createLocalJWKSet, jwtVerify } from 'jose';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { CA_AUDIENCE, TokenIssuer, type TokenSubject } from '../../common/identity/service-account-token.js';
import { parseSpiffeId, spiffeId } from '../../common/identity/spiffe.js';
import type { DeltaDiscoveryRequest } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { IstioCertificateResponse, IstioCertificateServiceService, type IstioCertificateRequest } from '../../proto/generated/istio/v1/auth/ca.js';
import type { ControlPlaneSecurity, TestStream } from './control-plane.js';

interface Call {
  readonly metadata: Metadata;
  getAuthContext(): ReturnType<ServerInterceptingCall['getAuthContext']>;
}

interface Caller {
  namespace: string;
  serviceAccount: string;
  /** Of a token that is bound to one. */
  pod?: string;
  via: 'certificate' | 'token';
}

/** What a cluster knows of its pods. */
export interface ClusterPod {
  namespace: string;
  name: string;
  serviceAccount: string;
  nodeName: string;
}

class LiveCredentials extends ServerCredentials {
  constructor(options: { cert: string; key: string; ca: string }) {
    super({ requestCert: true, rejectUnauthorized: false }, options);
  }

  /** For connections from now on. */
  update(options: { cert: string; key: string; ca: string }): void {
    this.updateSecureContextOptions(options);
  }

  override _equals(other: ServerCredentials): boolean {
    return this === other;
  }
}

export class IstiodSecurity implements ControlPlaneSecurity {
  /** CA_TRUSTED_NODE_ACCOUNTS, as `namespace/account`. */
  trustedNodeAccounts: string[] = [];
  pods: ClusterPod[] = [];
  leafTtlMs: number | undefined;
  /** Certificates that were given, and to whom. */
  readonly issued: { identity: string; caller: string; impersonated: boolean }[] = [];
  /** The node ids of streams that were let in, and how their callers were known. */
  readonly admitted: { nodeId: string; caller: string; via: string }[] = [];
  readonly refused: string[] = [];
  /** By callers' header `ClusterID`. */
  readonly clusters = new Set<string>();
  #live: LiveCredentials | undefined;

  private constructor(public ca: CertificateAuthority, readonly tokens: TokenIssuer) {}

  static async create(): Promise<IstiodSecurity> {
    return new IstiodSecurity(await CertificateAuthority.create(), await TokenIssuer.create());
  }

  token(subject: TokenSubject, ttlSeconds?: number): Promise<string> {
    return this.tokens.issue(subject, ttlSeconds === undefined ? {} : { ttlSeconds });
  }

  async credentials(): Promise<ServerCredentials> {
    this.#live = new LiveCredentials(await this.#material());
    return this.#live;
  }

  /** Another root from now on; nobody was told before. */
  async replaceCa(): Promise<void> {
    this.ca = await CertificateAuthority.create();
    this.#live?.update(await this.#material());
  }

  async #material(): Promise<{ cert: string; key: string; ca: string }> {
    const { chainPem, privateKeyPem } = await this.ca.issueServer({ hosts: ['localhost', '127.0.0.1'], identity: { namespace: 'istio-system', serviceAccount: 'istiod' } });
    return { cert: chainPem, key: privateKeyPem, ca: this.ca.rootPem };
  }

  async admit(stream: TestStream, { node }: DeltaDiscoveryRequest): Promise<boolean> {
    const caller = await this.#identify(stream.call);
    const refuse = (code: status, details: string): false => {
      this.refused.push(`${node?.id}: ${details}`);
      stream.call.emit('error', { code, details });
      return false;
    };
    if (!caller) return refuse(status.UNAUTHENTICATED, 'authentication failure');
    const namespace = node?.id.split('~')[3]?.split('.')[0];
    const account = node?.metadata?.['SERVICE_ACCOUNT'] as string | undefined;
    if (caller.namespace !== namespace || (account !== undefined && account !== caller.serviceAccount)) {
      return refuse(status.PERMISSION_DENIED, `authorization failed: no identities ([${name(caller)}]) matched ${namespace}/${account ?? ''}`);
    }
    stream.identity = name(caller);
    this.admitted.push({ nodeId: node?.id ?? '', caller: name(caller), via: caller.via });
    return true;
  }

  register(server: Server): void {
    server.addService(IstioCertificateServiceService, {
      createCertificate: (call: ServerUnaryCall<IstioCertificateRequest, IstioCertificateResponse> & Call, callback: sendUnaryData<IstioCertificateResponse>) => {
        this.#create(call).then((chain) => callback(null, IstioCertificateResponse.fromPartial({ cert_chain: chain })), (error: { code?: status; message: string }) => callback({ code: error.code ?? status.INTERNAL, details: error.message }));
      },
    });
  }

  async #create(call: ServerUnaryCall<IstioCertificateRequest, IstioCertificateResponse> & Call): Promise<string[]> {
    const caller = await this.#identify(call);
    if (!caller) throw refusal('request authenticate failure');
    const wanted = call.request.metadata?.['ImpersonatedIdentity'] as string | undefined;
    let identity: { namespace: string; serviceAccount: string } = caller;
    if (wanted !== undefined) {
      const parsed = parseSpiffeId(wanted);
      const own = this.pods.find(({ namespace, name: pod, serviceAccount }) => namespace === caller.namespace && pod === caller.pod && serviceAccount === caller.serviceAccount);
      const isTheirs = own && this.pods.some((pod) => pod.nodeName === own.nodeName && pod.namespace === parsed?.namespace && pod.serviceAccount === parsed.serviceAccount);
      // Whatever the reason, it says no more than this.
      if (!parsed || !this.trustedNodeAccounts.includes(name(caller)) || !isTheirs) throw refusal('request impersonation authentication failure');
      identity = parsed;
    }
    const chain = await this.ca.sign(call.request.csr, identity, this.leafTtlMs === undefined ? {} : { ttlMs: this.leafTtlMs });
    this.issued.push({ identity: spiffeId({ trustDomain: this.ca.trustDomain, ...identity }), caller: name(caller), impersonated: wanted !== undefined });
    return [...chain, this.ca.rootPem];
  }

  async #identify(call: Call): Promise<Caller | undefined> {
    for (const cluster of call.metadata.get('clusterid')) this.clusters.add(String(cluster));
    const raw = call.getAuthContext().sslPeerCertificate?.raw;
    if (raw) {
      const { subjectAltName = '', validTo } = new X509Certificate(raw);
      const identity = parseSpiffeId(subjectAltName.replace(/^URI:/, ''));
      return identity && Date.parse(validTo) > Date.now() ? { ...identity, via: 'certificate' } : undefined;
    }
    const [, token] = /^Bearer (\S+)$/.exec(String(call.metadata.get('authorization')[0] ?? '')) ?? [];
    if (token === undefined) return undefined;
    try {
      const { payload } = await jwtVerify(token, createLocalJWKSet(this.tokens.jwks), { audience: CA_AUDIENCE, issuer: this.tokens.issuer });
      const [, namespace, serviceAccount] = /^system:serviceaccount:([^:]+):([^:]+)$/.exec(payload.sub ?? '') ?? [];
      const { pod } = payload['kubernetes.io'] as { pod?: { name?: string } };
      return namespace && serviceAccount ? { namespace, serviceAccount, ...(pod?.name ? { pod: pod.name } : {}), via: 'token' } : undefined;
    } catch {
      return undefined;
    }
  }
}

const name = ({ namespace, serviceAccount }: Caller): string => `${namespace}/${serviceAccount}`;

function refusal(message: string): Error {
  return Object.assign(new Error(message), { code: status.UNAUTHENTICATED });
}
