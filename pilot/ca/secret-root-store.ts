/**
 * The self-signed root of a cluster, where all of its pilots have it: a Secret of the root namespace, as Istio has
 * `istio-ca-secret`. Nobody leads: who wants to write says which version it knows, and takes over what a faster one wrote.
 */
import { UnderpassError, errorMessage } from '../../common/errors.js';
import { RootsChangedError, type CertificateAuthority, type RootStore, type StoredRoots } from '../../common/identity/ca.js';
import type { CaMaterial } from '../../common/identity/signing-key.js';
import { isRefusal, resourceOf, type KubeClient } from '../../common/kube/client.js';
import { reflect } from '../../common/kube/reflector.js';
import type { KubeObject, Secret } from '../../common/kube/types.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { Backoff, sleep } from '../../common/retry.js';

const SECRETS = resourceOf('v1', 'Secret');
export const ROOT_SECRET_NAME = 'underpass-ca';
/** Kept out of the mesh's configuration by it. */
export const ROOT_SECRET_TYPE = 'underpass.io/ca-root';

export class SecretRootStore implements RootStore {
  /** Of what was loaded or saved last; undefined: nothing is there. */
  #version: string | undefined;

  constructor(readonly client: KubeClient, readonly namespace: string, readonly name = ROOT_SECRET_NAME) {}

  get place(): string {
    return `Secret ${this.namespace}/${this.name}`;
  }

  async load(): Promise<StoredRoots | undefined> {
    try {
      const secret = await this.client.get<Secret>(SECRETS, { namespace: this.namespace, name: this.name });
      const roots = this.read(secret);
      this.took(secret);
      return roots;
    } catch (error) {
      if (isRefusal(error, 404)) return undefined;
      throw error;
    }
  }

  /** What the Secret says. @throws UnderpassError `UNDERPASS_CA` naming the key that is wrong */
  read({ data = {} }: Secret): StoredRoots {
    const text = (key: string): string | undefined => (data[key] === undefined ? undefined : Buffer.from(data[key], 'base64').toString('utf8'));
    const material = (kind: string): CaMaterial | undefined => {
      const [certificatePem, privateKeyPem] = [text(`${kind}-cert.pem`), text(`${kind}-key.pem`)];
      return certificatePem === undefined || privateKeyPem === undefined ? undefined : { certificatePem, privateKeyPem, chainPem: '', rootPem: certificatePem };
    };
    const [issuing, next, since] = [material('ca'), material('next'), Number(text('since') ?? NaN)];
    if (!issuing || !Number.isFinite(since)) throw new UnderpassError('UNDERPASS_CA', `reading the CA of ${this.place}: expected ca-cert.pem, ca-key.pem and since`);
    const retiring = text('retiring.pem');
    return { issuing, ...(next ? { next } : {}), retiring: retiring ? [retiring] : [], since };
  }

  /** Its roots are those that are used: a save() from now on is one of this version. */
  took({ metadata }: Pick<Secret, 'metadata'>): void {
    this.#version = metadata.resourceVersion;
  }

  async save({ issuing, next, retiring, since }: StoredRoots): Promise<void> {
    const base64 = (written: string): string => Buffer.from(written).toString('base64');
    const data = {
      'ca-cert.pem': base64(issuing.certificatePem),
      'ca-key.pem': base64(issuing.privateKeyPem),
      // A merge patch takes away what is null.
      'next-cert.pem': next ? base64(next.certificatePem) : null,
      'next-key.pem': next ? base64(next.privateKeyPem) : null,
      'retiring.pem': retiring.length > 0 ? base64(retiring.join('')) : null,
      since: base64(String(since)),
    };
    const { client, namespace, name } = this;
    try {
      const { metadata } = await (this.#version === undefined
        ? client.create(SECRETS, { apiVersion: 'v1', kind: 'Secret', type: ROOT_SECRET_TYPE, metadata: { namespace, name }, data: Object.fromEntries(Object.entries(data).filter(([, value]) => value !== null)) } as KubeObject)
        : client.merge<KubeObject>(SECRETS, { namespace, name }, { metadata: { resourceVersion: this.#version }, data }));
      this.#version = metadata.resourceVersion;
    } catch (error) {
      if (isRefusal(error, 409)) throw new RootsChangedError();
      throw error;
    }
  }

  /** It is not there any more. */
  forget(): void {
    this.#version = undefined;
  }
}

/** Takes over what other pilots write, and writes the Secret again when somebody deletes it: what was issued must stay good. */
export class RootSecretFollower implements Closable {
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  /** The newest that was told of; undefined: it is gone. */
  #newest: KubeObject | undefined;

  constructor(readonly ca: CertificateAuthority, readonly store: SecretRootStore, readonly logger: Logger) {
    const { client, namespace, name } = store;
    this.#running = reflect({
      client,
      resources: [SECRETS],
      namespace,
      selectors: { fieldSelector: `metadata.name=${name}` },
      logger,
      signal: this.#stop.signal,
      following: {
        begin: () => {
          let found: KubeObject | undefined;
          return { listed: (object) => (found = object), complete: () => this.#take(found) };
        },
        changed: (object) => this.#take(object),
        deleted: () => this.#take(undefined),
      },
    });
  }

  #take(secret: KubeObject | undefined): void {
    this.#newest = secret;
    void this.#follow(secret);
  }

  /** Until it is done, or something newer is told. */
  async #follow(secret: KubeObject | undefined): Promise<void> {
    const { ca, store, logger } = this;
    const { signal } = this.#stop;
    const backoff = new Backoff();
    let said: string | undefined;
    while (this.#newest === secret && !signal.aborted) {
      try {
        if (secret) {
          await ca.adopt(store.read(secret as Secret));
          if (this.#newest === secret) store.took(secret as Secret);
        } else {
          store.forget();
          await store.save(ca.stored);
          logger.warn({ secret: store.place }, 'the Secret of the CA was gone, and was written again');
        }
        return;
      } catch (error) {
        if (error instanceof RootsChangedError || signal.aborted) return;
        const reason = errorMessage(error);
        if (reason !== said) logger.error({ secret: store.place, reason }, 'the CA was not exchanged; the one of before stays, and it is tried again');
        said = reason;
        await sleep(backoff.next(), signal).catch(() => undefined);
      }
    }
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#running;
  }
}
