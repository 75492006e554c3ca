/**
 * Filters that ask a service of their own (external authorization, rate limits), or fetch their code, do so by connections that no pod's filter
 * state goes with: as with mirrored requests, they get a cluster that opens them in the namespace of one of the class's pods.
 */
import { pack, unpack } from '../../common/xds/any.js';
import type { AccessLog } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import type { GrpcService } from '../../proto/generated/envoy/config/core/v3/grpc_service.js';
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig } from '../../proto/generated/envoy/extensions/access_loggers/grpc/v3/als.js';
import { OpenTelemetryAccessLogConfig } from '../../proto/generated/envoy/extensions/access_loggers/open_telemetry/v3/logs_service.js';
import { ExtAuthz as HttpExtAuthz } from '../../proto/generated/envoy/extensions/filters/http/ext_authz/v3/ext_authz.js';
import { RateLimit } from '../../proto/generated/envoy/extensions/filters/http/ratelimit/v3/rate_limit.js';
import { Wasm } from '../../proto/generated/envoy/extensions/filters/http/wasm/v3/wasm.js';
import { ExtAuthz as NetworkExtAuthz } from '../../proto/generated/envoy/extensions/filters/network/ext_authz/v3/ext_authz.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { FLOWS_LOGGER } from './access-logs.js';
import type { Rename } from './fold-routes.js';
import { renameTracer } from './fold-tracing.js';

/** The filter's configuration with other names of the clusters that it asks; itself when it asks none. */
export function renameCallouts(config: Any, rename: Rename): Any {
  const http = unpack(HttpExtAuthz, config);
  if (http) {
    if (http.services?.$case === 'grpc_service') renameGrpc(http.services.value, rename);
    const upstream = http.services?.$case === 'http_service' ? http.services.value.server_uri?.http_upstream_type : undefined;
    if (upstream?.$case === 'cluster') upstream.value = rename(upstream.value);
    return pack(HttpExtAuthz, http);
  }
  const network = unpack(NetworkExtAuthz, config);
  if (network) {
    renameGrpc(network.grpc_service, rename);
    return pack(NetworkExtAuthz, network);
  }
  const limit = unpack(RateLimit, config);
  if (limit) {
    renameGrpc(limit.rate_limit_service?.grpc_service, rename);
    return pack(RateLimit, limit);
  }
  const wasm = unpack(Wasm, config);
  if (wasm) {
    const code = wasm.config?.vm?.$case === 'vm_config' ? wasm.config.vm.value.code?.specifier : undefined;
    const source = code?.$case === 'remote' ? code.value.http_uri?.http_upstream_type : undefined;
    if (source?.$case !== 'cluster') return config;
    source.value = rename(source.value);
    return pack(Wasm, wasm);
  }
  return config;
}

/** All of a connection manager, in place. @param tracer of the cluster that its spans go to */
export function renameManagerCallouts(manager: HttpConnectionManager, rename: Rename, tracer: Rename = rename): void {
  renameTracer(manager, tracer);
  renameLogs(manager.access_log, rename);
  for (const filter of manager.http_filters) {
    if (filter.config_type?.$case === 'typed_config') filter.config_type.value = renameCallouts(filter.config_type.value, rename);
  }
}

/** Loggers that send to a service, in place; the agent's own stays where it is. */
export function renameLogs(logs: readonly AccessLog[], rename: Rename): void {
  for (const log of logs) {
    const config = log.name !== FLOWS_LOGGER && log.config_type?.$case === 'typed_config' ? log.config_type.value : undefined;
    if (!config) continue;
    for (const type of [OpenTelemetryAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig] as const) {
      const found = unpack(type as typeof HttpGrpcAccessLogConfig, config);
      if (!found) continue;
      for (const service of [found.common_config?.grpc_service, (found as Partial<OpenTelemetryAccessLogConfig>).grpc_service]) renameGrpc(service, rename);
      log.config_type = { $case: 'typed_config', value: pack(type as typeof HttpGrpcAccessLogConfig, found) };
    }
  }
}

function renameGrpc(service: GrpcService | undefined, rename: Rename): void {
  const target = service?.target_specifier;
  if (target?.$case !== 'envoy_grpc') return;
  // Without one of its own the authority is the cluster's name.
  target.value.authority ||= target.value.cluster_name;
  target.value.cluster_name = rename(target.value.cluster_name);
}

export interface Callouts {
  /** The clusters that a listener's questions and logs go to. */
  names: ReadonlySet<string>;
  /** Those that its spans go to: whether they are sent as Zipkin's. */
  tracers: ReadonlyMap<string, boolean>;
  /** There is a log at all. */
  logs: boolean;
}

export function calloutsOf(listener: Listener): Callouts {
  const names = new Set<string>();
  const tracers = new Map<string, boolean>();
  let logs = listener.access_log.length > 0;
  const note = (name: string): string => {
    names.add(name);
    return name;
  };
  const chains: FilterChain[] = [...listener.filter_chains, ...(listener.default_filter_chain ? [listener.default_filter_chain] : [])];
  for (const { config_type } of chains.flatMap((chain) => chain.filters)) {
    if (config_type?.$case !== 'typed_config') continue;
    const manager = unpack(HttpConnectionManager, config_type.value);
    const tcp = manager ? undefined : unpack(TcpProxy, config_type.value);
    if (manager) {
      logs ||= manager.access_log.length > 0;
      const tracer = renameTracer(manager, (name) => name);
      if (tracer?.name) tracers.set(tracer.name, tracer.isZipkin);
      renameManagerCallouts(manager, note, (name) => name);
    } else if (tcp) {
      logs ||= tcp.access_log.length > 0;
      renameLogs(tcp.access_log, note);
    } else renameCallouts(config_type.value, note);
  }
  names.delete('');
  return { names, tracers, logs };
}
