/** The CA in the webhooks' configurations, kept as it is: an API server that trusts another one calls no webhook. */
import { resourceOf, type KubeClient, type Resource } from '../../common/kube/client.js';
import { reflect } from '../../common/kube/reflector.js';
import type { KubeObject } from '../../common/kube/types.js';
import type { Logger } from '../../common/log.js';
import { configurationNames } from '../injector/configurations.js';

interface WebhookConfiguration extends KubeObject {
  webhooks?: { name: string; clientConfig: { caBundle?: string } }[];
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
      if (!present?.webhooks?.some(({ clientConfig }) => clientConfig.caBundle !== caBundle)) continue;
      const webhooks = present.webhooks.map((webhook) => ({ ...webhook, clientConfig: { ...webhook.clientConfig, caBundle } }));
      await this.client.merge(resource, { name }, { metadata: { resourceVersion: present.metadata.resourceVersion }, webhooks }, signal);
      this.logger.info({ kind: resource.kind, name }, "the CA was written into the webhooks' configuration");
    }
  }
}
