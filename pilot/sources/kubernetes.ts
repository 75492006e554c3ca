/** A Kubernetes API server as a source: all kinds that count, each followed. An object that is refused stays as it was. */
import { setMaxListeners } from 'node:events';
import { errorMessage, UnderpassError } from '../../common/errors.js';
import { KubeClient, type Resource } from '../../common/kube/client.js';
import type { ApiServer } from '../../common/kube/kubeconfig.js';
import type { KubeObject } from '../../common/kube/object.js';
import { reflect, type Following } from '../../common/kube/reflector.js';
import { loadValue, formatError, type LoadedObject, type ValidationError } from '../../common/kube/yaml.js';
import type { Logger } from '../../common/log.js';
import type { Backoff } from '../../common/retry.js';
import type { Source } from './sources.js';

const resources = (apiVersion: string, kinds: Record<string, string>): Resource[] => Object.entries(kinds).map(([kind, plural]) => ({ apiVersion, kind, plural }));

/** Of every cluster. */
export const WORKLOAD_RESOURCES: readonly Resource[] = [
  ...resources('v1', { Namespace: 'namespaces', Node: 'nodes', ServiceAccount: 'serviceaccounts', Service: 'services', Pod: 'pods' }),
  ...resources('discovery.k8s.io/v1', { EndpointSlice: 'endpointslices' }),
];

/** Of the config cluster besides. */
export const CONFIG_RESOURCES: readonly Resource[] = [
  ...resources('v1', { Secret: 'secrets', ConfigMap: 'configmaps' }),
  ...resources('networking.istio.io/v1', { Gateway: 'gateways', VirtualService: 'virtualservices', DestinationRule: 'destinationrules', ServiceEntry: 'serviceentries', WorkloadEntry: 'workloadentries', WorkloadGroup: 'workloadgroups', Sidecar: 'sidecars' }),
  ...resources('networking.istio.io/v1alpha3', { EnvoyFilter: 'envoyfilters' }),
  ...resources('security.istio.io/v1', { AuthorizationPolicy: 'authorizationpolicies', PeerAuthentication: 'peerauthentications', RequestAuthentication: 'requestauthentications' }),
  ...resources('telemetry.istio.io/v1', { Telemetry: 'telemetries' }),
  ...resources('extensions.istio.io/v1alpha1', { WasmPlugin: 'wasmplugins' }),
  ...resources('gateway.networking.k8s.io/v1', { GatewayClass: 'gatewayclasses', Gateway: 'gateways', HTTPRoute: 'httproutes', GRPCRoute: 'grpcroutes' }),
  ...resources('gateway.networking.k8s.io/v1beta1', { ReferenceGrant: 'referencegrants' }),
  ...resources('gateway.networking.k8s.io/v1alpha2', { TLSRoute: 'tlsroutes', TCPRoute: 'tcproutes' }),
];

export interface KubernetesSourceOptions {
  server: ApiServer;
  /** As objects' places name it, `kubernetes://CLUSTER/…`. */
  cluster: string;
  resources: readonly Resource[];
  logger: Logger;
  /** Called with the full set whenever it changed. */
  onChange: (objects: ReadonlyMap<string, LoadedObject>) => void;
  /** Changes within this time are one. */
  settleMs?: number;
  pageSize?: number;
  /** How long start() waits for the first lists; reading goes on after that. */
  startMs?: number;
  backoff?: () => Backoff;
}

const SETTLE_MS = 40;
const START_MS = 30_000;

export class KubernetesSource implements Source {
  readonly #options: KubernetesSourceOptions;
  readonly #client: KubeClient;
  /** By resource, then by the object's key. */
  readonly #objects = new Map<Resource, Map<string, LoadedObject>>();
  readonly #errors = new Map<string, ValidationError[]>();
  readonly #stop = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void>[] = [];
  #complete = false;
  #lastProblem = '';

