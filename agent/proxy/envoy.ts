/**
 * Supervises the node's one Envoy. It outlives this process, however that ends, and the next one adopts it: same process,
 * and its admin interface answers. One that died is started again. One that another launcher started, or from another binary,
 * is adopted as well, and replaced by hot restart once it has its configuration: so a successor's is whole from the start.
 */
import { randomUUID } from 'node:crypto';
import { copyFileSync, mkdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { isRunning, type ProcessId } from '../../common/process-id.js';
import { Backoff, sleep, waitFor } from '../../common/retry.js';
import { bootstrap } from './bootstrap.js';
import { EnvoyAdmin, isTimeout } from './envoy-admin.js';
import type { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import { endProcess, fileIdentity, readState, removeState, writeState, type EnvoyState, type FormerEnvoy } from './envoy-process.js';
import { directStarter, launcherStarter, type EnvoyStarter, type StartedEnvoy } from './envoy-starter.js';
import { forgetInitializing, hotRestartArguments, parentShutdownSeconds } from './hot-restart.js';

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
  /** How long connections of what is replaced have to end; default 45 s. */
  drainSeconds?: number;
  /** Envoy has its configuration, so that it may be replaced by another; by default it has. */
  isSettled?: () => boolean;
  /** Around a hot restart: before the successor is started, and when the former one has ended. */
  handover?: { begin(): Promise<void>; over(): void };
}

export interface EnvoyStatus {
  pid: number | undefined;
  version: string | undefined;
  adopted: boolean;
  restarts: number;
  /** Process id of the one that this one replaces, while its connections end. */
  draining?: number;
}

const WATCH_INTERVAL_MS = 250;
const LOG_CHECK_INTERVAL_MS = 5_000;
const MAX_LOG_BYTES = 16 << 20;
const START_TIMEOUT_MS = 15_000;
const ADOPT_TIMEOUT_MS = 30_000;
const ADOPT_RETRY_MS = 200;
/** A process that lived this long was no failed start: the next restart is immediate again. */
const STABLE_AFTER_MS = 10_000;
const SETTLED_POLL_MS = 200;
/** One that is not configured by then is replaced all the same: its launcher may not stay for longer. */
const SETTLED_TIMEOUT_MS = 30_000;
const LIVE_POLL_MS = 100;
/** Its successor ends it; this is for one whose successor died. */
const FORMER_EXTRA_MS = 10_000;

export class Envoy implements Closable {
  readonly admin: EnvoyAdmin;
  readonly adsSocketPath: string;
  readonly #options: EnvoyOptions;
  readonly #starter: EnvoyStarter;
  readonly #stopping = new AbortController();
  readonly #backoff = new Backoff({ initialMs: 100, maxMs: 10_000, factor: 2, jitter: 0.2 });
  #process: EnvoyState | undefined;
  #former: FormerEnvoy | undefined;
  /** Of the Envoy that is to be served. */
  #servedLaunch: string | undefined;
  /** Why the one that was adopted is to be replaced. */
  #outdated: string | undefined;
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
    this.#servedLaunch = readState(options.runDir)?.launch;
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

  /** Whether it is this one that is to be given the configuration; while one replaces another, both ask for it. */
  isServed({ metadata }: Pick<Node, 'metadata'>): boolean {
    return (metadata as { launch?: unknown } | undefined)?.launch === this.#servedLaunch;
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
    if (await this.#adopt(signal)) {
      if (this.#former) {
        await this.#options.handover?.begin();
        void this.#handOver(this.#process as EnvoyState, this.#former);
      }
      if (this.#outdated !== undefined) void this.#replace(this.#outdated);
    } else await this.#launch(this.#former, signal);
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
    const ending = [this.#process, this.#former].flatMap((id) => id ?? []);
    this.#process = this.#former = undefined;
    await Promise.all(ending.map((id) => endProcess(id)));
    removeState(this.#options.runDir);
    this.#status = { ...this.#status, pid: undefined };
  }

  async #adopt(signal?: AbortSignal): Promise<boolean> {
    const { logger, runDir } = this.#options;
    const state = readState(runDir);
    if (!state) return false;
    const former = state.former && isRunning(state.former) ? state.former : undefined;
    // Of one that never listened the one before it still does.
    const without = async (): Promise<false> => {
      if (former && state.isLive === false && former.isLive !== false) {
        this.#former = former;
        forgetInitializing(runDir);
      } else if (former) await endProcess(former);
      return false;
    };
    if (!isRunning(state)) return without();
    const isItself = fileIdentity(`/proc/${state.pid}/exe`) === state.binary;
    const objection = isItself ? await this.#starter.objection(state, this.#until(signal)) : undefined;
    const canHandOver = objection?.canHandOver === true && state.epoch !== undefined && state.version !== '';
    const reason = !isItself ? 'the process executes another file'
      : objection && !canHandOver ? objection.reason
      : await this.#silence(state, signal);
    if (reason !== undefined) {
      logger.warn({ pid: state.pid, reason }, 'Envoy of an earlier agent can not be adopted; it is ended and a new one started');
      // Only a process that is known to be that Envoy is ended.
      if (isItself) await endProcess(state);
      return without();
    }
    this.#process = state;
    this.#former = former;
    this.#outdated = objection?.reason;
    this.#startedAt = performance.now();
    this.#status = { ...this.#status, pid: state.pid, version: state.version, adopted: true, ...(former ? { draining: former.pid } : {}) };
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
        const { node, version } = await this.admin.serverInfo(stop);
        // Its agent ended before it heard that.
        if (state.version === '' && node.metadata?.launch === state.launch) writeState(this.#options.runDir, Object.assign(state, { version }));
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

  /** @param parent whose listening sockets it is to have: one that runs, and does not drain yet */
  async #launch(parent: FormerEnvoy | undefined, signal?: AbortSignal): Promise<void> {
    const { runDir, cgroupPath, dnsServers = [], nodeName, concurrency = 2, logLevel = 'warning', drainSeconds, logger } = this.#options;
    mkdirSync(runDir, { recursive: true, mode: 0o700 });
    if (cgroupPath) mkdirSync(cgroupPath, { recursive: true });
    // The successor takes its place by itself.
    if (!parent) rmSync(this.admin.socketPath, { force: true });
    const epoch = parent?.epoch === undefined ? 0 : parent.epoch + 1;
    const launch = randomUUID();
    const configPath = join(runDir, 'envoy.json');
    const config = bootstrap({ nodeName, launch, adsSocketPath: this.adsSocketPath, adminSocketPath: this.admin.socketPath, dnsServers });
    writeFileSync(configPath, JSON.stringify(config, null, 2), { mode: 0o600 });
    const served = this.#servedLaunch;
    this.#servedLaunch = launch;
    const former = parent ?? this.#former;
    const isLive = former === undefined;
    const note = (holder: ProcessId & { binary: string }, version = ''): EnvoyState => {
      const { pid, startTime, binary } = holder;
      const state = { pid, startTime, binary, version, epoch, launch, isLive, ...(former ? { former } : {}) };
      writeState(runDir, state);
      return state;
    };
    let started: StartedEnvoy | undefined;
    let version: string;
    try {
      const keep = [this.#process, this.#former, parent].flatMap((id) => id ?? []);
      started = await this.#starter.start([
        '--config-path', configPath, '--concurrency', `${concurrency}`, '--log-level', logLevel, '--file-flush-interval-msec', '1000',
        ...hotRestartArguments({ runDir, epoch, ...(drainSeconds === undefined ? {} : { drainSeconds }) }),
      // Before anything can go wrong here: an agent that dies now must not leave an Envoy that nobody knows.
      ], { note, keep, signal: this.#until(signal) });
      note(started);
      const failure = started.ended.then((how) => Promise.reject(this.#startError(how)));
      failure.catch(() => undefined);
      version = await Promise.race([failure, this.#answering(launch, signal)]);
    } catch (error) {
      if (started) await endProcess(started);
      this.#servedLaunch = served;
      if (parent) {
        writeState(runDir, parent);
        forgetInitializing(runDir);
      }
      throw error instanceof UnderpassError && error.code === 'UNDERPASS_ENVOY_START' ? error : this.#startError(errorMessage(error), error);
    }
    started.ended.then((how) => this.#check(how), () => undefined);
    this.#started?.release();
    this.#started = started;
    this.#process = note(started, version);
    this.#former = former;
    this.#startedAt = performance.now();
    this.#status = { pid: started.pid, version, adopted: false, restarts: this.#status.restarts, ...(former ? { draining: former.pid } : {}) };
    logger.info({ pid: started.pid, version, ...(parent ? { replaces: parent.pid } : {}) }, 'Envoy started');
    if (former) void this.#handOver(this.#process, former);
  }

  /** An adopted Envoy by one that gets its listening sockets. Until that is there, and if it can't be, the former one serves. */
  async #replace(reason: string): Promise<void> {
    const { logger, handover, isSettled = () => true } = this.#options;
    const { signal } = this.#stopping;
    const deadline = performance.now() + SETTLED_TIMEOUT_MS;
    const backoff = new Backoff({ initialMs: 5_000, maxMs: 60_000, factor: 2, jitter: 0.2 });
    const replaced = this.#process;
    try {
      while (!isSettled() && performance.now() < deadline) await sleep(SETTLED_POLL_MS, signal);
      // A third one would end the first at once.
      while (this.#former) await sleep(SETTLED_POLL_MS, signal);
      const isThere = (): boolean => replaced !== undefined && this.#process?.pid === replaced.pid && isRunning(replaced);
      while (isThere()) {
        const parent = this.#process as EnvoyState;
        logger.info({ pid: parent.pid, reason }, 'Envoy of an earlier agent is replaced by hot restart');
        this.#restarting = true;
        try {
          await handover?.begin();
          return await this.#launch(parent, signal);
        } catch (error) {
          signal.throwIfAborted();
          handover?.over();
          logger.error({ pid: parent.pid, error: errorMessage(error) }, 'the new Envoy did not start; the one of an earlier agent goes on');
        } finally {
          this.#restarting = false;
        }
        await sleep(backoff.next(), signal);
      }
    } catch (error) {
      if (!signal.aborted) logger.error({ error: errorMessage(error) }, 'replacing Envoy');
    }
  }

  /** Follows a successor until it listens, and the former one until it has ended. */
  async #handOver(successor: EnvoyState, former: FormerEnvoy): Promise<void> {
    const { logger, runDir, handover, drainSeconds } = this.#options;
    const { signal } = this.#stopping;
    try {
      while (successor.isLive === false) {
        if (!isRunning(successor)) return; // `#check` starts another in its place
        const info = await this.admin.serverInfo(signal).catch(() => undefined);
        if (info?.state === 'LIVE' && info.node.metadata?.launch === successor.launch) {
          successor.version = info.version;
          successor.isLive = true;
          former.isLive = false;
          if (this.#process === successor) writeState(runDir, successor);
          logger.info({ pid: successor.pid, former: former.pid }, 'Envoy has taken over the listeners; the former one drains');
        } else await sleep(LIVE_POLL_MS, signal);
      }
      const deadline = performance.now() + parentShutdownSeconds(drainSeconds) * 1_000 + FORMER_EXTRA_MS;
      while (isRunning(former) && performance.now() < deadline) await sleep(LIVE_POLL_MS, signal);
      await endProcess(former);
      if (this.#former !== former) return;
      this.#former = undefined;
      if (this.#process) writeState(runDir, (this.#process = withoutFormer(this.#process)));
      const { draining, ...status } = this.#status;
      this.#status = status;
      logger.info({ pid: draining }, 'the former Envoy has ended');
      handover?.over();
    } catch (error) {
      if (!signal.aborted) logger.error({ error: errorMessage(error) }, 'following the change from one Envoy to another');
    }
  }

  /** Until the caller's signal, or the end of this supervisor. */
  #until(signal?: AbortSignal): AbortSignal {
    return signal ? AbortSignal.any([signal, this.#stopping.signal]) : this.#stopping.signal;
  }

  async #answering(launch: string, signal?: AbortSignal): Promise<string> {
    const any = this.#until(signal);
    const probe = async (): Promise<string | undefined> => this.admin.serverInfo(any).then(({ node, version }) => (node.metadata?.launch === launch ? version : undefined), () => undefined);
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

  #check(how?: string): void {
    if (this.#restarting || this.#stopping.signal.aborted || this.running) return;
    this.#restarting = true;
    const lived = performance.now() - this.#startedAt;
    this.#options.logger.error({ pid: this.#process?.pid, livedMs: Math.round(lived), ...(how === undefined ? {} : { how }) }, 'Envoy ended; starting it again');
    const died = this.#process;
    this.#process = undefined;
    this.#status = { ...this.#status, pid: undefined, restarts: this.#status.restarts + 1 };
    void this.#restart(lived, died).finally(() => (this.#restarting = false));
  }

  async #restart(lived: number, died: EnvoyState | undefined): Promise<void> {
    const { signal } = this.#stopping;
    if (lived > STABLE_AFTER_MS) this.#backoff.reset();
    // One whose successor died before it listened still does: if the next can't have its listeners, it is to make its own beside them.
    let parent = died?.isLive === false && this.#former && this.#former.isLive !== false && isRunning(this.#former) ? this.#former : undefined;
    if (parent) forgetInitializing(this.#options.runDir);
    for (let immediate = lived > STABLE_AFTER_MS; !signal.aborted; immediate = false) {
      try {
        if (!immediate) await sleep(this.#backoff.next(), signal);
        await this.#launch(parent, signal);
        return;
      } catch (error) {
        parent = undefined;
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

function withoutFormer({ former: _, ...state }: EnvoyState): EnvoyState {
  return state;
}
