/**
 * Whether a program is one that moves TCP with splice(2), by its executable alone: DESIGN section 5, rule 11. Known by
 * name, or written in Go, whose io.Copy between two TCP connections splices. When in doubt: yes.
 */
/** Programs that splice, at least when told to. */
export const SPLICING_NAMES: ReadonlySet<string> = new Set(['haproxy', 'systemd-socket-proxyd', '3proxy', 'realm']);

const GO_SECTIONS = ['.note.go.buildid', '.go.buildinfo'];
/** Of the table of sections' names and of the table of sections; Go's own are far below 64 KiB. */
const MAX_TABLE_BYTES = 1 << 20;
const SH_NAME_BYTES = 4;

/** At most `length` bytes from `position`. */
export type ReadAt = (position: number, length: number) => Promise<Buffer>;

export interface Judgement {
  splices: boolean;
  reason: string;
}

/** @param path where the executable was started from; only its last part counts */
export async function judgeExecutable(read: ReadAt, path: string): Promise<Judgement> {
  const name = path.replace(/ \(deleted\)$/, '').replace(/^.*\//, '');
  if (SPLICING_NAMES.has(name)) return { splices: true, reason: `${name} is known to splice` };
  const sections = await sectionNames(read);
  if (sections === undefined) return { splices: true, reason: 'its sections can\'t be read, so it may be written in Go' };
  const go = GO_SECTIONS.find((section) => sections.has(section));
  if (go) return { splices: true, reason: `it is written in Go (section ${go}), which splices when it copies TCP to TCP` };
  return { splices: false, reason: 'neither known to splice nor written in Go' };
}

/** Names of an ELF file's sections; undefined when it is none, has none, or says what can't be. ELF-64 and ELF-32, see elf(5). */
async function sectionNames(read: ReadAt): Promise<Set<string> | undefined> {
  const header = await bytes(read, 0n, 64);
  if (header?.readUInt32BE(0) !== 0x7f454c46) return undefined;
  const wide = header[4] === 2;
  if (header[5] !== 1) return undefined; // big-endian: not built for
  const word = (buffer: Buffer, at: number): bigint => (wide ? buffer.readBigUInt64LE(at) : BigInt(buffer.readUInt32LE(at)));
  const tableAt = word(header, wide ? 0x28 : 0x20);
  const [entryBytes, count, namesIndex] = [0, 2, 4].map((at) => header.readUInt16LE((wide ? 0x3a : 0x2e) + at)) as [number, number, number];
  if (entryBytes < (wide ? 64 : 40) || namesIndex >= count) return undefined;
  const table = await bytes(read, tableAt, entryBytes * count);
  if (!table) return undefined;
  const namesAt = namesIndex * entryBytes;
  const names = await bytes(read, word(table, namesAt + (wide ? 0x18 : 0x10)), Number(word(table, namesAt + (wide ? 0x20 : 0x14))));
  if (!names) return undefined;
  const found = new Set<string>();
  for (let index = 0; index < count; index++) {
    const start = table.subarray(index * entryBytes, index * entryBytes + SH_NAME_BYTES).readUInt32LE(0);
    const end = names.indexOf(0, start);
    if (start >= names.length || end < 0) return undefined;
    found.add(names.toString('latin1', start, end));
  }
  return found;
}

async function bytes(read: ReadAt, position: bigint, length: number): Promise<Buffer | undefined> {
  if (!(length > 0 && length <= MAX_TABLE_BYTES) || position > BigInt(Number.MAX_SAFE_INTEGER)) return undefined;
  const found = await read(Number(position), length);
  return found.length === length ? found : undefined;
}
