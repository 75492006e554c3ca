/** Filters that stand right before a cluster's codec, run for each try. */
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { UpstreamCodec } from '../../proto/generated/envoy/extensions/filters/http/upstream_codec/v3/upstream_codec.js';
import { HttpFilter } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import { pack, unpack } from '../../common/xds/any.js';

export const HTTP_PROTOCOL_OPTIONS = 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions';

function optionsOf(cluster: Cluster): HttpProtocolOptions {
  const given = unpack(HttpProtocolOptions, cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS]);
  return given ?? HttpProtocolOptions.fromPartial({ upstream_protocol_options: { $case: 'explicit_http_config', value: { protocol_config: { $case: 'http_protocol_options', value: {} } } } });
}

function withOptions(cluster: Cluster, options: HttpProtocolOptions): Cluster {
  return { ...cluster, typed_extension_protocol_options: { ...cluster.typed_extension_protocol_options, [HTTP_PROTOCOL_OPTIONS]: pack(HttpProtocolOptions, options) } };
}

/** The cluster with requests that are given up after so long. */
export function lasting(cluster: Cluster, seconds: number): Cluster {
  const options = optionsOf(cluster);
  return withOptions(cluster, HttpProtocolOptions.fromPartial({ ...options, common_http_protocol_options: { ...options.common_http_protocol_options, max_stream_duration: { seconds: BigInt(seconds), nanos: 0 } } } as never));
}

/** The cluster with these filters instead of its own. @param common more of its settings for all versions of HTTP */
export function withUpstreamFilters(cluster: Cluster, filters: readonly HttpFilter[], common: Partial<NonNullable<HttpProtocolOptions['common_http_protocol_options']>> = {}): Cluster {
  const options = optionsOf(cluster);
  const changed = HttpProtocolOptions.fromPartial({ ...options, common_http_protocol_options: { ...options.common_http_protocol_options, ...common } } as never);
  changed.http_filters = [...filters, HttpFilter.fromPartial({ name: 'envoy.filters.http.upstream_codec', config_type: { $case: 'typed_config', value: pack(UpstreamCodec, UpstreamCodec.fromPartial({})) } })];
  return withOptions(cluster, changed);
}
