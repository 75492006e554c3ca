/**
 * What pilot writes to the cluster that has the configuration, while it is the leader: the mesh's roots in every namespace,
 * the status of the Gateway API's objects, the proxies that Gateways bring up, and the CA of the webhooks.
 */
import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { isRefusal, resourceOf, type KubeClient } from '../../common/kube/client.js';
import { reflect, type Following } from '../../common/kube/reflector.js';
import { objectKey, type KubeObject } from '../../common/kube/types.js';
import { formatError, type LoadedObject, type ValidationError } from '../../common/kube/yaml.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { wantedProvisions } from '../gateway-controller/controller.js';
import { MANAGED_LABEL, type ProvisionOptions } from '../gateway-controller/provision.js';
import type { Model, ObjectChange } from '../model/model.js';
import { concernsGatewayStatus, statusUpdates, writeStatuses } from './gateway-status.js';
import { concernsIstioStatus, istioStatusUpdates } from './istio-status.js';
import { LeaderElection, type LeaseTimes } from './leader.js';
import { Reconciler, writeEach } from './reconciler.js';
import { concernsRootConfigMaps, writeRootConfigMaps } from './root-config-maps.js';
import { WebhookConfigurations, type WebhookConfigurationsOptions } from './webhook-configurations.js';

const LEASE = 'underpass-pilot';
const DEPLOYMENTS = resourceOf('apps/v1', 'Deployment');

export interface ClusterWriterOptions {
  client: KubeClient;
  model: Model;
  logger: Logger;
  /** Of the proxies that Gateways bring up. */
  provisionOptions: () => ProvisionOptions;
  /** Roots of the mesh; undefined when this pilot has no CA. */
  rootPem: () => string | undefined;
  /** Undefined when no webhooks are served. */
  webhooks: () => Pick<WebhookConfigurationsOptions, 'wanted' | 'metrics'> | undefined;
  leaseTimes?: LeaseTimes;
}

/** What validation says of the sources. */
export interface Judged {
  /** The newest version of objects that are refused by themselves, by key. */
  refused: ReadonlyMap<string, KubeObject>;
  problems: readonly ValidationError[];
}

export class ClusterWriter implements Closable {
  readonly #options: ClusterWriterOptions;
  readonly #leader: LeaderElection;
  readonly #roots: Reconciler;
  readonly #status: Reconciler;
  readonly #gateways: Reconciler;
  readonly #webhooks: Reconciler;
  readonly #istioStatus: Reconciler;
  #judged: Judged = { refused: new Map(), problems: [] };
  #errors = '';
  #objects: ReadonlyMap<string, LoadedObject> = new Map();
  /** What was written of a Gateway in this term, and the keys of those objects. */
  readonly #provisioned = new Map<string, { text: string; keys: ReadonlySet<string> }>();
  #configurations: WebhookConfigurations | undefined;
  #running: Promise<unknown> = Promise.resolve();

