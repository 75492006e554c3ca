/**
 * The checks of one kernel, run inside it: `node guest.js REPORT [part of a test file's name …]`. Writes a line of JSON a
 * result to REPORT as it goes, so that a crash loses nothing of what came before.
 */
import { openSync, readFileSync, writeSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { run } from 'node:test';
import { errorMessage } from '../../common/errors.js';
import { logger } from '../../common/log.js';
import { projectRoot } from '../../common/paths.js';
import { kernelRows, libbpfRows } from '../../cli/doctor/kernel.js';
import { KernelWorld } from '../../agent/dataplane/kernel-testing.js';
import { selfTest } from '../../agent/dataplane/self-test.js';
import { BpfObject } from '../../native/index.js';
import type { ProbeResult } from '../../native/testing.js';
import { groupOf, testFiles } from './files.js';
import { MEASURED, type Line, type State } from './report.js';

const [reportPath = '/dev/stdout', ...parts] = process.argv.slice(2);
/** Of the doctor's rows about the kernel: what does not hang on how this guest was set up. */
const DOCTOR_ROWS = /^(kernel\.(version|btf|jit)|libbpf\.)/;

/** A file whose tests hang on one kernel must not take the others' answers along. */
const FILE_TIMEOUT_MS = 1_200_000;
const SLOW_READER_BYTES = 48 << 20;
/** The sender's buffer, at most tcp_wmem's 4 MiB, and twice the receiver's 2 MiB. */
const BOUND_BYTES = 8 << 20;

const report = openSync(reportPath, 'w');
const write = (line: Line): void => void writeSync(report, JSON.stringify(line) + '\n');
const row = (group: string, name: string, state: State, detail: string): void => write({ group, name, state, detail: detail.trim() });

async function features(): Promise<void> {
  const { rows, capabilities } = kernelRows();
  for (const { id, name, state, detail } of [...rows, ...(await libbpfRows(capabilities))]) {
    if (DOCTOR_ROWS.test(id)) row('kernel', name, state === 'yes' ? 'ok' : state === 'no' ? 'not supported' : 'not tried', detail);
  }
}

/** Each program by itself: the whole object would name only the first that is refused. */
function programs(): void {
  const load = (group: string, name: string, wanted: string[]): string[] => {
    try {
      const object = BpfObject.open({ pinDir: null, programs: wanted });
      const names = object.programs();
      object.close();
      row(group, name, 'ok', 'loads');
      return names;
    } catch (error) {
      row(group, name, 'not supported', errorMessage(error));
      return [];
    }
  };
  for (const name of load('program', 'maps alone', [])) load('program', name, [name]);
}

async function behaviour(): Promise<void> {
  const { capture, acceleration, fastPath, checks } = await selfTest(logger('self-test'));
  for (const { name, ok, detail } of checks) row('self-test', name, ok ? 'ok' : 'wrong answer', detail);
  row('verdict', 'capture by BPF', capture.ok ? 'ok' : 'not supported', capture.reason);
  row('verdict', 'short-circuits', acceleration.ok ? 'ok' : 'not supported', acceleration.reason);
  row('verdict', 'HTTP fast path', fastPath.ok ? 'ok' : 'not supported', fastPath.reason);
}

/** DESIGN section 5, rule 7: what the kernel takes for a reader that sleeps, between two pods, with moved bytes and without. */
async function bounds(): Promise<void> {
  row(MEASURED, 'net.core.rmem_max', 'ok', readFileSync('/proc/sys/net/core/rmem_max', 'utf8'));
  const world = await KernelWorld.create('bound');
  try {
    const [client, server] = [world.world.pod(0), world.world.pod(1)];
    for (const [way, acceleration] of [['moved', 'force'], ['by TCP', 'off']] as const) {
      world.put({ acceleration });
      const probe = (): Promise<ProbeResult> => world.world.probe('slow-reader', { pod: server, address: server.ipv4 }, { pod: client }, ['--bytes', String(SLOW_READER_BYTES), '--delay', '150']);
      const { result, counters } = await world.counted(probe);
      const right = result.ok && Number(result.queued) <= BOUND_BYTES && (counters['bytes_short_circuited'] ?? 0) > 0 === (way === 'moved');
      const state = right ? 'ok' : 'wrong answer';
      row(MEASURED, `waiting for a sleeping reader, ${way}`, state, String(result.queued));
      row(MEASURED, `  charged to its buffer, ${way}`, state, `${Number(result['charged'])} of ${Number(result['room'])}`);
    }
  } finally {
    await world.close();
  }
}

/** The tests that `make test` runs on its own kernel. */
async function tests(): Promise<void> {
  for (const file of testFiles(parts)) {
    const group = groupOf(file);
    for await (const event of run({ files: [join(projectRoot, file)], concurrency: 1, timeout: FILE_TIMEOUT_MS })) {
      if (event.type !== 'test:pass' && event.type !== 'test:fail') continue;
      const { name, skip, details } = event.data;
      if (skip !== undefined) row(group, name, 'not tried', String(skip));
      else if (event.type === 'test:pass') row(group, name, 'ok', '');
      else row(group, name, 'wrong answer', failureOf((details as { error?: unknown }).error));
    }
  }
}

/** What a test threw, not the runner's wrapping; its first lines. */
function failureOf(error: unknown): string {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  return errorMessage(cause).split('\n').filter(Boolean).slice(0, 12).join(' | ');
}

write({ kernel: release() });
await features();
programs();
await behaviour();
await bounds();
if (parts.length > 0) await tests();
write({ done: true });
process.exit(0);
