/** Of each configuration object: what of it is in Envoy and in the kernel of this node, in which version, and by whose word. */

export interface ObjectResource {
  /** `CDS`, `EDS`, `LDS`, `RDS` of Envoy, or `policy` in the kernel. */
  type: string;
  name: string;
  /** Of the resource: a hash of its content. */
  version: string;
  /** Envoy has acknowledged this version; of the kernel: this version was written. */
  acked: boolean;
  /** It was read back in this version, by the last comparison. */
  readBack: boolean;
  nack?: string;
}

/** The worst of its resources. `ACKED`: acknowledged, and not all read back yet; `STALE`: as before the control plane was lost. */
export type ObjectState = 'IN FORCE' | 'ACKED' | 'PENDING' | 'STALE' | 'DRIFT' | 'NACK';

export interface ObjectStatus {
  /** `Kind/name.namespace` */
  object: string;
  state: ObjectState;
  resources: ObjectResource[];
  /** Of the control plane's stream, where the state is `STALE`. */
  since?: string;
}

/** A resource with the objects that it comes from. */
export interface SourcedResource extends ObjectResource {
  objects: readonly string[];
}

/**
 * @param only one object
 * @param drifting objects of which something is not as it should be
 * @param stale since when the control plane is away
 */
export function objectStatuses(resources: Iterable<SourcedResource>, { only, drifting, stale }: { only?: string; drifting: ReadonlySet<string>; stale?: { since?: string } }): ObjectStatus[] {
  const byObject = new Map<string, ObjectResource[]>();
  for (const { objects, ...resource } of resources) {
    for (const object of objects) {
      if (only !== undefined && object.toLowerCase() !== only.toLowerCase()) continue;
      const own = byObject.get(object);
      if (own) own.push(resource);
      else byObject.set(object, [resource]);
    }
  }
  return [...byObject].sort(([a], [b]) => (a < b ? -1 : 1)).map(([object, own]) => {
    const state = stateOf(own, drifting.has(object), stale !== undefined);
    return { object, state, resources: own, ...(state === 'STALE' && stale?.since !== undefined ? { since: stale.since } : {}) };
  });
}

function stateOf(resources: readonly ObjectResource[], isDrifting: boolean, isStale: boolean): ObjectState {
  if (resources.some(({ nack }) => nack !== undefined)) return 'NACK';
  if (isDrifting) return 'DRIFT';
  if (!resources.every(({ acked }) => acked)) return 'PENDING';
  if (isStale) return 'STALE';
  return resources.every(({ readBack }) => readBack) ? 'IN FORCE' : 'ACKED';
}
