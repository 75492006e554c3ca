/** The injection file in force: followed live, the last good version stays when a change is wrong. */
import { readFileSync, watch, type FSWatcher } from 'node:fs';
import { basename, dirname } from 'node:path';
import { errorMessage, UnderpassError } from '../../common/errors.js';
import { DEFAULT_INJECTION, parseInjection, type InjectionConfig, type InjectionValues } from '../../common/injection/config.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';

const SETTLE_MS = 50;
const RESCAN_MS = 2_000;

export class LiveInjection implements Closable {
  #current: { key: string; config: InjectionConfig } | undefined;
  #text = '';
  #watcher: FSWatcher | undefined;
  #timer: NodeJS.Timeout | undefined;
  #rescan: NodeJS.Timeout | undefined;

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
    const later = (): void => {
      this.#timer ??= setTimeout(() => {
        this.#timer = undefined;
        try {
          if (this.#take(file)) this.logger.info({ file }, 'the injection file was taken over');
        } catch (error) {
          this.logger.warn({ file, reason: errorMessage(error) }, 'the injection file is wrong; the last good one stays');
        }
      }, SETTLE_MS);
    };
    // The directory: a file that is replaced by rename has another inode.
    this.#watcher = watch(dirname(file), (_event, name) => {
      if (name === null || name === basename(file) || name.startsWith('..')) later();
    });
    this.#watcher.on('error', () => this.#watcher?.close());
    this.#rescan = setInterval(later, RESCAN_MS);
    this.#rescan.unref();
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
    clearTimeout(this.#timer);
    clearInterval(this.#rescan);
    this.#watcher?.close();
  }
}
