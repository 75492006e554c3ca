/** The two ways to an Envoy process: as a child of this one that outlives it, or by the launcher of another container. */
import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import type { Logger } from '../../common/log.js';
import { buildDir } from '../../common/paths.js';
import { isRunning, processStartTime, type ProcessId } from '../../common/process-id.js';
import { sleep } from '../../common/retry.js';
import { endProcess, fileIdentity, namespaceOf, type EnvoyState } from './envoy-process.js';
import { isUnanswered, launch, launcherStatus } from './launcher-client.js';

export interface StartedEnvoy extends ProcessId {
  /** As in EnvoyState. */
  binary: string;
  /** When it has ended: how, e.g. `exit 3`; rejects when `release` was called before. */
  ended: Promise<string>;
  /** It goes on without this process. */
  release(): void;
}

export interface StartOptions {
  /** Is called at once with what ends Envoy when it is ended, before Envoy's own process is known. */
  note: (holder: ProcessId & { binary: string }) => void;
  /** Envoys that are to go on. */
  keep: readonly ProcessId[];
  signal?: AbortSignal;
}

export interface EnvoyStarter {
  /** Where Envoy's output is. */
  readonly output: string;
  start(args: readonly string[], options: StartOptions): Promise<StartedEnvoy>;
  /** Why a process that runs is not what `start` would make now, and whether a new one may take over from it; undefined: it is. */
  objection(state: EnvoyState, signal?: AbortSignal): Promise<{ reason: string; canHandOver: boolean } | undefined>;
}

export interface DirectOptions {
  runDir: string;
  envoyPath: string;
  logPath: string;
  cgroupPath: string | undefined;
  netnsPath?: string;
  /** Of `underpass-exec`; default build/underpass-exec. */
  execPath?: string;
}

/** In a session and a cgroup of its own, its output appended to a file. */
export function directStarter({ runDir, envoyPath, logPath, cgroupPath, netnsPath, execPath = join(buildDir, 'underpass-exec') }: DirectOptions): EnvoyStarter {
  return {
    output: logPath,
    start: async (args, { note }) => {
      const log = openSync(logPath, 'a', 0o600);
      // Envoy that can be restarted hot ends with its parent, so that this process can't be that.
      const way = [...(cgroupPath ? ['--cgroup', cgroupPath] : []), ...(netnsPath ? ['--netns', netnsPath] : []), '--setsid', '--stay', '3', '--', envoyPath];
      const child = spawn(execPath, [...way, ...args], { stdio: ['ignore', log, log, 'pipe'], cwd: runDir });
      closeSync(log);
      const ended = new Promise<string>((resolve, reject) => {
        child.once('error', reject);
        child.once('exit', (code, name) => resolve(code === null ? `ended by ${name}` : `exit ${code}`));
      });
      ended.catch(() => undefined);
      const holder = child.pid === undefined ? undefined : processStartTime(child.pid);
      if (holder !== undefined) note({ pid: child.pid as number, startTime: holder, binary: fileIdentity(`/proc/${child.pid}/exe`) ?? '' });
      let line = '';
      for await (const data of child.stdio[3] as Readable) line += String(data);
      const pid = Number(line);
      const startTime = pid > 0 ? processStartTime(pid) : undefined;
      if (startTime === undefined) throw new Error(await ended.catch(errorMessage));
      return {
        pid, startTime, binary: fileIdentity(envoyPath) ?? '', ended,
        release: () => {
          child.removeAllListeners('exit');
          child.unref();
        },
      };
    },
    objection: async ({ pid, binary }) =>
      netnsPath && namespaceOf(`/proc/${pid}/ns/net`) !== namespaceOf(netnsPath) ? { reason: 'it runs in another network namespace than the node has now', canHandOver: false }
      : binary !== fileIdentity(envoyPath) ? { reason: `${envoyPath} is another binary now`, canHandOver: true }
      : undefined,
  };
}

export interface LauncherOptions {
  socketPath: string;
  cgroupPath: string | undefined;
  adminSocketPath: string;
  logger: Logger;
  /** How long a launcher is waited for whose container has not started yet; default 30 s. */
  waitMs?: number;
}

const LAUNCHER_WAIT_MS = 30_000;
const RETRY_MS = 200;
const END_POLL_MS = 100;

/** In the launcher's network namespace and, but for the cgroup, container. */
export function launcherStarter({ socketPath, cgroupPath, adminSocketPath, logger, waitMs = LAUNCHER_WAIT_MS }: LauncherOptions): EnvoyStarter {
  const answering = async (signal?: AbortSignal): Promise<Awaited<ReturnType<typeof launcherStatus>>> => {
    const deadline = performance.now() + waitMs;
    for (let isFirst = true; ; isFirst = false) {
      try {
        return await launcherStatus(socketPath, signal);
      } catch (error) {
        signal?.throwIfAborted();
        if (performance.now() > deadline) throw error;
        if (isFirst) logger.warn({ reason: errorMessage(error) }, "waiting for Envoy's launcher");
      }
      await sleep(RETRY_MS, signal);
    }
  };
  return {
    output: `the output of the launcher ${socketPath}`,
    start: async (args, { keep, signal }) => {
      const ask = async (): Promise<ProcessId> => {
        // What an agent asked for that did not hear, or write down, what came of it.
        for (const id of (await answering(signal)).running) if (!keep.some(({ pid }) => pid === id.pid)) await endProcess(id);
        return launch(socketPath, { ...(cgroupPath === undefined ? {} : { cgroupPath }), adminSocketPath, args }, signal);
      };
      const id = await ask().catch((error: unknown) => {
        signal?.throwIfAborted();
        if (!isUnanswered(error)) throw error;
        logger.warn({ reason: errorMessage(error) }, "Envoy's launcher is asked again");
        return ask();
      });
      const released = new AbortController();
      const ended = (async () => {
        while (isRunning(id)) await sleep(END_POLL_MS, released.signal);
        const { ended: all } = await launcherStatus(socketPath, released.signal);
        return all.find(({ pid, startTime }) => pid === id.pid && startTime === id.startTime)?.how ?? 'it ended';
      })();
      ended.catch(() => undefined);
      return { ...id, binary: fileIdentity(`/proc/${id.pid}/exe`) ?? '', ended, release: () => released.abort(new UnderpassError('UNDERPASS_STOPPED', 'Envoy is not followed any more')) };
    },
    objection: async ({ pid, startTime }, signal) => {
      let status: Awaited<ReturnType<typeof launcherStatus>>;
      try {
        status = await answering(signal);
      } catch (error) {
        signal?.throwIfAborted();
        return { reason: errorMessage(error), canHandOver: true };
      }
      const own = status.running.find((item) => item.pid === pid && item.startTime === startTime);
      return own?.isCurrent ? undefined : { reason: own ? 'the launcher has another binary now' : 'another launcher started it', canHandOver: true };
    },
  };
}
