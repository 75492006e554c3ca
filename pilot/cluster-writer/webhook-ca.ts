/**
 * The CA in the webhooks' configurations, kept as it is: an API server that trusts another one calls no webhook. And the
 * validator's failure policy, which is installed as Ignore, lest what is applied together with pilot is refused before it
 * runs: from its first moment on what it can't be asked about is refused.
 */
import { isDeepStrictEqual } from 'node:util';
import { resourceOf, type KubeClient, type Resource } from '../../common/kube/client.js';
import { reflect } from '../../common/kube/reflector.js';
import type { KubeObject } from '../../common/kube/types.js';
import type { Logger } from '../../common/log.js';
import { configurationNames } from '../injector/configurations.js';

interface WebhookConfiguration extends KubeObject {
  webhooks?: { name: string; failurePolicy?: string; clientConfig: { caBundle?: string } }[];
}

const GROUP = 'admissionregistration.k8s.io/v1';

interface Followed {
  resource: Resource;
  name: string;
  present: WebhookConfiguration | undefined;
}

export class WebhookCa {
  readonly #followed: Followed[];

  /** @param revision whose configurations they are */
  constructor(readonly client: KubeClient, revision: string, readonly logger: Logger) {
    const names = configurationNames(revision);
    this.#followed = [
      { resource: resourceOf(GROUP, 'MutatingWebhookConfiguration'), name: names.mutating, present: undefined },
      { resource: resourceOf(GROUP, 'ValidatingWebhookConfiguration'), name: names.validating, present: undefined },
    ];
  }

  /** Until the signal aborts. @param onChange called when a configuration came or changed */
  follow(signal: AbortSignal, onChange: () => void): void {
    for (const followed of this.#followed) {
      const take = (object: KubeObject | undefined): void => {
        followed.present = object;
        if (object) onChange();
      };
      void reflect({
        client: this.client,
        resources: [followed.resource],
        selectors: { fieldSelector: `metadata.name=${followed.name}` },
        logger: this.logger,
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
  }

  /** Configurations that are not there are whoever's who installs them. */
  async write(caPem: string, signal: AbortSignal): Promise<void> {
    const caBundle = Buffer.from(caPem).toString('base64');
    for (const { resource, name, present } of this.#followed) {
      const failurePolicy = resource.kind === 'ValidatingWebhookConfiguration' ? { failurePolicy: 'Fail' } : {};
      const wanted = present?.webhooks?.map((webhook) => ({ ...webhook, ...failurePolicy, clientConfig: { ...webhook.clientConfig, caBundle } }));
      if (!present || !wanted || isDeepStrictEqual(wanted, present.webhooks)) continue;
      await this.client.merge(resource, { name }, { metadata: { resourceVersion: present.metadata.resourceVersion }, webhooks: wanted }, signal);
      this.logger.info({ kind: resource.kind, name }, "the CA was written into the webhooks' configuration");
    }
  }
}
