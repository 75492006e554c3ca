/**
 * Directories of YAML as a source. All together they hold the objects of one mesh: what a later directory has overrides
 * the same object (kind, namespace, name) of an earlier one. An object that is refused stays as it was; so do the objects
 * of a file that can't be read, except those that its readable part still has.
 */
import { watch, type BigIntStats, type FSWatcher } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { UnderpassError, errorCode, errorMessage } from '../../common/errors.js';
import { formatError, isObjectFile, loadFile, type LoadedObject, type LoadResult, type ValidationError } from '../../common/kube/yaml.js';
import type { Logger } from '../../common/log.js';

export interface DirectorySourceOptions {
  directories: readonly string[];
  logger: Logger;
  /** Called with the full set whenever it changed. */
  onChange: (objects: ReadonlyMap<string, LoadedObject>) => void;
  /** A file that changed less than this ago may be half written. */
  settleMs?: number;
  /** A look at all files even if nobody told of a change: some file systems don't. Where the kernel does tell, it is rarer. */
  rescanMs?: number;
}

interface FileState {
  signature: string;
  objects: Map<string, LoadedObject>;
  errors: ValidationError[];
}

const DEFAULT_SETTLE_MS = 40;
const DEFAULT_RESCAN_MS = 2_000;
/** With watchers at work, and so that looks at many files take little of the time. */
const WATCHED_RESCAN_FACTOR = 15;
const RESCAN_DUTY = 50;
/** A file that is written to without end is read anyhow. */
const MAX_SETTLE_ROUNDS = 25;

export class DirectorySource {
  readonly #options: Required<DirectorySourceOptions>;
  readonly #files = new Map<string, FileState>();
  /** The files in the order in which they override each other, until some come or go. */
  #order: readonly string[] | undefined;
  readonly #watchers = new Map<string, FSWatcher>();
  #timer: NodeJS.Timeout | undefined;
  #rescan: NodeJS.Timeout | undefined;
  #scanning: Promise<void> | undefined;
  #again = false;
  #closed = false;
  #rounds = 0;
  readonly #lost = new Set<string>();
  /** Files that the kernel told of; only these are looked at, unless all are to be. */
  readonly #dirty = new Set<string>();
  #lookAtAll = true;
  #lastFullScanMs = 0;
  #nextFullScan = 0;

  constructor(options: DirectorySourceOptions) {
    this.#options = { settleMs: DEFAULT_SETTLE_MS, rescanMs: DEFAULT_RESCAN_MS, ...options };
  }

