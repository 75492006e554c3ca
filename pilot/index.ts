/** The control plane: directories of YAML in, xDS out. */
import type { LoadedObject, ValidationError } from '../common/kube/yaml.js';
import { CertificateAuthority } from '../common/identity/ca.js';
import { DEFAULT_INJECTION } from '../common/injection/config.js';
import { KubeClient } from '../common/kube/client.js';
import type { ApiServer } from '../common/kube/kubeconfig.js';
import { ClosableStore } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import type { ConfigMap, RequestAuthentication, KubeObject } from '../common/kube/types.js';
import { parseDurationMs } from '../common/kube/schema.js';
import { Generators } from './generate/generator.js';
import { warm } from './generate/warm.js';
import { AdminServer } from './admin/server.js';
import { HealthServer } from './health/server.js';
import { SecretRootStore } from './ca/secret-root-store.js';
import { Security, selfSignedCa, type SecurityOptions } from './ca/security.js';
import { JwksFetcher } from './jwks/fetcher.js';
import { discoverable } from './mesh-config/discovery.js';
import { LiveMeshConfig } from './mesh-config/live.js';
import { ChangeSet } from './model/changes.js';
import type { MeshConfig } from './model/mesh.js';
import { wantedKeys } from './model/jwks.js';
import { AutoRegistration } from './model/auto-registration.js';
import { Model } from './model/model.js';
import { DEFAULT_DEBOUNCE, Debouncer, type DebounceOptions } from './push/debounce.js';
import { encodeAhead } from './push/encode.js';
import { PushMetrics, inboundType } from './push/metrics.js';
import { AdsServer, oldestOf, anonymous } from './push/server.js';
import type { StreamLimits } from './push/stream-guard.js';
import { ClusterWriter } from './cluster-writer/cluster-writer.js';
import type { LeaseTimes } from './cluster-writer/leader.js';
import { sleep } from '../common/retry.js';
import { GatewayController } from './gateway-controller/controller.js';
import { DirectorySink } from './gateway-controller/directory-sink.js';
import type { ProvisionOptions } from './gateway-controller/provision.js';
import { valuesOf, Webhooks, type WebhooksOptions } from './injector/webhooks.js';
import { PILOT_RIGHTS, planSources, Sources, type SourcePlan } from './sources/sources.js';
import { Admission } from './validation/admission.js';
import type { ReferenceOptions } from './validation/references.js';

export type { MeshConfig } from './model/mesh.js';
export { PILOT_RIGHTS } from './sources/sources.js';

/** A first state without the keys of token issuers would refuse good tokens; with issuers that are away it must not wait. */
const FIRST_KEYS_MS = 5_000;

export interface PilotOptions {
  /**
   * Directories (or files) of YAML; the same object in a later one overrides that of an earlier one. `cluster=NAME,network=NETWORK:DIR`
   * is of that cluster; Istio's configuration is read from the first one's.
   */
  sources: readonly string[];
  /** The API server of the config cluster, read besides the directories, which override it. */
  apiServer?: ApiServer;
  /** Nothing is written to that API server. */
  readOnly?: boolean;
  /** How long start() waits for that API server, Infinity for as long as it takes; 30 s unless told. */
  apiServerStartMs?: number;
  /** How long pilots wait for the one that writes; default client-go's. */
  leaseTimes?: LeaseTimes;
  /** `host:port` (port 0: any) or `unix:PATH`. */
  listen: readonly string[];
  /** Settings that win over what is read from a MeshConfig. */
  meshConfig?: Partial<MeshConfig>;
  /** A file with Istio's MeshConfig, followed live; without one the ConfigMap `istio` of the root namespace counts. */
  meshConfigFile?: string;
  /** `host:port` for metrics and debug pages; none by default. */
  monitoringListen?: string;
  /** Sidecar injection and validation over HTTPS; none by default. */
  webhooks?: WebhooksOptions;
  /** Where the proxies of the Gateway API's Gateways are written, for whoever runs them; none by default. */
  provisionDir?: string;
  /** How long a health verdict counts whose Envoy is gone. */
  healthVerdictTtlMs?: number;
  /** The CA, and ADS with it on TLS ports; none by default. */
  security?: SecurityOptions;
  /** What one client may take; each has a default. */
  limits?: Partial<StreamLimits>;
  logger: Logger;
  debounce?: Partial<DebounceOptions>;
}

export interface PilotStatus {
  version: string;
  objects: number;
  services: number;
  /** Of all objects as they are in the sources now; those with errors are not in force. */
  problems: readonly ValidationError[];
  /** Of the MeshConfig as it is written now. */
  meshConfigProblems: readonly string[];
  /** Token issuers whose keys can't be fetched now. */
  jwksProblems: readonly string[];
  ads: ReturnType<AdsServer['status']>;
  /** Whether of the pilots of a cluster this is the one that writes to it. */
  isWriter: boolean;
  /** Every change that was read has been pushed, and all that was pushed was answered. */
  settled: boolean;
}

