/**
 * Virtual hosts of routes that are held as bytes: decoded, one of a mesh's thousands takes some 4 KiB. Such a host has all fields of a
 * message, each read of what was decoded lately; what lies in them may be another object each time, and must not be altered.
 */
import { BinaryReader, BinaryWriter } from '@bufbuild/protobuf/wire';
import { VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { heldBytes } from '../../common/held-bytes.js';
import { recentMessages } from './recent.js';

/** As a field of a table of routes: `virtual_hosts`, field 2, length-delimited. */
const FIELD = Symbol('field');
const HOSTS_TAG = (2 << 3) | 2;

type Held = VirtualHost & { readonly [FIELD]: Buffer };

function decoded(host: Held): VirtualHost {
  return recentMessages.get(host, host[FIELD].length, () => {
    const reader = new BinaryReader(host[FIELD]);
    reader.uint32();
    return VirtualHost.decode(reader, reader.uint32());
  });
}

/** The bytes of a field with this host, where it is held as such. */
export function heldField(host: VirtualHost): Buffer | undefined {
  return (host as Partial<Held>)[FIELD];
}

/** The host's own, since copies of messages have what is their own; the same functions for all of them, which so share a layout. */
const FIELDS: PropertyDescriptorMap = Object.fromEntries((Object.keys(VirtualHost.fromPartial({})) as (keyof VirtualHost)[]).map((name) => [name, {
  enumerable: true,
  get(this: Held): unknown {
    return decoded(this)[name];
  },
}]));

/** @param bytes are copied @throws when they do not decode */
export function heldHost(bytes: Uint8Array): VirtualHost {
  const field = new BinaryWriter().uint32(HOSTS_TAG).bytes(bytes).finish();
  const host = Object.defineProperty({}, FIELD, { value: heldBytes(field) }) as Held;
  Object.defineProperties(host, FIELDS);
  decoded(host);
  return host;
}
