/**
 * Names under which a pod is reached by HBONE from where its address is not known: through an east-west gateway, or from a
 * waypoint of another cluster. Only those of services that WDS counts the pod among.
 */
import type { Address, Service } from '../../proto/generated/istio/workload/workload.js';
import type { XdsResource } from '../xds/resource-type.js';

export interface ServiceAuthority {
  /** `host:port` of the service. */
  authority: string;
  /** The pod's own. */
  port: number;
}

/** @param uid the pod's name in WDS */
export function serviceAuthorities(addresses: ReadonlyMap<string, XdsResource<Address>>, uid: string): ServiceAuthority[] {
  const type = addresses.get(uid)?.message.type;
  if (type?.$case !== 'workload') return [];
  const found = new Map<string, number>();
  for (const [name, { ports }] of Object.entries(type.value.services).sort(([a], [b]) => (a < b ? -1 : 1))) {
    const service = addresses.get(name)?.message.type;
    if (service?.$case !== 'service') continue;
    for (const { service_port, target_port } of ports) {
      const port = target_port || portOf(service.value, service_port);
      const authority = `${service.value.hostname}:${service_port}`;
      // One host in two namespaces: the first, so that it stays the same.
      if (port !== 0 && !found.has(authority)) found.set(authority, port);
    }
  }
  return [...found].map(([authority, port]) => ({ authority, port }));
}

function portOf({ ports }: Service, wanted: number): number {
  return ports.find(({ service_port }) => service_port === wanted)?.target_port ?? 0;
}
