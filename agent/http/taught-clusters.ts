/**
 * Copies of clusters for the requests of pods that the kernel learns from. Their upstream connections belong to one client
 * connection each and are marked; a filter right before the codec, run again for each try, writes the lesson when the endpoint
 * that was chosen is one to teach of, and lets nothing else of the fast path's headers out.
 */
import { Cluster_DiscoveryType, Cluster_LbPolicy, LoadBalancingPolicy, type Cluster, type Cluster_CommonLbConfig } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { HeaderMutation as Mutation } from '../../proto/generated/envoy/config/common/mutation_rules/v3/mutation_rules.js';
import { HeaderValueOption_HeaderAppendAction as AppendAction } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { HeaderMutation } from '../../proto/generated/envoy/extensions/filters/http/header_mutation/v3/header_mutation.js';
import { HttpFilter } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { LocalityLbConfig } from '../../proto/generated/envoy/extensions/load_balancing_policies/common/v3/common.js';
import { LeastRequest } from '../../proto/generated/envoy/extensions/load_balancing_policies/least_request/v3/least_request.js';
import { OverrideHost } from '../../proto/generated/envoy/extensions/load_balancing_policies/override_host/v3/override_host.js';
import { Random } from '../../proto/generated/envoy/extensions/load_balancing_policies/random/v3/random.js';
import { RoundRobin } from '../../proto/generated/envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack, unpack } from '../../common/xds/any.js';
import { markedWith, opensForCallers } from '../proxy/fold-clusters.js';
import { mapEndpoints } from '../proxy/fold-endpoints.js';
import { endpointKey } from '../proxy/pool-renewal.js';
import { HTTP_PROTOCOL_OPTIONS, withUpstreamFilters } from '../proxy/upstream-filters.js';
import { CLASS_HEADER, CLIENT_STATE, LESSON_HEADER, sampledName, TAUGHT_MARK, TEACH_METADATA, type DrawHeaders } from './names.js';

const NEVER = { seconds: 0n, nanos: 0 };

export function taughtName(name: string): string {
  return `${name}~taught`;
}

/** The copy for requests of taught pods of which nothing is to be learnt, but that obey the draw. */
export function drawnName(name: string): string {
  return `${name}~drawn`;
}

/** Metadata of endpoints that are taught of: `direct`, or `inbound` where the pod's own chain writes the lesson. */
export type TeachableAs = 'direct' | 'inbound';

export interface Teachable {
  /** Keys of endpoints, see pool-renewal.ts. */
  eventDriven: ReadonlySet<string>;
  /** Addresses of pods behind their internal inbound listeners. */
  throughPolicy: ReadonlyMap<string, string>;
  /** Addresses of the node's pods. */
  local: ReadonlySet<string>;
}

export function teachableAs(address: string, port: number, { eventDriven, throughPolicy, local }: Teachable): TeachableAs | undefined {
  if (!local.has(address) || !eventDriven.has(endpointKey(address, port))) return undefined;
  return throughPolicy.has(address) ? 'inbound' : 'direct';
}

/** The cluster and assignment with the endpoints marked that are taught of. */
export function markTeachable(cluster: Cluster, assignment: ClusterLoadAssignment | undefined, view: Teachable): { cluster: Cluster; assignment: ClusterLoadAssignment | undefined } {
  const change = (from: ClusterLoadAssignment): ClusterLoadAssignment => mapEndpoints(from, (item, { address, port }) => {
    const teach = teachableAs(address, port, view);
    return teach === undefined ? item : { ...item, metadata: { typed_filter_metadata: {}, ...item.metadata, filter_metadata: { ...item.metadata?.filter_metadata, [TEACH_METADATA]: { teach } } } };
  });
  return { cluster: cluster.load_assignment ? { ...cluster, load_assignment: change(cluster.load_assignment) } : cluster, assignment: assignment && change(assignment) };
}

/** Whether a copy of a folded cluster of the outbound side can be taught of: plain HTTP/1.1, and nothing in it ends connections early. */
export function canBeTaught(cluster: Cluster): boolean {
  const { cluster_discovery_type: discovery, lb_subset_config, transport_socket } = cluster;
  const isListed = discovery?.$case !== 'type' || discovery.value !== Cluster_DiscoveryType.ORIGINAL_DST;
  return opensForCallers(cluster) && isListed && !transport_socket && !lb_subset_config && speaksHttp1(cluster);
}

/** A request over HTTP/2 gets no lesson even where the protocol is the client's choice. */
export function speaksHttp1(cluster: Cluster): boolean {
  if (cluster.max_requests_per_connection !== undefined || cluster.http_protocol_options || cluster.http2_protocol_options || cluster.common_http_protocol_options || cluster.upstream_http_protocol_options) return false;
  const any = cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS];
  if (!any) return true;
  const options = unpack(HttpProtocolOptions, any);
  if (!options || options.http_filters.length > 0) return false;
  const { max_connection_duration, max_requests_per_connection } = options.common_http_protocol_options ?? {};
  if (max_connection_duration || max_requests_per_connection) return false;
  const protocol = options.upstream_protocol_options;
  return protocol?.$case === 'use_downstream_protocol_config' || (protocol?.$case === 'explicit_http_config' && protocol.value.protocol_config?.$case === 'http_protocol_options');
}

export interface TaughtCopies {
  taught: Cluster;
  drawn: Cluster | undefined;
}

