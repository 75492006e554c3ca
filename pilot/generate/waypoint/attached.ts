/** What a waypoint's proxy is there for: the services and workloads that WDS tells clients to reach through its Gateway. */
import type { Model } from '../../model/model.js';
import type { Pod } from '../../../common/kube/types.js';
import { isAlive, podIps } from '../../model/pods.js';
import type { Proxy } from '../../model/proxy.js';
import type { Protocol } from '../../model/protocol.js';
import { isHttp } from '../../model/protocol.js';
import type { MeshService } from '../../model/types.js';
import type { Waypoint } from '../../model/waypoints.js';
import { policyTarget, type PolicyTarget } from '../security/targets.js';

const GATEWAY_NAME_LABEL = 'gateway.networking.k8s.io/gateway-name';

function waypointOf(model: Model, proxy: Proxy): Waypoint | undefined {
  const name = policyTarget(model, proxy).labels[GATEWAY_NAME_LABEL];
  return name === undefined ? undefined : model.waypoints.all.get(`${proxy.namespace}/${name}`);
}

/** Those that have an address to be dialled by, and endpoints that are addresses. */
export function attachedServices(model: Model, proxy: Proxy): readonly MeshService[] {
  const own = waypointOf(model, proxy);
  if (!own) return [];
  const isAttached = (service: MeshService): boolean => service.resolution === 'EDS' && addressesOf(service).length > 0 && model.waypoints.ofService({ namespace: service.namespace, labels: service.object.metadata.labels }) === own;
  return model.waypoints.once(own, 'services', () => model.allServices().filter(isAttached).sort((a, b) => (a.key < b.key ? -1 : 1)));
}

export function addressesOf({ addresses, autoAddresses }: MeshService): readonly string[] {
  return addresses.length > 0 ? addresses : autoAddresses;
}

/** Addresses of pods. */
export function attachedWorkloads(model: Model, proxy: Proxy): readonly string[] {
  const own = waypointOf(model, proxy);
  if (!own) return [];
  const isAttached = ({ metadata }: Pod): boolean => model.waypoints.ofWorkload({ namespace: metadata.namespace ?? 'default', labels: metadata.labels }) === own;
  return model.waypoints.once(own, 'workloads', () => [...new Set([...model.pods.values()].filter((pod) => isAlive(pod) && isAttached(pod)).flatMap(podIps))].sort());
}

/** Whose policies count for a service's requests, or for what is for workloads: those that name it, or the waypoint's Gateway. */
export function waypointTarget(model: Model, proxy: Proxy, service?: MeshService): PolicyTarget {
  const { kind, metadata } = service?.object ?? { kind: '', metadata: { name: '' } };
  return { ...policyTarget(model, proxy), waypoint: service ? { service: { kind, namespace: service.namespace, name: metadata.name } } : {} };
}

export type Spoken = 'http' | 'tcp';

/** One that is sniffed is both. */
export function spokenOn(protocol: Protocol): readonly Spoken[] {
  return protocol === 'auto' ? ['http', 'tcp'] : isHttp(protocol) ? ['http'] : ['tcp'];
}

export interface WaypointCluster {
  port: number;
  spoken: Spoken;
  subset: string;
  host: string;
}

/** Istio's name. */
export function waypointClusterName({ port, spoken, subset, host }: WaypointCluster): string {
  return `inbound-vip|${port}|${spoken}${subset && `/${subset}`}|${host}`;
}

export function parseWaypointCluster(name: string): WaypointCluster | undefined {
  const [, port, spoken, subset = '', host] = /^inbound-vip\|(\d+)\|(http|tcp)(?:\/([^|]*))?\|(.+)$/.exec(name) ?? [];
  return host === undefined ? undefined : { port: Number(port), spoken: spoken as Spoken, subset, host };
}
