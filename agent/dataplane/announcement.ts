/**
 * Tells the mesh what a pod takes, where every control plane of Istio's kind reads it: mutual TLS by the label that the
 * injector gives pods with a proxy, HBONE by the annotation that pods in ambient mode have. It is said when what comes for the
 * pod is met by Envoy with the pod's certificate, and taken back before that ends, with time for callers to hear of it.
 */
import { errorMessage } from '../../common/errors.js';
import { REDIRECTION_ANNOTATION, REDIRECTION_ENABLED, TLS_MODE_ISTIO, TLS_MODE_LABEL } from '../../common/identity/announcements.js';
import type { PodMetadataPatch, PodRecord } from '../../common/lab-api.js';
import type { Logger } from '../../common/log.js';

/** Sets a pod's labels and annotations where the mesh reads them; a null value removes one. */
export type SetPodMetadata = (pod: PodRecord, patch: PodMetadataPatch) => Promise<void>;

/** From the label by way of the control plane to the last caller's proxy: much less, where nothing is overloaded. */
export const CALLERS_HEAR_MS = 2_000;
const RETRY_MS = 1_000;

export interface AnnouncementKind {
  readonly field: 'labels' | 'annotations';
  readonly key: string;
  readonly value: string;
}

export const MUTUAL_TLS: AnnouncementKind = { field: 'labels', key: TLS_MODE_LABEL, value: TLS_MODE_ISTIO };
export const HBONE: AnnouncementKind = { field: 'annotations', key: REDIRECTION_ANNOTATION, value: REDIRECTION_ENABLED };
export const ANNOUNCEMENTS: readonly AnnouncementKind[] = [MUTUAL_TLS, HBONE];

export function says(pod: Pick<PodRecord, 'labels' | 'annotations'>, { field, key, value }: AnnouncementKind): boolean {
  return pod[field][key] === value;
}

/** What takes back all that the pod says; undefined when it says nothing. */
export function silence(pod: Pick<PodRecord, 'labels' | 'annotations'>): PodMetadataPatch | undefined {
  const said = ANNOUNCEMENTS.filter((kind) => says(pod, kind));
  return said.length === 0 ? undefined : said.reduce<PodMetadataPatch>((patch, { field, key }) => ({ ...patch, [field]: { [key]: null } }), {});
}

/** The pod's labels and annotations without those that are set here. */
export function withoutAnnouncements({ labels, annotations }: Pick<PodRecord, 'labels' | 'annotations'>): Pick<PodRecord, 'labels' | 'annotations'> {
  const { [TLS_MODE_LABEL]: _label, ...otherLabels } = labels;
  const { [REDIRECTION_ANNOTATION]: _annotation, ...otherAnnotations } = annotations;
  return { labels: otherLabels, annotations: otherAnnotations };
}

export class Announcement {
  /** When it was taken back, by the monotonic clock. */
  #withdrawnAt: number | undefined;
  /** It was set here: what is known of the pod may be older. */
  #announced = false;
  #problem: string | undefined;

  constructor(readonly kind: AnnouncementKind, readonly setMetadata: SetPodMetadata | undefined, readonly logger: Logger, readonly callersHearMs: number) {}

  /** @returns after how many milliseconds to try again; undefined when it is said, or can't be */
  async announce(pod: PodRecord): Promise<number | undefined> {
    if (!this.setMetadata || (says(pod, this.kind) && this.#withdrawnAt === undefined)) return undefined;
    if (!(await this.#set(pod, this.kind.value))) return RETRY_MS;
    this.#withdrawnAt = undefined;
    this.#announced = true;
    return undefined;
  }

  /** @returns how many milliseconds callers may still come that way; undefined when they do not */
  async withdraw(pod: PodRecord): Promise<number | undefined> {
    if (!this.setMetadata || (this.#withdrawnAt === undefined && !this.#announced && !says(pod, this.kind))) return undefined;
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
    const { field, key } = this.kind;
    try {
      await this.setMetadata!(pod, { [field]: { [key]: value } });
      this.#problem = undefined;
      return true;
    } catch (error) {
      const problem = errorMessage(error);
      if (problem !== this.#problem) this.logger.warn({ pod: `${pod.namespace}/${pod.name}`, key, value, reason: problem }, `the pod's ${field} can't be set; its callers go on as they do`);
      this.#problem = problem;
      return false;
    }
  }
}
