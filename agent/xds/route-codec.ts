/**
 * Tables of routes, virtual host by virtual host: of a mesh's tables most hosts are the same in all, and a change touches a
 * few. Hosts of equal bytes are one object for as long as anybody holds it, so that what is made of one is made once; and of a
 * table only that is read where it differs from one of the same name that is known.
 */
import { createHash } from 'node:crypto';
import { BinaryReader } from '@bufbuild/protobuf/wire';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { heldHost } from './held-host.js';
import { contentHash, hashBytes, type MessageCodec } from './resource-type.js';

/** Of `name` and `virtual_hosts`: fields 1 and 2, length-delimited. */
const NAME_TAG = (1 << 3) | 2;
const HOSTS_TAG = (2 << 3) | 2;

const known = new Map<string, WeakRef<VirtualHost>>();
const gone = new FinalizationRegistry<string>((key) => {
  if (known.get(key)?.deref() === undefined) known.delete(key);
});
const hashes = new WeakMap<VirtualHost, string>();

/** A table's fields in the order of its bytes. */
interface Layout {
  bytes: Uint8Array;
  /** Of each field, the end. */
  ends: number[];
  /** Of each field; undefined where it is no virtual host. */
  hosts: (VirtualHost | undefined)[];
}

const layouts = new WeakMap<RouteConfiguration, Layout>();
/** By name. */
const tables = new Map<string, Set<WeakRef<RouteConfiguration>>>();
const goneTables = new FinalizationRegistry<string>((name) => {
  const refs = tables.get(name);
  for (const ref of refs ?? []) if (ref.deref() === undefined) refs!.delete(ref);
  if (refs?.size === 0) tables.delete(name);
});

export const RouteTable: MessageCodec<RouteConfiguration> = {
  $type: RouteConfiguration.$type,
  encode: (message, writer) => RouteConfiguration.encode(message, writer),

  decode(input) {
    const layout = read(input, nearest(input));
    const virtual_hosts: VirtualHost[] = [];
    const rest: Uint8Array[] = [];
    layout.hosts.forEach((host, index) => {
      if (host) virtual_hosts.push(host);
      else rest.push(input.subarray(layout.ends[index - 1] ?? 0, layout.ends[index]));
    });
    const table = { ...RouteConfiguration.decode(Buffer.concat(rest)), virtual_hosts };
    layouts.set(table, layout);
    const refs = tables.get(table.name) ?? new Set();
    tables.set(table.name, refs.add(new WeakRef(table)));
    goneTables.register(table, table.name);
    return table;
  },
};

/** @param like what is equal at its beginning and end is taken from there */
function read(bytes: Uint8Array, like: { layout: Layout; prefix: number } | undefined): Layout {
  const [ends, hosts]: [number[], (VirtualHost | undefined)[]] = [[], []];
  const reader = new BinaryReader(bytes);
  const shift = like ? bytes.length - like.layout.bytes.length : 0;
  let tail = Infinity;
  /** The field of the other table at whose end `reader` would be. */
  let at = 0;
  if (like) {
    const { layout, prefix } = like;
    while (at < layout.ends.length && layout.ends[at]! <= prefix) at++;
    ends.push(...layout.ends.slice(0, at));
    hosts.push(...layout.hosts.slice(0, at));
    reader.pos = ends.at(-1) ?? 0;
    tail = bytes.length - commonSuffix(layout.bytes, bytes, Math.min(layout.bytes.length, bytes.length) - reader.pos);
  }
  while (reader.pos < reader.len) {
    if (like && reader.pos >= tail) {
      const { layout } = like;
      while (at < layout.ends.length && layout.ends[at]! < reader.pos - shift) at++;
      if (layout.ends[at] === reader.pos - shift) {
        for (let index = at + 1; index < layout.ends.length; index++) {
          ends.push(layout.ends[index]! + shift);
          hosts.push(layout.hosts[index]);
        }
        break;
      }
    }
    const tag = reader.uint32();
    if (tag === HOSTS_TAG) hosts.push(hostOf(reader.bytes()));
    else {
      reader.skip(tag & 7, tag >>> 3);
      hosts.push(undefined);
    }
    ends.push(reader.pos);
  }
  return { bytes, ends, hosts };
}

/** The known table of this name that begins in the same way for the longest. */
function nearest(bytes: Uint8Array): { layout: Layout; prefix: number } | undefined {
  const reader = new BinaryReader(bytes);
  if (bytes.length === 0 || reader.uint32() !== NAME_TAG) return undefined;
  let best: { layout: Layout; prefix: number } | undefined;
  for (const ref of tables.get(reader.string()) ?? []) {
    const table = ref.deref();
    const layout = table && layouts.get(table);
    if (!layout) continue;
    const prefix = commonPrefix(layout.bytes, bytes);
    if (!best || prefix > best.prefix) best = { layout, prefix };
  }
  return best;
}

const STRETCH = 1 << 14;

function commonPrefix(a: Uint8Array, b: Uint8Array): number {
  const most = Math.min(a.length, b.length);
  let same = 0;
  while (same < most && Buffer.compare(a.subarray(same, Math.min(same + STRETCH, most)), b.subarray(same, Math.min(same + STRETCH, most))) === 0) same += STRETCH;
  while (same < most && a[same] === b[same]) same++;
  return Math.min(same, most);
}

/** @param most so many bytes at most */
function commonSuffix(a: Uint8Array, b: Uint8Array, most: number): number {
  const [endA, endB] = [a.length, b.length];
  let same = 0;
  while (same < most) {
    const next = Math.min(same + STRETCH, most);
    if (Buffer.compare(a.subarray(endA - next, endA - same), b.subarray(endB - next, endB - same)) !== 0) break;
    same = next;
  }
  while (same < most && a[endA - same - 1] === b[endB - same - 1]) same++;
  return same;
}

function hostOf(bytes: Uint8Array): VirtualHost {
  const key = createHash('sha256').update(bytes).digest('base64');
  let host = known.get(key)?.deref();
  if (!host) {
    host = heldHost(bytes);
    known.set(key, new WeakRef(host));
    gone.register(host, key);
  }
  return host;
}

/** By the later table, which must not keep all of before. */
const differences = new WeakMap<RouteConfiguration, { before: WeakRef<RouteConfiguration>; gone: readonly VirtualHost[]; added: readonly VirtualHost[] }>();

/** The virtual hosts that only one of two tables has: of a large one that has changed they are few. */
export function changedHosts(before: RouteConfiguration, now: RouteConfiguration): { gone: readonly VirtualHost[]; added: readonly VirtualHost[] } {
  let found = differences.get(now);
  if (found?.before.deref() !== before) {
    const [old, own] = [new Set(before.virtual_hosts), new Set(now.virtual_hosts)];
    found = { before: new WeakRef(before), gone: before.virtual_hosts.filter((host) => !own.has(host)), added: now.virtual_hosts.filter((host) => !old.has(host)) };
    differences.set(now, found);
  }
  return found!;
}

/** As contentHash tells contents apart. */
export function routeTableHash(routes: RouteConfiguration): string {
  const ofHosts = routes.virtual_hosts.map((host) => {
    let hash = hashes.get(host);
    if (hash === undefined) hashes.set(host, (hash = contentHash(VirtualHost, host)));
    return hash;
  });
  return hashBytes(contentHash(RouteConfiguration, { ...routes, virtual_hosts: [] }), ofHosts.join(''));
}