  constructor(options: KubernetesSourceOptions) {
    this.#options = options;
    this.#client = new KubeClient(options.server);
    // Each kind has a request of its own.
    setMaxListeners(0, this.#stop.signal);
  }

  errors(): ValidationError[] {
    return [...this.#errors.values()].flat();
  }

  /** @throws UnderpassError `UNDERPASS_KUBERNETES` when not everything could be read in time; reading goes on until close() */
  async start(): Promise<void> {
    const { resources: wanted, server, startMs = START_MS } = this.#options;
    let missing = wanted.length;
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new UnderpassError('UNDERPASS_KUBERNETES', `reading ${server.url.href}: ${this.#lastProblem || `no answer in ${startMs} ms`}`)), startMs);
      this.#stop.signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
      this.#running = wanted.map((resource) =>
        this.#follow(resource, () => {
          if (--missing > 0) return;
          clearTimeout(timer);
          this.#complete = true;
          this.#tell();
          resolve();
        }),
      );
    });
  }

  async close(): Promise<void> {
    this.#stop.abort();
    clearTimeout(this.#timer);
    this.#client.close();
    await Promise.all(this.#running);
  }

  #follow(resource: Resource, onFirst: () => void): Promise<void> {
    const { logger, pageSize, backoff } = this.#options;
    let isFirst = true;
    const following: Following = {
      begin: () => {
        const found = new Map<string, LoadedObject>();
        return {
          listed: (object) => this.#load(resource, object, found),
          complete: () => {
            this.#replace(resource, found);
            if (isFirst) onFirst();
            isFirst = false;
          },
        };
      },
      changed: (object) => {
        this.#load(resource, object, this.#objects.get(resource)!);
        this.#later();
      },
      deleted: (object) => {
        const key = keyOf(resource, object);
        this.#objects.get(resource)!.delete(key);
        this.#errors.delete(key);
        this.#later();
      },
      failed: (error) => (this.#lastProblem = errorMessage(error)),
    };
    return reflect({ client: this.#client, resource, following, logger, signal: this.#stop.signal, ...(pageSize === undefined ? {} : { pageSize }), ...(backoff ? { backoff: backoff() } : {}) });
  }

  #load(resource: Resource, item: KubeObject, into: Map<string, LoadedObject>): void {
    const { cluster, logger } = this.#options;
    // Items of lists do not say what they are; who changed which field is half of an object, and nothing to the mesh.
    const object = { ...item, apiVersion: resource.apiVersion, kind: resource.kind, metadata: { ...item.metadata } } as KubeObject & { metadata: { managedFields?: unknown } };
    delete object.metadata.managedFields;
    const key = keyOf(resource, item);
    const { objects, errors } = loadValue(object, `kubernetes://${cluster}/${key.replace(/^\//, '')}`);
    this.#errors.delete(key);
    if (errors.length > 0) this.#errors.set(key, errors);
    for (const error of errors) logger[error.severity === 'error' ? 'error' : 'warn']({ file: error.file, field: error.field }, formatError(error));
    const loaded = objects[0] ?? this.#objects.get(resource)?.get(key);
    if (loaded) into.set(key, loaded);
  }

  #replace(resource: Resource, found: Map<string, LoadedObject>): void {
    for (const key of this.#objects.get(resource)?.keys() ?? []) if (!found.has(key)) this.#errors.delete(key);
    this.#objects.set(resource, found);
    this.#later();
  }

  #later(): void {
    if (!this.#complete || this.#timer || this.#stop.signal.aborted) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#tell();
    }, this.#options.settleMs ?? SETTLE_MS);
  }

  #tell(): void {
    const all = new Map<string, LoadedObject>();
    for (const resource of this.#options.resources) for (const [key, loaded] of this.#objects.get(resource) ?? []) all.set(key, loaded);
    this.#options.onChange(all);
  }
}

function keyOf({ apiVersion, kind }: Resource, { metadata }: KubeObject): string {
  return `${apiVersion.includes('/') ? apiVersion.slice(0, apiVersion.indexOf('/')) : ''}/${kind}/${metadata.namespace ?? ''}/${metadata.name}`;
}
