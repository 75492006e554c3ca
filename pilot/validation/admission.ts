/**
 * Decides which version of each object is in force. An object whose references lead nowhere is held back and its last good
 * version stays; it is looked at again when what it refers to comes, changes or goes. What a check read is noted, so that
 * only those objects are looked at again whose facts a change touches: a change of endpoints touches none.
 */
import type { Problem } from '../../common/kube/schema.js';
import type { KubeObject } from '../../common/kube/types.js';
import { formatError, errorAt, type LoadedObject, type ValidationError } from '../../common/kube/yaml.js';
import type { Logger } from '../../common/log.js';
import { Memo } from '../../common/memo.js';
import type { ObjectChange } from '../model/model.js';
import { isGatewayApi } from './checks/gateways.js';
import { MeshIndex, View } from './mesh-index.js';
import { checkAlone, checkTogether, needsCheck, type ReferenceOptions } from './references.js';

interface Verdict {
  loaded: LoadedObject;
  reads: ReadonlySet<string>;
  errors: readonly ValidationError[];
  isHeldBack: boolean;
}

const NONE: readonly ValidationError[] = [];

export class Admission {
  /** Every object as it is in the sources. */
  readonly #offered = new Map<string, LoadedObject>();
  /** The same in the order in which it was offered last: most often only a value or two differ from it. */
  #lastKeys: string[] = [];
  #lastValues: LoadedObject[] = [];
  readonly #inForce = new Map<string, LoadedObject>();
  /** Of the kinds that are checked at all. */
  readonly #verdicts = new Map<string, Verdict>();
  /** Keys of the objects whose verdict read a fact. */
  readonly #readers = new Map<string, Set<string>>();
  readonly #withErrors = new Set<string>();
  readonly #alone = new Memo<LoadedObject, readonly ValidationError[]>();
  readonly #index: MeshIndex;
  #mustCheckAll = false;
  /** What was said of each object's problems. */
  readonly #said = new Map<string, ReadonlySet<string>>();
  #checks = 0;

  constructor(readonly clusterDomain: string, readonly logger: Logger, readonly options: ReferenceOptions = {}) {
    this.#index = new MeshIndex(clusterDomain);
  }

