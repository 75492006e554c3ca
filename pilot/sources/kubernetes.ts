/**
 * A Kubernetes API server as a source: each kind is listed in pages, then watched from that version on. A watch that ends is
 * taken up where it was; one whose version is too old (410) begins with a list again. An object that is refused stays as it
 * was. See https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
 */
import { setMaxListeners } from 'node:events';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { Agent, request as httpsRequest } from 'node:https';
import { errorMessage, UnderpassError } from '../../common/errors.js';
import { loadValue, formatError, type LoadedObject, type ValidationError } from '../../common/kube/yaml.js';
import type { KubeObject } from '../../common/kube/types.js';
import type { Logger } from '../../common/log.js';
import { Backoff, sleep } from '../../common/retry.js';
import type { ApiServer } from './kubeconfig.js';
import type { Source } from './sources.js';

interface Resource {
  apiVersion: string;
  kind: string;
  plural: string;
}

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

const MISSING_RETRY_MS = 60_000;
/** The server ends a watch after this long; unlike for each, so that they do not all come back at once. */
const WATCH_SECONDS = 300;
const IDLE_GRACE_MS = 30_000;

class ApiError extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

interface WatchEvent {
  type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK' | 'ERROR';
  object: KubeObject & { code?: number; message?: string };
}

interface Page {
  metadata?: { resourceVersion?: string; continue?: string };
  items?: KubeObject[];
}

export class KubernetesSource implements Source {
  readonly #options: Required<KubernetesSourceOptions>;
  /** By resource, then by the object's key. */
  readonly #objects = new Map<Resource, Map<string, LoadedObject>>();
  readonly #errors = new Map<string, ValidationError[]>();
  readonly #stop = new AbortController();
  readonly #agent = new Agent({ keepAlive: true });
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void>[] = [];
  #complete = false;
  #lastProblem = '';

  constructor(options: KubernetesSourceOptions) {
    this.#options = { settleMs: 40, pageSize: 500, startMs: 30_000, backoff: () => new Backoff(), ...options };
    // Each kind has a request of its own.
    setMaxListeners(0, this.#stop.signal);
  }

  errors(): ValidationError[] {
    return [...this.#errors.values()].flat();
  }

  /** @throws UnderpassError `UNDERPASS_KUBERNETES` when not everything could be read in time; reading goes on until close() */
  async start(): Promise<void> {
    const { resources: wanted, server, startMs } = this.#options;
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
    this.#agent.destroy();
    await Promise.all(this.#running);
  }

  async #follow(resource: Resource, onFirst: () => void): Promise<void> {
    const { signal } = this.#stop;
    const { logger } = this.#options;
    const backoff = this.#options.backoff();
    let isFirst = true;
    let version: string | undefined;
    while (!signal.aborted) {
      let pauseMs: number | undefined;
      try {
        if (version === undefined) {
          version = await this.#list(resource);
          if (isFirst) onFirst();
          isFirst = false;
        }
        await this.#watch(resource, version, (newest) => {
          version = newest;
          backoff.reset();
        });
        // An orderly end: once around with a pause, lest a server that ends each watch at once is asked without end.
        pauseMs = backoff.next();
      } catch (error) {
        if (signal.aborted) return;
        const status = error instanceof ApiError ? error.status : undefined;
        if (status === 410 || status === 404) version = undefined;
        if (status === 404) {
          // The kind is not installed, or not any more.
          this.#replace(resource, new Map());
          if (isFirst) onFirst();
          isFirst = false;
          pauseMs = MISSING_RETRY_MS;
        } else {
          this.#lastProblem = errorMessage(error);
          pauseMs = backoff.next();
          logger.warn({ kind: resource.kind, reason: errorMessage(error), againInMs: Math.round(pauseMs) }, 'reading from the API server failed; what was read stays');
        }
      }
      await sleep(pauseMs, signal).catch(() => undefined);
    }
  }

