/**
 * Decides which version of each object is in force. An object whose references lead nowhere is held back and its last good
 * version stays; it is looked at again with every change, since what it refers to may come later.
 */
import { formatError, type LoadedObject, type ValidationError } from '../../common/kube/yaml.js';
import type { Logger } from '../../common/log.js';
import type { ObjectChange } from '../model/model.js';
import { References } from './references.js';

export class Admission {
  readonly #inForce = new Map<string, LoadedObject>();
  readonly #contents = new WeakMap<LoadedObject, string>();
  #errors: ValidationError[] = [];
  #said = new Set<string>();

  constructor(readonly clusterDomain: string, readonly logger: Logger) {}

  /** Problems between objects, as of the last call of admit(). */
  errors(): readonly ValidationError[] {
    return this.#errors;
  }

  /** @returns what changed of the objects in force. */
  admit(candidates: ReadonlyMap<string, LoadedObject>): ObjectChange[] {
    const references = new References(candidates.values(), this.clusterDomain);
    const changes: ObjectChange[] = [];
    const errors: ValidationError[] = [];
    for (const [key, candidate] of candidates) {
      const found = references.check(candidate);
      errors.push(...found);
      if (found.some(({ severity }) => severity === 'error')) continue;
      const old = this.#inForce.get(key);
      if (old && this.#content(old) === this.#content(candidate)) continue;
      this.#inForce.set(key, candidate);
      changes.push({ key, loaded: candidate });
    }
    for (const key of this.#inForce.keys()) {
      if (candidates.has(key)) continue;
      this.#inForce.delete(key);
      changes.push({ key });
    }
    this.#report(errors);
    return changes;
  }

  #content(loaded: LoadedObject): string {
    let content = this.#contents.get(loaded);
    if (content === undefined) this.#contents.set(loaded, (content = JSON.stringify(loaded.object)));
    return content;
  }

  /** Each problem is said once, and again only after it was gone. */
  #report(errors: ValidationError[]): void {
    this.#errors = errors;
    const now = new Set(errors.map(formatError));
    for (const error of errors) {
      const text = formatError(error);
      if (this.#said.has(text)) continue;
      const where = { file: error.file, line: error.line, column: error.column, field: error.field };
      if (error.severity === 'warning') this.logger.warn(where, text);
      else this.logger.error({ ...where, lastGoodStays: true }, text);
    }
    this.#said = now;
  }
}
