/**
 * What this kernel really does with short-circuited sockets, tried over real ones at start: versions say little, since
 * fixes and faults are back-ported. Runs in a namespace and cgroups of its own, with programs of its own that are never
 * pinned. DESIGN section 5, rule 6.
 */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cgroup2Root, removeCgroup } from '../../common/cgroup.js';
import { errorMessage, UnderpassError } from '../../common/errors.js';
import { ClosableStore } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { buildDir } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { createNetns, netnsCookie, unmount } from '../../native/index.js';
import { Kernel, type KernelPod } from './kernel.js';
import { HttpSelfTest } from './self-test-http.js';

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
  /** HTTP requests may be repeated by the kernel. Not ok: all of them go through Envoy, whose connections are short-circuited. */
  fastPath: { ok: boolean; reason: string };
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

type Decides = 'capture' | 'acceleration' | 'fastPath' | 'restriction';

export interface SelfTestOptions {
  /** The checks of the HTTP fast path alone. */
  only?: 'fastPath';
  /** Of the programs, for the checks to find: enum http_fault of bpf/http-structs.h. */
  faults?: number;
}

/** Never throws: what can't be tried is a failed check. */
export async function selfTest(logger: Logger, options: SelfTestOptions = {}): Promise<SelfTestVerdict> {
  const started = performance.now();
  const test = new SelfTest(logger);
  try {
    await test.run(options);
  } catch (error) {
    for (const decides of ['capture', 'acceleration', 'fastPath'] as const) test.record('set-up', decides, false, errorMessage(error));
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

  async run({ only, faults = 0 }: SelfTestOptions): Promise<void> {
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

    const kernel = await Kernel.open({ bpffsDir: null, instance: 'self-test', logger: this.logger, maxEntries: SMALL_MAPS, rodata: { http_faults: faults } });
    this.#store.add(kernel);
    kernel.setGlobalAcceleration(true);
    kernel.attachProxy(this.#proxyCgroup);
    const pod: KernelPod = {
      uid: 'self-test',
      netnsCookie: await netnsCookie(this.#netns),
      cgroupPath: this.#podCgroup,
      addresses: POD_ADDRESSES,
      mode: 'node',
      capture: true,
      acceleration: 'force',
    };
    kernel.putPod(pod);
    if (only === undefined) await this.#connections(kernel);
    kernel.putPod({ ...pod, acceleration: 'l7' });
    await this.#requests(kernel, pod.netnsCookie);
  }

  async #connections(kernel: Kernel): Promise<void> {
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
    const fastPath = failed('fastPath');
    return {
      ok: capture === '' && acceleration === '' && fastPath === '',
      capture: { ok: capture === '', reason: capture || 'original destinations arrive' },
      acceleration: { ok: acceleration === '', reason: acceleration || 'order, flow control and endings hold' },
      fastPath: { ok: fastPath === '', reason: fastPath || 'requests and answers arrive whole and in order, and ends are told' },
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

  /** To the first that fails: what comes after it stands on it. */
  async #requests(kernel: Kernel, cookie: bigint): Promise<void> {
    const http = this.#store.add(new HttpSelfTest({ kernel, netns: this.#netns, netnsCookie: cookie, podCgroup: this.#podCgroup, proxyCgroup: this.#proxyCgroup, logger: this.logger }));
    const isRight = (name: string, body: () => Promise<string>): Promise<boolean> => this.#check(name, 'fastPath', async () => [true, await body()]);
    if (!(await isRight('http-set-up', () => {
      if (kernel.httpProblem !== undefined) throw new UnderpassError('UNDERPASS_SELF_TEST', `the kernel refuses its programs: ${kernel.httpProblem}`);
      return http.open();
    }))) return;
    for (const [name, body] of http.checks) {
      await http.reset();
      if (!(await isRight(name, body))) return;
    }
  }

  async #check(name: string, decides: Decides, body: () => Promise<[boolean, string]>): Promise<boolean> {
    try {
      const [ok, detail] = await body();
      this.record(name, decides, ok, detail);
      return ok;
    } catch (error) {
      this.record(name, decides, false, errorMessage(error));
      if (decides === 'restriction') this.#restrictions.push(name as 'splice');
      return false;
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
  http_rules: 64, http_vhosts: 64, http_policies: 64, http_classes: 64, http_clusters: 64, http_endpoints: 64, http_loads: 64,
};
