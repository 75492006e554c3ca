/** A pod as the map `pods` has it: struct pod of bpf/structs.h. */
import { UnderpassError } from '../../common/errors.js';
import type { BpfMap, BpfObject } from '../../native/index.js';
import { decodeAddress, encodeAddress, StructCodec } from './kernel-codec.js';
import type { KernelPodState } from './kernel.js';

const MODES = { node: 'POD_MODE_NODE', sidecar: 'POD_MODE_SIDECAR' } as const;
const ACCELERATIONS = { off: 'ACCELERATION_OFF', l4: 'ACCELERATION_L4', l7: 'ACCELERATION_L7', force: 'ACCELERATION_FORCE' } as const;

/** A pod's place among the per-pod counters. Sockets of a former pod carry another generation, and are no longer counted. */
export interface Slot {
  index: number;
  generation: number;
}

export class PodCodec {
  readonly #pod: StructCodec;
  readonly #constants: Record<'mode' | 'acceleration' | 'flag', Record<string, number>>;

  constructor(object: BpfObject, map: BpfMap) {
    this.#pod = new StructCodec(object, 'pod').check(map, 'value');
    this.#constants = { mode: object.enumValues('pod_mode'), acceleration: object.enumValues('acceleration'), flag: object.enumValues('pod_flag') };
  }

  encode(pod: KernelPodState, slot: Slot): Buffer {
    const { mode, acceleration, flag } = this.#constants;
    const first = (family: 'ipv4' | 'ipv6'): Buffer => {
      const found = pod.addresses.find((address) => address.includes(':') === (family === 'ipv6'));
      return found ? encodeAddress(found) : Buffer.alloc(16);
    };
    const several = (family: 4 | 6): boolean => pod.addresses.filter((address) => address.includes(':') === (family === 6)).length > 1;
    const flags = (several(4) ? need(flag, 'POD_SEVERAL_IPV4') : 0) | (several(6) ? need(flag, 'POD_SEVERAL_IPV6') : 0) | (pod.capture ? need(flag, 'POD_CAPTURE') : 0) | (pod.capture && pod.mode === 'node' ? need(flag, 'POD_CALLS_PODS') : 0) | (pod.redirected ? need(flag, 'POD_REDIRECTED') : 0) | (pod.l7Auto ? need(flag, 'POD_L7_AUTO') : 0) |
      (pod.splices === undefined ? 0 : need(flag, pod.splices ? 'POD_SPLICES' : 'POD_SPLICES_NOT'));
    return this.#pod.encode({
      cgroup_id: pod.cgroupId,
      ipv4: first('ipv4'),
      ipv6: first('ipv6'),
      slot: slot.index,
      generation: slot.generation,
      mode: need(mode, MODES[pod.mode]),
      acceleration: need(acceleration, ACCELERATIONS[pod.acceleration]),
      flags,
      uid: Buffer.from(pod.uid),
      cgroup_path: Buffer.from(pod.cgroupPath),
    });
  }

  /** @param rootId of the cgroup hierarchy */
  decode(netnsCookie: bigint, value: Buffer, addresses: string[], rootId: bigint): { state: KernelPodState; slot: Slot } {
    const pod = this.#pod;
    const { mode, acceleration, flag } = this.#constants;
    const nameOf = <K extends string>(table: Record<K, string>, values: Record<string, number>, wanted: number): K =>
      (Object.keys(table) as K[]).find((key) => values[table[key]] === wanted) ?? (Object.keys(table)[0] as K);
    const first = new Set([pod.bytes(value, 'ipv4'), pod.bytes(value, 'ipv6')].filter((bytes) => bytes.some((b) => b !== 0)).map(decodeAddress));
    const flags = pod.number(value, 'flags');
    const has = (name: string): boolean => (flags & need(flag, name)) !== 0;
    const text = (field: string): string => {
      const bytes = pod.bytes(value, field);
      const end = bytes.indexOf(0);
      return bytes.subarray(0, end < 0 ? bytes.length : end).toString();
    };
    const state: KernelPodState = {
      uid: text('uid'),
      cgroupPath: text('cgroup_path'),
      netnsCookie,
      addresses: [...first, ...addresses.filter((address) => !first.has(address))],
      mode: nameOf(MODES, mode, pod.number(value, 'mode')),
      acceleration: nameOf(ACCELERATIONS, acceleration, pod.number(value, 'acceleration')),
      capture: has('POD_CAPTURE'),
      redirected: has('POD_REDIRECTED'),
      ...(has('POD_L7_AUTO') ? { l7Auto: true } : {}),
      ...(has('POD_SPLICES') || has('POD_SPLICES_NOT') ? { splices: has('POD_SPLICES') } : {}),
      cgroupId: pod.bigint(value, 'cgroup_id'),
      isRooted: pod.bigint(value, 'cgroup_id') === rootId,
    };
    return { state, slot: { index: pod.number(value, 'slot'), generation: pod.number(value, 'generation') } };
  }
}

function need(values: Record<string, number>, name: string): number {
  const value = values[name];
  if (value === undefined) throw new UnderpassError('UNDERPASS_KERNEL_LAYOUT', `reading the BPF object's constants: no ${name}`);
  return value;
}
