/**
 * User space's half of probation: when the kernel sees a program for the first time, its executable is looked at before
 * it can become event-driven. What can't be found (a process that ended, a listener handed over from outside) stays in
 * probation, which is plain TCP, and is asked for again when it shows up again.
 */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { judgeExecutable } from './kernel-executable.js';
import { Executable, listeningProcesses, podProcesses } from './kernel-processes.js';
import type { LookedAt, Verdicts } from './kernel-verdicts.js';

export interface PodOfProgram {
  netnsCookie: bigint;
  cgroupPath: string;
  /** No cgroup is the pod's own. */
  isRooted: boolean;
  /** What its label says; undefined: find out. */
  splices?: boolean | undefined;
}

export type Newcomer = { netnsCookie: bigint; key: Buffer; /** Only its name is wanted. */ decided?: boolean } & ({ kind: 'client'; pid: number } | { kind: 'listener' });

/** The kernel asks again for what is dropped. */
const MAX_WAITING = 256;

export class Clearance implements Closable {
  readonly #waiting = new Map<string, { newcomer: Newcomer; executable: Executable | undefined }>();
  #working: Promise<void> | undefined;
  #closed = false;

  constructor(
    readonly verdicts: Verdicts,
    readonly podOf: (netnsCookie: bigint) => PodOfProgram | undefined,
    readonly logger: Logger,
  ) {}

  ask(newcomer: Newcomer): void {
    const name = `${newcomer.kind} ${newcomer.key.toString('hex')}`;
    if (this.#closed || this.#waiting.size >= MAX_WAITING || this.#waiting.has(name)) return;
    const executable = newcomer.kind === 'client' ? Executable.of(newcomer.pid) : undefined;
    // Copied: the record that the key is a part of does not outlive the callback.
    this.#waiting.set(name, { newcomer: { ...newcomer, key: Buffer.from(newcomer.key) }, executable });
    this.#working ??= this.#work().finally(() => (this.#working = undefined));
  }

  /** Looks again at what a former agent looked at: names are kept in memory. */
  recall(): void {
    for (const { kind, ...known } of this.verdicts.unnamed()) this.ask(kind === 'client' ? { ...known, kind, pid: 0 } : { ...known, kind });
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#working;
  }

  /** One after another: a burst of newcomers must not take the machine. */
  async #work(): Promise<void> {
    for (;;) {
      const next = this.#waiting.entries().next();
      if (next.done) return;
      const [name, { newcomer, executable }] = next.value;
      this.#waiting.delete(name);
      try {
        if (!this.#closed) await this.#decide(newcomer, executable);
      } catch (error) {
        this.logger.warn({ kind: newcomer.kind, reason: errorMessage(error) }, 'looking at a program; it stays plain TCP');
      } finally {
        executable?.close();
      }
    }
  }

  async #decide(newcomer: Newcomer, executable: Executable | undefined): Promise<void> {
    const pod = this.podOf(newcomer.netnsCookie);
    if (!pod) return;
    if (newcomer.decided) {
      const found = await this.#find(pod, newcomer, executable);
      if (found && !this.#closed) this.verdicts.name(newcomer.kind, newcomer.key, found);
      return;
    }
    const byLabel = pod.splices === undefined ? undefined : labelSays(pod.splices);
    const judgement = byLabel ?? (await this.#find(pod, newcomer, executable));
    // The pod may have gone, or have got another label, meanwhile: then it is asked for anew.
    if (!judgement || this.#closed || this.podOf(newcomer.netnsCookie)?.splices !== pod.splices) return;
    this.verdicts.clear(newcomer.kind, newcomer.key, newcomer.netnsCookie, judgement);
    if (byLabel) {
      const program = (await this.#find(pod, newcomer, executable))?.program;
      if (program !== undefined && !this.#closed) this.verdicts.name(newcomer.kind, newcomer.key, { ...byLabel, program });
      return;
    }
    if (!judgement.splices) return;
    const text = newcomer.kind === 'client' ? this.verdicts.programText(newcomer.key) : this.verdicts.listenerText(newcomer.key);
    this.logger.info({ kind: newcomer.kind, key: text, reason: judgement.reason }, 'a program may splice: its connections stay plain TCP');
  }

  #find(pod: PodOfProgram, newcomer: Newcomer, executable: Executable | undefined): Promise<LookedAt | undefined> {
    return newcomer.kind === 'client' ? this.#judgeClient(pod, newcomer, executable) : this.#judgeListener(pod, newcomer.key);
  }

  /** By the process that was seen, or any other of the pod that runs the same file. */
  async #judgeClient(pod: PodOfProgram, { key, pid }: { key: Buffer; pid: number }, seen: Executable | undefined): Promise<LookedAt | undefined> {
    const program = this.verdicts.program(key);
    let pids: readonly number[] | undefined;
    const all = async (): Promise<readonly number[]> => (pids ??= (await podProcesses(pod)) ?? []);
    const ofProgram = async (executable: Executable, isTrusted: () => Promise<boolean>): Promise<LookedAt | undefined> => {
      const { path, device, inode, overlay } = await executable.identity();
      const same = (device === program.device && inode === program.inode) || (overlay && (await isTrusted()));
      return same ? judge(executable, path) : undefined;
    };
    const first = seen && (await ofProgram(seen, async () => (await all()).includes(pid)));
    if (first) return first;
    for (const other of await all()) {
      const judgement = await withExecutable(other, (executable) => ofProgram(executable, () => Promise.resolve(false)));
      if (judgement) return judgement;
    }
    return undefined;
  }

  /** By all that hold the listening socket: any one of them may be the one that accepts. */
  async #judgeListener(pod: PodOfProgram, key: Buffer): Promise<LookedAt | undefined> {
    const holders = await listeningProcesses((await podProcesses(pod)) ?? [], this.verdicts.port(key));
    let last: LookedAt | undefined;
    for (const pid of holders) {
      last = await withExecutable(pid, async (executable) => judge(executable, (await executable.identity()).path));
      // One that ended while it was looked at leaves the question open.
      if (!last || last.splices) return last;
    }
    return last;
  }
}

function labelSays(splices: boolean): LookedAt {
  return { splices, reason: `the pod's label says that ${splices ? 'its programs splice' : 'none of its programs splices'}` };
}

async function judge(executable: Executable, path: string): Promise<LookedAt> {
  return { program: path, ...(await judgeExecutable((position, length) => executable.read(position, length), path)) };
}

async function withExecutable<T>(pid: number, use: (executable: Executable) => Promise<T>): Promise<T | undefined> {
  const executable = Executable.of(pid);
  try {
    return executable && (await use(executable));
  } finally {
    executable?.close();
  }
}