  /** Problems between objects, as of the last call of admit(). */
  errors(): readonly ValidationError[] {
    return [...this.#withErrors].flatMap((key) => this.#verdicts.get(key)!.errors);
  }

  /** How often an object was looked at since the start. */
  get checks(): number {
    return this.#checks;
  }

  /** The options have other values now: everything is looked at again with the next admit(). */
  settingsChanged(): void {
    this.#mustCheckAll = true;
  }

  /** @returns what changed of the objects in force. */
  admit(candidates: ReadonlyMap<string, LoadedObject>): ObjectChange[] {
    const changed = this.#changedKeys(candidates);
    const facts = new Set<string>();
    for (const key of changed) {
      const candidate = candidates.get(key);
      if (candidate) this.#offered.set(key, candidate);
      else this.#offered.delete(key);
      for (const name of this.#index.set(key, candidate)) facts.add(name);
    }
    const again = new Set(changed);
    if (this.#mustCheckAll) for (const key of this.#verdicts.keys()) again.add(key);
    this.#mustCheckAll = false;
    for (const name of facts) for (const key of this.#readers.get(name) ?? []) again.add(key);
    const changes: ObjectChange[] = [];
    for (const key of again) this.#decide(key, changes);
    for (const key of again) this.#report(key);
    return changes;
  }

  /** Costs one comparison an object where their order is the same, which it is unless some came or went. */
  #changedKeys(candidates: ReadonlyMap<string, LoadedObject>): Set<string> {
    const changed = new Set<string>();
    let isSameOrder = candidates.size === this.#lastKeys.length;
    let index = 0;
    for (const [key, candidate] of candidates) {
      if (!isSameOrder) break;
      if (key !== this.#lastKeys[index]) isSameOrder = false;
      else if (candidate !== this.#lastValues[index]) {
        this.#lastValues[index] = candidate;
        changed.add(key);
      }
      index++;
    }
    if (isSameOrder) return changed;
    this.#lastKeys = [...candidates.keys()];
    this.#lastValues = [...candidates.values()];
    changed.clear();
    for (const [key, candidate] of candidates) if (this.#offered.get(key) !== candidate) changed.add(key);
    for (const key of this.#offered.keys()) if (!candidates.has(key)) changed.add(key);
    return changed;
  }

  /** What other objects make wrong with an object that is not in the sources, or there in another version. */
  review(key: string, object: KubeObject): Problem[] {
    const before = this.#offered.get(key);
    const loaded: LoadedObject = { object, key, file: '', positions: { at: () => ({ line: 0, column: 0 }) } };
    this.#index.set(key, loaded);
    try {
      return checkTogether(new View(this.#index), loaded, this.options);
    } finally {
      this.#index.set(key, before);
    }
  }

  #decide(key: string, changes: ObjectChange[]): void {
    const candidate = this.#offered.get(key);
    this.#forget(key);
    const old = this.#inForce.get(key);
    if (!candidate) {
      if (this.#inForce.delete(key)) changes.push({ key });
      return;
    }
    if (needsCheck(candidate.object) && this.#check(key, candidate).isHeldBack) return;
    if (old === candidate || (old && sameContent(old, candidate))) return;
    this.#inForce.set(key, candidate);
    changes.push({ key, loaded: candidate });
  }

  #check(key: string, loaded: LoadedObject): Verdict {
    this.#checks++;
    const view = new View(this.#index);
    const errors = [...this.#checkAlone(loaded), ...checkTogether(view, loaded, this.options).map((problem) => errorAt(loaded, problem))];
    const verdict: Verdict = { loaded, reads: view.reads, errors: errors.length > 0 ? errors : NONE, isHeldBack: errors.some(({ severity }) => severity === 'error') };
    this.#verdicts.set(key, verdict);
    if (errors.length > 0) this.#withErrors.add(key);
    for (const name of view.reads) {
      const readers = this.#readers.get(name);
      if (readers) readers.add(key);
      else this.#readers.set(name, new Set([key]));
    }
    return verdict;
  }

  #checkAlone(loaded: LoadedObject): readonly ValidationError[] {
    return this.#alone.once(loaded, () => checkAlone(loaded.object).map((problem) => errorAt(loaded, problem)));
  }

  #forget(key: string): void {
    const verdict = this.#verdicts.get(key);
    if (!verdict) return;
    this.#verdicts.delete(key);
    this.#withErrors.delete(key);
    for (const name of verdict.reads) {
      const readers = this.#readers.get(name);
      readers?.delete(key);
      if (readers?.size === 0) this.#readers.delete(name);
    }
  }

  /** Each problem is said once, and again only after it was gone. */
  #report(key: string): void {
    const errors = this.#verdicts.get(key)?.errors ?? NONE;
    const before = this.#said.get(key);
    if (errors.length === 0) {
      if (before) this.#said.delete(key);
      return;
    }
    const now = new Set<string>();
    for (const error of errors) {
      const text = formatError(error);
      now.add(text);
      if (before?.has(text)) continue;
      const where = { file: error.file, line: error.line, column: error.column, field: error.field };
      if (error.severity === 'warning') this.logger.warn(where, text);
      else this.logger.error({ ...where, lastGoodStays: true }, text);
    }
    this.#said.set(key, now);
  }
}

/** To the mesh: an API server counts each version, and what is said of a Gateway API object's state is pilot's own saying. */
function sameContent(a: LoadedObject, b: LoadedObject): boolean {
  return contentOf(a) === contentOf(b);
}

/** Of whose status addresses count alone, those of ServiceEntries. */
function isIstios({ apiVersion }: KubeObject): boolean {
  return apiVersion.split('/')[0]!.endsWith('.istio.io');
}

function contentOf({ object }: LoadedObject): string {
  const { metadata, status, ...rest } = object as KubeObject & { status?: unknown };
  const { resourceVersion: _version, ...lasting } = metadata;
  return JSON.stringify([rest, lasting, isGatewayApi(object) ? undefined : isIstios(object) ? (status as { addresses?: unknown } | undefined)?.addresses : status]);
}
