/**
 * Requests of incremental xDS. What a stream holds already it says by name and version, some hundred bytes for each of a big mesh's
 * thousands of resources; streams of several classes are opened together, and most hold the same, so that it is encoded once for them.
 */
import { DeltaDiscoveryRequest } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { encode } from '../../common/xds/any.js';

export interface DeltaRequest extends DeltaDiscoveryRequest {
  /** Further fields, encoded. */
  held?: readonly Uint8Array[];
}

/** No longer, since it is as large as a tenth of the resources themselves. */
const KEPT_MS = 1_000;

export function encodeDeltaRequest({ held = [], ...request }: DeltaRequest): Buffer {
  return Buffer.concat([encode(DeltaDiscoveryRequest, request), ...held]);
}

class Held<K extends object> {
  readonly #known = new Map<K, Uint8Array>();
  #timer: NodeJS.Timeout | undefined;

  constructor(readonly make: (key: K) => Uint8Array) {}

  of(key: K): Uint8Array {
    let found = this.#known.get(key);
    if (!found) this.#known.set(key, (found = this.make(key)));
    this.#timer ??= setTimeout(() => {
      this.#known.clear();
      this.#timer = undefined;
    }, KEPT_MS).unref();
    return found;
  }
}

type Resources = ReadonlyMap<string, { readonly name: string; readonly version: string }>;

export function encodedVersions(resources: Resources): Uint8Array {
  const initial_resource_versions: Record<string, string> = {};
  for (const { name, version } of resources.values()) initial_resource_versions[name] = version;
  return encode(DeltaDiscoveryRequest, DeltaDiscoveryRequest.fromPartial({ initial_resource_versions }));
}

const versions = new Held(encodedVersions);
const names = new Held((wanted: ReadonlySet<string>) => encode(DeltaDiscoveryRequest, DeltaDiscoveryRequest.fromPartial({ resource_names_subscribe: [...wanted] })));

/** The same, once for all who ask within a second. @param resources are not altered any more */
export function heldVersions(resources: Resources): Uint8Array {
  return versions.of(resources);
}

/** Names that are subscribed to, likewise. @param wanted is not altered any more */
export function wantedNames(wanted: ReadonlySet<string>): Uint8Array {
  return names.of(wanted);
}
