/** WDS for what is no pod: WorkloadEntries, and the endpoints that ServiceEntries name inline or resolve. */
import { isIP } from 'node:net';
import { Address, Workload, WorkloadStatus, WorkloadType } from '../../proto/generated/istio/workload/workload.js';
import type { ServiceEntry } from '../../common/kube/types.js';
import type { Endpoint, MeshPort, MeshService, Model } from '../model/model.js';
import { workloadLabels } from '../model/service-entries.js';
import { policiesOfWorkload } from './authorizations.js';
import { addressBytes } from './address-bytes.js';
import { makeResource, type Resource } from './resource.js';
import { gatewayAddress } from './waypoint-address.js';
import { canonicalName, canonicalRevision } from './workload-names.js';

const GROUP = 'networking.istio.io';

export function entryNames(model: Model): string[] {
  return [...[...model.serviceEntries.workloads()].filter(({ spec }) => spec.address).map(({ metadata }) => model.entryUid(metadata.namespace ?? 'default', metadata.name)), ...model.serviceEntries.all().flatMap((entry) => inlineNames(model, entry))];
}

function inlineNames(model: Model, entry: ServiceEntry): string[] {
  const { namespace = 'default', name } = entry.metadata;
  return model.serviceEntries.workloadNames(entry).map((address) => `${model.mesh.clusterId}/${GROUP}/ServiceEntry/${namespace}/${name}/${address}`);
}

/** The workload of that name, `cluster/networking.istio.io/WorkloadEntry/ns/name` or `…/ServiceEntry/ns/name/address`. */
export function entryWorkload(model: Model, name: string): Resource | undefined {
  const prefix = `${model.mesh.clusterId}/${GROUP}/`;
  if (!name.startsWith(prefix)) return undefined;
  const [kind, namespace = '', object = '', ...rest] = name.slice(prefix.length).split('/');
  if (kind === 'WorkloadEntry') {
    const entry = model.serviceEntries.workload(namespace, object);
    if (!entry?.spec.address) return undefined;
    const labels = workloadLabels(entry.spec, entry.metadata.labels);
    const services = model.servicesSelecting(namespace, labels);
    const described = model.serviceEntries.endpointOf({ ...entry.spec, labels }, namespace, object, []);
    const placed = services.map((service) => ({ service, endpoint: model.serviceEntries.endpointOf({ ...entry.spec, labels }, namespace, object, [...service.ports, ...service.udpPorts]) }));
    return workloadResource(model, name, described, placed, entry.spec.weight);
  }
  const address = rest.join('/');
  const placed = [...new Set(model.serviceEntries.named(namespace, object)?.spec.hosts)]
    .flatMap((host) => model.serviceIn(namespace, host) ?? [])
    .flatMap((service) => model.endpoints(service).filter((endpoint) => endpoint.address === address && endpoint.workloadName === object).map((endpoint) => ({ service, endpoint })));
  const first = placed[0]?.endpoint;
  const implicit = !model.serviceEntries.named(namespace, object)?.spec.endpoints?.length;
  return first && workloadResource(model, name, first, placed, first.weight > 1 ? first.weight : undefined, implicit);
}

function workloadResource(model: Model, uid: string, endpoint: Endpoint, placed: readonly { service: MeshService; endpoint: Endpoint }[], weight: number | undefined, implicit = false): Resource | undefined {
  const { address, namespace = '', workloadName: name = '', labels } = endpoint;
  // A Unix socket is reached by one machine alone.
  if (address.startsWith('unix://')) return undefined;
  const { region, zone, subzone } = endpoint.locality;
  const ports = (service: MeshService, numbers: ReadonlyMap<string, number>): { service_port: number; target_port: number }[] =>
    [...service.ports, ...service.udpPorts].flatMap((port: MeshPort) => {
      const target_port = numbers.get(port.name);
      return target_port === undefined ? [] : [{ service_port: port.port, target_port }];
    });
  const message = Workload.fromPartial({
    uid,
    name,
    namespace,
    addresses: isIP(address) === 0 ? [] : [addressBytes(address)],
    hostname: isIP(address) === 0 ? address : '',
    network: endpoint.network,
    trust_domain: model.mesh.trustDomain === 'cluster.local' ? '' : model.mesh.trustDomain,
    service_account: endpoint.serviceAccount ?? '',
    canonical_name: canonicalName(labels, name),
    canonical_revision: canonicalRevision(labels) ?? 'latest',
    workload_type: WorkloadType.POD,
    workload_name: name,
    services: Object.fromEntries(placed.map(({ service, endpoint: { ports: numbers } }) => [`${service.namespace}/${service.host}`, { ports: ports(service, numbers) }])),
    authorization_policies: policiesOfWorkload(model, namespace, labels),
    status: WorkloadStatus.HEALTHY,
    cluster_id: endpoint.cluster,
    // A host that stands for itself has no labels that could name one.
    waypoint: implicit ? undefined : gatewayAddress(model, model.waypoints.ofWorkload({ namespace, labels })),
    ...(region || zone || subzone ? { locality: { region, zone, subzone } } : {}),
    ...(weight ? { capacity: weight } : {}),
  });
  return makeResource(uid, Address, Address.fromPartial({ type: { $case: 'workload', value: message } }));
}