export class Pilot {
  readonly #options: PilotOptions;
  readonly #plan: SourcePlan;
  readonly #model: Model;
  readonly #generators: Generators;
  readonly #store = new ClosableStore();
  #source: Sources | undefined;
  #server: AdsServer | undefined;
  #admin: AdminServer | undefined;
  #notReady: string | undefined = 'starting';
  /** Since when the changes were made for which all is being made anew. */
  readonly #warming: number[] = [];
  #health: HealthServer | undefined;
  readonly #stopping = new AbortController();
  #debouncer: Debouncer<ChangeSet> | undefined;
  #admission: Admission | undefined;
  #meshConfig: LiveMeshConfig | undefined;
  #jwks: JwksFetcher | undefined;
  #webhooks: Webhooks | undefined;
  #security: Security | undefined;
  #writer: ClusterWriter | undefined;
  /** Of the API server that may be written to. */
  #writingClient: KubeClient | undefined;
  readonly #secureAddresses: string[] = [];
  #pushes = 0;
  #version = '';

  /** @throws UnderpassError `UNDERPASS_SOURCE` when a source is not written as it should be */
  constructor(written: PilotOptions) {
    this.#plan = planSources(written.sources);
    const { configCluster, configNetwork, clusters } = this.#plan;
    const meshConfig = { clusters, ...(configCluster === undefined ? {} : { clusterId: configCluster }), ...(configNetwork === undefined ? {} : { network: configNetwork }), ...written.meshConfig };
    const options = { ...written, meshConfig };
    this.#options = options;
    this.#model = new Model(options.meshConfig);
    this.#generators = new Generators(this.#model, ({ secret, message }) => options.logger.error({ secret, lastGoodStays: true }, `Secret ${secret}: ${message}`));
  }

  /** Where it listens, with ports filled in; empty before start(). */
  get addresses(): readonly string[] {
    return this.#server?.addresses ?? [];
  }

  /** Of the TLS ports; empty when there are none. */
  get secureAddresses(): readonly string[] {
    return this.#secureAddresses;
  }

  /** The CA of the TLS ports; undefined when there are none. */
  get ca(): CertificateAuthority | undefined {
    return this.#security?.ca;
  }

  /** Of the webhooks; empty when they are not served. */
  get webhookAddress(): string {
    return this.#webhooks?.server.address ?? '';
  }

  /** Of the metrics and debug pages; empty when they are not served. */
  get monitoringAddress(): string {
    return this.#admin?.address ?? '';
  }

