/**
 * The plugin's place in the node's chain of CNI plugins: behind all others of the configuration that the container runtime
 * reads, which is the first by name. Others write that file too, so it is looked at again and again.
 */
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, watch, writeFileSync, type FSWatcher } from 'node:fs';
import { basename, join } from 'node:path';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';

export const PLUGIN = 'underpass-cni';

/** What becomes of pods while no agent answers. */
export const WHEN_AWAY = ['wait-labelled', 'wait', 'go-on'] as const;

export interface CniChainOptions {
  /** `/etc/cni/net.d` and `/opt/cni/bin` of the host. */
  configDir: string;
  binDir: string;
  /** The plugin as it was built. */
  plugin: string;
  /** As the host sees them. */
  socket: string;
  labelled: string;
  whenAway: (typeof WHEN_AWAY)[number];
  logger: Logger;
  pollMs?: number;
}

interface PluginEntry { type?: unknown; [key: string]: unknown }
interface ConfigList { plugins?: PluginEntry[]; [key: string]: unknown }

const POLL_MS = 5_000;
const CONFIGURATION = /\.(conf|conflist|json)$/;

export class CniChain implements Closable {
  readonly #options: CniChainOptions;
  #watcher: FSWatcher | undefined;
  #timer: NodeJS.Timeout | undefined;
  #isClosed = false;
  #problem: string | undefined;

  constructor(options: CniChainOptions) {
    this.#options = options;
  }

  /** Why pods are not told of before they start; undefined while they are. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /** Puts the plugin there, and keeps it there until close(). */
  start(): void {
    this.#look();
  }

  #look(): void {
    clearTimeout(this.#timer);
    if (this.#isClosed) return;
    try {
      this.#repair();
      if (this.#problem !== undefined) this.#options.logger.info({ folder: this.#options.configDir }, 'the CNI plugin is in its place');
      this.#problem = undefined;
    } catch (error) {
      const problem = errorMessage(error);
      if (problem !== this.#problem) this.#options.logger.warn({ reason: problem }, 'the CNI plugin is not in the chain: pods are enrolled once they run');
      this.#problem = problem;
    }
    this.#timer = setTimeout(() => this.#look(), this.#options.pollMs ?? POLL_MS);
  }

  #repair(): void {
    const { configDir, binDir, plugin } = this.#options;
    const target = join(binDir, PLUGIN);
    if (!existsSync(target) || !readFileSync(target).equals(readFileSync(plugin))) {
      mkdirSync(binDir, { recursive: true });
      copyFileSync(plugin, `${target}.new`);
      chmodSync(`${target}.new`, 0o755);
      renameSync(`${target}.new`, target);
    }
    this.#watch();
    const file = firstConfiguration(configDir);
    if (file === undefined) throw new Error(`${configDir}: found no configuration, expected the cluster's network to write one`);
    const list = readList(file);
    const entry = this.#entry();
    const wanted = [...list.plugins.filter(({ type }) => type !== PLUGIN), entry];
    if (JSON.stringify(wanted) !== JSON.stringify(list.plugins)) {
      writeList(file, { ...list, plugins: wanted });
      this.#options.logger.info({ file }, 'the CNI plugin was put into the chain');
    }
    // A network that was replaced by another leaves its file: what stands there is nobody's any more.
    for (const other of configurations(configDir)) if (other !== file) removeFrom(other);
  }

  #entry(): PluginEntry {
    const { socket, labelled, whenAway } = this.#options;
    return { type: PLUGIN, socket, labelled, whenAway };
  }

  #watch(): void {
    if (this.#watcher) return;
    const watcher = watch(this.#options.configDir, { persistent: false }, () => {
      // Together with what else is written in this moment.
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#look(), 50);
    });
    watcher.on('error', () => {
      watcher.close();
      this.#watcher = undefined;
    });
    this.#watcher = watcher;
  }

  /** Leaves the plugin where it is: while the agent is away it decides by `whenAway`. */
  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#watcher?.close();
  }
}

/** Takes the plugin out of every configuration, and away. Fine when it is not there. */
export function removeCniPlugin({ configDir, binDir }: Pick<CniChainOptions, 'configDir' | 'binDir'>): void {
  for (const file of configurations(configDir)) removeFrom(file);
  for (const name of [PLUGIN, `${PLUGIN}.new`]) rmSync(join(binDir, name), { force: true });
}

function configurations(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder).filter((name) => CONFIGURATION.test(name)).sort().map((name) => join(folder, name));
}

function firstConfiguration(folder: string): string | undefined {
  return configurations(folder)[0];
}

/** @throws Error that names the file, what was found, and what was expected */
function readList(file: string): ConfigList & { plugins: PluginEntry[] } {
  let list: ConfigList;
  try {
    list = JSON.parse(readFileSync(file, 'utf8')) as ConfigList;
  } catch (error) {
    throw new Error(`${file}: ${errorMessage(error)}`, { cause: error });
  }
  if (!Array.isArray(list?.plugins)) throw new Error(`${file}: found no list "plugins", expected a .conflist: a single plugin has no chain`);
  return { ...list, plugins: list.plugins };
}

function removeFrom(file: string): void {
  let list: ReturnType<typeof readList>;
  try {
    list = readList(file);
  } catch {
    return; // nothing of ours is in it
  }
  const plugins = list.plugins.filter(({ type }) => type !== PLUGIN);
  if (plugins.length !== list.plugins.length) writeList(file, { ...list, plugins });
}

/** A runtime that reads meanwhile sees the old one or the new one, whole; `.underpass-…` is no name that it reads. */
function writeList(file: string, list: ConfigList): void {
  const part = join(file, '..', `.underpass-${basename(file)}.new`);
  writeFileSync(part, `${JSON.stringify(list, undefined, 2)}\n`, { mode: 0o600 });
  renameSync(part, file);
}
