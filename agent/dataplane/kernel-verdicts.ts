/** Which listeners and client programs are known to be event-driven: DESIGN section 5, rule 11. */
import { UnderpassError } from '../../common/errors.js';
import type { BpfMap, BpfObject } from '../../native/index.js';
import { decodeAddress, encodeAddress, StructCodec, u64 } from './kernel-codec.js';
import type { Judgement } from './kernel-executable.js';

export type Verdict = 'probation' | 'event-driven' | 'blocking' | 'spliced';

export interface ProbationEntry {
  kind: 'listener' | 'client';
  /** listener: `<address>:<port>@<netns cookie>`; client: `cgroup <id> exe <device>:<inode>`. */
  key: string;
  /** Of the pod that it belongs to; 0: marked by hand, in any pod. */
  netnsCookie: bigint;
  /** Of a listener. */
  address?: string;
  port?: number;
  /** Path of its executable, where that was found. */
  program?: string;
  /** Connections that sent data without blocking. */
  seen: number;
  verdict: Verdict;
  /** What led to the verdict, or what is missing for one. */
  reason: string;
}

/** What user space found out about a program. */
export interface LookedAt extends Judgement {
  program?: string;
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
  readonly #clearance: StructCodec;
  readonly #quota: StructCodec;
  readonly #clientClearances: BpfMap;
  readonly #listenerClearances: BpfMap;
  readonly #quotas: BpfMap;
  readonly #marks: Record<string, number>;
  readonly #clearances: Record<string, number>;
  /** By kind and key in hex, beside the clearances; not kept over a restart. */
  readonly #lookedAt = new Map<string, LookedAt>();

  constructor(object: BpfObject) {
    this.#clients = object.map('client_verdicts');
    this.#listeners = object.map('listener_verdicts');
    this.#program = new StructCodec(object, 'program_key').check(this.#clients, 'key');
    this.#listener = new StructCodec(object, 'listener_key').check(this.#listeners, 'key');
    this.#verdict = new StructCodec(object, 'verdict').check(this.#clients, 'value').check(this.#listeners, 'value');
    this.#clientClearances = object.map('client_clearances');
    this.#listenerClearances = object.map('listener_clearances');
    this.#clearance = new StructCodec(object, 'clearance').check(this.#clientClearances, 'value').check(this.#listenerClearances, 'value');
    this.#quotas = object.map('verdict_quotas');
    this.#quota = new StructCodec(object, 'verdict_quota').check(this.#quotas, 'value');
    this.#marks = object.enumValues('mark');
    this.#clearances = object.enumValues('clearance_kind');
  }

  list(): ProbationEntry[] {
    return [
      ...this.#listeners.entries().map(([key, value]) => this.#entry('listener', key, value)),
      ...this.#clients.entries().map(([key, value]) => this.#entry('client', key, value)),
    ];
  }

