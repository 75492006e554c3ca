/** WDS: `istio.workload.Address`, one for each workload and each service of the whole mesh, named as istiod names them. */
import { isIP } from 'node:net';
import { Address, AppProtocol, IPFamilies, LoadBalancing, LoadBalancing_HealthPolicy, LoadBalancing_Mode, LoadBalancing_Scope, Service, TunnelProtocol, Workload, WorkloadStatus, WorkloadType, NetworkMode } from '../../proto/generated/istio/workload/workload.js';
import type { Service as KubeService, Pod } from '../../common/kube/types.js';
import { clientAffinity } from '../../common/xds/session-affinity.js';
import { isAlive, podIps, targetPortOf, type MeshPort, type MeshService, type Model } from '../model/model.js';
import { clusterOf, inCluster } from '../model/clusters.js';
import { hasOwnTunnel, NETWORK_LABEL, takesHbone } from '../model/pods.js';
import type { Protocol } from '../model/protocol.js';
import { addressBytes } from './address-bytes.js';
import { gatewayAddress } from './waypoint-address.js';
import { policiesOfWorkload } from './authorizations.js';
import { entryNames, entryWorkload } from './entry-workloads.js';
import { makeResource, type Resource } from './resource.js';
import { canonicalName, canonicalRevision, workloadName } from './workload-names.js';

const APP_PROTOCOLS: Partial<Record<Protocol, number>> = {
  HTTP: AppProtocol.HTTP11,
  HTTP2: AppProtocol.HTTP2,
  GRPC: AppProtocol.GRPC,
  // Two values that istiod sends and the published message does not name yet.
  TCP: 4,
  TLS: 5,
};

/** The default trust domain is left out, as istiod does. */
export function wdsTrustDomain({ mesh }: Model): string {
  return mesh.trustDomain === 'cluster.local' ? '' : mesh.trustDomain;
}

/** All names that a wildcard subscription has. */
export function addressNames(model: Model): string[] {
  const workloads = [...model.pods.values()].filter(isWorkload).map((pod) => model.workloadUid(pod));
  return [...workloads, ...entryNames(model), ...serviceNames(model)];
}

export function serviceNames(model: Model): Set<string> {
  return new Set(model.allServices().map(({ namespace, host }) => `${namespace}/${host}`));
}

/** A pod is a workload once it has an address, and until it has come to its end. */
function isWorkload(pod: Pod): boolean {
  return isAlive(pod) && podIps(pod).length > 0;
}

/**
 * The address of that name: a workload's uid (`Kubernetes//Pod/ns/name`), a service's `ns/host`, or one of their
 * addresses as on-demand clients ask for them (`network/ip`). Undefined when there is none.
 */
export function workloadAddress(model: Model, name: string): Resource | undefined {
  const place = name.indexOf('//Pod/');
  if (place > 0) {
    const cluster = model.clusters.named(name.slice(0, place));
    if (model.clusters.idOf(cluster) !== name.slice(0, place)) return undefined;
    const pod = model.pods.get(inCluster(cluster, name.slice(place + '//Pod/'.length)));
    return pod && isWorkload(pod) ? workloadResource(model, pod) : undefined;
  }
  const entry = entryWorkload(model, name);
  if (entry) return entry;
  const slash = name.indexOf('/');
  const [left, right] = [name.slice(0, slash), name.slice(slash + 1)];
  if (isIP(right)) {
    const pod = model.podByIp(right);
    if (pod) return workloadResource(model, pod);
    const known = [...model.serviceEntries.workloads()].find(({ spec }) => spec.address === right);
    if (known) return entryWorkload(model, model.entryUid(known.metadata.namespace ?? 'default', known.metadata.name));
    const owner = model.allServices().find(({ addresses, autoAddresses }) => addresses.includes(right) || autoAddresses.includes(right));
    return owner && serviceResource(model, owner);
  }
  const service = model.serviceIn(left, right);
  return service && serviceResource(model, service);
}

function workloadResource(model: Model, pod: Pod): Resource {
  const uid = model.workloadUid(pod);
  const services: Record<string, { ports: { service_port: number; target_port: number }[] }> = {};
  for (const service of model.servicesSelecting(pod.metadata.namespace ?? 'default', pod.metadata.labels ?? {})) {
    const ports = [...service.ports, ...service.udpPorts].sort(asWritten(service)).flatMap((port) => {
      const target_port = targetPortOf(port, pod);
      return target_port === undefined ? [] : [{ service_port: port.port, target_port }];
    });
    services[`${service.namespace}/${service.host}`] = { ports };
  }
  const { region, zone, subzone } = model.localityOf(pod.spec.nodeName, undefined, clusterOf(pod));
  const ready = pod.status?.conditions?.find(({ type }) => type === 'Ready')?.status === 'True';
  const labels = pod.metadata.labels ?? {};
  const message = Workload.fromPartial({
    uid,
    name: pod.metadata.name,
    namespace: pod.metadata.namespace ?? 'default',
    addresses: podIps(pod).map(addressBytes),
    native_tunnel: hasOwnTunnel(labels),
    tunnel_protocol: takesHbone({ labels, pod }) ? TunnelProtocol.HBONE : TunnelProtocol.NONE,
    trust_domain: wdsTrustDomain(model),
    service_account: pod.spec.serviceAccountName || 'default',
    node: pod.spec.nodeName ?? '',
    canonical_name: canonicalName(pod.metadata.labels ?? {}, workloadName(pod)),
    canonical_revision: canonicalRevision(pod.metadata.labels ?? {}) ?? 'latest',
    workload_type: pod.metadata.ownerReferences?.length ? WorkloadType.DEPLOYMENT : WorkloadType.POD,
    workload_name: workloadName(pod),
    services,
    authorization_policies: policiesOfWorkload(model, pod.metadata.namespace ?? 'default', pod.metadata.labels ?? {}),
    status: ready ? WorkloadStatus.HEALTHY : WorkloadStatus.UNHEALTHY,
    cluster_id: model.clusters.idOf(clusterOf(pod)),
    network: pod.metadata.labels?.[NETWORK_LABEL] ?? model.clusters.networkOf(clusterOf(pod), podIps(pod)[0]),
    ...(region || zone || subzone ? { locality: { region, zone, subzone } } : {}),
    network_mode: pod.spec.hostNetwork ? NetworkMode.HOST_NETWORK : NetworkMode.STANDARD,
    waypoint: gatewayAddress(model, model.waypoints.ofWorkload({ namespace: pod.metadata.namespace ?? 'default', labels })),
  });
  return makeResource(uid, Address, Address.fromPartial({ type: { $case: 'workload', value: message } }));
}

