/** Sets of ports and of addresses, as the kernel compares them. */

/** Both included. */
export type PortRange = readonly [first: number, last: number];

/** A block of addresses. 16 bytes, IPv4 in mapped form; bits outside of the mask are zero. */
export interface Block {
  readonly address: Buffer;
  readonly mask: Buffer;
  readonly ipv4: boolean;
}

export const ALL_PORTS: readonly PortRange[] = [[0, 65_535]];

const MAPPED_PREFIX = Buffer.from('00000000000000000000ffff', 'hex');

/** @param address 4 or 16 bytes */
export function blockOf(address: Buffer, length: number): Block {
  const ipv4 = address.length === 4;
  const whole = ipv4 ? Buffer.concat([MAPPED_PREFIX, address]) : Buffer.from(address);
  const bits = ipv4 ? length + 96 : length;
  const mask = Buffer.alloc(16);
  for (let byte = 0; byte < 16; byte++) mask[byte] = (0xff00 >> Math.min(8, Math.max(0, bits - byte * 8))) & 0xff;
  return { address: masked(whole, mask), mask, ipv4 };
}

function masked(address: Buffer, mask: Buffer): Buffer {
  return Buffer.from(address.map((byte, i) => byte & (mask[i] as number)));
}

export function isMapped(address: Buffer): boolean {
  return address.subarray(0, 12).equals(MAPPED_PREFIX);
}

/** @param address 16 bytes, IPv4 in mapped form */
export function hasAddress(blocks: readonly Block[], address: Buffer): boolean {
  const ipv4 = isMapped(address);
  return blocks.some((block) => block.ipv4 === ipv4 && masked(address, block.mask).equals(block.address));
}

/** Two blocks either have nothing in common, or one is within the other. */
export function commonBlocks(left: readonly Block[], right: readonly Block[]): Block[] {
  return left.flatMap((a) => right.flatMap((b) => {
    if (a.ipv4 !== b.ipv4) return [];
    const [wide, narrow] = Buffer.compare(a.mask, b.mask) <= 0 ? [a, b] : [b, a];
    return masked(narrow.address, wide.mask).equals(wide.address) ? [narrow] : [];
  }));
}

export function portsOf(positive: readonly number[], negative: readonly number[]): readonly PortRange[] {
  const wanted = positive.length === 0 ? ALL_PORTS : [...new Set(positive)].map((port): PortRange => [port, port]);
  const left = [...new Set(negative)].sort((a, b) => a - b).reduce<readonly PortRange[]>((ranges, port) => ranges.flatMap((range) => without(range, port)), wanted);
  return [...left].sort(([a], [b]) => a - b);
}

function without([first, last]: PortRange, port: number): PortRange[] {
  if (port < first || port > last) return [[first, last]];
  const halves: PortRange[] = [[first, port - 1], [port + 1, last]];
  return halves.filter(([from, to]) => from <= to);
}

export function commonPorts(left: readonly PortRange[], right: readonly PortRange[]): PortRange[] {
  return left.flatMap(([a, b]) => right.flatMap(([c, d]): PortRange[] => {
    const [first, last] = [Math.max(a, c), Math.min(b, d)];
    return first <= last ? [[first, last]] : [];
  }));
}

export function isAllPorts(ranges: readonly PortRange[]): boolean {
  return ranges.length === 1 && ranges[0]![0] === 0 && ranges[0]![1] === 65_535;
}
