/** EDS: where a cluster's requests can go, grouped by locality, with what the client's transport socket match reads. */
import { HealthStatus } from '../../proto/generated/envoy/config/core/v3/health_check.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { LbEndpoint, type LocalityLbEndpoints } from '../../proto/generated/envoy/config/endpoint/v3/endpoint_components.js';
import type { Endpoint, Model } from '../model/model.js';
import { takesMtls } from '../model/peer-authentication.js';
import type { Scope } from '../model/scope.js';
import { socketAddress } from './envoy.js';
import { parseClusterName } from './names.js';
import { makeResource, type Resource } from './resource.js';
import { workloadName, canonicalName, canonicalRevision } from './workload-names.js';

/** The assignment of a cluster; an unknown name has an empty one, as istiod answers. */
export function clusterEndpoints(scope: Scope, name: string): Resource {
  const assignment = ClusterLoadAssignment.fromPartial({ cluster_name: name });
  const key = parseClusterName(name);
  const service = key && scope.service(key.host);
  const port = service?.ports.find((candidate) => candidate.port === key?.port);
  if (key && service && port) {
    const wanted = key.subset ? subsetLabels(scope, key.host, key.subset) : {};
    const localities = new Map<string, LocalityLbEndpoints>();
    for (const endpoint of scope.model.endpoints(service)) {
      const number = endpoint.ports.get(port.name);
      if (number === undefined || !hasLabels(endpoint, wanted)) continue;
      const { region, zone, subzone } = endpoint.locality;
      const id = `${region}/${zone}/${subzone}`;
      let group = localities.get(id);
      if (!group) {
        const locality = region || zone || subzone ? { region, zone, sub_zone: subzone } : undefined;
        group = ClusterLoadAssignment.fromPartial({ endpoints: [{ ...(locality ? { locality } : {}) }] }).endpoints[0]!;
        localities.set(id, group);
      }
      group.lb_endpoints.push(lbEndpoint(scope.model, endpoint, number));
      group.load_balancing_weight = group.lb_endpoints.length;
    }
    assignment.endpoints = [...localities.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, group]) => group);
  }
  return makeResource(name, ClusterLoadAssignment, assignment);
}

/** A subset that no DestinationRule has (any more) is all endpoints, as istiod answers: its cluster is about to go. */
function subsetLabels(scope: Scope, host: string, subset: string): Record<string, string> {
  return scope.rule(host)?.object.spec.subsets?.find(({ name }) => name === subset)?.labels ?? {};
}

function hasLabels({ labels }: Endpoint, wanted: Readonly<Record<string, string>>): boolean {
  return Object.entries(wanted).every(([key, value]) => labels[key] === value);
}

function lbEndpoint(model: Model, endpoint: Endpoint, port: number): LbEndpoint {
  const { pod } = endpoint;
  const filterMetadata: Record<string, Record<string, unknown>> = {};
  if (takesMtls(model, endpoint, port)) filterMetadata['envoy.transport_socket_match'] = { tlsMode: 'istio' };
  if (pod) {
    // The revision that a workload has by default is left out, as istiod does.
    const revision = (canonicalRevision(pod) ?? 'latest').replace(/^latest$/, '');
    const parts = [workloadName(pod), pod.metadata.namespace, canonicalName(pod), revision, model.mesh.clusterId];
    filterMetadata['istio'] = { workload: parts.join(';') };
  }
  return LbEndpoint.fromPartial({
    host_identifier: { $case: 'endpoint', value: { address: socketAddress(endpoint.address, port) } },
    // A pod that is not ready stays, so that Envoy keeps its statistics and connections.
    health_status: endpoint.ready ? HealthStatus.HEALTHY : HealthStatus.UNHEALTHY,
    load_balancing_weight: 1,
    ...(Object.keys(filterMetadata).length > 0 ? { metadata: { filter_metadata: filterMetadata } } : {}),
  });
}
