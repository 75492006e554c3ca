/**
 * Virtual hosts of routes that are held as bytes: decoded, one of a mesh's thousands takes some 4 KiB. Such a host has all fields of a
 * message, each read of what was decoded lately; what lies in them may be another object each time, and must not be altered.
 */
import { VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { heldBytes } from '../../common/held-bytes.js';
import { recentMessages } from './recent.js';

const BYTES = Symbol('bytes');

type Held = VirtualHost & { readonly [BYTES]: Buffer };

function decoded(host: Held): VirtualHost {
  return recentMessages.get(host, host[BYTES].length, () => VirtualHost.decode(host[BYTES]));
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
  const host = Object.defineProperty({}, BYTES, { value: heldBytes(bytes) }) as Held;
  Object.defineProperties(host, FIELDS);
  decoded(host);
  return host;
}