  /** @returns the version to watch from */
  async #list(resource: Resource): Promise<string> {
    const found = new Map<string, LoadedObject>();
    let next = '';
    for (;;) {
      const query = new URLSearchParams({ limit: String(this.#options.pageSize), ...(next ? { continue: next } : {}) });
      const page = JSON.parse(await text(await this.#get(resource, query))) as Page;
      for (const item of page.items ?? []) this.#load(resource, item, found);
      next = page.metadata?.continue ?? '';
      if (next) continue;
      this.#replace(resource, found);
      return page.metadata?.resourceVersion ?? '';
    }
  }

  /** Until the server ends it. @param onEvent told of the newest version that was seen */
  async #watch(resource: Resource, from: string, onEvent: (version: string) => void): Promise<void> {
    let version = from;
    const seconds = Math.round(WATCH_SECONDS * (1 + Math.random()));
    const response = await this.#get(resource, new URLSearchParams({ watch: '1', allowWatchBookmarks: 'true', resourceVersion: from, timeoutSeconds: String(seconds) }));
    // A connection that died without a word would look like a cluster in which nothing happens.
    response.setTimeout(seconds * 1_000 + IDLE_GRACE_MS, () => response.destroy(new Error('the watch was silent for too long')));
    try {
      for await (const line of lines(response)) {
        if (line === '') continue;
        const { type, object } = JSON.parse(line) as WatchEvent;
        if (type === 'ERROR') throw new ApiError(object.code ?? 500, object.message ?? 'the watch was ended');
        version = object.metadata.resourceVersion ?? version;
        onEvent(version);
        if (type === 'BOOKMARK') continue;
        const known = this.#objects.get(resource)!;
        if (type === 'DELETED') {
          const key = keyOf(resource, object);
          known.delete(key);
          this.#errors.delete(key);
        } else {
          this.#load(resource, object, known);
        }
        this.#later();
      }
    } finally {
      response.destroy();
    }
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
    }, this.#options.settleMs);
  }

  #tell(): void {
    const all = new Map<string, LoadedObject>();
    for (const resource of this.#options.resources) for (const [key, loaded] of this.#objects.get(resource) ?? []) all.set(key, loaded);
    this.#options.onChange(all);
  }

  async #get({ apiVersion, plural }: Resource, query: URLSearchParams): Promise<IncomingMessage> {
    const { url, credentials } = this.#options.server;
    const { headers, ...tls } = await credentials();
    const path = `${url.pathname.replace(/\/$/, '')}/${apiVersion.includes('/') ? 'apis' : 'api'}/${apiVersion}/${plural}?${query}`;
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const options = { host: url.hostname.replace(/^\[|\]$/g, ''), port: url.port || (url.protocol === 'http:' ? 80 : 443), path, headers: { accept: 'application/json', ...headers }, signal: this.#stop.signal };
      const outgoing = url.protocol === 'http:' ? httpRequest(options, resolve) : httpsRequest({ ...options, ...tls, agent: this.#agent }, resolve);
      outgoing.on('error', reject);
      outgoing.end();
    });
    if (response.statusCode === 200) return response;
    const body = await text(response).catch(() => '');
    throw new ApiError(response.statusCode ?? 0, `GET ${path}: ${response.statusCode} ${body.slice(0, 200)}`);
  }
}

function keyOf({ apiVersion, kind }: Resource, { metadata }: KubeObject): string {
  return `${apiVersion.includes('/') ? apiVersion.slice(0, apiVersion.indexOf('/')) : ''}/${kind}/${metadata.namespace ?? ''}/${metadata.name}`;
}

async function text(response: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of response) parts.push(part as Buffer);
  return Buffer.concat(parts).toString('utf8');
}

/** Ends with the response; a connection that breaks is an error. */
async function* lines(response: IncomingMessage): AsyncIterable<string> {
  response.setEncoding('utf8');
  let rest = '';
  for await (const part of response) {
    const complete = (rest + (part as string)).split('\n');
    rest = complete.pop()!;
    yield* complete;
  }
}
