/**
 * Tables of routes, virtual host by virtual host: of a mesh's tables most hosts are the same in all, and a change touches a
 * few. Hosts of equal bytes are one object for as long as anybody holds it, so that what is made of one is made once.
 */
import { createHash } from 'node:crypto';
import { BinaryReader } from '@bufbuild/protobuf/wire';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { contentHash, hashBytes, type MessageCodec } from './resource-type.js';

/** Of `virtual_hosts`: field 2, length-delimited. */
const HOSTS_TAG = (2 << 3) | 2;

const known = new Map<string, WeakRef<VirtualHost>>();
const gone = new FinalizationRegistry<string>((key) => {
  if (known.get(key)?.deref() === undefined) known.delete(key);
});
const hashes = new WeakMap<VirtualHost, string>();

export const RouteTable: MessageCodec<RouteConfiguration> = {
  $type: RouteConfiguration.$type,
  encode: (message, writer) => RouteConfiguration.encode(message, writer),

  decode(input) {
    const reader = new BinaryReader(input);
    const rest: Uint8Array[] = [];
    const virtual_hosts: VirtualHost[] = [];
    while (reader.pos < reader.len) {
      const start = reader.pos;
      const tag = reader.uint32();
      if (tag === HOSTS_TAG) {
        virtual_hosts.push(hostOf(reader.bytes()));
        continue;
      }
      reader.skip(tag & 7, tag >>> 3);
      rest.push(input.subarray(start, reader.pos));
    }
    return { ...RouteConfiguration.decode(Buffer.concat(rest)), virtual_hosts };
  },
};

function hostOf(bytes: Uint8Array): VirtualHost {
  const key = createHash('sha256').update(bytes).digest('base64');
  let host = known.get(key)?.deref();
  if (!host) {
    // Not to keep all of the table that it came in.
    host = VirtualHost.decode(Buffer.from(bytes));
    known.set(key, new WeakRef(host));
    gone.register(host, key);
  }
  return host;
}

/** As contentHash tells contents apart. */
export function routeTableHash(routes: RouteConfiguration): string {
  const ofHosts = routes.virtual_hosts.map((host) => {
    let hash = hashes.get(host);
    if (hash === undefined) hashes.set(host, (hash = contentHash(VirtualHost, host)));
    return hash;
  });
  return hashBytes(contentHash(RouteConfiguration, { ...routes, virtual_hosts: [] }), ...ofHosts);
}
