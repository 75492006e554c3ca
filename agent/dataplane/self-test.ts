/**
 * What this kernel really does with short-circuited sockets, tried over real ones at start: versions say little, since
 * fixes and faults are back-ported. Runs in a namespace and cgroups of its own, with programs of its own that are never
 * pinned. DESIGN section 5, rule 6.
 */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cgroup2Root, removeCgroup } from '../../common/cgroup.js';
import { errorMessage } from '../../common/errors.js';
import { ClosableStore } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { buildDir } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { createNetns, netnsCookie, unmount } from '../../native/index.js';
import { Kernel } from './kernel.js';

export interface SelfTestCheck {
  name: string;
  ok: boolean;
  detail: string;
}

export interface SelfTestVerdict {
  /** Every check that decides about something passed. */
  ok: boolean;
  /** connect() can be led to a proxy, which learns the original destination. Not ok: iptables redirection. */
  capture: { ok: boolean; reason: string };
  /** Payload may be moved from socket to socket. Not ok: plain TCP. */
  acceleration: { ok: boolean; reason: string };
  checks: SelfTestCheck[];
  /** Known faults of this kernel that probation works around: programs that do this are never accelerated. */
  restrictions: ('blocking-recv' | 'splice')[];
  tookMs: number;
}

interface ProbeOutput {
  ok: boolean;
  good?: number;
  eagain?: number;
  queued?: number;
  charged?: number;
  room?: number;
  sent?: number[];
  got?: number[];
  failure?: string;
  original4?: string;
  original6?: string;
  client_peer?: string;
}

/** Of the slow reader's transfer, how much may wait in the kernel: it was 960 MB for one connection without a bound. */
const MAX_QUEUED_BYTES = 12 << 20;
const SLOW_READER_BYTES = 48 << 20;
/** How long a probe waits for one thing to happen, and how long it may take in all: only what hangs gets there, not a busy node. */
const PROBE_TIMEOUT_S = 10;
const PROBE_LIMIT_MS = 40_000;

const POD_ADDRESSES = ['192.0.2.10', '2001:db8::10'];

type Decides = 'capture' | 'acceleration' | 'restriction';

/** Never throws: what can't be tried is a failed check. */
export async function selfTest(logger: Logger): Promise<SelfTestVerdict> {
  const started = performance.now();
  const test = new SelfTest(logger);
  try {
    await test.run();
  } catch (error) {
    test.record('set-up', 'capture', false, errorMessage(error));
    test.record('set-up', 'acceleration', false, errorMessage(error));
  } finally {
    await test.close().catch((error: unknown) => logger.warn({ err: error }, 'cleaning up after the self-test'));
  }
  return test.verdict(Math.round(performance.now() - started));
}

class SelfTest {
  readonly #store = new ClosableStore();
  readonly #checks: (SelfTestCheck & { decides: Decides })[] = [];
  #restrictions: SelfTestVerdict['restrictions'] = [];
  #netns = '';
  #podCgroup = '';
  #proxyCgroup = '';

  constructor(readonly logger: Logger) {}

