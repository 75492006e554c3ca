/** Follows one file through changes in place, replacement by rename, and Kubernetes' swap of the link behind a mounted file. */
import { watch, type FSWatcher } from 'node:fs';
import { basename, dirname } from 'node:path';
import type { Closable } from './lifecycle.js';

/** What is written to now may be half written. */
const SETTLE_MS = 50;
/** A look even if nobody told of a change: some file systems don't. */
const RESCAN_MS = 2_000;

export class FileFollower implements Closable {
  readonly #watcher: FSWatcher;
  readonly #rescan: NodeJS.Timeout;
  #timer: NodeJS.Timeout | undefined;

  /** @param onChange called when the file may be another than before; it reads and compares */
  constructor(file: string, onChange: () => void) {
    const later = (): void => {
      this.#timer ??= setTimeout(() => {
        this.#timer = undefined;
        onChange();
      }, SETTLE_MS);
    };
    // The directory: a file that is replaced by rename has another inode.
    this.#watcher = watch(dirname(file), (_event, name) => {
      if (name === null || name === basename(file) || name.startsWith('..')) later();
    });
    this.#watcher.on('error', () => this.#watcher.close());
    this.#rescan = setInterval(later, RESCAN_MS);
    this.#rescan.unref();
  }

  close(): void {
    clearTimeout(this.#timer);
    clearInterval(this.#rescan);
    this.#watcher.close();
  }
}
