/** Reads and writes the structs of bpf/structs.h by the offsets in the object's BTF, so that there is one definition. */
import { isIPv4, isIPv6 } from 'node:net';
import { UnderpassError } from '../../common/errors.js';
import type { BpfMap, BpfObject, StructLayout } from '../../native/index.js';

export type FieldValue = number | bigint | Buffer;

export class StructCodec {
  readonly sizeBytes: number;
  readonly #layout: StructLayout;

  constructor(object: BpfObject, readonly name: string) {
    this.#layout = object.layout(name);
    this.sizeBytes = this.#layout.sizeBytes;
  }

  encode(values: Record<string, FieldValue>): Buffer {
    const out = Buffer.alloc(this.sizeBytes);
    for (const [field, value] of Object.entries(values)) {
      const { offset, sizeBytes } = this.#field(field);
      if (Buffer.isBuffer(value)) {
        if (value.length > sizeBytes) throw new RangeError(`struct ${this.name}: ${field}: ${value.length} bytes do not fit ${sizeBytes}`);
        value.copy(out, offset);
      } else if (sizeBytes === 8) out.writeBigUInt64LE(BigInt(value), offset);
      else out.writeUIntLE(Number(value), offset, sizeBytes);
    }
    return out;
  }

  /** Bytes of one field. */
  size(field: string): number {
    return this.#field(field).sizeBytes;
  }

  bytes(record: Buffer, field: string): Buffer {
    const { offset, sizeBytes } = this.#field(field);
    return record.subarray(offset, offset + sizeBytes);
  }

  number(record: Buffer, field: string): number {
    const { offset, sizeBytes } = this.#field(field);
    return record.readUIntLE(offset, sizeBytes);
  }

  bigint(record: Buffer, field: string): bigint {
    const { offset } = this.#field(field);
    return record.readBigUInt64LE(offset);
  }

  /** The fields of 8 bytes, in order: the struct's counters. */
  counterFields(): string[] {
    return Object.entries(this.#layout.fields).filter(([, field]) => field.sizeBytes === 8).map(([name]) => name);
  }

  /** @throws UnderpassError `UNDERPASS_KERNEL_LAYOUT` when the map's keys or values are not this struct */
  check(map: BpfMap, part: 'key' | 'value'): this {
    const actual = part === 'key' ? map.keySize : map.valueSize;
    if (actual !== this.sizeBytes) {
      throw new UnderpassError('UNDERPASS_KERNEL_LAYOUT', `opening map ${map.name}: its ${part} has ${actual} bytes, struct ${this.name} ${this.sizeBytes}`);
    }
    return this;
  }

  #field(name: string): { offset: number; sizeBytes: number } {
    const field = this.#layout.fields[name];
    if (!field) throw new UnderpassError('UNDERPASS_KERNEL_LAYOUT', `struct ${this.name}: no field ${name}`);
    return field;
  }
}

/** A value of a per-CPU map, one buffer a CPU. */
export function perCpu(value: Buffer, sizeBytes: number): Buffer[] {
  const stride = Math.ceil(sizeBytes / 8) * 8;
  return Array.from({ length: value.length / stride }, (_, cpu) => value.subarray(cpu * stride, cpu * stride + sizeBytes));
}

const MAPPED_PREFIX = Buffer.from('00000000000000000000ffff', 'hex');

/** 16 bytes in network order, IPv4 in mapped form. */
export function encodeAddress(text: string): Buffer {
  if (isIPv4(text)) return Buffer.concat([MAPPED_PREFIX, Buffer.from(text.split('.').map(Number))]);
  if (!isIPv6(text) || text.includes('%')) {
    throw new UnderpassError('UNDERPASS_BAD_ADDRESS', `reading ${JSON.stringify(text)} as an IP address: expected IPv4 or IPv6 without a zone`);
  }
  let expanded = text;
  const dotted = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(expanded);
  if (dotted) {
    const [a, b, c, d] = (dotted[2] as string).split('.').map(Number) as [number, number, number, number];
    expanded = `${dotted[1]}${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`;
  }
  const [head = '', tail] = expanded.split('::') as [string, string | undefined];
  const left = head === '' ? [] : head.split(':');
  const right = tail === undefined || tail === '' ? [] : tail.split(':');
  const groups = [...left, ...Array<string>(8 - left.length - right.length).fill('0'), ...right];
  const out = Buffer.alloc(16);
  groups.forEach((group, index) => out.writeUInt16BE(parseInt(group, 16), index * 2));
  return out;
}

/** The usual text form; mapped IPv4 as IPv4. */
export function decodeAddress(bytes: Buffer): string {
  if (bytes.subarray(0, 12).equals(MAPPED_PREFIX)) return [...bytes.subarray(12, 16)].join('.');
  const groups = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(index * 2));
  // RFC 5952: the longest run of at least two zero groups is shortened, the first of equal ones.
  let best = { start: -1, length: 1 };
  for (let start = 0; start < 8; start++) {
    let length = 0;
    while (start + length < 8 && groups[start + length] === 0) length++;
    if (length > best.length) best = { start, length };
  }
  const text = groups.map((group) => group.toString(16));
  if (best.start < 0) return text.join(':');
  return `${text.slice(0, best.start).join(':')}::${text.slice(best.start + best.length).join(':')}`;
}

export function u16(value: number): Buffer {
  const out = Buffer.alloc(2);
  out.writeUInt16LE(value);
  return out;
}

export function u32(value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32LE(value);
  return out;
}

export function u64(value: bigint): Buffer {
  const out = Buffer.alloc(8);
  out.writeBigUInt64LE(value);
  return out;
}

/** FNV-1a, 32 bits. */
export function fnv1a(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of Buffer.from(text)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash;
}
