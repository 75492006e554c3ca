/**
 * Supervises the node's one Envoy. It outlives this process, however that ends, and the next one adopts it: same process,
 * same binary, and its admin interface answers. One that died is started again.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { copyFileSync, closeSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { buildDir } from '../../common/paths.js';
import { isRunning, processStartTime, type ProcessId } from '../../common/process-id.js';
import { Backoff, sleep, waitFor } from '../../common/retry.js';
import { bootstrap } from './bootstrap.js';
import { EnvoyAdmin, isTimeout } from './envoy-admin.js';

export interface EnvoyOptions {
  nodeName: string;
  runDir: string;
  envoyPath: string;
  /** cgroup v2 folder that the process joins; made when missing. */
  cgroupPath: string | undefined;
  concurrency?: number;
  /** The node's network namespace, where it is not this process's own: there Envoy runs and looks names up. */
  netnsPath?: string;
  dnsServers?: readonly string[];
  logLevel?: string;
  logger: Logger;
  /** Of `underpass-exec`; default build/underpass-exec. */
  launcherPath?: string;
  /** How long an Envoy of an earlier agent is asked for an answer; default 30 s. */
  adoptTimeoutMs?: number;
}

interface StateFile extends ProcessId {
  /** Which file the process executes: device, inode, size, time of change. */
  binary: string;
  version: string;
}

export interface EnvoyStatus {
  pid: number | undefined;
  version: string | undefined;
  adopted: boolean;
  restarts: number;
}

/** What describes a process that runs. */
const STATE_FILES = ['envoy.state.json', 'envoy-admin.sock'];
const WATCH_INTERVAL_MS = 250;
const LOG_CHECK_INTERVAL_MS = 5_000;
const MAX_LOG_BYTES = 16 << 20;
const START_TIMEOUT_MS = 15_000;
const STOP_TIMEOUT_MS = 5_000;
const ADOPT_TIMEOUT_MS = 30_000;
const ADOPT_RETRY_MS = 200;
/** A process that lived this long was no failed start: the next restart is immediate again. */
const STABLE_AFTER_MS = 10_000;
/** Istio's: how long connections of a replaced or removed listener or filter chain have to end. */
const DRAIN_SECONDS = 45;

export class Envoy implements Closable {
  readonly admin: EnvoyAdmin;
  readonly adsSocketPath: string;
  readonly #options: EnvoyOptions;
  readonly #stopping = new AbortController();
  readonly #backoff = new Backoff({ initialMs: 100, maxMs: 10_000, factor: 2, jitter: 0.2 });
  #process: ProcessId | undefined;
  #child: ChildProcess | undefined;
  #status: EnvoyStatus = { pid: undefined, version: undefined, adopted: false, restarts: 0 };
  #startedAt = 0;
  #watch: NodeJS.Timeout | undefined;
  #logWatch: NodeJS.Timeout | undefined;
  #restarting = false;

  constructor(options: EnvoyOptions) {
    this.#options = options;
    this.admin = new EnvoyAdmin(join(options.runDir, 'envoy-admin.sock'));
    this.adsSocketPath = join(options.runDir, 'ads.sock');
  }

  get status(): Readonly<EnvoyStatus> {
    return this.#status;
  }

  get running(): boolean {
    return this.#process !== undefined && isRunning(this.#process);
  }

  /** Of the process that answers, for good; undefined while there is none. */
  get identity(): string | undefined {
    return this.#process && `${this.#process.pid} ${this.#process.startTime}`;
  }

