/**
 * Supervises the node's one Envoy. It outlives this process, however that ends, and the next one adopts it: same process,
 * same binary, and its admin interface answers. One that died is started again.
 */
import { copyFileSync, mkdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { isRunning, type ProcessId } from '../../common/process-id.js';
import { Backoff, sleep, waitFor } from '../../common/retry.js';
import { bootstrap } from './bootstrap.js';
import { EnvoyAdmin, isTimeout } from './envoy-admin.js';
import { endProcess, fileIdentity, readState, removeState, writeState, type EnvoyState } from './envoy-process.js';
import { directStarter, launcherStarter, type EnvoyStarter, type StartedEnvoy } from './envoy-starter.js';

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
  execPath?: string;
  /** Socket of `underpass-launcher`, which starts Envoy in this process's place: `envoyPath` and `netnsPath` are its own affair then. */
  launcherSocket?: string;
  /** How long an Envoy of an earlier agent is asked for an answer; default 30 s. */
  adoptTimeoutMs?: number;
}

export interface EnvoyStatus {
  pid: number | undefined;
  version: string | undefined;
  adopted: boolean;
  restarts: number;
}

const WATCH_INTERVAL_MS = 250;
const LOG_CHECK_INTERVAL_MS = 5_000;
const MAX_LOG_BYTES = 16 << 20;
const START_TIMEOUT_MS = 15_000;
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
  readonly #starter: EnvoyStarter;
  readonly #stopping = new AbortController();
  readonly #backoff = new Backoff({ initialMs: 100, maxMs: 10_000, factor: 2, jitter: 0.2 });
  #process: ProcessId | undefined;
  #started: StartedEnvoy | undefined;
  #status: EnvoyStatus = { pid: undefined, version: undefined, adopted: false, restarts: 0 };
  #startedAt = 0;
  #watch: NodeJS.Timeout | undefined;
  #logWatch: NodeJS.Timeout | undefined;
  #restarting = false;

  constructor(options: EnvoyOptions) {
    this.#options = options;
    this.admin = new EnvoyAdmin(join(options.runDir, 'envoy-admin.sock'));
    this.adsSocketPath = join(options.runDir, 'ads.sock');
    this.#starter = options.launcherSocket === undefined
      ? directStarter({ ...options, logPath: this.logPath })
      : launcherStarter({ ...options, socketPath: options.launcherSocket, adminSocketPath: this.admin.socketPath });
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
    this.#started?.release();
  }

  /** Ends the process: SIGTERM, then SIGKILL. */
  async stop(): Promise<void> {
    this.close();
    const process_ = this.#process;
    this.#process = undefined;
    if (process_) await endProcess(process_);
    removeState(this.#options.runDir);
    this.#status = { ...this.#status, pid: undefined };
  }

  async #adopt(signal?: AbortSignal): Promise<boolean> {
    const { logger, runDir } = this.#options;
    const state = readState(runDir);
    if (!state || !isRunning(state)) return false;
    const reason = fileIdentity(`/proc/${state.pid}/exe`) !== state.binary ? 'the process executes another file'
      : (await this.#starter.objection(state, this.#until(signal))) ?? (await this.#silence(state, signal));
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
  async #silence(state: EnvoyState, signal?: AbortSignal): Promise<string | undefined> {
    const stop = this.#until(signal);
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
    const { runDir, cgroupPath, dnsServers = [], nodeName, concurrency = 2, logLevel = 'warning', logger } = this.#options;
    mkdirSync(runDir, { recursive: true, mode: 0o700 });
    if (cgroupPath) mkdirSync(cgroupPath, { recursive: true });
    rmSync(this.admin.socketPath, { force: true });
    const configPath = join(runDir, 'envoy.json');
    const config = bootstrap({ nodeName, adsSocketPath: this.adsSocketPath, adminSocketPath: this.admin.socketPath, dnsServers });
    writeFileSync(configPath, JSON.stringify(config, null, 2), { mode: 0o600 });
    let started: StartedEnvoy;
    try {
      started = await this.#starter.start([
        '--config-path', configPath, '--concurrency', `${concurrency}`, '--log-level', logLevel, '--disable-hot-restart',
        '--drain-time-s', `${DRAIN_SECONDS}`, '--drain-strategy', 'immediate', '--file-flush-interval-msec', '1000',
      ], this.#until(signal));
    } catch (error) {
      throw this.#startError(errorMessage(error), error);
    }
    const { pid, startTime, binary } = started;
    // Before anything can go wrong here: an agent that dies now must not leave an Envoy that nobody knows.
    writeState(runDir, { pid, startTime, binary, version: '' });
    const failure = started.ended.then((how) => Promise.reject(this.#startError(how)), (cause: unknown) => Promise.reject(this.#startError(errorMessage(cause), cause)));
    failure.catch(() => undefined);
    let version: string;
    try {
      version = await Promise.race([failure, this.#answering(signal)]);
    } catch (error) {
      await endProcess(started);
      throw error instanceof UnderpassError ? error : this.#startError(errorMessage(error), error);
    }
    started.ended.then(() => this.#check(), () => undefined);
    this.#started = started;
    this.#process = { pid, startTime };
    this.#startedAt = performance.now();
    this.#status = { ...this.#status, pid, version, adopted: false };
    writeState(runDir, { pid, startTime, binary, version });
    logger.info({ pid, version }, 'Envoy started');
  }

  /** Until the caller's signal, or the end of this supervisor. */
  #until(signal?: AbortSignal): AbortSignal {
    return signal ? AbortSignal.any([signal, this.#stopping.signal]) : this.#stopping.signal;
  }

  async #answering(signal?: AbortSignal): Promise<string> {
    const any = this.#until(signal);
    const probe = async (): Promise<string | undefined> => (await this.admin.serverInfo(any).catch(() => undefined))?.version;
    return waitFor("Envoy's admin interface", probe, { timeoutMs: START_TIMEOUT_MS, everyMs: 20, signal: any });
  }

  #startError(what: string, cause?: unknown): UnderpassError {
    const { launcherSocket, envoyPath } = this.#options;
    let tail = '';
    try {
      if (launcherSocket === undefined) tail = readFileSync(this.logPath, 'utf8').trimEnd().split('\n').slice(-3).join('\n');
    } catch {
      // no log yet
    }
    return new UnderpassError('UNDERPASS_ENVOY_START', `starting Envoy (${launcherSocket === undefined ? envoyPath : `by ${launcherSocket}`}): ${what}${tail && `: ${tail}`}`, { cause, hint: `its whole log is ${this.#starter.output}` });
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

  #boundLog(): void {
    if (this.#options.launcherSocket !== undefined) return;
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