  /** Problems of all files as they are now. */
  errors(): ValidationError[] {
    return [...this.#files.values()].flatMap(({ errors }) => errors);
  }

  /** Reads everything once, then follows changes until close(). */
  async start(): Promise<void> {
    for (const directory of this.#options.directories) {
      try {
        await stat(directory);
      } catch (error) {
        throw new UnderpassError('UNDERPASS_SOURCE_MISSING', `reading source ${directory}: ${errorMessage(error)}`, { cause: error, hint: 'give an existing directory or file with --source' });
      }
    }
    await this.#scan(true);
    this.#watch();
    this.#rescan = setInterval(() => this.#rescanIfDue(), this.#options.rescanMs);
    this.#rescan.unref();
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    clearInterval(this.#rescan);
    for (const watcher of this.#watchers.values()) watcher.close();
    this.#watchers.clear();
    await this.#scanning;
  }

  #watch(): void {
    for (const directory of this.#options.directories) {
      if (this.#watchers.has(directory)) continue;
      try {
        const watcher = watch(directory, (event, name) => {
          const isSelf = name === basename(directory);
          // Of a watched file the name is its own; so is that of a directory that goes away. Kubernetes swaps `..data`, behind all files.
          if (name === null || isSelf || name.startsWith('..')) this.#lookAtAll = true;
          else this.#dirty.add(join(directory, name));
          if (isSelf && event === 'rename') {
            // What is under this name from now on is something else than what is watched.
            watcher.close();
            this.#watchers.delete(directory);
          }
          this.#schedule(this.#options.settleMs);
        });
        watcher.on('error', () => {
          watcher.close();
          this.#watchers.delete(directory);
        });
        this.#watchers.set(directory, watcher);
      } catch {
        // Gone for the moment: the regular look finds it when it is back.
      }
    }
  }

  #rescanIfDue(): void {
    const now = performance.now();
    const allWatched = this.#options.directories.every((directory) => this.#watchers.has(directory));
    if (allWatched && now < this.#nextFullScan) return;
    this.#lookAtAll = true;
    this.#schedule(0);
  }

  #schedule(delayMs: number): void {
    if (this.#closed || this.#timer) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      if (this.#scanning) {
        this.#again = true;
        return;
      }
      this.#scanning = this.#scan(false)
        .catch((error: unknown) => this.#options.logger.error({ err: error }, 'reading the sources failed'))
        .finally(() => {
          this.#scanning = undefined;
          if (this.#again) {
            this.#again = false;
            this.#schedule(this.#options.settleMs);
          }
        });
    }, delayMs);
  }

  async #scan(first: boolean): Promise<void> {
    this.#watch();
    if (!this.#lookAtAll) return this.#scanDirty();
    this.#lookAtAll = false;
    this.#dirty.clear();
    const began = performance.now();
    await this.#scanAll(first);
    this.#lastFullScanMs = performance.now() - began;
    this.#nextFullScan = performance.now() + Math.max(this.#options.rescanMs * WATCHED_RESCAN_FACTOR, this.#lastFullScanMs * RESCAN_DUTY);
  }

  async #scanDirty(): Promise<void> {
    const paths = [...this.#dirty].filter((path) => isObjectFile(basename(path)));
    this.#dirty.clear();
    let unsettled = false;
    let changed = false;
    for (const path of paths) {
      const outcome = await this.#look(path, false);
      if (outcome === 'gone') {
        // With its directory, it is lost for the time being, not removed.
        const inDirectory = await stat(dirname(path)).then(() => true, () => false);
        if (inDirectory) changed = this.#drop(path) || changed;
        else this.#lookAtAll = true;
      } else if (outcome === 'unsettled') {
        this.#dirty.add(path);
        unsettled = true;
      } else changed ||= outcome === 'taken';
    }
    this.#rounds = unsettled ? this.#rounds + 1 : 0;
    if (unsettled || this.#lookAtAll) this.#schedule(this.#options.settleMs);
    if (changed && !this.#closed) this.#options.onChange(this.#merged());
  }

  /** Reads a file if it is another than before. */
  async #look(file: string, first: boolean): Promise<'gone' | 'unsettled' | 'same' | 'taken'> {
    let info: BigIntStats;
    try {
      info = await stat(file, { bigint: true });
    } catch (error) {
      if (errorCode(error) === 'ENOENT') return 'gone';
      // Of this file alone nothing new can be known; reading it says why.
      const signature = `unreadable: ${errorMessage(error)}`;
      if (this.#files.get(file)?.signature === signature) return 'same';
      this.#take(file, signature, await loadFile(file));
      return 'taken';
    }
    if (!info.isFile()) return 'gone';
    const signature = `${info.ino}:${info.size}:${info.mtimeNs}:${info.ctimeNs}`;
    if (this.#files.get(file)?.signature === signature) return 'same';
    const ageMs = Date.now() - Number(info.mtimeNs / 1_000_000n);
    if (!first && ageMs >= 0 && ageMs < this.#options.settleMs && this.#rounds < MAX_SETTLE_ROUNDS) return 'unsettled';
    this.#take(file, signature, await loadFile(file));
    return 'taken';
  }

  async #scanAll(first: boolean): Promise<void> {
    const found = new Set<string>();
    let unsettled = false;
    let changed = first;
    for (const directory of this.#options.directories) {
      let files: string[];
      try {
        files = await this.#list(directory);
        this.#lost.delete(directory);
      } catch (error) {
        if (!this.#lost.has(directory)) this.#options.logger.warn({ directory, reason: errorMessage(error) }, 'a source directory is gone; its objects stay as they were');
        this.#lost.add(directory);
        // What was watched is not what may come back under this name.
        this.#watchers.get(directory)?.close();
        this.#watchers.delete(directory);
        for (const file of this.#files.keys()) if (file === directory || dirname(file) === directory) found.add(file);
        continue;
      }
      for (const file of files) {
        const outcome = await this.#look(file, first);
        if (outcome !== 'gone') found.add(file);
        unsettled ||= outcome === 'unsettled';
        changed ||= outcome === 'taken';
      }
    }
    for (const file of this.#files.keys()) {
      if (found.has(file)) continue;
      changed = this.#drop(file);
    }
    this.#rounds = unsettled ? this.#rounds + 1 : 0;
    this.#lookAtAll ||= unsettled;
    if (unsettled) this.#schedule(this.#options.settleMs);
    if (changed && !this.#closed) this.#options.onChange(this.#merged());
  }

  async #list(path: string): Promise<string[]> {
    if ((await stat(path)).isFile()) return [path];
    const names = (await readdir(path)).filter(isObjectFile).sort();
    return names.map((name) => join(path, name));
  }

  #take(file: string, signature: string, result: LoadResult): void {
    const old = this.#files.get(file);
    const objects = new Map<string, LoadedObject>();
    for (const loaded of result.objects) {
      if (objects.has(loaded.key)) {
        const { line, column } = loaded.positions.at(['metadata', 'name']);
        result.errors.push({ severity: 'error', file, line, column, kind: loaded.object.kind, name: loaded.object.metadata.name, field: 'metadata.name', message: 'this object is there twice in the file; the first one counts' });
        continue;
      }
      objects.set(loaded.key, loaded);
    }
    const kept = result.unreadable.length > 0 ? [...(old?.objects.keys() ?? [])] : result.refused;
    const stays: string[] = [];
    for (const key of kept) {
      const lastGood = old?.objects.get(key);
      if (!lastGood || objects.has(key)) continue;
      objects.set(key, lastGood);
      stays.push(key);
    }
    if (!old) this.#order = undefined;
    this.#files.set(file, { signature, objects, errors: result.errors });
    for (const error of result.errors) {
      const where = { file: error.file, line: error.line, column: error.column, field: error.field };
      if (error.severity === 'error') this.#options.logger.error(where, formatError(error));
      else this.#options.logger.warn(where, formatError(error));
    }
    if (stays.length > 0) this.#options.logger.warn({ file, objects: stays }, 'the last good version of these objects stays in force');
  }

  #drop(file: string): boolean {
    this.#order = undefined;
    return this.#files.delete(file);
  }

  #merged(): Map<string, LoadedObject> {
    const merged = new Map<string, LoadedObject>();
    for (const file of (this.#order ??= this.#ordered())) for (const [key, loaded] of this.#files.get(file)!.objects) merged.set(key, loaded);
    return merged;
  }

  #ordered(): string[] {
    return this.#options.directories.flatMap((directory) => {
      const inside = [...this.#files.keys()].filter((file) => file === directory || dirname(file) === stripSlash(directory));
      return inside.sort((a, b) => (basename(a) < basename(b) ? -1 : 1));
    });
  }
}

/** `path.join` has normalized the files' names; a directory is compared in the same form. */
function stripSlash(directory: string): string {
  return dirname(join(directory, 'x'));
}
