/** Compares what the kernel has with what it was given: pods' entries, their addresses, the hooks on their cgroups, and all other links. */
import { KernelError, attachedPrograms, linkInfo, type BpfMap, type BpfObject } from '../../native/index.js';
import type { Check, Drift } from '../consistency/drift.js';
import { decodeAddress, encodeAddress, u32, u64 } from './kernel-codec.js';

/** A pod as the kernel side keeps it. */
export interface AuditedPod {
  uid: string;
  netnsCookie: bigint;
  cgroupId: bigint;
  cgroupPath: string;
  addresses: readonly string[];
  /** Its entry as it was written. */
  value(): Buffer;
  /** Where each of its hooks is pinned; none while they are not known to be complete. */
  hooks: readonly { program: string; pin: string }[];
}

/** A pinned link that is none of a pod's hooks on its cgroup. */
export interface AuditedLink {
  /** Of the drift, e.g. `envoy proxy_sockops`. */
  name: string;
  pod?: string;
  programId: number;
  pin: string;
  /** Id of the cgroup, or inode of the network namespace. */
  targetId: bigint;
  attach(): unknown;
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
  /** Steering, Envoy's hooks, the node's, and those at the root. */
  links(): Iterable<AuditedLink>;
  /** What an agent that died left, and this one took away when it started; each is told once. */
  leftovers(): Drift[];
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
    { name: 'links', parts: () => auditLinks(kernel) },
    { name: 'leftovers', parts: () => [kernel.leftovers()] },
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
  const types = new Set<number>();
  let drifts: Drift[] = [];
  let looked = 0;
  for (const { uid } of pods()) {
    const current = pod(uid);
    const own = new Set<number>();
    for (const { program, pin } of current?.hooks ?? []) {
      own.add(programOf(program));
      const found = whatIsAttached(pin, programOf(program), current!.cgroupId);
      if (typeof found === 'number') types.add(found);
      else drifts.push({ kind: 'hook', ...found, name: `${uid} ${program}`, pod: uid, repair: () => attach(uid, program) });
    }
    if (own.size > 0) drifts.push(...strangersOn(current!.cgroupPath, [...types], own).map((name): Drift => ({ kind: 'hook', state: 'foreign', name: `${uid} ${name}`, pod: uid, unsafe: "it is another program's" })));
    if (++looked % AUDITED_PODS > 0) continue;
    yield drifts;
    drifts = [];
  }
  yield drifts;
}

function* auditLinks({ links }: AuditedKernel): Generator<Drift[]> {
  const drifts: Drift[] = [];
  for (const { name, pod, programId, pin, targetId, attach } of links()) {
    const found = whatIsAttached(pin, programId, targetId);
    if (typeof found !== 'number') drifts.push({ kind: 'hook', ...found, name, ...(pod === undefined ? {} : { pod }), repair: () => void attach() });
  }
  yield drifts;
}

/** Programs of others at the places of these hooks, which the kernel runs beside them. */
function strangersOn(cgroupPath: string, types: readonly number[], own: ReadonlySet<number>): string[] {
  try {
    return attachedPrograms(cgroupPath, types).filter(({ id }) => !own.has(id)).map(({ id, name }) => `${name === '' ? 'program' : name} (${id})`);
  } catch (error) {
    // The pod has just ended.
    if (error instanceof KernelError && error.errnoName === 'ENOENT') return [];
    throw error;
  }
}

/** @returns the type of attachment where all is as it should be */
function whatIsAttached(pin: string, programId: number, targetId: bigint): Pick<Drift, 'state' | 'detail'> | number {
  try {
    const found = linkInfo(pin);
    if (found.targetId === 0n) return { state: 'missing', detail: 'it was detached' };
    if (found.targetId !== targetId) return { state: 'wrong', detail: 'it is on something else' };
    return found.programId === programId ? found.attachType : { state: 'wrong', detail: `program ${found.programId} is in its place` };
  } catch (error) {
    if (!(error instanceof KernelError) || error.errnoName !== 'ENOENT') throw error;
    return { state: 'missing', detail: 'its pin is gone: it would end with this agent' };
  }
}
