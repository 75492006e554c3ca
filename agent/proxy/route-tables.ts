/** Folded tables of routes as bytes, put together of their virtual hosts' own: decoded, a mesh's routes are ten times as large. */
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { heldBytes } from '../../common/held-bytes.js';
import { encode, typeUrl } from '../../common/xds/any.js';
import { heldField } from '../xds/held-host.js';
import { hashBytes } from '../xds/resource-type.js';
import type { EnvoyExtensions } from './extensions.js';
import { foldedClusters, foldHost, foldTable, renameInHost, renameInTable, type Rename } from './fold-routes.js';
import type { Content } from './variants.js';

export interface FoldedRoutes extends Content {
  name: string;
  /** Under a name that it has in Envoy. */
  as(name: string): Any;
  /** What it was folded from. */
  source: RouteConfiguration;
}

/** Bytes that many tables have in common are there once, and put together when they are sent. */
export class PartedAny implements Any {
  constructor(readonly type_url: string, readonly parts: readonly Uint8Array[]) {}

  get value(): Buffer {
    return Buffer.concat(this.parts);
  }
}

interface Part {
  bytes: Uint8Array;
  hash: string;
}

interface FoldedHost {
  part: Part;
  /** By the names that its clusters have instead. */
  renamed: Map<string, Part> | undefined;
}

/** Of one virtual host; more under other names than this are forgotten, as those of accounts that are gone. */
const MOST_RENAMED = 64;

export class RouteTables {
  readonly #hosts = new WeakMap<VirtualHost, FoldedHost>();

  constructor(readonly extensions: EnvoyExtensions) {}

  /** @throws FoldError when Envoy lacks what a route needs */
  fold(source: RouteConfiguration): FoldedRoutes {
    return assemble(source, foldTable(source, this.extensions), source.virtual_hosts.map((host) => this.#host(host).part));
  }

  /** The same with routes to the renamed clusters. */
  renamed(source: RouteConfiguration, rename: Rename): FoldedRoutes {
    return assemble(source, renameInTable(foldTable(source, this.extensions), rename), source.virtual_hosts.map((host) => this.#renamed(host, rename)));
  }

  #host(source: VirtualHost): FoldedHost {
    let found = this.#hosts.get(source);
    if (!found) this.#hosts.set(source, (found = { part: partOf(foldHost(source, this.extensions), heldField(source)), renamed: undefined }));
    return found;
  }

  #renamed(source: VirtualHost, rename: Rename): Part {
    const host = this.#host(source);
    const names = foldedClusters(source);
    const others = names.map(rename);
    if (others.every((name, index) => name === names[index])) return host.part;
    const key = others.join('\0');
    const renamed = (host.renamed ??= new Map());
    let found = renamed.get(key);
    if (!found) {
      if (renamed.size >= MOST_RENAMED) renamed.clear();
      renamed.set(key, (found = partOf(renameInHost(foldHost(source, this.extensions), rename))));
    }
    return found;
  }
}

/** A field `virtual_hosts` with one host, which can stand behind any other. @param source what is held of it already, which is the same as a rule */
function partOf(host: VirtualHost, source?: Buffer): Part {
  const bytes = encode(RouteConfiguration, RouteConfiguration.fromPartial({ virtual_hosts: [host] }));
  return { bytes: source?.equals(bytes) ? source : heldBytes(bytes), hash: hashBytes(bytes) };
}

function assemble(source: RouteConfiguration, table: RouteConfiguration, parts: readonly Part[]): FoldedRoutes {
  const head = encode(RouteConfiguration, table);
  const hosts = parts.map(({ bytes }) => bytes);
  const as = (name: string): Any => new PartedAny(typeUrl(RouteConfiguration), [name === source.name ? head : encode(RouteConfiguration, { ...table, name }), ...hosts]);
  return { name: source.name, as, hash: hashBytes(head, parts.map(({ hash }) => hash).join('')), source };
}
