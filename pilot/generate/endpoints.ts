/** EDS: where a cluster's requests can go, grouped by locality, with what the client's transport socket match reads. */
import { isIP } from 'node:net';
import { HealthStatus } from '../../proto/generated/envoy/config/core/v3/health_check.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { LbEndpoint, LocalityLbEndpoints } from '../../proto/generated/envoy/config/endpoint/v3/endpoint_components.js';
import { HBONE_PORT } from '../../common/istio-iptables.js';
import type { DestinationRule } from '../../common/kube/types.js';
import type { Endpoint, MeshPort, MeshService, Model } from '../model/model.js';
import { takesMtls } from '../model/peer-authentication.js';
import { isTunnelled, takesHbone } from '../model/pods.js';
import type { Scope } from '../model/scope.js';
import { portPolicy } from '../model/traffic-policy.js';
import { endpointAddress } from './envoy.js';
import { tunnelledAddress } from './hbone-originate.js';
import { balanceLocalities, dependsOnClient, localitySetting, whereaboutsKey, type LocalityGroup, type Whereabouts } from './locality.js';
import { networkKey, reach, type Reached } from './networks.js';
import { parseClusterName, type ClusterKey } from './names.js';
import { makeResource, type Resource } from './resource.js';
import { canonicalName, canonicalRevision, workloadName } from './workload-names.js';

/** The assignment of a cluster; an unknown name has an empty one, as istiod answers. */
export function clusterEndpoints(scope: Scope, name: string, client: Whereabouts): Resource {
  const assignment = ClusterLoadAssignment.fromPartial({ cluster_name: name });
  const key = parseClusterName(name);
  const service = key && scope.service(key.host);
  const port = service?.ports.find((candidate) => candidate.port === key?.port);
  // What passes in tunnels is none of a gateway's rules' business.
  const rule = key && key.passes !== 'hbone' ? scope.rule(key.host)?.object : undefined;
  if (key && service && port) assignment.endpoints = endpointGroups(scope.model, service, port, rule, key.subset, client, key.passes);
  return makeResource(name, ClusterLoadAssignment, assignment);
}

const families = new WeakMap<readonly Endpoint[], boolean>();

/**
 * Whether a client that has one family gets other endpoints than one that has both: a pod of both families has an endpoint for
 * each, and drawing the one that the client can't reach ends its connection. What has only the other family stays as it is.
 */
export function hasBothFamilies(model: Model, service: MeshService): boolean {
  // Behind a gateway it is the gateway's address that counts.
  if (model.clusters.several || model.clusters.severalNetworks) return false;
  const endpoints = model.endpoints(service);
  let both = families.get(endpoints);
  if (both === undefined) families.set(endpoints, (both = [4, 6].every((family) => endpoints.some(({ address }) => isIP(address) === family))));
  return both;
}

/** What of the client the endpoints of a cluster depend on; the empty string: of nothing, they are the same for all. */
export function clientKey(scope: Scope, service: MeshService, key: ClusterKey, client: () => Whereabouts): string {
  const { loadBalancer, outlierDetection } = portPolicy(scope.rule(key.host)?.object, key.subset, key.port);
  const setting = localitySetting(scope.model.mesh, loadBalancer, service);
  const place = dependsOnClient(setting, outlierDetection !== undefined) ? whereaboutsKey(client(), setting) : '';
  const network = networkKey(scope.model, service, client, key.passes !== undefined);
  return network ? `${place} via ${network}` : place;
}

/**
 * The endpoints of one port, or of a subset of it, by locality.
 * @param tunnels which of them are reached by HBONE
 */