  constructor(options: ClusterWriterOptions) {
    this.#options = options;
    const { client, model, logger } = options;
    this.#leader = new LeaderElection({
      client,
      namespace: model.mesh.rootNamespace,
      name: LEASE,
      identity: `${hostname()}_${randomUUID()}`,
      logger,
      onTerm: (term) => this.#begin(term),
      ...(options.leaseTimes ? { times: options.leaseTimes } : {}),
    });
    this.#roots = new Reconciler('ConfigMaps istio-ca-root-cert', async (signal) => {
      const rootPem = options.rootPem();
      if (rootPem !== undefined) await writeRootConfigMaps(client, this.#objects, rootPem, signal);
    }, logger);
    this.#status = new Reconciler("status of the Gateway API's objects", (signal) => writeStatuses(client, statusUpdates(this.#objects, model.gatewayApi.status, model.mesh.clusterDomain, now()), signal), logger);
    this.#istioStatus = new Reconciler("status of Istio's objects", (signal) => writeStatuses(client, istioStatusUpdates(this.#objects, this.#judged.refused, this.#judged.problems, now()), signal), logger);
    this.#gateways = new Reconciler("Gateways' proxies", (signal) => this.#provision(signal), logger);
    this.#webhooks = new Reconciler("webhooks' configurations", async (signal) => this.#configurations?.write(signal), logger);
  }

  get isLeader(): boolean {
    return this.#leader.isLeader;
  }

  start(): void {
    this.#leader.start();
  }

  /** @param changes of what is in force @param objects all, as they are in the sources */
  changed(changes: readonly ObjectChange[], objects: ReadonlyMap<string, LoadedObject>, judged: Judged): void {
    this.#objects = objects;
    this.#judged = judged;
    const errors = judged.problems.filter(({ severity }) => severity === 'error').map(formatError).join('\n');
    if (errors !== this.#errors || changes.some(({ key }) => concernsIstioStatus(key))) this.#istioStatus.trigger();
    this.#errors = errors;
    if (changes.some(({ key }) => concernsRootConfigMaps(key))) this.#roots.trigger();
    for (const { key, loaded } of changes) if (!loaded) this.#gone(key);
    if (!changes.some(({ key }) => concernsGatewayStatus(key))) return;
    this.#status.trigger();
    this.#gateways.trigger();
  }

  /** What a Gateway brought up and somebody took away comes again. */
  #gone(key: string): void {
    for (const [owner, { keys }] of this.#provisioned) {
      if (!keys.has(key)) continue;
      this.#provisioned.delete(owner);
      this.#gateways.trigger();
    }
  }

  /** The CA is another one, or the webhooks' certificate is from another one. */
  caChanged(): void {
    this.#roots.trigger();
    this.#webhooks.trigger();
  }

  #begin(term: AbortSignal): void {
    const { client, logger, webhooks } = this.#options;
    this.#provisioned.clear();
    const served = webhooks();
    if (served) {
      this.#configurations = new WebhookConfigurations({ client, logger, ...served });
      this.#configurations.follow(term, () => this.#webhooks.trigger());
    }
    const following: Following = {
      begin: () => ({ listed: () => undefined, complete: () => undefined }),
      changed: () => undefined,
      deleted: ({ metadata }) => this.#gone(objectKey({ ...DEPLOYMENTS, metadata })),
    };
    void reflect({ client, resources: [DEPLOYMENTS], selectors: { labelSelector: MANAGED_LABEL }, following, logger, signal: term });
    this.#running = Promise.all([this.#roots, this.#status, this.#istioStatus, this.#gateways, this.#webhooks].map((reconciler) => reconciler.run(term)));
  }

  /** What a Gateway owns goes with it: Kubernetes' garbage collector sees to that. */
  #provision(signal: AbortSignal): Promise<void> {
    const { client, model, provisionOptions, logger } = this.#options;
    const { wanted } = wantedProvisions(model.configs, provisionOptions);
    for (const owner of this.#provisioned.keys()) if (!wanted.has(owner)) this.#provisioned.delete(owner);
    return writeEach(wanted, signal, async ([owner, objects]) => {
      // Of a file: there is no object in the cluster that could own them.
      if (objects.some(({ metadata }) => metadata.ownerReferences?.some(({ uid }) => uid === undefined))) return;
      const text = JSON.stringify(objects);
      if (this.#provisioned.get(owner)?.text === text) return;
      for (const object of objects) if (await this.#mayWrite(owner, object, signal)) await client.apply(resourceOf(object.apiVersion, object.kind), object, { signal });
      this.#provisioned.set(owner, { text, keys: new Set(objects.map(objectKey)) });
      logger.info({ gateway: owner, objects: objects.map(({ kind, metadata }) => `${kind} ${metadata.name}`) }, 'a gateway is brought up');
    });
  }

  /** Whether it is not there, or this Gateway's already: a Gateway may be given any name, and what others made is not to become its own. */
  async #mayWrite(owner: string, object: KubeObject, signal: AbortSignal): Promise<boolean> {
    const { client, logger } = this.#options;
    const { kind, apiVersion, metadata: { namespace, name, ownerReferences } } = object;
    try {
      const present = await client.get(resourceOf(apiVersion, kind), { namespace, name }, signal);
      if (present.metadata.ownerReferences?.some(({ uid }) => ownerReferences?.some((wanted) => wanted.uid === uid))) return true;
    } catch (error) {
      if (isRefusal(error, 404)) return true;
      throw error;
    }
    logger.warn({ gateway: owner, kind, name }, 'left alone what is there under the name of a part of the gateway, since it is not of this Gateway');
    return false;
  }

  async close(): Promise<void> {
    await this.#leader.close();
    await this.#running;
  }
}

/** As Kubernetes writes times. */
function now(): string {
  return new Date().toISOString().replace(/\.\d+/, '');
}
