/**
 * Spans leave Envoy by connections of its own, which no pod has asked for: as with mirrored requests, the tracer of a
 * class's listeners gets a cluster that opens them in the namespace of one of the class's pods.
 */
import { pack, unpack } from '../../common/xds/any.js';
import { OpenTelemetryConfig } from '../../proto/generated/envoy/config/trace/v3/opentelemetry.js';
import { ZipkinConfig } from '../../proto/generated/envoy/config/trace/v3/zipkin.js';
import type { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import type { Rename } from './fold-routes.js';

/** Gives the tracer's cluster another name, in place. @returns the name that it had, if there is a tracer that has one */
export function renameTracer({ tracing }: HttpConnectionManager, rename: Rename): string | undefined {
  const provider = tracing?.provider;
  if (provider?.config_type?.$case !== 'typed_config') return undefined;
  const zipkin = unpack(ZipkinConfig, provider.config_type.value);
  if (zipkin) {
    const before = zipkin.collector_cluster;
    zipkin.collector_hostname ||= before;
    zipkin.collector_cluster = rename(before);
    provider.config_type = { $case: 'typed_config', value: pack(ZipkinConfig, zipkin) };
    return before;
  }
  const otel = unpack(OpenTelemetryConfig, provider.config_type.value);
  const target = otel?.grpc_service?.target_specifier;
  if (!otel || target?.$case !== 'envoy_grpc') return undefined;
  const before = target.value.cluster_name;
  target.value.cluster_name = rename(before);
  provider.config_type = { $case: 'typed_config', value: pack(OpenTelemetryConfig, otel) };
  return before;
}
