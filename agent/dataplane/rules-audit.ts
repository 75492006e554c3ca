/**
 * Compares pods' redirection rules with those that were made. To read them takes several programs, so first it is asked whether any
 * rule of the pod's namespace has changed since they were read.
 */
import { waitFor } from '../../common/retry.js';
import type { Drift } from '../consistency/drift.js';
import type { CaptureRules, Namespaces } from './collaborators.js';
import type { Direction } from './iptables.js';

/** A pod's controller. */
export interface RuledPod {
  readonly rulesInForce: readonly Direction[];
  readonly settled: boolean;
  lost(direction: Direction): void;
}

interface Seen {
  mark: string;
  text: string;
}

const REPAIRED_MS = 10_000;
const MAX_DETAIL = 500;

export type RuledNamespaces = Pick<Namespaces, 'path' | 'rules' | 'inboundRules' | 'rulesMark'>;

export class RulesAudit {
  readonly #namespaces: RuledNamespaces;
  readonly #pods: () => ReadonlyMap<string, RuledPod>;
  /** By uid and direction, as they were when they were whole. */
  readonly #seen = new Map<string, Seen>();
  /** What is printed otherwise than it was made, though it was made anew. */
  readonly #accepted = new Set<string>();

  constructor(namespaces: RuledNamespaces, pods: () => ReadonlyMap<string, RuledPod>) {
    this.#namespaces = namespaces;
    this.#pods = pods;
  }

  async *parts(): AsyncGenerator<Drift[]> {
    const { rulesMark } = this.#namespaces;
    if (!rulesMark) return;
    const pods = this.#pods();
    for (const uid of [...pods.keys()]) {
      const pod = pods.get(uid);
      if (!pod || pod.rulesInForce.length === 0) continue;
      const path = this.#namespaces.path(uid);
      // Of a pod that has just ended there is none.
      const mark = await rulesMark.call(this.#namespaces, path).catch(() => undefined);
      const drifts: Drift[] = [];
      for (const direction of mark === undefined ? [] : pod.rulesInForce) {
        const drift = await this.#compared(uid, pod, direction, direction === 'inbound' ? this.#namespaces.inboundRules(path) : this.#namespaces.rules(path), mark!);
        if (drift) drifts.push(drift);
      }
      yield drifts;
    }
    for (const known of [this.#seen, this.#accepted]) for (const key of known.keys()) if (!pods.has(key.slice(0, key.lastIndexOf(' ')))) known.delete(key);
  }

  async #compared(uid: string, pod: RuledPod, direction: Direction, rules: CaptureRules, mark: string): Promise<Drift | undefined> {
    const key = `${uid} ${direction}`;
    const seen = this.#seen.get(key);
    const { read } = rules;
    if (seen?.mark === mark || !read) return undefined;
    const { state: { active, outdated }, text } = await read.call(rules);
    if (!pod.rulesInForce.includes(direction)) return undefined;
    const isWhole = active && (seen ? seen.text === text : !outdated || this.#accepted.has(key));
    if (isWhole) {
      this.#seen.set(key, { mark, text });
      return undefined;
    }
    const repair = async (): Promise<void> => {
      this.#seen.delete(key);
      this.#accepted.add(key);
      pod.lost(direction);
      await waitFor('the rules to be made again', () => pod.rulesInForce.includes(direction), { timeoutMs: REPAIRED_MS, everyMs: 20 });
      // At once, lest the next change be taken for what was made.
      const again = await this.#namespaces.rulesMark!(this.#namespaces.path(uid));
      this.#seen.set(key, { mark: again, text: (await read.call(rules)).text });
    };
    const { gone, come } = seen ? changes(seen.text, text) : { gone: [], come: [] };
    const detail = seen ? [...gone.map((rule) => `gone: ${rule}`), ...come.map((rule) => `new: ${rule}`)].join('; ').slice(0, MAX_DETAIL) : '';
    return { kind: 'rule', state: active && (come.length > 0 || !seen) ? 'wrong' : 'missing', name: key, pod: uid, repair, ...(detail === '' ? {} : { detail }) };
  }
}

/** What is gone and what has come, in iptables' words. */
function changes(before: string, after: string): { gone: string[]; come: string[] } {
  const [was, is] = [before.split('\n'), after.split('\n')];
  return { gone: was.filter((rule) => !is.includes(rule)), come: is.filter((rule) => !was.includes(rule)) };
}