  get logPath(): string {
    return join(this.#options.runDir, 'envoy.log');
  }

  /**
   * Adopts the Envoy that an earlier agent left, or starts one; then keeps one running until `close` or `stop`.
   * @throws UnderpassError `UNDERPASS_ENVOY_START` with the last lines of Envoy's log
   */
  async start(signal?: AbortSignal): Promise<void> {
    if (!(await this.#adopt(signal))) await this.#launch(signal);
    this.#watch = setInterval(() => this.#check(), WATCH_INTERVAL_MS);
    this.#logWatch = setInterval(() => this.#boundLog(), LOG_CHECK_INTERVAL_MS);
  }

  /** Lets go of the process, which goes on running. */
  close(): void {
    this.#stopping.abort(new Error('the supervisor was closed'));
    clearInterval(this.#watch);
    clearInterval(this.#logWatch);
    this.#child?.removeAllListeners('exit');
    this.#child?.unref();
  }

  /** Ends the process: SIGTERM, then SIGKILL. */
  async stop(): Promise<void> {
    this.close();
    const process_ = this.#process;
    this.#process = undefined;
    if (process_) await endProcess(process_);
    for (const name of STATE_FILES) rmSync(join(this.#options.runDir, name), { force: true });
    this.#status = { ...this.#status, pid: undefined };
  }

  async #adopt(signal?: AbortSignal): Promise<boolean> {
    const { logger, envoyPath, netnsPath } = this.#options;
    const state = this.#readState();
    if (!state || !isRunning(state)) return false;
    const current = fileIdentity(envoyPath);
    const reason =
      fileIdentity(`/proc/${state.pid}/exe`) !== state.binary ? 'the process executes another file'
      : state.binary !== current ? `${envoyPath} is another binary now`
      : netnsPath && namespaceOf(`/proc/${state.pid}/ns/net`) !== namespaceOf(netnsPath) ? 'it runs in another network namespace than the node has now'
      : await this.#silence(state, signal);
    if (reason !== undefined) {
      logger.warn({ pid: state.pid, reason }, 'Envoy of an earlier agent can not be adopted; it is ended and a new one started');
      // Only a process that is known to be that Envoy is ended.
      if (fileIdentity(`/proc/${state.pid}/exe`) === state.binary) await endProcess(state);
      return false;
    }
    this.#process = { pid: state.pid, startTime: state.startTime };
    this.#startedAt = performance.now();
    this.#status = { ...this.#status, pid: state.pid, version: state.version, adopted: true };
    logger.info({ pid: state.pid, version: state.version }, 'Envoy of an earlier agent adopted');
    return true;
  }

  /**
   * Why an Envoy that runs can't be spoken to. One that is only slow, e.g. on a machine that is, serves its pods all the
   * same: it is not ended for that.
   */
  async #silence(state: StateFile, signal?: AbortSignal): Promise<string | undefined> {
    const stop = signal ? AbortSignal.any([signal, this.#stopping.signal]) : this.#stopping.signal;
    const deadline = performance.now() + (this.#options.adoptTimeoutMs ?? ADOPT_TIMEOUT_MS);
    for (;;) {
      try {
        await this.admin.serverInfo(stop);
        return undefined;
      } catch (error) {
        stop.throwIfAborted();
        if (!isRunning(state)) return 'it ended';
        if (performance.now() > deadline) {
          if (!isTimeout(error)) return errorMessage(error);
          this.#options.logger.warn({ pid: state.pid, reason: errorMessage(error) }, 'Envoy of an earlier agent runs but does not answer; it is adopted as it is');
          return undefined;
        }
      }
      await sleep(ADOPT_RETRY_MS, stop);
    }
  }

  async #launch(signal?: AbortSignal): Promise<void> {
    const { runDir, envoyPath, cgroupPath, netnsPath, dnsServers = [], nodeName, concurrency = 2, logLevel = 'warning', logger } = this.#options;
    mkdirSync(runDir, { recursive: true, mode: 0o700 });
    if (cgroupPath) mkdirSync(cgroupPath, { recursive: true });
    rmSync(this.admin.socketPath, { force: true });
    const configPath = join(runDir, 'envoy.json');
    const config = bootstrap({ nodeName, adsSocketPath: this.adsSocketPath, adminSocketPath: this.admin.socketPath, dnsServers });
    writeFileSync(configPath, JSON.stringify(config, null, 2), { mode: 0o600 });
    const log = openSync(this.logPath, 'a', 0o600);
    let child: ChildProcess;
    try {
      child = spawn(
        this.#options.launcherPath ?? join(buildDir, 'underpass-exec'),
        [
          ...(cgroupPath ? ['--cgroup', cgroupPath] : []), ...(netnsPath ? ['--netns', netnsPath] : []), '--setsid', '--', envoyPath,
          '--config-path', configPath, '--concurrency', `${concurrency}`, '--log-level', logLevel, '--disable-hot-restart',
          '--drain-time-s', `${DRAIN_SECONDS}`, '--drain-strategy', 'immediate', '--file-flush-interval-msec', '1000',
        ],
        { stdio: ['ignore', log, log], cwd: runDir },
      );
    } finally {
      closeSync(log);
    }
    const failure = new Promise<never>((_, reject) => {
      child.once('error', (cause) => reject(this.#startError(cause.message, cause)));
      child.once('exit', (code, name) => reject(this.#startError(code === null ? `ended by ${name}` : `exit ${code}`)));
    });
    failure.catch(() => undefined);
    const startTime = child.pid === undefined ? undefined : processStartTime(child.pid);
    const id = { pid: child.pid ?? 0, startTime: startTime ?? '' };
    const binary = fileIdentity(envoyPath) ?? '';
    // Before anything can go wrong here: an agent that dies now must not leave an Envoy that nobody knows.
    if (startTime !== undefined) this.#writeState({ ...id, binary, version: '' });
    let version: string;
    try {
      version = await Promise.race([failure, this.#answering(signal)]);
    } catch (error) {
      if (startTime !== undefined) await endProcess(id);
      throw error instanceof UnderpassError ? error : this.#startError(errorMessage(error), error);
    }
    child.removeAllListeners('exit');
    child.once('exit', () => this.#check());
    child.unref();
    this.#child = child;
    this.#process = id;
    this.#startedAt = performance.now();
    this.#status = { ...this.#status, pid: child.pid, version, adopted: false };
    this.#writeState({ ...id, binary, version });
    logger.info({ pid: child.pid, version }, 'Envoy started');
  }

  async #answering(signal?: AbortSignal): Promise<string> {
    const any = signal ? AbortSignal.any([signal, this.#stopping.signal]) : this.#stopping.signal;
    const probe = async (): Promise<string | undefined> => (await this.admin.serverInfo(any).catch(() => undefined))?.version;
    return waitFor("Envoy's admin interface", probe, { timeoutMs: START_TIMEOUT_MS, everyMs: 20, signal: any });
  }

  #startError(what: string, cause?: unknown): UnderpassError {
    let tail = '';
    try {
      tail = readFileSync(this.logPath, 'utf8').trimEnd().split('\n').slice(-3).join('\n');
    } catch {
      // no log yet
    }
    return new UnderpassError('UNDERPASS_ENVOY_START', `starting Envoy (${this.#options.envoyPath}): ${what}${tail && `: ${tail}`}`, { cause, hint: `the whole log is ${this.logPath}` });
  }

  #check(): void {
    if (this.#restarting || this.#stopping.signal.aborted || this.running) return;
    this.#restarting = true;
    const lived = performance.now() - this.#startedAt;
    this.#options.logger.error({ pid: this.#process?.pid, livedMs: Math.round(lived) }, 'Envoy ended; starting it again');
    this.#process = undefined;
    this.#status = { ...this.#status, pid: undefined, restarts: this.#status.restarts + 1 };
    void this.#restart(lived).finally(() => (this.#restarting = false));
  }

  async #restart(lived: number): Promise<void> {
    const { signal } = this.#stopping;
    if (lived > STABLE_AFTER_MS) this.#backoff.reset();
    for (let immediate = lived > STABLE_AFTER_MS; !signal.aborted; immediate = false) {
      try {
        if (!immediate) await sleep(this.#backoff.next(), signal);
        await this.#launch(signal);
        return;
      } catch (error) {
        if (!signal.aborted) this.#options.logger.error({ error: errorMessage(error) }, 'Envoy did not start');
      }
    }
  }

  #readState(): StateFile | undefined {
    try {
      return JSON.parse(readFileSync(join(this.#options.runDir, 'envoy.state.json'), 'utf8')) as StateFile;
    } catch {
      return undefined;
    }
  }

  #writeState(state: StateFile): void {
    const path = join(this.#options.runDir, 'envoy.state.json');
    writeFileSync(`${path}.new`, JSON.stringify(state), { mode: 0o600 });
    renameSync(`${path}.new`, path);
  }

  #boundLog(): void {
    try {
      boundLog(this.logPath, MAX_LOG_BYTES);
    } catch (error) {
      this.#options.logger.warn({ error: errorMessage(error) }, `bounding ${this.logPath}`);
    }
  }
}

/** Envoy holds the file open for appending, so it can be cut to nothing under it; the part before is kept as `<path>.1`. */
export function boundLog(path: string, maxBytes: number): void {
  if (statSync(path).size <= maxBytes) return;
  copyFileSync(path, `${path}.1`);
  truncateSync(path);
}

/** Ends the Envoy that some agent left for this run directory, if it still runs; for cleaning up without an agent. */
export async function stopEnvoy(runDir: string): Promise<void> {
  let state: StateFile;
  try {
    state = JSON.parse(readFileSync(join(runDir, 'envoy.state.json'), 'utf8')) as StateFile;
  } catch {
    return;
  }
  await endProcess(state);
  for (const name of STATE_FILES) rmSync(join(runDir, name), { force: true });
}

/** Device, inode, size and change time: another file, or the same one replaced, differs. */
function fileIdentity(path: string): string | undefined {
  try {
    const { dev, ino, size, mtimeMs } = statSync(path);
    return [dev, ino, size, mtimeMs].join(':');
  } catch {
    return undefined;
  }
}

function namespaceOf(path: string): number | undefined {
  return statSync(path, { throwIfNoEntry: false })?.ino;
}

async function endProcess(id: ProcessId): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    if (!isRunning(id)) return;
    try {
      process.kill(id.pid, signal);
    } catch {
      return; // ended meanwhile
    }
    const deadline = performance.now() + STOP_TIMEOUT_MS;
    while (isRunning(id) && performance.now() < deadline) await sleep(20);
  }
}
