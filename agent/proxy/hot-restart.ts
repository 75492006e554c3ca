/**
 * What Envoy needs for a hot restart, by which its successor gets its listening sockets and it drains: how the two find each
 * other (sockets in the run directory, which every container of the node's agents has), and what they leave behind.
 * docs/envoy-rules.md, "Hot restart"
 */
import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync, readdirSync, realpathSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';

/** Istio's: how long connections of a replaced or removed listener or filter chain, or of a replaced Envoy, have to end. */
export const DRAIN_SECONDS = 45;
/** A third more is what the successor then waits before it ends the former one: what is silent until then ends with it. */
const PARENT_FACTOR = 4 / 3;
const SOCKET_PREFIX = 'hot';
/** The longest name of its sockets, with a slash before it: Envoy's own number is ten times the base id. */
export const LONGEST_SOCKET_NAME = `/${SOCKET_PREFIX}_udp_parent_999999990`;
const MAX_BASE_ID = 99_999_999;

export interface HotRestartOptions {
  runDir: string;
  /** 0: of nobody. */
  epoch: number;
  drainSeconds?: number;
}

export function parentShutdownSeconds(drainSeconds = DRAIN_SECONDS): number {
  return Math.ceil(drainSeconds * PARENT_FACTOR);
}

export function hotRestartArguments({ runDir, epoch, drainSeconds = DRAIN_SECONDS }: HotRestartOptions): string[] {
  return [
    '--base-id', `${baseId(runDir)}`, '--restart-epoch', `${epoch}`, '--socket-path', join(runDir, SOCKET_PREFIX), '--socket-mode', '0600',
    // Of two that count, the agent would add up what both have; and a parent that died on the way is none.
    '--skip-hot-restart-parent-stats', '--skip-hot-restart-on-no-parent',
    '--drain-time-s', `${drainSeconds}`, '--parent-shutdown-time-s', `${parentShutdownSeconds(drainSeconds)}`, '--drain-strategy', 'immediate',
  ];
}

/** Of the shared memory: bytes, where its flags are, and the one that is set while an Envoy initializes (hot_restart_impl.h). */
const SHARED_BYTES = 104;
const FLAGS_OFFSET = 96;
const INITIALIZING = 1;

/** One that died while it initialized leaves word of that, and no other would start. */
export function forgetInitializing(runDir: string): void {
  let file: number;
  try {
    file = openSync(sharedMemory(runDir), 'r+');
  } catch {
    return; // none, or in another container
  }
  const all = Buffer.alloc(SHARED_BYTES + 1);
  if (readSync(file, all, 0, all.length, 0) === SHARED_BYTES && all.readBigUInt64LE(0) === BigInt(SHARED_BYTES)) {
    writeSync(file, Buffer.from([(all[FLAGS_OFFSET] as number) & ~INITIALIZING]), 0, 1, FLAGS_OFFSET);
  }
  closeSync(file);
}

/** Where the Envoys of a run directory tell each other how far they are. */
export function sharedMemory(runDir: string): string {
  return `/dev/shm/envoy_shared_memory_${baseId(runDir) * 10}`;
}

/** Names the shared memory, a hundred bytes in /dev/shm: another for each run directory. */
function baseId(runDir: string): number {
  return createHash('sha256').update(realpathSync(runDir)).digest().readUInt32BE() % (MAX_BASE_ID + 1);
}

/** When no Envoy of this run directory runs. */
export function removeHotRestartFiles(runDir: string): void {
  for (const name of readdirSync(runDir)) if (name.startsWith(`${SOCKET_PREFIX}_`)) rmSync(join(runDir, name), { force: true });
  rmSync(sharedMemory(runDir), { force: true });
}
