/**
 * Tells the mesh whether a pod takes mutual TLS: by the label that Istio's injector gives pods with a proxy, which every
 * control plane of Istio's kind reads. It is said when what comes for the pod is met by Envoy with the pod's certificate, and
 * taken back before that ends, with time for callers to hear of it.
 */
import { errorMessage } from '../../common/errors.js';
import { TLS_MODE_ISTIO, TLS_MODE_LABEL } from '../../common/identity/tls-mode.js';
import type { PodRecord } from '../../common/lab-api.js';
import type { Logger } from '../../common/log.js';

/** Sets a pod's labels where the mesh reads them; a null value removes one. */
export type SetPodLabels = (pod: PodRecord, labels: Record<string, string | null>) => Promise<void>;

/** From the label by way of the control plane to the last caller's proxy: much less, where nothing is overloaded. */
export const CALLERS_HEAR_MS = 2_000;
const RETRY_MS = 1_000;

export function saysMutualTls({ labels }: Pick<PodRecord, 'labels'>): boolean {
  return labels[TLS_MODE_LABEL] === TLS_MODE_ISTIO;
}

export class MutualTlsLabel {
  /** When it was taken back, by the monotonic clock. */
  #withdrawnAt: number | undefined;
  /** It was set here: what is known of the pod's labels may be older. */
  #announced = false;
  #problem: string | undefined;

  constructor(readonly setLabels: SetPodLabels | undefined, readonly logger: Logger, readonly callersHearMs: number) {}

  /** @returns after how many milliseconds to try again; undefined when it is said, or can't be */
  async announce(pod: PodRecord): Promise<number | undefined> {
    if (!this.setLabels || (saysMutualTls(pod) && this.#withdrawnAt === undefined)) return undefined;
    if (!(await this.#set(pod, TLS_MODE_ISTIO))) return RETRY_MS;
    this.#withdrawnAt = undefined;
    this.#announced = true;
    return undefined;
  }

  /** @returns how many milliseconds callers may still come with mutual TLS; undefined when they do not */
  async withdraw(pod: PodRecord): Promise<number | undefined> {
    if (!this.setLabels || (this.#withdrawnAt === undefined && !this.#announced && !saysMutualTls(pod))) return undefined;
    if (this.#withdrawnAt === undefined) {
      if (!(await this.#set(pod, null))) return RETRY_MS;
      this.#withdrawnAt = performance.now();
      this.#announced = false;
    }
    const leftMs = this.#withdrawnAt + this.callersHearMs - performance.now();
    if (leftMs > 0) return leftMs;
    this.#withdrawnAt = undefined;
    return undefined;
  }

  async #set(pod: PodRecord, value: string | null): Promise<boolean> {
    try {
      await this.setLabels!(pod, { [TLS_MODE_LABEL]: value });
      this.#problem = undefined;
      return true;
    } catch (error) {
      const problem = errorMessage(error);
      if (problem !== this.#problem) this.logger.warn({ pod: `${pod.namespace}/${pod.name}`, label: TLS_MODE_LABEL, value, reason: problem }, "the pod's label can't be set; its callers go on as they do");
      this.#problem = problem;
      return false;
    }
  }
}
