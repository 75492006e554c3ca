/** Envoy as a process: what the run directory says of the one that an agent left, and how it is ended. */
import { readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isRunning, type ProcessId } from '../../common/process-id.js';
import { sleep } from '../../common/retry.js';
import { removeHotRestartFiles } from './hot-restart.js';

export interface EnvoyState extends ProcessId {
  /** Which file the process executes: device, inode, size, time of change. */
  binary: string;
  /** Empty until it answered for the first time. */
  version: string;
  /** Of hot restarts; absent of an Envoy that an earlier version started without them. */
  epoch?: number;
  /** In its node's metadata. */
  launch?: string;
  /** It listens: in its parent's place, or it never had one. Of a former one `false`: it drains. */
  isLive?: boolean;
  /** Its parent, which drains as soon as this one is live. */
  former?: FormerEnvoy;
}

export type FormerEnvoy = Omit<EnvoyState, 'former'>;

/** What describes a process that runs. */
const STATE_FILES = ['envoy.state.json', 'envoy-admin.sock'];
const STOP_TIMEOUT_MS = 5_000;

export function readState(runDir: string): EnvoyState | undefined {
  try {
    return JSON.parse(readFileSync(join(runDir, 'envoy.state.json'), 'utf8')) as EnvoyState;
  } catch {
    return undefined;
  }
}

export function writeState(runDir: string, state: EnvoyState): void {
  const path = join(runDir, 'envoy.state.json');
  writeFileSync(`${path}.new`, JSON.stringify(state), { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

export function removeState(runDir: string): void {
  for (const name of STATE_FILES) rmSync(join(runDir, name), { force: true });
  removeHotRestartFiles(runDir);
}

/** Ends the Envoy that some agent left for this run directory, if it still runs; for cleaning up without an agent. */
export async function stopEnvoy(runDir: string): Promise<void> {
  const state = readState(runDir);
  if (!state) return;
  await Promise.all([endProcess(state), ...(state.former ? [endProcess(state.former)] : [])]);
  removeState(runDir);
}

/** Device, inode, size and change time: another file, or the same one replaced, differs. */
export function fileIdentity(path: string): string | undefined {
  try {
    const { dev, ino, size, mtimeMs } = statSync(path);
    return [dev, ino, size, mtimeMs].join(':');
  } catch {
    return undefined;
  }
}

export function namespaceOf(path: string): number | undefined {
  return statSync(path, { throwIfNoEntry: false })?.ino;
}

/** SIGTERM, then SIGKILL. */
export async function endProcess(id: ProcessId): Promise<void> {
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
