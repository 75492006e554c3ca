/** The two ways to an Envoy process: as a child of this one that outlives it, or by the launcher of another container. */
import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import type { Logger } from '../../common/log.js';
import { buildDir } from '../../common/paths.js';
import { isRunning, processStartTime, type ProcessId } from '../../common/process-id.js';
import { sleep } from '../../common/retry.js';
import { fileIdentity, namespaceOf, type EnvoyState } from './envoy-process.js';
import { launch, launcherStatus } from './launcher-client.js';

export interface StartedEnvoy extends ProcessId {
  /** As in EnvoyState. */
  binary: string;
  /** When it has ended: how, e.g. `exit 3`; rejects when `release` was called before. */
  ended: Promise<string>;
  /** It goes on without this process. */
  release(): void;
}

export interface EnvoyStarter {
  /** Where Envoy's output is. */
  readonly output: string;
  start(args: readonly string[], signal?: AbortSignal): Promise<StartedEnvoy>;
  /** Why a process that runs is not what `start` would make now; undefined: it is. */
  objection(state: EnvoyState, signal?: AbortSignal): Promise<string | undefined>;
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
    start: async (args) => {
      const log = openSync(logPath, 'a', 0o600);
      const way = [...(cgroupPath ? ['--cgroup', cgroupPath] : []), ...(netnsPath ? ['--netns', netnsPath] : []), '--setsid', '--', envoyPath];
      const child = spawn(execPath, [...way, ...args], { stdio: ['ignore', log, log], cwd: runDir });
      closeSync(log);
      const ended = new Promise<string>((resolve, reject) => {
        child.once('error', reject);
        child.once('exit', (code, name) => resolve(code === null ? `ended by ${name}` : `exit ${code}`));
      });
      ended.catch(() => undefined);
      const startTime = child.pid === undefined ? undefined : processStartTime(child.pid);
      if (startTime === undefined) throw new Error(await ended.catch(errorMessage));
      return {
        pid: child.pid as number, startTime, binary: fileIdentity(envoyPath) ?? '', ended,
        release: () => {
          child.removeAllListeners('exit');
          child.unref();
        },
      };
    },
    objection: async ({ pid, binary }) =>
      binary !== fileIdentity(envoyPath) ? `${envoyPath} is another binary now`
      : netnsPath && namespaceOf(`/proc/${pid}/ns/net`) !== namespaceOf(netnsPath) ? 'it runs in another network namespace than the node has now'
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
    start: async (args, signal) => {
      await answering(signal);
      const id = await launch(socketPath, { ...(cgroupPath === undefined ? {} : { cgroupPath }), adminSocketPath, args }, signal);
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
      const own = (await answering(signal)).running.find((item) => item.pid === pid && item.startTime === startTime);
      return own === undefined ? 'another launcher started it' : own.isCurrent ? undefined : 'the launcher has another binary now';
    },
  };
}
