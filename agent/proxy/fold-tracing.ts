/**
 * Spans of the shared Envoy, as a sidecar of the pod would have sent them. They leave Envoy by connections of its own, which no pod
 * has asked for: as with mirrored requests, the tracer of a class's listeners gets a cluster that opens them in the namespace of one
 * of the class's pods. What Envoy says in each span of itself, and of its clusters' names, is replaced by what that sidecar would say.
 */
import { pack, unpack } from '../../common/xds/any.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { HttpService } from '../../proto/generated/envoy/config/core/v3/http_service.js';
import { OpenTelemetryConfig } from '../../proto/generated/envoy/config/trace/v3/opentelemetry.js';
import { ZipkinConfig } from '../../proto/generated/envoy/config/trace/v3/zipkin.js';
import { Lua } from '../../proto/generated/envoy/extensions/filters/http/lua/v3/lua.js';
import type { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { CustomTag } from '../../proto/generated/envoy/type/tracing/v3/custom_tag.js';
import { ENVOY_CLUSTER } from './bootstrap.js';
import type { EnvoyExtensions } from './extensions.js';
import { NODE_STATE, PEER_ADDRESS_STATE } from './filter-state.js';
import type { Rename } from './fold-routes.js';
import { lasting, withUpstreamFilters } from './upstream-filters.js';

/** Name of the statistics of the clusters that spans go to: one for all classes. */
export const TRACING_STATS = 'underpass_tracing';
/** Batches of spans that wait for a collector, or are on their way to one, at a time and for each class: what is more is dropped, and counted. */
const MAX_REPORTS = 64;
/** Envoy's OpenTelemetry tracer has no time-out of its own by gRPC: what a collector never answers would hold its place for ever. */
const MAX_REPORT_SECONDS = 5;
/** Metadata of clusters that have another name here than the control plane gave them. */
const NAME_METADATA = 'underpass.cluster';
const LUA = 'envoy.filters.http.lua';

/** Gives the tracer's cluster another name, in place. @returns the name that it had, if there is a tracer that has one */
export function renameTracer({ tracing }: Pick<HttpConnectionManager, 'tracing'>, rename: Rename): { name: string; isZipkin: boolean } | undefined {
  const provider = tracing?.provider;
  if (provider?.config_type?.$case !== 'typed_config') return undefined;
  const zipkin = unpack(ZipkinConfig, provider.config_type.value);
  if (zipkin) {
    let name = zipkin.collector_cluster;
    if (zipkin.collector_service) name = renameService(zipkin.collector_service, rename);
    else {
      zipkin.collector_hostname ||= name;
      zipkin.collector_cluster = rename(name);
    }
    provider.config_type = { $case: 'typed_config', value: pack(ZipkinConfig, zipkin) };
    return { name, isZipkin: true };
  }
  const otel = unpack(OpenTelemetryConfig, provider.config_type.value);
  if (!otel) return undefined;
  const target = otel.grpc_service?.target_specifier;
  let name: string;
  if (otel.http_service) name = renameService(otel.http_service, rename);
  else if (target?.$case === 'envoy_grpc') {
    name = target.value.cluster_name;
    target.value.cluster_name = rename(name);
  } else return undefined;
  provider.config_type = { $case: 'typed_config', value: pack(OpenTelemetryConfig, otel) };
  return { name, isZipkin: false };
}

function renameService({ http_uri: uri }: HttpService, rename: Rename): string {
  const upstream = uri?.http_upstream_type;
  if (upstream?.$case !== 'cluster') return '';
  const name = upstream.value;
  upstream.value = rename(name);
  return name;
}

/** `NAME.NAMESPACE` and address of a pod, as a sidecar's node id has them. */
export function sidecarId(name: string, address: string): string {
  const [namespace = '', pod = ''] = name.split('/');
  return `sidecar~${address}~${pod}.${namespace}~${namespace}.svc.cluster.local`;
}

/**
 * Tags over those of Envoy's own that speak of the shared Envoy; in place.
 * @param nodeId of the pod, or what Envoy writes for it
 * @param isHandedOver connections come from another listener of this Envoy, and not from their caller's address
 */
export function tagSpans({ tracing }: Pick<HttpConnectionManager, 'tracing'>, nodeId: string, isHandedOver = false): void {
  if (!tracing?.provider) return;
  const own = [
    CustomTag.fromPartial({ tag: 'node_id', type: { $case: 'value', value: nodeId } }),
    ...(isHandedOver ? [CustomTag.fromPartial({ tag: 'peer.address', type: { $case: 'value', value: `%FILTER_STATE(${PEER_ADDRESS_STATE}:PLAIN)%` } })] : []),
    CustomTag.fromPartial({ tag: 'upstream_cluster', type: { $case: 'metadata', value: { kind: { kind: { $case: 'cluster', value: {} } }, metadata_key: { key: NAME_METADATA, path: [{ segment: { $case: 'key', value: 'name' } }] } } } }),
    CustomTag.fromPartial({ tag: 'upstream_cluster.name', type: { $case: 'metadata', value: { kind: { kind: { $case: 'cluster', value: {} } }, metadata_key: { key: NAME_METADATA, path: [{ segment: { $case: 'key', value: 'stat_name' } }] } } } }),
  ];
  // Whoever has a tag of such a name in a Telemetry means it.
  tracing.custom_tags.push(...own.filter(({ tag }) => !tracing.custom_tags.some((given) => given.tag === tag)));
}

/** What `%UPSTREAM_CLUSTER_RAW%` would be in a sidecar, where `withGivenName` was asked. */
export const GIVEN_CLUSTER = `%CLUSTER_METADATA(${NAME_METADATA}:name)%`;
/** Of an outbound chain, which serves all pods of its class. */
export const OUTBOUND_NODE = `%FILTER_STATE(${NODE_STATE}:PLAIN)%`;

/** The cluster, if it has another name here, with the one that it was given: in a sidecar's spans it is that. */
export function withGivenName(cluster: Cluster, given: string): Cluster {
  if (cluster.name === given) return cluster;
  const filter_metadata = { ...cluster.metadata?.filter_metadata, [NAME_METADATA]: { name: given, stat_name: cluster.alt_stat_name && cluster.alt_stat_name !== cluster.name ? cluster.alt_stat_name : given } };
  return { ...cluster, metadata: { typed_filter_metadata: {}, ...cluster.metadata, filter_metadata } };
}

/**
 * The cluster that a class's spans go to. Envoy's Zipkin tracer names the sender of all spans by the bootstrap's cluster, of which
 * a process has one: it is replaced as they leave, so that each service is found by its name.
 * @param serviceName by which a sidecar of the class would name itself to Zipkin; undefined: the tracer says it
 */
export function tracerCluster(cluster: Cluster, serviceName: string | undefined, extensions: EnvoyExtensions): Cluster {
  const limits = { max_connections: MAX_REPORTS, max_pending_requests: MAX_REPORTS, max_requests: MAX_REPORTS };
  const bounded = { ...lasting(cluster, MAX_REPORT_SECONDS), alt_stat_name: TRACING_STATS, circuit_breakers: Cluster.fromPartial({ circuit_breakers: { thresholds: [limits] } }).circuit_breakers };
  if (serviceName === undefined || !extensions.hasName(LUA)) return bounded;
  return withUpstreamFilters(bounded, [{ name: 'underpass.service_name', is_optional: false, disabled: false, config_type: { $case: 'typed_config', value: pack(Lua, Lua.fromPartial({ default_source_code: { specifier: { $case: 'inline_string', value: renaming(serviceName) } } })) } }]);
}

/** In JSON quotes of a tag's value are escaped, so that no value looks like this key. */
function renaming(serviceName: string): string {
  const field = (name: string): string => `"serviceName":"${name}"`;
  return `function envoy_on_request(handle)
  local body = handle:body()
  if body == nil then return end
  local named = string.gsub(body:getBytes(0, body:length()), '${field(ENVOY_CLUSTER)}', '${field(serviceName.replace(/[^\w.-]/g, '_'))}')
  local length = body:setBytes(named)
  if handle:headers():get("content-length") ~= nil then handle:headers():replace("content-length", length) end
end
`;
}
