/**
 * User space's half of probation: when the kernel sees a program for the first time, its executable is looked at before
 * it can become event-driven. What can't be found (a process that ended, a listener handed over from outside) stays in
 * probation, which is plain TCP, and is asked for again when it shows up again.
 */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { judgeExecutable, type Judgement } from './kernel-executable.js';
import { Executable, listeningProcesses, podProcesses } from './kernel-processes.js';
import type { Verdicts } from './kernel-verdicts.js';

export interface PodOfProgram {
  cgroupPath: string;
  /** What its label says; undefined: find out. */
  splices: boolean | undefined;
}

export type Newcomer =
  | { kind: 'client'; netnsCookie: bigint; key: Buffer; pid: number }
  | { kind: 'listener'; netnsCookie: bigint; key: Buffer };

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
    const judgement = pod.splices === undefined
      ? await (newcomer.kind === 'client' ? this.#judgeClient(pod, newcomer, executable) : this.#judgeListener(pod, newcomer.key))
      : { splices: pod.splices, reason: 'its label says so' };
    // The pod may have gone, or have got another label, meanwhile: then it is asked for anew.
    if (!judgement || this.#closed || this.podOf(newcomer.netnsCookie)?.splices !== pod.splices) return;
    this.verdicts.clear(newcomer.kind, newcomer.key, newcomer.netnsCookie, judgement.splices);
    if (!judgement.splices || pod.splices !== undefined) return;
    const text = newcomer.kind === 'client' ? this.verdicts.programText(newcomer.key) : this.verdicts.listenerText(newcomer.key);
    this.logger.info({ kind: newcomer.kind, key: text, reason: judgement.reason }, 'a program may splice: its connections stay plain TCP');
  }

  /** By the process that was seen, or any other of the pod that runs the same file. */
  async #judgeClient(pod: PodOfProgram, { key, pid }: { key: Buffer; pid: number }, seen: Executable | undefined): Promise<Judgement | undefined> {
    const program = this.verdicts.program(key);
    const pids = podProcesses(pod.cgroupPath) ?? [];
    const judge = async (executable: Executable, trusted: boolean): Promise<Judgement | undefined> => {
      const { path, device, inode, overlay } = await executable.identity();
      const same = (device === program.device && inode === program.inode) || (overlay && trusted);
      return same ? judgeExecutable((position, length) => executable.read(position, length), path) : undefined;
    };
    const first = seen && (await judge(seen, pids.includes(pid)));
    if (first) return first;
    for (const other of pids) {
      const judgement = await withExecutable(other, (executable) => judge(executable, false));
      if (judgement) return judgement;
    }
    return undefined;
  }

  /** By all that hold the listening socket: any one of them may be the one that accepts. */
  async #judgeListener(pod: PodOfProgram, key: Buffer): Promise<Judgement | undefined> {
    const holders = await listeningProcesses(podProcesses(pod.cgroupPath) ?? [], this.verdicts.port(key));
    let last: Judgement | undefined;
    for (const pid of holders) {
      last = await withExecutable(pid, async (executable) =>
        judgeExecutable((position, length) => executable.read(position, length), (await executable.identity()).path));
      // One that ended while it was looked at leaves the question open.
      if (!last || last.splices) return last;
    }
    return last;
  }
}

async function withExecutable<T>(pid: number, use: (executable: Executable) => Promise<T>): Promise<T | undefined> {
  const executable = Executable.of(pid);
  try {
    return executable && (await use(executable));
  } finally {
    executable?.close();
  }
}
