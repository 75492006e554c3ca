/**
 * The webhooks' configurations, as far as they are kept as they are meant to be. The CA: an API server that trusts another one calls
 * no webhook. The validator's failure policy, which is installed as Ignore, lest what is applied together with pilot is refused
 * before it runs: from its first moment on what it can't be asked about is refused. Of the injector's what makes that no pod of a
 * namespace with injection starts without its proxy. Selectors, timeouts and targets are an administrator's to change, as with
 * istiod: what differs there is told.
 */
import { isDeepStrictEqual } from 'node:util';
import { resourceOf, type KubeClient, type Resource } from '../../common/kube/client.js';
import { reflect } from '../../common/kube/reflector.js';
import type { KubeObject } from '../../common/kube/types.js';
import type { Logger } from '../../common/log.js';
import { configurationNames, webhookConfigurations, type ConfigurationOptions } from '../injector/configurations.js';
import type { WebhookMetrics } from '../injector/metrics.js';

interface Webhook {
  name: string;
  clientConfig: { caBundle?: string } & Record<string, unknown>;
  rules?: object[];
  [field: string]: unknown;
}

interface WebhookConfiguration extends KubeObject {
  webhooks?: Webhook[];
}

export interface WebhookConfigurationsOptions {
  client: KubeClient;
  /** Of the mesh, and of pilot's webhooks: what is meant to be there. */
  wanted: () => ConfigurationOptions;
  metrics: WebhookMetrics;
  logger: Logger;
}

const GROUP = 'admissionregistration.k8s.io/v1';
const MUTATING = 'MutatingWebhookConfiguration';
const VALIDATING = 'ValidatingWebhookConfiguration';
/** Fields that are put back when they are another's. */
const KEPT: Readonly<Record<string, readonly string[]>> = {
  [MUTATING]: ['failurePolicy', 'rules', 'admissionReviewVersions', 'sideEffects'],
  [VALIDATING]: ['failurePolicy', 'admissionReviewVersions', 'sideEffects'],
};
/** What the API server makes of a field that was not given. */
const DEFAULTS = { namespaceSelector: {}, objectSelector: {}, timeoutSeconds: 10, matchPolicy: 'Equivalent', reinvocationPolicy: 'Never', matchConditions: [] };

interface Followed {
  resource: Resource;
  name: string;
  present: WebhookConfiguration | undefined;
  /** Fields that differed when that was last told. */
  told: string;
}

export class WebhookConfigurations {
  readonly #followed: Followed[];

  constructor(readonly options: WebhookConfigurationsOptions) {
    const names = configurationNames(options.wanted().revision);
    this.#followed = [[MUTATING, names.mutating], [VALIDATING, names.validating]].map(([kind, name]) => ({ resource: resourceOf(GROUP, kind!), name: name!, present: undefined, told: '' }));
  }

  /** Until the signal aborts. @param onChange called when a configuration came or changed */
  follow(signal: AbortSignal, onChange: () => void): void {
    const { client, logger, metrics } = this.options;
    for (const followed of this.#followed) {
      const take = (object: KubeObject | undefined): void => {
        followed.present = object;
        if (object) onChange();
      };
      void reflect({
        client,
        resources: [followed.resource],
        selectors: { fieldSelector: `metadata.name=${followed.name}` },
        logger,
        signal,
        following: {
          begin: () => {
            let found: KubeObject | undefined;
            return { listed: (object) => (found = object), complete: () => take(found) };
          },
          changed: take,
          deleted: () => take(undefined),
        },
      });
    }
    // The next leader tells.
    signal.addEventListener('abort', () => metrics.deviations.reset(), { once: true });
  }

  /** Configurations that are not there are whoever's who installs them. */
  async write(signal: AbortSignal): Promise<void> {
    const { client, logger, metrics, wanted } = this.options;
    const options = wanted();
    const caBundle = Buffer.from(options.caPem).toString('base64');
    const meant = webhookConfigurations(options) as WebhookConfiguration[];
    metrics.deviations.reset();
    for (const followed of this.#followed) {
      const { resource, name, present } = followed;
      const written = new Map(meant.find(({ kind }) => kind === resource.kind)?.webhooks?.map((webhook) => [webhook.name, asStored(webhook)]));
      if (!present?.webhooks) continue;
      const webhooks = present.webhooks.map((webhook): Webhook => {
        const own = written.get(webhook.name);
        const kept = own ? Object.fromEntries(KEPT[resource.kind]!.map((field) => [field, own[field]])) : {};
        return { ...webhook, ...kept, clientConfig: { ...webhook.clientConfig, caBundle } };
      });
      this.#tell(followed, written);
      if (isDeepStrictEqual(webhooks, present.webhooks)) continue;
      const changed = [...new Set(present.webhooks.flatMap((webhook, index) => Object.keys(webhooks[index]!).filter((field) => !isDeepStrictEqual(webhook[field], webhooks[index]![field]))))];
      await client.merge(resource, { name }, { metadata: { resourceVersion: present.metadata.resourceVersion }, webhooks }, signal);
      logger.info({ kind: resource.kind, name, fields: changed.map((field) => (field === 'clientConfig' ? 'clientConfig.caBundle' : field)) }, "the webhooks' configuration was put right");
    }
  }

  /** Of what is not put back: once, until it differs otherwise. */
  #tell(followed: Followed, written: ReadonlyMap<string, Webhook>): void {
    const { metrics, logger } = this.options;
    const { resource: { kind }, name, present } = followed;
    const found = new Map(present?.webhooks?.map((webhook) => [webhook.name, asStored(webhook)]));
    const differs = [...written].flatMap(([webhook, own]) => {
      const there = found.get(webhook);
      if (!there) return [{ webhook, field: 'name' }];
      return [...new Set([...Object.keys(own), ...Object.keys(there)])].filter((field) => !KEPT[kind]!.includes(field) && !isDeepStrictEqual(there[field], own[field])).map((field) => ({ webhook, field }));
    });
    for (const { webhook, field } of differs) metrics.deviations.set({ configuration: name, webhook, field }, 1);
    const text = differs.map(({ webhook, field }) => (field === 'name' ? `${webhook} is not there` : `${webhook}: ${field}`)).join(', ');
    if (text !== followed.told && text !== '') logger.warn({ kind, name, differs: text }, "the webhooks' configuration is another than what belongs to this pilot, which leaves that as it is");
    followed.told = text;
  }
}

/** As the API server has it, but for the CA. */
function asStored(webhook: Webhook): Webhook {
  const { caBundle: _, ...clientConfig } = webhook.clientConfig;
  const { service } = clientConfig as { service?: { port?: number } };
  return {
    ...DEFAULTS,
    ...webhook,
    ...(webhook.rules ? { rules: webhook.rules.map((rule) => ({ scope: '*', ...rule })) } : {}),
    clientConfig: { ...clientConfig, ...(service ? { service: { port: 443, ...service } } : {}) },
  };
}