  async run(): Promise<void> {
    const folder = mkdtempSync(join(tmpdir(), 'underpass-self-test-'));
    this.#store.defer(() => rmSync(folder, { recursive: true, force: true }));
    this.#netns = join(folder, 'netns');
    await createNetns(this.#netns);
    this.#store.defer(() => unmount(this.#netns));
    const group = join(cgroup2Root(), `underpass-self-test-${process.pid}-${folder.slice(-6)}`);
    this.#store.defer(() => removeCgroup(group));
    this.#podCgroup = join(group, 'pod');
    this.#proxyCgroup = join(group, 'proxy');
    for (const path of [this.#podCgroup, this.#proxyCgroup]) mkdirSync(path, { recursive: true });

    const kernel = await Kernel.open({ bpffsDir: null, instance: 'self-test', logger: this.logger, maxEntries: SMALL_MAPS, httpFastPath: false });
    this.#store.add(kernel);
    kernel.setGlobalAcceleration(true);
    kernel.attachProxy(this.#proxyCgroup);
    kernel.putPod({
      uid: 'self-test',
      netnsCookie: await netnsCookie(this.#netns),
      cgroupPath: this.#podCgroup,
      addresses: POD_ADDRESSES,
      mode: 'node',
      capture: true,
      acceleration: 'force',
    });
    await this.#capture('capture-v4', '127.0.0.1', '192.0.2.1', '192.0.2.1:80', (out) => out.original4);
    await this.#capture('capture-v6', '::1', '2001:db8::1', '[2001:db8::1]:80', (out) => out.original6);
    await this.#capture('capture-mapped', '127.0.0.1', '::ffff:192.0.2.1', '192.0.2.1:80', (out) => out.original4);
    await this.#moves(kernel, 'order-v4', 'order', '127.0.0.1', ['--bytes', '3000000']);
    await this.#moves(kernel, 'order-v6', 'order', '::1', ['--bytes', '3000000']);
    await this.#slowReader();
    await this.#moves(kernel, 'half-close', 'half-close', '127.0.0.1', ['--count', '20', '--delay', '1']);
    await this.#moves(kernel, 'large-close', 'large-close', '127.0.0.1', ['--count', '3', '--bytes', '2000000']);
    // nginx, Java and .NET ask how much there is to read; some stable kernels answer 0 in a sockhash.
    await this.#moves(kernel, 'fionread', 'fionread', '127.0.0.1', ['--count', '10', '--size', '1000'], 'wrong: FIONREAD does not count what was moved, so a program that goes by it waits for ever');
    await this.#moves(kernel, 'fionread-mixed', 'hidden', '127.0.0.1', ['--bytes', '6000000', '--delay', '100', '--count', '1'], 'wrong: FIONREAD does not count what came by TCP, so a program that goes by it waits for ever');
    await this.#moves(kernel, 'churn', 'churn', '127.0.0.1', ['--count', '100']);
    await this.#restriction('blocking-recv', 'half-close', ['--count', '40', '--delay', '1', '--blocking-client']);
    await this.#restriction('splice', 'splice', ['--bytes', '1000000', '--timeout', '1']);
  }

  verdict(tookMs: number): SelfTestVerdict {
    const failed = (decides: Decides): string =>
      this.#checks.filter((check) => check.decides === decides && !check.ok).map((check) => `${check.name}: ${check.detail}`).join('; ');
    const capture = failed('capture');
    const acceleration = failed('acceleration');
    return {
      ok: capture === '' && acceleration === '',
      capture: { ok: capture === '', reason: capture || 'original destinations arrive' },
      acceleration: { ok: acceleration === '', reason: acceleration || 'order, flow control and endings hold' },
      checks: this.#checks.map(({ name, ok, detail }) => ({ name, ok, detail })),
      restrictions: this.#restrictions,
      tookMs,
    };
  }

  record(name: string, decides: Decides, ok: boolean, detail: string): void {
    this.#checks.push({ name, ok, detail, decides });
  }

  close(): Promise<void> {
    return this.#store.close();
  }

  async #capture(name: string, listen: string, connect: string, expected: string, original: (out: ProbeOutput) => string | undefined): Promise<void> {
    await this.#check(name, 'capture', async () => {
      const out = await this.#probe('addresses', this.#proxyCgroup, [
        '--listen', listen, '--port', '15001', '--connect', connect, '--connect-port', '80',
      ]);
      const found = original(out);
      const peer = connect.startsWith('::ffff:') ? `[${connect}]:80` : expected;
      return [
        out.ok && found === expected && out.client_peer === peer,
        out.failure || `the proxy was told ${found ?? 'nothing'}, the client ${out.client_peer ?? 'nothing'}`,
      ];
    });
  }

  /** A case that must come out right, with payload really moved. */
  async #moves(kernel: Kernel, name: string, which: string, address: string, args: string[], wrong = 'wrong'): Promise<void> {
    await this.#check(name, 'acceleration', async () => {
      const before = kernel.counters()['bytes_short_circuited'] ?? 0n;
      const out = await this.#probe(which, this.#podCgroup, ['--listen', address, ...args]);
      const moved = (kernel.counters()['bytes_short_circuited'] ?? 0n) - before;
      return [out.ok && moved > 0n, out.failure || `${out.ok ? 'right' : wrong}, ${moved} bytes moved`];
    });
  }

  async #slowReader(): Promise<void> {
    await this.#check('slow-reader', 'acceleration', async () => {
      const out = await this.#probe('slow-reader', this.#podCgroup, ['--bytes', String(SLOW_READER_BYTES), '--delay', '150']);
      const queued = out.queued ?? Infinity;
      const detail = `${queued} bytes waited in the kernel, ${out.charged ?? 0} charged to the receiver's buffer of ${out.room ?? 0}`;
      return [out.ok && queued <= MAX_QUEUED_BYTES, out.failure || detail];
    });
  }

  async #restriction(name: 'blocking-recv' | 'splice', which: string, args: string[]): Promise<void> {
    await this.#check(name, 'restriction', async () => {
      const out = await this.#probe(which, this.#podCgroup, args);
      if (!out.ok) this.#restrictions.push(name);
      const found = name === 'splice' ? `${out.got?.[1] ?? 0} bytes` : `${out.good ?? 0} right, ${out.eagain ?? 0} EAGAIN`;
      return [out.ok, out.ok ? 'works here' : `fails here, as known (${found}): programs that do this stay plain TCP`];
    });
  }

  async #check(name: string, decides: Decides, body: () => Promise<[boolean, string]>): Promise<void> {
    try {
      const [ok, detail] = await body();
      this.record(name, decides, ok, detail);
    } catch (error) {
      this.record(name, decides, false, errorMessage(error));
      if (decides === 'restriction') this.#restrictions.push(name as 'splice');
    }
  }

  async #probe(which: string, serverCgroup: string, args: readonly string[]): Promise<ProbeOutput> {
    const { stdout } = await run(join(buildDir, 'socket-probe'), [
      which, '--server-netns', this.#netns, '--client-netns', this.#netns, '--server-cgroup', serverCgroup,
      '--client-cgroup', this.#podCgroup, '--timeout', String(PROBE_TIMEOUT_S), ...args,
    ], { timeoutMs: PROBE_LIMIT_MS });
    return JSON.parse(stdout) as ProbeOutput;
  }
}

const SMALL_MAPS = {
  sockets: 4096, establishing: 4096, peers: 4096, pods: 8, pod_counters: 16, client_verdicts: 64, listener_verdicts: 64,
  client_clearances: 64, listener_clearances: 64, verdict_quotas: 8,
};
