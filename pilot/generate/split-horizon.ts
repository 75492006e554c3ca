/**
 * WDS as clients of one network see others that have a gateway for HBONE, as Istio's ambient mode has it: the workloads of
 * such a network are not there one by one. Each global service has one workload in their place, without an address, whose
 * `network_gateway` is where to go, and whose capacity is how many stand behind; the identities of these stand with the
 * service. The gateway is a workload too, so that its own identity is known.
 */
import { isIP } from 'node:net';
import { Address, GatewayAddress, Service, TunnelProtocol, Workload, WorkloadType } from '../../proto/generated/istio/workload/workload.js';
import type { KubeGateway } from '../../common/kube/types.js';
import { Memo } from '../../common/memo.js';
import type { NetworkGateway } from '../model/clusters.js';
import { serviceHost } from '../model/hosts.js';
import type { Endpoint, MeshService, Model } from '../model/model.js';
import { takesHbone } from '../model/pods.js';
import { isGlobal } from '../model/service-scope.js';
import { addressBytes } from './address-bytes.js';
import { spiffeId } from './envoy.js';
import { makeResource, type Resource } from './resource.js';
import { wdsTrustDomain } from './workloads.js';

const decoded = new Memo<Resource, Address>();

/** Gateways of all networks but the client's. */
function gatewaysSeen(model: Model, network: string): NetworkGateway[] {
  return model.clusters.hboneGateways().filter((gateway) => gateway.network !== network);
}

const sourceName = ({ source }: NetworkGateway): string => (source ? `${source.metadata.namespace ?? 'default'}/${source.metadata.name}` : 'meshNetworks/');
const serviceName = ({ namespace, host }: MeshService): string => `${namespace}/${host}`;
const splitName = (gateway: NetworkGateway, service: string): string => `${gateway.network}/SplitHorizonWorkload/${sourceName(gateway)}/${gateway.address}/${service}`;
const gatewayName = ({ network, address, hbonePort }: NetworkGateway): string => `NetworkGateway/${network}/${address}/${hbonePort}`;

/** Names that only such clients have, whether or not there is something behind them. */
export function splitNames(model: Model, network: string, services: Iterable<string>): string[] {
  const gateways = gatewaysSeen(model, network);
  return [...gateways.map(gatewayName), ...[...services].flatMap((service) => gateways.map((gateway) => splitName(gateway, service)))];
}

/** What everybody gets under a name as this client sees it: nothing for a workload that is behind a gateway. */
export function asSeen(model: Model, network: string, plain: Resource): Resource | undefined {
  const { type } = decoded.once(plain, () => Address.decode(plain.body.value));
  if (type?.$case === 'workload') return gatewaysSeen(model, network).some((gateway) => gateway.network === type.value.network) ? undefined : plain;
  if (type?.$case !== 'service') return plain;
  const service = model.serviceIn(type.value.namespace, type.value.hostname);
  if (!service || !isGlobal(model, service)) return plain;
  const away = gatewaysSeen(model, network).flatMap((gateway) => endpointsIn(model, service, gateway.network));
  if (away.length === 0) return plain;
  const { trustDomain } = model.mesh;
  const subject_alt_names = [...new Set(away.map(({ namespace = '', serviceAccount = 'default' }) => spiffeId(trustDomain, namespace, serviceAccount)))].sort();
  return makeResource(plain.name, Address, Address.fromPartial({ type: { $case: 'service', value: { ...Service.fromPartial(type.value), subject_alt_names } } }));
}

/** @returns undefined when nothing has that name */
export function splitAddress(model: Model, network: string, name: string): Resource | undefined {
  for (const gateway of gatewaysSeen(model, network)) {
    if (name === gatewayName(gateway) || name === `${gateway.network}/${gateway.address}`) return gatewayWorkload(model, gateway);
    const prefix = splitName(gateway, '');
    if (!name.startsWith(prefix)) continue;
    const [namespace = '', host = ''] = name.slice(prefix.length).split('/');
    const service = model.serviceIn(namespace, host);
    return service && isGlobal(model, service) ? splitWorkload(model, gateway, service) : undefined;
  }
  return undefined;
}

/** Those that the gateway would choose from. */
function endpointsIn(model: Model, service: MeshService, network: string): Endpoint[] {
  return model.endpoints(service).filter((endpoint) => endpoint.network === network && endpoint.ready !== false && takesHbone(endpoint));
}

function splitWorkload(model: Model, gateway: NetworkGateway, service: MeshService): Resource | undefined {
  // A pod of both families has an endpoint for each.
  const weights = new Map(endpointsIn(model, service, gateway.network).map(({ pod, address, weight, cluster }) => [pod ? `${cluster}/${pod.metadata.name}` : address, weight]));
  if (weights.size === 0) return undefined;
  const name = splitName(gateway, serviceName(service));
  const destination: GatewayAddress['destination'] =
    isIP(gateway.address) === 0
      ? { $case: 'hostname', value: { namespace: gateway.source?.metadata.namespace ?? 'default', hostname: gateway.address } }
      : { $case: 'address', value: { network: gateway.network, address: addressBytes(gateway.address) } };
  const message = Workload.fromPartial({
    uid: name,
    name,
    namespace: service.namespace,
    network: gateway.network,
    trust_domain: wdsTrustDomain(model),
    capacity: [...weights.values()].reduce((sum, weight) => sum + weight, 0),
    workload_type: WorkloadType.POD,
    tunnel_protocol: TunnelProtocol.HBONE,
    network_gateway: { destination, hbone_mtls_port: gateway.hbonePort! },
    cluster_id: gateway.cluster ?? '',
    services: { [serviceName(service)]: { ports: service.ports.map(({ port, targetPort }) => ({ service_port: port, target_port: typeof targetPort === 'number' ? targetPort : 0 })) } },
  });
  return makeResource(name, Address, Address.fromPartial({ type: { $case: 'workload', value: message } }));
}

function gatewayWorkload(model: Model, gateway: NetworkGateway): Resource {
  const name = gatewayName(gateway);
  const isAddress = isIP(gateway.address) !== 0;
  const message = Workload.fromPartial({
    uid: name,
    name,
    namespace: gateway.source?.metadata.namespace ?? '',
    service_account: accountOf(model, gateway),
    network: gateway.network,
    trust_domain: wdsTrustDomain(model),
    addresses: isAddress ? [addressBytes(gateway.address)] : [],
    hostname: isAddress ? '' : gateway.address,
  });
  return makeResource(name, Address, Address.fromPartial({ type: { $case: 'workload', value: message } }));
}

/** What its pods run under; of one that runs elsewhere Istio's default. */
function accountOf(model: Model, { source, cluster }: NetworkGateway): string {
  if (!source) return '';
  const { namespace = 'default', name, annotations } = source.metadata;
  if (source.kind === 'Gateway') return annotations?.['gateway.istio.io/service-account'] ?? `${name}-${(source as KubeGateway).spec.gatewayClassName}`;
  const service = model.serviceIn(namespace, serviceHost(name, namespace, model.mesh.clusterDomain));
  return (service && model.endpoints(service).find((endpoint) => endpoint.cluster === cluster)?.serviceAccount) ?? 'default';
}