  /** Returns when everything was read once and all addresses are listened on. */
  async start(signal?: AbortSignal): Promise<void> {
    const { logger } = this.#options;
    const server = new AdsServer(this.#generators, () => this.#version, logger.child({ part: 'ads' }), new PushMetrics(), this.#options.limits);
    const model = this.#model;
    const admission = new Admission(model.mesh.clusterDomain, logger.child({ part: 'validation' }), referenceOptions(model));
    const debouncer = new Debouncer<ChangeSet>(
      { ...DEFAULT_DEBOUNCE, ...this.#options.debounce },
      (older, newer) => older.merge(newer),
      (change) => this.#push(change),
    );
    const source = new Sources({
      plan: this.#plan,
      apiServer: this.#options.apiServer,
      rootNamespace: () => this.#model.mesh.rootNamespace,
      ...(this.#options.apiServerStartMs === undefined ? {} : { startMs: this.#options.apiServerStartMs }),
      logger: logger.child({ part: 'source' }),
      onChange: (objects) => take(objects),
    });
    const changed = (change: ChangeSet): void => {
      if (change.empty) return;
      void this.#security?.modelChanged(change);
      // Stale results go at once: whoever connects between now and the push gets the new state.
      this.#generators.invalidate(change);
      this.#nextVersion();
      debouncer.add(change);
    };
    const registration = new AutoRegistration(model, (changes) => changed(this.#model.apply(changes)));
    server.clients = registration;
    const jwks = new JwksFetcher({ logger: logger.child({ part: 'jwks' }), onKeys: (keysOf, keys) => changed(this.#model.setJwks(keysOf, keys)) });
    const gateways = this.#gatewayController(logger.child({ part: 'gateways' }));
    this.#writingClient = this.#newWritingClient();
    const writer = (this.#writer = this.#clusterWriter(logger.child({ part: 'cluster-writer' })));
    let candidates: ReadonlyMap<string, LoadedObject> = new Map();
    const mesh = new LiveMeshConfig(this.#options.meshConfig ?? {}, this.#options.meshConfigFile, logger.child({ part: 'mesh-config' }), () => take(candidates, true));
    const take = (objects: ReadonlyMap<string, LoadedObject>, meshChanged = false): void => {
      candidates = objects;
      const change = new ChangeSet();
      const offered = mesh.offer(objects.get(mesh.configMapKey)?.object as ConfigMap | undefined);
      if (offered || meshChanged) {
        change.merge(this.#model.setMesh(mesh.current));
        admission.settingsChanged();
      }
      const changes = admission.admit(discoverable(objects, mesh.current));
      for (const { key, loaded } of changes) server.metrics.inboundUpdates.inc({ type: inboundType(key, loaded === undefined) });
      change.merge(this.#model.apply(changes));
      changed(change);
      writer?.changed(changes, objects, { refused: source.refused, problems: [...source.errors(), ...admission.errors()] });
      gateways?.update(change);
      if (change.touches('RequestAuthentication')) jwks.want(wantedKeys(this.#model.configs.all<RequestAuthentication>('RequestAuthentication'), parseDurationMs));
    };
    const admin = new AdminServer({ model: this.#model, generators: this.#generators, ads: server, metrics: server.metrics, notReady: () => source.problem ?? this.#notReady, status: () => this.status(), behindSince: () => oldestOf([this.#debouncer?.pending?.since, ...this.#warming, server.behindSince()]), identify: async (call) => this.#security?.identify(call) });
    this.#admin = admin;
    this.#debouncer = debouncer;
    const health = new HealthServer({ model: this.#model, logger: logger.child({ part: 'health' }), onChange: (change) => changed(change), refused: server.metrics.refusedHealthReports, ...(this.#options.healthVerdictTtlMs === undefined ? {} : { verdictTtlMs: this.#options.healthVerdictTtlMs }) });
    server.register((grpc, guard) => health.addTo(grpc, (call) => Promise.resolve(guard.admit(call, anonymous(call)) ? {} : undefined)));
    this.#health = health;
    [this.#server, this.#admission, this.#source, this.#meshConfig, this.#jwks] = [server, admission, source, mesh, jwks];
    this.#nextVersion();
    this.#store.add(mesh);
    this.#store.add(registration);
    this.#store.add(server);
    this.#store.add(health);
    this.#store.add(admin);
    this.#store.add(debouncer);
    this.#store.add(jwks);
    this.#store.add(source);
    try {
      // First of all: whoever waits for the sources is told what they lack.
      if (this.#options.monitoringListen) await admin.listen(this.#options.monitoringListen);
      await mesh.start();
      this.#model.setMesh(mesh.current);
      await source.start();
      gateways?.reconcile(); // what an earlier run left and nobody wants any more goes
      await jwks.settled(FIRST_KEYS_MS);
      await this.#warm();
      // Nobody is connected yet: the first state needs no push.
      debouncer.flush();
      for (const address of this.#options.listen) {
        signal?.throwIfAborted();
        await server.listen(address);
      }
      if (this.#options.security) await this.#startSecurity(this.#options.security, server, health);
      if (this.#options.webhooks) {
        const signer = this.#security?.ca ?? (await selfSignedCa({ trustDomain: this.#model.mesh.trustDomain, store: this.#rootSecret.rootSecret }, logger, this.#store));
        this.#webhooks = this.#store.add(await Webhooks.start(this.#options.webhooks, { model: this.#model, signer, registry: server.metrics.registry, logger: logger.child({ part: 'webhooks' }), company: admission, onCertificate: () => writer?.caChanged() }));
        this.#store.defer(signer.onChange(this.#webhooks.server.signerChanged));
      }
      if (this.#webhooks) gateways?.reconcile(); // with the injection file's values
      if (writer) {
        this.#security?.ca.onChange(() => writer.caChanged());
        this.#store.add(writer).start();
      }
      this.#notReady = undefined;
    } catch (error) {
      await this.stop();
      throw error;
    }
    if (signal?.aborted) await this.stop();
    else signal?.addEventListener('abort', () => void this.stop(), { once: true });
    logger.info({ addresses: server.addresses, secure: this.#secureAddresses, monitoring: admin.address, sources: this.#options.sources, objects: this.#model.objects.size, services: this.#model.services.size }, 'pilot is ready');
  }

  /** The object as it is in force; its key is `group/Kind/namespace/name`. */
  object(key: string): KubeObject | undefined {
    return this.#model.objects.get(key)?.object;
  }

  #gatewayController(logger: Logger): GatewayController | undefined {
    const { provisionDir } = this.#options;
    if (provisionDir === undefined) return undefined;
    return new GatewayController(this.#model.configs, new DirectorySink(provisionDir), this.#provisionOptions, logger);
  }

  readonly #provisionOptions = (): ProvisionOptions => this.#webhooks?.injection.current ?? { ...DEFAULT_INJECTION, values: { ...DEFAULT_INJECTION.values, ...valuesOf(this.#model.mesh) } };

  #clusterWriter(logger: Logger): ClusterWriter | undefined {
    const { leaseTimes } = this.#options;
    const client = this.#writingClient;
    if (!client) return undefined;
    return new ClusterWriter({
      client,
      model: this.#model,
      logger,
      provisionOptions: this.#provisionOptions,
      rootPem: () => this.#security?.ca.rootPem,
      webhooks: () => this.#webhooks && { wanted: this.#webhooks.configurations, metrics: this.#webhooks.metrics },
      ...(leaseTimes ? { leaseTimes } : {}),
    });
  }

  #newWritingClient(): KubeClient | undefined {
    const { apiServer, readOnly } = this.#options;
    return apiServer && !readOnly ? this.#store.add(new KubeClient(apiServer, 'underpass-pilot', PILOT_RIGHTS)) : undefined;
  }

  /** Pilots of one cluster are one CA: its key is where all of them find it. */
  get #rootSecret(): { rootSecret?: SecretRootStore } {
    return this.#writingClient ? { rootSecret: new SecretRootStore(this.#writingClient, this.#model.mesh.rootNamespace) } : {};
  }

  async #startSecurity(options: SecurityOptions, server: AdsServer, health: HealthServer): Promise<void> {
    const security = await Security.start({ ...this.#rootSecret, ...options }, this.#model, this.#options.logger.child({ part: 'security' }));
    this.#security = this.#store.add(security);
    for (const address of options.listen) {
      this.#secureAddresses.push(await server.listenSecure(address, { credentials: security.serverIdentity.credentials, identify: (call) => security.identify(call), addServices: (port, guard) => security.addServices(port, guard, health) }));
    }
  }

  /**
   * Hands over to the other pilots of a cluster: no longer ready, and no longer the one that writes, it serves on until nobody
   * is sent here any more, then has its clients go elsewhere bit by bit. stop() comes after.
   * @param forMs half as long again in all
   */
  async drain(forMs: number, signal?: AbortSignal): Promise<void> {
    this.#notReady = 'stopping';
    this.#webhooks?.server.drain();
    await this.#writer?.close();
    await sleep(forMs, signal);
    await this.#server?.close(forMs / 2);
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#store.close();
  }

  status(): PilotStatus {
    const ads = this.#server?.status() ?? { addresses: [], queued: 0, connections: [] };
    return {
      version: this.#version,
      objects: this.#model.objects.size,
      services: this.#model.services.size,
      problems: [...(this.#source?.errors() ?? []), ...(this.#admission?.errors() ?? [])],
      meshConfigProblems: this.#meshConfig?.problems ?? [],
      jwksProblems: this.#jwks?.problems() ?? [],
      ads,
      isWriter: this.#writer?.isLeader ?? false,
      settled: this.#debouncer?.isPending !== true && this.#warming.length === 0 && ads.queued === 0 && ads.connections.every(({ types }) => Object.values(types).every(({ isAnswered }) => isAnswered)),
    };
  }

  #nextVersion(): void {
    this.#version = `${new Date().toISOString().replace(/\.\d+Z$/, 'Z')}/${++this.#pushes}`;
  }

  #warm(): Promise<void> {
    const failed = (error: unknown): void => this.#options.logger.error({ err: error }, 'making the common configuration beforehand failed; whoever needs it is told');
    return warm(this.#model, this.#generators, { signal: this.#stopping.signal, made: encodeAhead, failed });
  }

  #push(change: ChangeSet): void {
    if (!change.full) return this.#send(change);
    // Everything is made anew: in slices, before clients ask for it all at once.
    this.#warming.push(change.since);
    void this.#warm().then(() => {
      this.#warming.splice(this.#warming.indexOf(change.since), 1);
      this.#send(change);
    });
  }

  #send(change: ChangeSet): void {
    this.#health?.changed(change);
    this.#options.logger.info({ version: this.#version, ...change.summary() }, 'pushing changes');
    const metrics = this.#server?.metrics;
    metrics?.debounce.observe((performance.now() - change.since) / 1_000);
    for (const type of change.kinds()) metrics?.triggers.inc({ type });
    this.#server?.push(change);
  }
}

/** What validation asks of the mesh's settings, as they are at the time. */
function referenceOptions(model: Model): ReferenceOptions {
  return {
    get rootNamespace() {
      return model.mesh.rootNamespace;
    },
    get authorizers() {
      return new Set(model.mesh.extensionProviders.filter(({ envoyExtAuthzHttp, envoyExtAuthzGrpc }) => envoyExtAuthzHttp ?? envoyExtAuthzGrpc).map(({ name }) => name));
    },
  };
}
