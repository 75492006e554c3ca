/**
 * The secure side of the control plane: its CA, who callers are, and what the TLS port serves besides ADS: certificates,
 * and the mesh's roots to whoever follows them (secret `ROOTCA`, no other).
 */
import { status as GrpcStatus } from '@grpc/grpc-js';
import { readFile } from 'node:fs/promises';
import { CertificateAuthority, DEFAULT_LEAF_TTL_MS, DEFAULT_MAX_LEAF_TTL_MS, type CaOptions, type RootStore } from '../../common/identity/ca.js';
import { FileRootStore } from '../../common/identity/root-store.js';
import { ROOT_SECRET, rootSecret, SecretStreams } from '../../common/identity/secret-streams.js';
import { LOCAL_ISSUER } from '../../common/identity/service-account-token.js';
import { spiffeId } from '../../common/identity/spiffe.js';
import type { Secret } from '../../common/kube/types.js';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import { ClosableStore, type Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { SecretDiscoveryServiceService } from '../../proto/generated/envoy/service/secret/v3/sds.js';
import { IstioCertificateServiceService } from '../../proto/generated/istio/v1/auth/ca.js';
import type { ChangeSet } from '../model/changes.js';
import type { Model } from '../model/model.js';
import type { ServiceRegistry } from '../push/server-group.js';
import type { GuardedCall, StreamGuard } from '../push/stream-guard.js';
import { Authenticators, CertificateAuthenticator, JwtAuthenticator, parseJwks, type AuthenticatedCall, type Authenticator } from './authenticate.js';
import { CACERTS, cacertsOf, CacertsWatcher, readCacerts } from './cacerts.js';
import { CertificateService } from './certificate-service.js';
import type { HealthServer } from '../health/server.js';
import { ModelNodes } from './model-nodes.js';
import { NodeProxies } from './node-proxies.js';
import type { PeerIdentity } from './peer-identity.js';
import { RootRotation } from './root-rotation.js';
import { RootSecretFollower, SecretRootStore } from './secret-root-store.js';
import { ServerIdentity } from './server-credentials.js';
import { TokenReviewAuthenticator, type TokenReviewOptions } from './token-review.js';

export interface SecurityOptions {
  /** `host:port` of the TLS port; istiod's is 15012. */
  listen: readonly string[];
  /** A CA that is there already; whoever gave it sees to its rotation. */
  ca?: CertificateAuthority;
  /** More names and addresses of the server's certificate than istiod's own. */
  hosts?: readonly string[];
  /** A directory with Istio's `cacerts`, followed live; without one the Secret `cacerts` of the root namespace counts, else a root of its own. */
  caDirectory?: string;
  /** Where a root of its own is kept: this file, else the Secret of the cluster, else it ends with the process. */
  caStateFile?: string;
  /** The Secret that all pilots of the cluster share. */
  rootSecret?: SecretRootStore;
  /** A file, or the https URL, of the JWKS that service account tokens are verified with. */
  tokenJwks?: string;
  tokenIssuer?: string;
  tokenAudiences?: readonly string[];
  /** To ask Kubernetes' API server about tokens. */
  tokenReview?: TokenReviewOptions['client'];
  /** `namespace/service-account` of proxies that may ask for the identities of their node's pods. */
  nodeAccounts?: readonly string[];
  leafTtlMs?: number;
  maxLeafTtlMs?: number;
}

const SERVER_ACCOUNT = 'istiod';

export class Security implements Closable {
  readonly #store = new ClosableStore();

  private constructor(readonly ca: CertificateAuthority, readonly authenticators: Authenticators, readonly model: Model, readonly logger: Logger, readonly fromSecret: boolean, readonly options: SecurityOptions, readonly serverIdentity: ServerIdentity) {}

  /** Reads or makes the CA. @throws UnderpassError when what was given does not fit together */
  static async start(options: SecurityOptions, model: Model, logger: Logger): Promise<Security> {
    const { trustDomain, rootNamespace } = model.mesh;
    const { leafTtlMs = DEFAULT_LEAF_TTL_MS, maxLeafTtlMs = DEFAULT_MAX_LEAF_TTL_MS, caDirectory, caStateFile } = options;
    const common = { trustDomain, leafTtlMs, maxLeafTtlMs };
    const secret = cacertsSecret(model);
    const store = new ClosableStore();
    let ca: CertificateAuthority;
    if (options.ca) {
      ca = options.ca;
    } else if (caDirectory !== undefined) {
      const material = await readCacerts(caDirectory);
      ca = await CertificateAuthority.from(material, caDirectory, common);
      store.add(new CacertsWatcher(ca, caDirectory, material, logger));
    } else if (secret) {
      ca = await CertificateAuthority.from(cacertsOf(secret), `Secret ${rootNamespace}/${CACERTS}`, common);
    } else {
      ca = await selfSignedCa({ ...common, store: caStateFile === undefined ? options.rootSecret : new FileRootStore(caStateFile) }, logger, store);
    }
    const hosts = [...['istiod', 'istiod-remote', 'istio-pilot'].flatMap((name) => [`${name}.${rootNamespace}.svc`, `${name}.${rootNamespace}.svc.${model.mesh.clusterDomain}`]), `istiod.${rootNamespace}`, ...(options.hosts ?? [])];
    const onError = (error: Error): void => logger.error({ reason: error.message }, "the secure port's certificate could not be renewed");
    const serverIdentity = await ServerIdentity.start({ ca, hosts, identity: { namespace: rootNamespace, serviceAccount: SERVER_ACCOUNT }, onError });
    store.add(serverIdentity);
    const security = new Security(ca, new Authenticators(await authenticatorsOf(options, model), logger), model, logger, !options.ca && caDirectory === undefined && secret !== undefined, options, serverIdentity);
    security.#store.add(store);
    return security;
  }

  /** Adds what the secure port serves besides ADS; its streams are held to the same limits. */
  addServices(server: ServiceRegistry, guard: StreamGuard, health: HealthServer): void {
    const { ca, authenticators, logger, options, model } = this;
    const nodeProxies = new NodeProxies(new ModelNodes(model), options.nodeAccounts);
    const certificates = new CertificateService({ ca, authenticators, nodeProxies, logger });
    server.addService(IstioCertificateServiceService, certificates.implementation);
    const roots = new SecretStreams((name) => (name === ROOT_SECRET ? rootSecret(ca.rootPem) : undefined));
    this.#store.defer(ca.onChange(() => roots.refresh()));
    const enter = async (call: AuthenticatedCall & GuardedCall): Promise<PeerIdentity | undefined> => {
      const identity = await this.identify(call);
      if (!identity) call.emit('error', UNAUTHENTICATED);
      return identity && guard.admit(call, { identity, local: false }) ? identity : undefined;
    };
    health.addTo(server, async (call) => {
      const identity = await enter(call);
      const found = identity && nodeProxies.nodeOf(identity);
      if (!found || 'node' in found) return found;
      logger.warn({ caller: spiffeId(identity), peer: call.getPeer(), reason: found.refusal }, 'refused to have health checked');
      call.emit('error', { code: GrpcStatus.PERMISSION_DENIED, details: `health checks: ${found.refusal}` });
      return undefined;
    });
    const guarded = <Call extends AuthenticatedCall & GuardedCall>(serve: (call: Call) => void) => (call: Call): void => {
      void enter(call).then((identity) => identity && serve(call));
    };
    server.addService(SecretDiscoveryServiceService, {
      streamSecrets: guarded((call: Parameters<typeof roots.onStream>[0]) => roots.onStream(call)),
      deltaSecrets: guarded((call: Parameters<typeof roots.onDelta>[0]) => roots.onDelta(call)),
      fetchSecrets: (call: AuthenticatedCall & { request: { resource_names: string[] } }, callback: (error: object | null, value?: unknown) => void) => {
        void this.identify(call).then((identity) => (identity ? callback(null, roots.response(call.request.resource_names)) : callback(UNAUTHENTICATED)));
      },
    });
  }

  identify(call: AuthenticatedCall): Promise<PeerIdentity | undefined> {
    return this.authenticators.identify(call);
  }

  /**
   * The Secret `cacerts` is followed if it is what the CA came from. One that comes later would part the mesh into those
   * who trust the one root and those who trust the other: it counts from the next start.
   */
  async modelChanged(change: ChangeSet): Promise<void> {
    if (!change.configs.get('Secret')?.has(`${this.model.mesh.rootNamespace}/${CACERTS}`)) return;
    const secret = cacertsSecret(this.model);
    if (!secret) return;
    if (!this.fromSecret) {
      this.logger.warn('a Secret cacerts has come or changed; the CA of before stays until the next start');
      return;
    }
    try {
      await this.ca.replace(cacertsOf(secret), `Secret ${this.model.mesh.rootNamespace}/${CACERTS}`);
      this.logger.info('took over another CA from the Secret cacerts');
    } catch (error) {
      this.logger.error({ reason: errorMessage(error) }, 'the CA was not exchanged; the one of before stays');
    }
  }

  close(): Promise<void> {
    return this.#store.close();
  }
}

/** A root of pilot's own, exchanged in time; one that pilots share is followed. @param store gets what has to be closed */
export async function selfSignedCa({ store: roots, ...options }: CaOptions & { store: RootStore | undefined }, logger: Logger, store: ClosableStore): Promise<CertificateAuthority> {
  const ca = await CertificateAuthority.create({ ...options, ...(roots ? { store: roots } : {}) });
  if (roots instanceof SecretRootStore) store.add(new RootSecretFollower(ca, roots, logger));
  store.add(new RootRotation(ca, { logger }));
  return ca;
}

export const UNAUTHENTICATED = { code: GrpcStatus.UNAUTHENTICATED, details: 'authentication failed' };

function cacertsSecret(model: Model): Secret | undefined {
  return model.configs.inNamespace<Secret>('Secret', model.mesh.rootNamespace).find(({ object }) => object.metadata.name === CACERTS)?.object;
}

async function authenticatorsOf({ tokenJwks, tokenIssuer = LOCAL_ISSUER, tokenAudiences, tokenReview }: SecurityOptions, model: Model): Promise<Authenticator[]> {
  const trustDomain = (): string => model.mesh.trustDomain;
  const audiences = tokenAudiences ? { audiences: tokenAudiences } : {};
  const all: Authenticator[] = [new CertificateAuthenticator(() => [model.mesh.trustDomain, ...model.mesh.trustDomainAliases])];
  if (tokenJwks !== undefined) {
    const isUrl = /^\w+:\/\//.test(tokenJwks);
    if (isUrl && !tokenJwks.startsWith('https://')) throw new UnderpassError('UNDERPASS_PILOT_TOKENS', `keys of tokens from ${tokenJwks}: expected a file or an https URL`);
    const keys = isUrl ? new URL(tokenJwks) : parseJwks(await readFile(tokenJwks, 'utf8'), tokenJwks);
    all.push(new JwtAuthenticator({ issuer: tokenIssuer, keys, trustDomain, ...audiences }));
  }
  if (tokenReview) all.push(new TokenReviewAuthenticator({ client: tokenReview, trustDomain, ...audiences }));
  return all;
}
