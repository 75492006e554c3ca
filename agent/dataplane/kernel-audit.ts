/** Compares what the kernel has with what it was given: pods' entries, their addresses, and the hooks on their cgroups. */
import { KernelError, linkInfo, type BpfMap, type BpfObject } from '../../native/index.js';
import type { Check, Drift } from '../consistency/drift.js';
import { decodeAddress, encodeAddress, u32, u64 } from './kernel-codec.js';

/** A pod as the kernel side keeps it. */
export interface AuditedPod {
  uid: string;
  netnsCookie: bigint;
  cgroupId: bigint;
  addresses: readonly string[];
  /** Its entry as it was written. */
  value(): Buffer;
  /** Where each of its hooks is pinned; none while they are not known to be complete. */
  hooks: readonly { program: string; pin: string }[];
}

export interface AuditedKernel {
  object: BpfObject;
  maps: Record<'pods' | 'addresses' | 'settings', BpfMap>;
  pods(): AuditedPod[];
  pod(uid: string): AuditedPod | undefined;
  /** Of the settings, as they were written last. */
  settings(): Buffer | undefined;
  /** Attaches a hook beside what is left of it, which then goes. */
  attach(uid: string, program: string): void;
  tables: readonly { name: string; audit(): Iterable<Drift[]> }[];
}

const AUDITED_ENTRIES = 512;
/** Pods whose hooks are looked at in one go: each hook is two system calls. */
const AUDITED_PODS = 4;

export function kernelChecks(kernel: AuditedKernel): Check[] {
  return [
    { name: 'pods', parts: () => auditPods(kernel) },
    { name: 'addresses', parts: () => auditAddresses(kernel) },
    { name: 'settings', parts: () => auditSettings(kernel) },
    { name: 'hooks', parts: () => auditHooks(kernel) },
    ...kernel.tables.map((table): Check => ({ name: table.name, parts: () => table.audit() })),
  ];
}

function* auditPods({ maps: { pods: map }, pods }: AuditedKernel): Generator<Drift[]> {
  const drifts: Drift[] = [];
  const wanted = new Map(pods().map((pod) => [pod.netnsCookie, pod]));
  for (const [netnsCookie, pod] of wanted) {
    const [key, uid, value] = [u64(netnsCookie), pod.uid, pod.value()];
    const found = map.get(key);
    if (!found?.equals(value)) drifts.push({ kind: 'pod', state: found ? 'wrong' : 'missing', name: uid, pod: uid, repair: () => map.set(key, value) });
  }
  for (const { keys, count } of map.parts(AUDITED_ENTRIES)) {
    for (let at = 0; at < count; at++) {
      const key = Buffer.from(keys.subarray(at * 8, at * 8 + 8));
      if (!wanted.has(key.readBigUInt64LE())) drifts.push({ kind: 'pod', state: 'orphaned', name: `netns ${key.readBigUInt64LE()}`, repair: () => void map.delete(key) });
    }
  }
  yield drifts;
}

function* auditAddresses({ maps: { addresses: map }, pods }: AuditedKernel): Generator<Drift[]> {
  const drifts: Drift[] = [];
  const owners = new Map<string, AuditedPod[]>();
  for (const pod of pods()) for (const address of pod.addresses) owners.set(address, [...(owners.get(address) ?? []), pod]);
  for (const [address, of] of owners) {
    const key = encodeAddress(address);
    const found = map.get(key)?.readBigUInt64LE();
    // Of two that have had the address the kernel knows the last one, whom nobody tells here.
    if (of.some(({ netnsCookie }) => netnsCookie === found)) continue;
    const { uid, netnsCookie } = of.at(-1)!;
    drifts.push({ kind: 'address', state: found === undefined ? 'missing' : 'wrong', name: address, pod: uid, repair: () => map.set(key, u64(netnsCookie)) });
  }
  for (const { keys, count } of map.parts(AUDITED_ENTRIES)) {
    for (let at = 0; at < count; at++) {
      const key = Buffer.from(keys.subarray(at * 16, at * 16 + 16));
      const address = decodeAddress(key);
      if (!owners.has(address)) drifts.push({ kind: 'address', state: 'orphaned', name: address, repair: () => void map.delete(key) });
    }
  }
  yield drifts;
}

function* auditSettings({ maps: { settings: map }, settings }: AuditedKernel): Generator<Drift[]> {
  const wanted = settings();
  yield wanted && !map.get(u32(0))?.equals(wanted) ? [{ kind: 'setting', state: 'wrong', name: 'settings', repair: () => map.set(u32(0), wanted) }] : [];
}

function* auditHooks({ object, pods, pod, attach }: AuditedKernel): Generator<Drift[]> {
  const programs = new Map<string, number>();
  const programOf = (name: string): number => {
    let id = programs.get(name);
    if (id === undefined) programs.set(name, (id = object.programId(name)));
    return id;
  };
  let drifts: Drift[] = [];
  let looked = 0;
  for (const { uid } of pods()) {
    const current = pod(uid);
    for (const { program, pin } of current?.hooks ?? []) {
      const found = whatIsAttached(pin, programOf(program), current!.cgroupId);
      if (found) drifts.push({ kind: 'hook', ...found, name: `${uid} ${program}`, pod: uid, repair: () => attach(uid, program) });
    }
    if (++looked % AUDITED_PODS > 0) continue;
    yield drifts;
    drifts = [];
  }
  yield drifts;
}

function whatIsAttached(pin: string, programId: number, cgroupId: bigint): Pick<Drift, 'state' | 'detail'> | undefined {
  try {
    const found = linkInfo(pin);
    if (found.targetId === 0n) return { state: 'missing', detail: 'it was detached' };
    if (found.targetId !== cgroupId) return { state: 'wrong', detail: 'it is on another cgroup' };
    return found.programId === programId ? undefined : { state: 'wrong', detail: `program ${found.programId} is in its place` };
  } catch (error) {
    if (!(error instanceof KernelError) || error.errnoName !== 'ENOENT') throw error;
    return { state: 'missing', detail: 'its pin is gone: it would end with this agent' };
  }
}