/** UDP ports are known to WDS, in the Service's own order. */
function asWritten({ object }: MeshService): (a: MeshPort, b: MeshPort) => number {
  const place = ({ name, port }: MeshPort): number => ((object as KubeService).spec.ports ?? []).findIndex((candidate) => (candidate.name ?? '') === name && candidate.port === port);
  return (a, b) => place(a) - place(b);
}

const { NETWORK, REGION, ZONE, SUBZONE, NODE } = LoadBalancing_Scope;
const NEAREST: Record<string, LoadBalancing_Scope[]> = {
  PreferClose: [NETWORK, REGION, ZONE],
  PreferSameZone: [NETWORK, REGION, ZONE],
  PreferSameNode: [NETWORK, REGION, ZONE, SUBZONE, NODE],
};

/** Undefined: any healthy endpoint. */
function loadBalancing({ object, resolution, trafficDistribution }: MeshService): LoadBalancing | undefined {
  const isEntry = object.kind === 'ServiceEntry';
  if (isEntry && resolution === 'ORIGINAL_DST') return LoadBalancing.fromPartial({ mode: LoadBalancing_Mode.PASSTHROUGH, health_policy: LoadBalancing_HealthPolicy.ALLOW_ALL });
  const nearest = NEAREST[trafficDistribution];
  const everyone = !isEntry && (object as KubeService).spec.publishNotReadyAddresses;
  if (!nearest && !everyone) return undefined;
  return LoadBalancing.fromPartial({
    ...(nearest ? { mode: LoadBalancing_Mode.FAILOVER, routing_preference: nearest } : {}),
    ...(everyone ? { health_policy: LoadBalancing_HealthPolicy.ALLOW_ALL } : {}),
  });
}

/** A Service in several clusters has all its addresses, each on its cluster's network. */
function networked(model: Model, { clusterAddresses, object }: MeshService, addresses: readonly string[]): { network: string; address: Buffer }[] {
  const byCluster = clusterAddresses ? Object.entries(clusterAddresses) : [[clusterOf(object), addresses] as const];
  return byCluster.flatMap(([cluster, list]) => list.map((address) => ({ network: model.clusters.networkOf(cluster), address: addressBytes(address) })));
}

/** Kubernetes'. */
const DEFAULT_AFFINITY_SECONDS = 10_800;

function serviceResource(model: Model, service: MeshService): Resource {
  const isEntry = service.object.kind === 'ServiceEntry';
  const { spec } = service.object as KubeService;
  const addresses = service.addresses.length > 0 ? service.addresses : service.autoAddresses;
  const families = spec.ipFamilies ?? (service.addresses.length > 0 ? service.addresses.map((ip) => `IPv${isIP(ip)}`) : ['IPv4']);
  const message = Service.fromPartial({
    // A ServiceEntry's own name; its services are named by their hosts everywhere else.
    name: isEntry ? service.object.metadata.name : service.name,
    namespace: service.namespace,
    hostname: service.host,
    addresses: networked(model, service, addresses),
    ports: [...service.ports, ...service.udpPorts].sort(asWritten(service)).map(({ port, targetPort, protocol }) => ({
      service_port: port,
      // A port that is named is resolved in each workload.
      target_port: typeof targetPort === 'number' ? targetPort : 0,
      app_protocol: (APP_PROTOCOLS[protocol] ?? AppProtocol.UNKNOWN) as AppProtocol,
    })),
    ip_families: isEntry ? IPFamilies.AUTOMATIC : families.length > 1 ? IPFamilies.DUAL : families[0] === 'IPv6' ? IPFamilies.IPV6_ONLY : IPFamilies.IPV4_ONLY,
    canonical: true,
    load_balancing: loadBalancing(service),
    extensions: !isEntry && spec.sessionAffinity === 'ClientIP' ? [clientAffinity(spec.sessionAffinityConfig?.clientIP?.timeoutSeconds ?? DEFAULT_AFFINITY_SECONDS)] : [],
    waypoint: gatewayAddress(model, model.waypoints.ofService({ namespace: service.namespace, labels: service.object.metadata.labels })),
  });
  return makeResource(`${service.namespace}/${service.host}`, Address, Address.fromPartial({ type: { $case: 'service', value: message } }));
}
