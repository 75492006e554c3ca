/** What the shared Envoy is to have: per resource type, names with content-hash versions. */
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { typeUrl } from '../../common/xds/any.js';

export const CDS = typeUrl(Cluster);
export const EDS = typeUrl(ClusterLoadAssignment);
export const LDS = typeUrl(Listener);
export const RDS = typeUrl(RouteConfiguration);
export const SDS = typeUrl(Secret);

export const SHORT_NAMES: Readonly<Record<string, string>> = { [CDS]: 'CDS', [EDS]: 'EDS', [LDS]: 'LDS', [RDS]: 'RDS', [SDS]: 'SDS' };

export interface Entry {
  name: string;
  /** Hash of the content, so that an Envoy that has it, from whichever agent, is not sent it again. */
  version: string;
  any: Any;
  /** For a cluster of type EDS and a listener: the EDS or RDS resources that it needs before it is of use. */
  needs: readonly string[];
  /** Of a cluster: the internal listener without which it must not take the place of the one that Envoy has. */
  leadsTo?: string;
}

export type Entries = ReadonlyMap<string, Entry>;

/** The same object as before where nothing has changed, so that nobody has to look for what has. */
export function sameOrNew(before: Entries, now: Entries): Entries {
  if (before.size !== now.size) return now;
  for (const [name, entry] of now) if (before.get(name) !== entry) return now;
  return before;
}

export class Snapshot {
  readonly #types: ReadonlyMap<string, Entries>;

  /** @param keeps whether Envoy keeps what it has under a name that is not in here */
  constructor(types: Iterable<readonly [string, Entries]> = [], readonly keeps: (type: string, name: string) => boolean = never) {
    this.#types = new Map(types);
  }

  with(type: string, entries: Entries): Snapshot {
    return new Snapshot([...this.#types, [type, entries]], this.keeps);
  }

  keeping(keeps: (type: string, name: string) => boolean): Snapshot {
    return new Snapshot(this.#types, keeps);
  }

  entries(type: string): Entries {
    return this.#types.get(type) ?? NONE;
  }

  get(type: string, name: string): Entry | undefined {
    return this.#types.get(type)?.get(name);
  }
}

const NONE: Entries = new Map();
function never(): boolean {
  return false;
}