  /** Programs whose executables are not known, e.g. since a former agent looked at them; `decided`: a look changes nothing. */
  unnamed(): { kind: 'client' | 'listener'; key: Buffer; netnsCookie: bigint; decided: boolean }[] {
    const of = (kind: 'client' | 'listener', map: BpfMap) => map.entries()
      .filter(([key]) => !this.#lookedAt.has(nameOf(kind, key)))
      .map(([key, value]) => ({
        kind, key, netnsCookie: this.#verdict.bigint(value, 'netns_cookie'), decided: this.#verdict.number(value, 'mark') !== this.#marks['MARK_NONE'],
      }));
    return [...of('listener', this.#listeners), ...of('client', this.#clients)];
  }

  /** What a program is that the kernel has already decided on. */
  name(kind: 'client' | 'listener', key: Buffer, found: LookedAt): void {
    if ((kind === 'client' ? this.#clients : this.#listeners).get(key)) this.#lookedAt.set(nameOf(kind, key), found);
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

  /** `key` is a struct program_key. */
  program(key: Buffer): { device: number; inode: bigint } {
    return { device: this.#program.number(key, 'device'), inode: this.#program.bigint(key, 'inode') };
  }

  /** `key` is a struct listener_key. */
  port(key: Buffer): number {
    return this.#listener.number(key, 'port');
  }

  /** What is known about a program in probation: that it splices, or that it does not. */
  clear(kind: 'client' | 'listener', key: Buffer, netnsCookie: bigint, found: LookedAt): void {
    const map = kind === 'client' ? this.#clientClearances : this.#listenerClearances;
    const name = found.splices ? 'CLEARANCE_SPLICES' : 'CLEARANCE_GIVEN';
    this.#lookedAt.set(nameOf(kind, key), found);
    map.set(key, this.#clearance.encode({ netns_cookie: netnsCookie, kind: this.#clearances[name] as number }));
  }

  /** The pod's label has changed: its programs are looked at again. */
  forgetClearances(cookie: bigint): void {
    const own = (_: Buffer, value: Buffer): boolean => this.#clearance.bigint(value, 'netns_cookie') === cookie;
    this.#drop('client', this.#clientClearances, own);
    this.#drop('listener', this.#listenerClearances, own);
  }

  /** Makes room in a pod's quota: what is still in probation, and programs of containers that are gone. */
  prune(cookie: bigint, liveCgroups: ReadonlySet<bigint>): void {
    const inProbation = (value: Buffer, clearance: Buffer | undefined): boolean => this.#verdictOf(value, clearance) === 'probation';
    const own = (value: Buffer): boolean => this.#verdict.bigint(value, 'netns_cookie') === cookie;
    this.#drop('client', this.#clients, (key, value) => own(value) &&
      (inProbation(value, this.#clientClearances.get(key)) || !liveCgroups.has(this.#program.bigint(key, 'cgroup_id'))), this.#clientClearances);
    this.#drop('listener', this.#listeners, (key, value) => own(value) && inProbation(value, this.#listenerClearances.get(key)), this.#listenerClearances);
    const left = (map: BpfMap): number => map.entries().filter(([, value]) => own(value)).length;
    const quota = this.#quotas.get(u64(cookie));
    if (quota) this.#quotas.set(u64(cookie), this.#quota.encode({
      reported_ns: this.#quota.bigint(quota, 'reported_ns'), clients: left(this.#clients), listeners: left(this.#listeners),
    }));
  }

  markProgram(program: ProgramName, verdict: Verdict): void {
    const key = this.#program.encode({ cgroup_id: program.cgroupId ?? 0n, inode: program.inode, device: program.device });
    this.#mark(this.#clients, key, verdict, 0n);
  }

  markListener(listener: ListenerName, verdict: Verdict): void {
    const loopback = /^127\.|^::1$/.test(decodeAddress(encodeAddress(listener.address)));
    const key = this.#listener.encode({
      netns_cookie: listener.netnsCookie,
      address: encodeAddress(loopback ? '127.0.0.1' : listener.address),
      port: listener.port,
    });
    this.#mark(this.#listeners, key, verdict, listener.netnsCookie);
  }

  /** Drops what was learnt about the programs and listeners of a pod that is gone. */
  forgetNamespace(cookie: bigint): void {
    const own = (_: Buffer, value: Buffer): boolean => this.#verdict.bigint(value, 'netns_cookie') === cookie;
    this.#drop('client', this.#clients, own);
    this.#drop('listener', this.#listeners, own);
    this.forgetClearances(cookie);
    this.#quotas.delete(u64(cookie));
  }

  #drop(kind: 'client' | 'listener', map: BpfMap, condition: (key: Buffer, value: Buffer) => boolean, along?: BpfMap): void {
    for (const [key, value] of map.entries()) {
      if (!condition(key, value)) continue;
      map.delete(key);
      along?.delete(key);
      this.#lookedAt.delete(nameOf(kind, key));
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

  #entry(kind: 'listener' | 'client', key: Buffer, value: Buffer): ProbationEntry {
    const clearance = (kind === 'client' ? this.#clientClearances : this.#listenerClearances).get(key);
    const lookedAt = this.#lookedAt.get(nameOf(kind, key));
    const seen = this.#verdict.number(value, 'seen');
    const verdict = this.#verdictOf(value, clearance);
    return {
      kind,
      key: kind === 'client' ? this.programText(key) : this.listenerText(key),
      netnsCookie: this.#verdict.bigint(value, 'netns_cookie'),
      ...(kind === 'client' ? {} : { address: decodeAddress(this.#listener.bytes(key, 'address')), port: this.port(key) }),
      ...(lookedAt?.program === undefined ? {} : { program: lookedAt.program }),
      seen,
      verdict,
      reason: this.#reason(verdict, seen, this.#verdict.number(value, 'mark') === this.#marks['MARK_NONE'], clearance !== undefined, lookedAt),
    };
  }

  #reason(verdict: Verdict, seen: number, learnt: boolean, cleared: boolean, lookedAt: LookedAt | undefined): string {
    const found = lookedAt?.reason ?? 'its executable was looked at by a former agent';
    if (!learnt) {
      return verdict === 'blocking' ? 'it sent data on a blocking socket' : verdict === 'spliced' ? 'it uses SO_ZEROCOPY, or was marked by hand' : 'it was marked by hand';
    }
    if (verdict === 'probation') {
      const connections = `${seen} of ${PROBATION_CONNECTIONS} connections sent data without blocking`;
      return cleared ? connections : `${seen >= PROBATION_CONNECTIONS ? '' : `${connections}, and `}its executable has not been found yet`;
    }
    return found;
  }

  /** As decided() in bpf/helpers.h. */
  #verdictOf(value: Buffer, clearance: Buffer | undefined): Verdict {
    const mark = this.#verdict.number(value, 'mark');
    const marked = (Object.keys(MARKS) as Verdict[]).find((name) => this.#marks[MARKS[name]] === mark) ?? 'probation';
    if (marked !== 'probation' || !clearance) return marked;
    if (this.#clearance.number(clearance, 'kind') !== this.#clearances['CLEARANCE_GIVEN']) return 'spliced';
    return this.#verdict.number(value, 'seen') >= PROBATION_CONNECTIONS ? 'event-driven' : 'probation';
  }
}

/** For the table of what was looked at. */
function nameOf(kind: 'client' | 'listener', key: Buffer): string {
  return `${kind} ${key.toString('hex')}`;
}
