/**
 * The plugin's place in the node's chain of CNI plugins: behind all others of the configuration that the container runtime
 * reads, which is the first by name. Others write that file too, so it is looked at again and again. Where it is a single
 * plugin, a list of our own comes before it, and goes with it.
 */
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, statSync, watch, writeFileSync, type FSWatcher } from 'node:fs';
import { basename, join } from 'node:path';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import type { Check, Drift } from '../consistency/drift.js';

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
interface ConfigList { plugins?: PluginEntry[]; type?: unknown; [key: string]: unknown }

const POLL_MS = 5_000;
/** That nobody has asked for yet. */
const MOST_DRIFTS = 20;
/** Of a file that is being written. */
const PART = /^\.underpass-.+\.new$/;
const CONFIGURATION = /\.(conf|conflist|json)$/;

export class CniChain implements Closable {
  readonly #options: CniChainOptions;
  #watcher: FSWatcher | undefined;
  #timer: NodeJS.Timeout | undefined;
  #isClosed = false;
  #problem: string | undefined;
  /** Where the plugin was in its place at the last look; what it stands in changes with the cluster's network. */
  #placed: string | undefined;
  #drifts: Drift[] = [];

  constructor(options: CniChainOptions) {
    this.#options = options;
  }

  /** Why pods are not told of before they start; undefined while they are. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /** Says each time that somebody took it away; it was put back when that was seen. */
  check(): Check {
    return { name: 'CNI configuration', parts: () => [this.#drifts.splice(0)] };
  }

  #drifted(state: Drift['state'], name: string, detail: string): void {
    if (this.#placed !== undefined && this.#drifts.length < MOST_DRIFTS) this.#drifts.push({ kind: 'cni', state, name, detail, repair: () => undefined });
  }

  /** Puts the plugin there, and keeps it there until close(). */
  start(): void {
    removeParts(this.#options);
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
      this.#drifted(existsSync(target) ? 'wrong' : 'missing', target, 'the plugin itself');
      mkdirSync(binDir, { recursive: true });
      copyFileSync(plugin, `${target}.new`);
      chmodSync(`${target}.new`, 0o755);
      renameSync(`${target}.new`, target);
    }
    this.#watch();
    const [file] = configurations(configDir).filter((path) => !isOurs(path));
    if (file === undefined) {
      removeOurs(configDir);
      throw new Error(`${configDir}: found no configuration, expected the cluster's network to write one`);
    }
    const { list, path } = this.#listOf(file);
    const wanted = { ...list, plugins: [...list.plugins.filter(({ type }) => type !== PLUGIN), this.#entry()] };
    if (!isSame(path, wanted)) {
      if (this.#placed === path) this.#drifted(isIn(path) ? 'wrong' : 'missing', path, isIn(path) ? 'the plugin does not stand behind all others, or as it was written' : 'the plugin is not in it');
      writeList(path, listText(wanted));
      this.#options.logger.info({ file: path, ...(path === file ? {} : { of: file }) }, 'the CNI plugin was put into the chain');
    }
    this.#placed = path;
    // A network that was replaced by another leaves its file: what stands there is nobody's any more.
    for (const other of configurations(configDir)) {
      if (other === path) continue;
      if (isOurs(other)) rmSync(other, { force: true });
      else removeFrom(other);
    }
  }

  /** Nothing can stand behind a single plugin: a list of it goes before its file, and is made again when that changes. */
  #listOf(file: string): { list: PluginList; path: string } {
    const written = readConfiguration(file);
    if (isList(written)) return { list: written, path: file };
    if (typeof written.type !== 'string') throw new Error(`${file}: found neither "plugins" nor "type", expected a list of plugins or a single one`);
    const path = ourList(file);
    const { cniVersion, name } = written;
    return { list: { ...(cniVersion === undefined ? {} : { cniVersion }), ...(name === undefined ? {} : { name }), plugins: [written] }, path };
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
  removeOurs(configDir);
  for (const file of configurations(configDir)) removeFrom(file);
  removeParts({ configDir, binDir });
  rmSync(join(binDir, PLUGIN), { force: true });
}

/** What a writing that was interrupted left. */
function removeParts({ configDir, binDir }: Pick<CniChainOptions, 'configDir' | 'binDir'>): void {
  for (const name of existsSync(configDir) ? readdirSync(configDir) : []) if (PART.test(name)) rmSync(join(configDir, name), { force: true });
  rmSync(join(binDir, `${PLUGIN}.new`), { force: true });
}

/** As runtimes read them: the first by name counts. */
function configurations(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder).filter((name) => CONFIGURATION.test(name)).sort().map((name) => join(folder, name));
}

/** Names of a list of our own, from what looks usual to what comes before nearly everything. */
const OUR_LISTS = ['00-underpass.conflist', '-underpass.conflist'] as const;

function isOurs(file: string): boolean {
  return (OUR_LISTS as readonly string[]).includes(basename(file));
}

function ourList(file: string): string {
  const name = OUR_LISTS.find((candidate) => candidate < basename(file));
  if (name === undefined) throw new Error(`${file}: no list of our own can come before it by name, expected a name that begins with a digit or a letter`);
  return join(file, '..', name);
}

function removeOurs(folder: string): void {
  for (const name of OUR_LISTS) rmSync(join(folder, name), { force: true });
}

/** @throws Error that names the file, what was found, and what was expected */
function readConfiguration(file: string): ConfigList {
  let written: unknown;
  try {
    written = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new Error(`${file}: ${errorMessage(error)}`, { cause: error });
  }
  if (typeof written !== 'object' || written === null || Array.isArray(written)) throw new Error(`${file}: expected an object`);
  return written as ConfigList;
}

type PluginList = ConfigList & { plugins: PluginEntry[] };

function isList(written: ConfigList): written is PluginList {
  return Array.isArray(written.plugins);
}

function removeFrom(file: string): void {
  let list: ConfigList;
  try {
    list = readConfiguration(file);
  } catch {
    return; // nothing of ours is in it
  }
  if (!isList(list)) return;
  const plugins = list.plugins.filter(({ type }) => type !== PLUGIN);
  if (plugins.length !== list.plugins.length) writeList(file, listText({ ...list, plugins }));
}

function listText(list: ConfigList): string {
  return `${JSON.stringify(list, undefined, 2)}\n`;
}

function isIn(file: string): boolean {
  try {
    return readConfiguration(file).plugins?.some(({ type }) => type === PLUGIN) === true;
  } catch {
    return false;
  }
}

/** Whatever its blanks are: who wrote it may look whether it is as it was. */
function isSame(file: string, list: ConfigList): boolean {
  try {
    return JSON.stringify(readConfiguration(file)) === JSON.stringify(list);
  } catch {
    return false;
  }
}

/** A runtime that reads meanwhile sees the old one or the new one, whole; `.underpass-…` is no name that it reads. Who could read it can. */
function writeList(file: string, text: string): void {
  const part = join(file, '..', `.underpass-${basename(file)}.new`);
  const mode = statSync(file, { throwIfNoEntry: false })?.mode;
  writeFileSync(part, text, { mode: 0o600 });
  if (mode !== undefined) chmodSync(part, mode & 0o777);
  renameSync(part, file);
}
