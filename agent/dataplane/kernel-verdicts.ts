/** Which listeners and client programs are known to be event-driven: DESIGN section 5, rule 11. */
import { UnderpassError } from '../../common/errors.js';
import type { BpfMap, BpfObject } from '../../native/index.js';
import { decodeAddress, encodeAddress, StructCodec } from './kernel-codec.js';

export type Verdict = 'probation' | 'event-driven' | 'blocking' | 'spliced';

export interface ProbationEntry {
  kind: 'listener' | 'client';
  /** listener: `<address>:<port>@<netns cookie>`; client: `cgroup <id> exe <device>:<inode>`. */
  key: string;
  /** Connections that sent data without blocking. */
  seen: number;
  verdict: Verdict;
}

export interface ProgramName {
  /** undefined: in any container. */
  cgroupId?: bigint;
  device: number;
  inode: bigint;
}

export interface ListenerName {
  netnsCookie: bigint;
  address: string;
  port: number;
}

/** PROBATION_CONNECTIONS in bpf/consts.h, which BTF does not carry. */
export const PROBATION_CONNECTIONS = 8;

const MARKS = { probation: 'MARK_NONE', 'event-driven': 'MARK_EVENT_DRIVEN', blocking: 'MARK_BLOCKING', spliced: 'MARK_SPLICED' } as const;

export class Verdicts {
  readonly #clients: BpfMap;
  readonly #listeners: BpfMap;
  readonly #program: StructCodec;
  readonly #listener: StructCodec;
  readonly #verdict: StructCodec;
  readonly #marks: Record<string, number>;

  constructor(object: BpfObject) {
    this.#clients = object.map('client_verdicts');
    this.#listeners = object.map('listener_verdicts');
    this.#program = new StructCodec(object, 'program_key').check(this.#clients, 'key');
    this.#listener = new StructCodec(object, 'listener_key').check(this.#listeners, 'key');
    this.#verdict = new StructCodec(object, 'verdict').check(this.#clients, 'value').check(this.#listeners, 'value');
    this.#marks = object.enumValues('mark');
  }

  list(): ProbationEntry[] {
    return [
      ...this.#listeners.entries().map(([key, value]) => this.#entry('listener', this.listenerText(key), value)),
      ...this.#clients.entries().map(([key, value]) => this.#entry('client', this.programText(key), value)),
    ];
  }

  /** `record` is a struct listener_key. */
  listenerText(record: Buffer): string {
    const address = decodeAddress(this.#listener.bytes(record, 'address'));
    const host = address.includes(':') ? `[${address}]` : address;
    return `${host}:${this.#listener.number(record, 'port')}@${this.#listener.bigint(record, 'netns_cookie')}`;
  }

  /** `record` is a struct program_key. */
  programText(record: Buffer): string {
    const group = this.#program.bigint(record, 'cgroup_id');
    return `cgroup ${group === 0n ? 'any' : group} exe ${this.#program.number(record, 'device')}:${this.#program.bigint(record, 'inode')}`;
  }

  markProgram(program: ProgramName, verdict: Verdict): void {
    const key = this.#program.encode({ cgroup_id: program.cgroupId ?? 0n, inode: program.inode, device: program.device });
    this.#mark(this.#clients, key, verdict, 0n);
  }

  markListener(listener: ListenerName, verdict: Verdict): void {
    const key = this.#listener.encode({
      netns_cookie: listener.netnsCookie,
      address: encodeAddress(listener.address),
      port: listener.port,
    });
    this.#mark(this.#listeners, key, verdict, listener.netnsCookie);
  }

  /** Drops what was learnt about the programs and listeners of a pod that is gone. */
  forgetNamespace(cookie: bigint): void {
    for (const map of [this.#clients, this.#listeners]) {
      for (const [key, value] of map.entries()) {
        if (this.#verdict.bigint(value, 'netns_cookie') === cookie) map.delete(key);
      }
    }
  }

  #mark(map: BpfMap, key: Buffer, verdict: Verdict, netnsCookie: bigint): void {
    if (verdict === 'probation') {
      map.delete(key);
      return;
    }
    const mark = this.#marks[MARKS[verdict]];
    if (mark === undefined) throw new UnderpassError('UNDERPASS_BAD_VERDICT', `marking a program: ${JSON.stringify(verdict)} is no verdict`);
    map.set(key, this.#verdict.encode({ netns_cookie: netnsCookie, mark }));
  }

  #entry(kind: 'listener' | 'client', key: string, value: Buffer): ProbationEntry {
    const mark = this.#verdict.number(value, 'mark');
    const seen = this.#verdict.number(value, 'seen');
    const marked = (Object.keys(MARKS) as Verdict[]).find((name) => this.#marks[MARKS[name]] === mark) ?? 'probation';
    return { kind, key, seen, verdict: marked === 'probation' && seen >= PROBATION_CONNECTIONS ? 'event-driven' : marked };
  }
}
