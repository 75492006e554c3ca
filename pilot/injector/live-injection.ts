/** The injection file in force: followed live, the last good version stays when a change is wrong. */
import { readFileSync } from 'node:fs';
import { errorMessage, UnderpassError } from '../../common/errors.js';
import { FileFollower } from '../../common/file-follower.js';
import { DEFAULT_INJECTION, parseInjection, type InjectionConfig, type InjectionValues } from '../../common/injection/config.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';

export class LiveInjection implements Closable {
  #current: { key: string; config: InjectionConfig } | undefined;
  #text = '';
  #follower: FileFollower | undefined;

  /** @param meshValues what the mesh's settings say; the file's values go over them */
  constructor(readonly file: string | undefined, readonly meshValues: () => Partial<InjectionValues>, readonly logger: Logger) {}

  get current(): InjectionConfig {
    const values = { ...DEFAULT_INJECTION.values, ...this.meshValues() };
    const key = JSON.stringify(values);
    if (this.#current?.key !== key) this.#current = { key, config: parseInjection(this.#text, this.file ?? '', { ...DEFAULT_INJECTION, values }) };
    return this.#current.config;
  }

  /** @throws UnderpassError `UNDERPASS_INJECTION` when the first version can't be taken */
  start(): void {
    const { file } = this;
    if (file === undefined) return;
    this.#take(file);
    this.#follower = new FileFollower(file, () => {
      try {
        if (this.#take(file)) this.logger.info({ file }, 'the injection file was taken over');
      } catch (error) {
        this.logger.warn({ file, reason: errorMessage(error) }, 'the injection file is wrong; the last good one stays');
      }
    });
  }

  #take(file: string): boolean {
    let text: string;
    try {
      text = readFileSync(file, 'utf8');
    } catch (error) {
      throw new UnderpassError('UNDERPASS_INJECTION', `reading the injection file ${file}: ${errorMessage(error)}`, { cause: error, hint: 'give an existing file with --injection-config' });
    }
    if (text === this.#text) return false;
    parseInjection(text, file);
    this.#text = text;
    this.#current = undefined;
    return true;
  }

  close(): void {
    this.#follower?.close();
  }
}
