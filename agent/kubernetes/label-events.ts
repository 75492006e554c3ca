/**
 * An Event for each label of the mesh's with a value that nobody knows, where whoever wrote it looks: on the namespace, or on
 * the pod. All nodes see a namespace's label; the Event's name is made of what it says, so that there is one of it.
 */
import { createHash } from 'node:crypto';
import { isRefusal, resourceOf, type KubeClient } from '../../common/kube/client.js';
import type { KubeObject, ObjectMeta } from '../../common/kube/types.js';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import { unknownLabels, type EnrolmentDefaults, type UnknownLabel } from '../workloads/enrolment.js';

export interface LabelEventsOptions {
  client: KubeClient;
  component: string;
  defaults: Pick<EnrolmentDefaults, 'ambientLabel'>;
  logger: Logger;
  /** Drawn anew each time, so that of many nodes one is first. */
  delayMs?: () => number;
  /** Within it another node has counted the same change. */
  sameChangeMs?: number;
}

export type LabelledObject = Pick<KubeObject, 'metadata'> & { kind: 'Namespace' | 'Pod' };

interface KubeEvent extends KubeObject {
  count?: number;
  lastTimestamp?: string;
}

const EVENTS = resourceOf('v1', 'Event');
const MOST_DELAY_MS = 2_000;
const SAME_CHANGE_MS = 30_000;
/** An Event's name holds 253 characters. */
const MAX_NAME = 200;
/** Labels are written by people: more at once are a program's, and not each needs a word. */
const MOST_UNDER_WAY = 100;

export class LabelEvents implements Closable {
  readonly #options: LabelEventsOptions;
  readonly #abort = new AbortController();
  /** What was said of each object, by UID. */
  readonly #said = new Map<string, ReadonlySet<string>>();
  #underWay = 0;
  #problem: string | undefined;

  constructor(options: LabelEventsOptions) {
    this.#options = options;
  }

  /** @param isChange whether it was seen to change; else it is as it was found, which another agent may have said long ago */
  look({ kind, metadata }: LabelledObject, isChange: boolean): void {
    const { uid, labels = {} } = metadata;
    if (uid === undefined) return;
    const unknown = unknownLabels(labels, kind === 'Pod' ? 'pod' : 'namespace', this.#options.defaults);
    const said = this.#said.get(uid);
    if (unknown.length === 0) return void this.#said.delete(uid);
    this.#said.set(uid, new Set(unknown.map(keyOf)));
    for (const label of unknown) {
      if (said?.has(keyOf(label)) || this.#underWay >= MOST_UNDER_WAY) continue;
      this.#underWay++;
      void this.#write(kind, metadata, label, isChange).finally(() => this.#underWay--);
    }
  }

  forget(uid: string | undefined): void {
    if (uid !== undefined) this.#said.delete(uid);
  }

  async #write(kind: LabelledObject['kind'], metadata: ObjectMeta, label: UnknownLabel, isChange: boolean): Promise<void> {
    const { client, logger, delayMs = () => Math.random() * MOST_DELAY_MS } = this.#options;
    const { signal } = this.#abort;
    try {
      await sleep(delayMs(), signal);
      const event = eventOf(kind, metadata, label, this.#options.component);
      const isThere = await client.create(EVENTS, event, signal).then(() => false, (error: unknown) => {
        if (isRefusal(error, 409)) return true;
        throw error;
      });
      if (isThere && isChange) await this.#countUp(event, signal);
      this.#problem = undefined;
    } catch (error) {
      // Of a namespace that ends nothing more is written.
      if (signal.aborted || isRefusal(error, 404, 409) || errorMessage(error).includes('being terminated')) return;
      const problem = errorMessage(error);
      if (problem !== this.#problem) logger.warn({ reason: problem }, 'an Event about a label with an unknown value could not be written');
      this.#problem = problem;
    }
  }

  /** The label was right in between. Of all nodes that saw it one adds to the Event's count: the others are late (409), or find it fresh. */
  async #countUp({ metadata }: KubeEvent, signal: AbortSignal): Promise<void> {
    const { client, sameChangeMs = SAME_CHANGE_MS } = this.#options;
    const { name, namespace } = metadata;
    const { metadata: { resourceVersion }, count = 1, lastTimestamp } = await client.get<KubeEvent>(EVENTS, { namespace, name }, signal);
    if (lastTimestamp !== undefined && Date.now() - Date.parse(lastTimestamp) < sameChangeMs) return;
    await client.merge(EVENTS, { namespace, name }, { metadata: { resourceVersion }, count: count + 1, lastTimestamp: now() }, signal);
  }

  close(): void {
    this.#abort.abort();
  }
}

const keyOf = ({ label, value }: UnknownLabel): string => `${label}=${value}`;
/** Whole seconds, as Kubernetes writes them. */
const now = (): string => new Date().toISOString().replace(/\.\d+/, '');

function eventOf(kind: LabelledObject['kind'], { name, namespace = name, uid }: ObjectMeta, label: UnknownLabel, component: string): KubeEvent & Record<string, unknown> {
  const hash = createHash('sha256').update(JSON.stringify([uid, keyOf(label)])).digest('hex').slice(0, 16);
  const at = now();
  return {
    apiVersion: 'v1',
    kind: 'Event',
    metadata: { name: `${name.slice(0, MAX_NAME).replace(/[.-]+$/, '')}.${hash}`, namespace },
    // A Namespace has none; with its own the Event is among those of the namespace.
    involvedObject: { apiVersion: 'v1', kind, name, namespace, uid },
    type: 'Warning',
    reason: 'UnknownLabelValue',
    message: `label ${label.label}: found ${JSON.stringify(label.value)}, expected one of ${label.expected.join(', ')}; until then it is as ${label.usedInstead}`,
    source: { component },
    reportingComponent: component,
    firstTimestamp: at,
    lastTimestamp: at,
    count: 1,
  };
}