export function endpointGroups(model: Model, service: MeshService, port: MeshPort, rule: DestinationRule | undefined, subset: string, client: Whereabouts, passes?: ClusterKey['passes'], tunnels = isTunnelled): LocalityLbEndpoints[] {
  const policy = portPolicy(rule, subset, port.port);
  const wanted = subset ? subsetLabels(rule, subset) : {};
  const mode = policy.tls?.mode;
  const mutual = !policy.tls || mode === 'ISTIO_MUTUAL';
  const family = client.family !== undefined && !passes && hasBothFamilies(model, service) ? client.family : undefined;
  const usable: { endpoint: Endpoint; port: number; mutual: boolean }[] = [];
  for (const endpoint of model.endpoints(service)) {
    const number = endpoint.ports.get(port.name);
    if (number === undefined || !hasLabels(endpoint, wanted)) continue;
    // A name can't be looked up by who gets endpoints by EDS.
    if (service.resolution === 'EDS' && !endpoint.pod && isIP(endpoint.address) === 0 && !endpoint.address.startsWith('unix://')) continue;
    if (family !== undefined && isIP(endpoint.address) !== 0 && isIP(endpoint.address) !== family) continue;
    const isHbone = passes === 'hbone';
    usable.push({ endpoint, port: isHbone ? HBONE_PORT : number, mutual: isHbone ? takesHbone(endpoint) : mutual && takesMtls(model, endpoint, number) });
  }
  const places: readonly Reached[] = passes || model.clusters.several || model.clusters.severalNetworks ? reach(model, service, usable, client, passes !== undefined) : usable.map(({ endpoint, port: number }) => ({ endpoint, port: number, weight: endpoint.weight }));
  const localities = new Map<string, LocalityGroup>();
  for (const place of places) {
    const { endpoint } = place;
    const { region, zone, subzone } = endpoint.locality;
    const id = `${region}/${zone}/${subzone}`;
    let found = localities.get(id);
    if (!found) {
      const group = LocalityLbEndpoints.fromPartial({ locality: { region, zone, sub_zone: subzone }, load_balancing_weight: 0 });
      localities.set(id, (found = { locality: endpoint.locality, group, endpoints: [] }));
    }
    found.endpoints.push(endpoint.weight === place.weight ? endpoint : { ...endpoint, weight: place.weight });
    found.group.lb_endpoints.push(lbEndpoint(model, place, mutual, passes === undefined ? tunnels : () => false));
    found.group.load_balancing_weight! += place.weight;
  }
  const groups = [...localities.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, group]) => group);
  const setting = localitySetting(model.mesh, policy.loadBalancer, service);
  const balanced = dependsOnClient(setting, policy.outlierDetection !== undefined) ? balanceLocalities(groups, client, setting) : groups;
  return balanced.map(({ group }) => group);
}

/** A subset that no DestinationRule has (any more) is all endpoints, as istiod answers: its cluster is about to go. */
function subsetLabels(rule: DestinationRule | undefined, subset: string): Record<string, string> {
  return rule?.spec.subsets?.find(({ name }) => name === subset)?.labels ?? {};
}

function hasLabels({ labels }: Endpoint, wanted: Readonly<Record<string, string>>): boolean {
  return Object.entries(wanted).every(([key, value]) => labels[key] === value);
}

/** @param tunnels which endpoints HBONE reaches: none where the client's own tunnel or mutual TLS passes through */
function lbEndpoint(model: Model, { endpoint, port, weight, gateway }: Reached, mutual: boolean, tunnels: typeof isTunnelled): LbEndpoint {
  const { pod, workloadName: entry, labels, ready } = endpoint;
  const filterMetadata: Record<string, Record<string, unknown>> = {};
  const isBehindTunnel = !gateway && tunnels(endpoint);
  if (gateway || (mutual && !isBehindTunnel && takesMtls(model, endpoint, port))) filterMetadata['envoy.transport_socket_match'] = { tlsMode: 'istio' };
  const name = pod ? workloadName(pod) : entry;
  if (name !== undefined) {
    // The revision that a workload has by default is left out, as istiod does.
    const revision = (canonicalRevision(labels) ?? 'latest').replace(/^latest$/, '');
    filterMetadata['istio'] = { workload: [name, endpoint.namespace, canonicalName(labels, name), revision, endpoint.cluster].join(';') };
  }
  const tunnel = isBehindTunnel ? tunnelledAddress(endpoint.address, port) : undefined;
  Object.assign(filterMetadata, tunnel?.metadata);
  return LbEndpoint.fromPartial({
    host_identifier: { $case: 'endpoint', value: { address: tunnel?.address ?? endpointAddress(endpoint.address, port) } },
    // A pod that is not ready stays, so that Envoy keeps its statistics and connections.
    health_status: ready === undefined ? HealthStatus.UNKNOWN : ready ? HealthStatus.HEALTHY : HealthStatus.UNHEALTHY,
    load_balancing_weight: weight,
    ...(Object.keys(filterMetadata).length > 0 ? { metadata: { filter_metadata: filterMetadata } } : {}),
  });
}