/** @param cluster for which `canBeTaught` says so; its name stays, see `taughtName` and `drawnName` */
export function taughtCopies(cluster: Cluster, headers: DrawHeaders): TaughtCopies {
  const { other } = headers;
  const none = [LESSON_HEADER, CLASS_HEADER, headers.weight, sampledName(headers), headers.endpoint, ...(other === undefined ? [] : [other])].map(remove);
  // Envoy closes its connections to whom it ejects, also those on which the kernel has an exchange under way.
  const taught = forOneClient({ ...cluster, outlier_detection: undefined }, [
    // Of a try before this one another endpoint may have had the lesson.
    ...none,
    write(LESSON_HEADER, AppendAction.OVERWRITE_IF_EXISTS_OR_ADD, `${where('direct', CLASS_OF_ROUTE)}${where('direct', "'-'")}${where('direct', `filter_state['${CLIENT_STATE}']`)}`),
    write(CLASS_HEADER, AppendAction.OVERWRITE_IF_EXISTS_OR_ADD, where('inbound', CLASS_OF_ROUTE)),
  ]);
  return { taught: obeying(taught, headers.endpoint), drawn: other === undefined ? undefined : obeying(mutating(cluster, none), other) };
}

function obeying(cluster: Cluster, header: string): Cluster {
  const fallback = balancing(cluster);
  if (!fallback) return cluster;
  const policy = OverrideHost.fromPartial({ override_host_sources: [{ header }] });
  policy.fallback_policy = fallback;
  return {
    ...cluster,
    load_balancing_policy: policies('envoy.load_balancing_policies.override_host', pack(OverrideHost, policy)),
    // Envoy refuses these beside a policy.
    common_lb_config: cluster.common_lb_config && { ...cluster.common_lb_config, locality_config_specifier: undefined },
  };
}

/**
 * A pod's own cluster, with connections of one client's connection each by what taught-inbound.ts says, for requests that come with a class from a client of this node, see taught-inbound.ts. A second try
 * finds the lesson of the first in its place.
 */
export function taughtInboundCluster(cluster: Cluster): Cluster {
  return lasting(cluster, [write(LESSON_HEADER, AppendAction.ADD_IF_ABSENT, `%REQ(${CLASS_HEADER})%-%FILTER_STATE(${CLIENT_STATE}:PLAIN)%`), remove(CLASS_HEADER)]);
}

const CLASS_OF_ROUTE = `xds.route_metadata.filter_metadata['${TEACH_METADATA}']['class']`;

/** A formatter that gives the value of an expression towards endpoints of a kind, and else nothing. Envoy's CEL has no concatenation. */
function where(kind: TeachableAs, value: string): string {
  return `%CEL(xds.upstream_host_metadata.filter_metadata['${TEACH_METADATA}']['teach'] == '${kind}' && request.protocol == 'HTTP/1.1' ? ${value} : '')%`;
}

function remove(name: string): Mutation {
  return Mutation.fromPartial({ action: { $case: 'remove', value: name } });
}

function write(key: string, append_action: AppendAction, value: string): Mutation {
  return Mutation.fromPartial({ action: { $case: 'append', value: { header: { key, value }, append_action } } });
}

function forOneClient(cluster: Cluster, request_mutations: Mutation[]): Cluster {
  return { ...lasting(cluster, request_mutations), connection_pool_per_downstream_connection: true };
}

/** Envoy does not see what the kernel moves over the connection, so to it a busy one is idle. */
function lasting(cluster: Cluster, request_mutations: Mutation[]): Cluster {
  return markedWith(mutating(cluster, request_mutations, { idle_timeout: NEVER }), TAUGHT_MARK);
}

function mutating(cluster: Cluster, request_mutations: Mutation[], common: { idle_timeout?: typeof NEVER } = {}): Cluster {
  const mutation = HeaderMutation.fromPartial({ mutations: { request_mutations } } as never);
  return withUpstreamFilters(cluster, [HttpFilter.fromPartial({ name: 'underpass.lesson', config_type: { $case: 'typed_config', value: pack(HeaderMutation, mutation) } })], common);
}

/** How a cluster chooses among its endpoints, as a policy; undefined: by a hash, which no draw is to override. */
function balancing({ load_balancing_policy: given, lb_policy, lb_config, common_lb_config }: Cluster): LoadBalancingPolicy | undefined {
  if (given) return given;
  const locality_lb_config = localities(common_lb_config);
  switch (lb_policy) {
    case Cluster_LbPolicy.ROUND_ROBIN: {
      const { slow_start_config } = lb_config?.$case === 'round_robin_lb_config' ? lb_config.value : {};
      return policies('envoy.load_balancing_policies.round_robin', pack(RoundRobin, RoundRobin.fromPartial({ slow_start_config, locality_lb_config } as never)));
    }
    case Cluster_LbPolicy.LEAST_REQUEST: {
      const { choice_count, active_request_bias, slow_start_config } = lb_config?.$case === 'least_request_lb_config' ? lb_config.value : {};
      return policies('envoy.load_balancing_policies.least_request', pack(LeastRequest, LeastRequest.fromPartial({ choice_count, active_request_bias, slow_start_config, locality_lb_config } as never)));
    }
    case Cluster_LbPolicy.RANDOM:
      return policies('envoy.load_balancing_policies.random', pack(Random, Random.fromPartial({ locality_lb_config } as never)));
    default:
      return undefined;
  }
}

function localities(common: Cluster_CommonLbConfig | undefined): LocalityLbConfig | undefined {
  const specifier = common?.locality_config_specifier;
  return specifier && LocalityLbConfig.fromPartial({ locality_config_specifier: specifier } as never);
}

function policies(name: string, typed_config: Any): LoadBalancingPolicy {
  return LoadBalancingPolicy.fromPartial({ policies: [{ typed_extension_config: { name, typed_config } }] });
}
