/**
 * Listeners with tracing, access logs, metrics and the mesh's path normalization laid over them. What was made is kept by the
 * listener that it was made from, so that proxies with the same settings share one; with the mesh's defaults nothing is.
 */
import { parseDurationMs } from '../../common/kube/schema.js';
import { JSON_FORMAT, TEXT_FORMAT } from '../../common/telemetry/access-log-format.js';
import { pack, unpack } from '../../common/xds/any.js';
import { celFilter } from '../../common/xds/cel-filter.js';
import { AccessLog, AccessLogFilter } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { SubstitutionFormatString } from '../../proto/generated/envoy/config/core/v3/substitution_format_string.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { OpenTelemetryConfig } from '../../proto/generated/envoy/config/trace/v3/opentelemetry.js';
import { ZipkinConfig, ZipkinConfig_CollectorEndpointVersion } from '../../proto/generated/envoy/config/trace/v3/zipkin.js';
import { FileAccessLog } from '../../proto/generated/envoy/extensions/access_loggers/file/v3/file.js';
import {
  HttpConnectionManager,
  HttpConnectionManager_PathWithEscapedSlashesAction,
  HttpConnectionManager_Tracing,
} from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { CustomTag } from '../../proto/generated/envoy/type/tracing/v3/custom_tag.js';
import { millis } from '../generate/envoy.js';
import type { Generator, Names } from '../generate/generator.js';
import { CONNECT_ORIGINATE } from '../generate/hbone-originate.js';
import { CONNECT_TERMINATE, isInboundListener } from '../generate/names.js';
import { makeResource, TYPE, type Resource } from '../generate/resource.js';
import type { ChangeSet } from '../model/changes.js';
import type { MeshConfig } from '../model/mesh.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { claimNamespace, countIn } from './metrics.js';
import { settingsFor, type AccessLogSettings, type SideSettings, type Tag, type TracingSettings } from './settings.js';

const DEFAULT_TIMEOUT_MS = 5_000;

function accessLog({ path, format, isJson, filter }: AccessLogSettings): AccessLog {
  const text = typeof format === 'string' ? (format.endsWith('\n') ? format : `${format}\n`) : TEXT_FORMAT;
  const log_format = SubstitutionFormatString.fromPartial({
    format: isJson ? { $case: 'json_format', value: (typeof format === 'object' ? format : { ...JSON_FORMAT }) as Record<string, unknown> } : { $case: 'text_format_source', value: { specifier: { $case: 'inline_string', value: text } } },
  });
  return AccessLog.fromPartial({
    name: 'envoy.access_loggers.file',
    ...(filter ? { filter: celFilter(filter) } : {}),
    config_type: { $case: 'typed_config', value: pack(FileAccessLog, FileAccessLog.fromPartial({ path, access_log_format: { $case: 'log_format', value: log_format } })) },
  });
}

/** Connections that no filter chain took have no filter that could log them. */
function listenerLog(settings: AccessLogSettings): AccessLog {
  return AccessLog.fromPartial({ ...accessLog({ ...settings, filter: undefined }), filter: AccessLogFilter.fromPartial({ filter_specifier: { $case: 'response_flag_filter', value: { flags: ['NR'] } } }) });
}

function customTag(tag: Tag): CustomTag {
  if ('literal' in tag) return CustomTag.fromPartial({ tag: tag.tag, type: { $case: 'literal', value: { value: tag.literal } } });
  if ('header' in tag) return CustomTag.fromPartial({ tag: tag.tag, type: { $case: 'request_header', value: { name: tag.header, default_value: tag.defaultValue } } });
  return CustomTag.fromPartial({ tag: tag.tag, type: { $case: 'environment', value: { name: tag.environment, default_value: tag.defaultValue } } });
}

function tracingOf({ kind, cluster, host, path, timeout, sampling, tags, maxTagLength, use128bit, serviceName }: TracingSettings): HttpConnectionManager_Tracing {
  const timeoutMs = (timeout && parseDurationMs(timeout)) || DEFAULT_TIMEOUT_MS;
  const typed =
    kind === 'zipkin'
      ? pack(ZipkinConfig, ZipkinConfig.fromPartial({ collector_cluster: cluster, collector_hostname: host, collector_endpoint: path, collector_endpoint_version: ZipkinConfig_CollectorEndpointVersion.HTTP_JSON, trace_id_128bit: use128bit, shared_span_context: false }))
      : pack(OpenTelemetryConfig, OpenTelemetryConfig.fromPartial({ service_name: serviceName, grpc_service: { target_specifier: { $case: 'envoy_grpc', value: { cluster_name: cluster, authority: host } }, ...(timeout ? { timeout: millis(timeoutMs) } : {}) } }));
  return HttpConnectionManager_Tracing.fromPartial({
    client_sampling: { value: 100 },
    random_sampling: { value: sampling },
    overall_sampling: { value: 100 },
    custom_tags: tags.map(customTag),
    ...(maxTagLength ? { max_path_tag_length: maxTagLength } : {}),
    provider: { name: `envoy.tracers.${kind}`, config_type: { $case: 'typed_config', value: typed } },
  });
}

function normalize(manager: HttpConnectionManager, normalization: MeshConfig['pathNormalization']): void {
  if (normalization === 'BASE') return;
  manager.normalize_path = normalization !== 'NONE';
  manager.merge_slashes = normalization === 'MERGE_SLASHES' || normalization === 'DECODE_AND_MERGE_SLASHES';
  if (normalization === 'DECODE_AND_MERGE_SLASHES') manager.path_with_escaped_slashes_action = HttpConnectionManager_PathWithEscapedSlashesAction.UNESCAPE_AND_FORWARD;
}

function overFilter(filter: Filter, { tracing, accessLogs }: SideSettings, normalization: MeshConfig['pathNormalization']): void {
  if (filter.config_type?.$case !== 'typed_config') return;
  const logs = accessLogs.map(accessLog);
  const manager = unpack(HttpConnectionManager, filter.config_type.value);
  if (manager) {
    if (tracing) manager.tracing = tracingOf(tracing);
    manager.access_log.push(...logs);
    normalize(manager, normalization);
    filter.config_type = { $case: 'typed_config', value: pack(HttpConnectionManager, manager) };
    return;
  }
  const tcp = logs.length > 0 ? unpack(TcpProxy, filter.config_type.value) : undefined;
  if (!tcp) return;
  tcp.access_log.push(...logs);
  filter.config_type = { $case: 'typed_config', value: pack(TcpProxy, tcp) };
}

const isPlain = ({ tracing, accessLogs, metrics }: SideSettings): boolean => !tracing && accessLogs.length === 0 && !metrics;

export class TelemetryGenerator implements Generator {
  readonly typeUrl = TYPE.listener;
  readonly wildcard = true;
  readonly #made = new WeakMap<Resource, Map<string, Resource>>();

  constructor(readonly model: Model, readonly inner: Generator) {}

  all(proxy: Proxy): Resource[] {
    const resources = this.inner.all(proxy);
    const { CLIENT, SERVER } = settingsFor(this.model, proxy);
    const normalization = this.model.mesh.pathNormalization;
    if (isPlain(CLIENT) && isPlain(SERVER) && normalization === 'BASE') return resources;
    const keys = { CLIENT: JSON.stringify([CLIENT, normalization]), SERVER: JSON.stringify([SERVER, normalization]) };
    return resources.map((resource) => {
      // What is inside of tunnels is logged and traced.
      if (resource.name === CONNECT_TERMINATE || resource.name.endsWith(CONNECT_ORIGINATE)) return resource;
      const side = isInboundListener(resource.name) ? 'SERVER' : 'CLIENT';
      let made = this.#made.get(resource);
      if (!made) this.#made.set(resource, (made = new Map()));
      let result = made.get(keys[side]);
      if (!result) made.set(keys[side], (result = over(resource, side === 'SERVER' ? SERVER : CLIENT, normalization, proxy.type === 'sidecar')));
      return result;
    });
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    return this.all(proxy).find((resource) => resource.name === name);
  }

  affected(proxy: Proxy, change: ChangeSet, names: Names): 'all' | Iterable<string> {
    return change.touchesIn([proxy.namespace, this.model.mesh.rootNamespace], 'Telemetry') ? 'all' : this.inner.affected(proxy, change, names);
  }

  invalidate(change: ChangeSet): void {
    this.inner.invalidate(change);
  }
}

function over(resource: Resource, settings: SideSettings, normalization: MeshConfig['pathNormalization'], isSidecars: boolean): Resource {
  const listener = Listener.decode(resource.body.value);
  for (const chain of [...listener.filter_chains, ...(listener.default_filter_chain ? [listener.default_filter_chain] : [])]) {
    for (const filter of chain.filters) overFilter(filter, settings, normalization);
    if (settings.metrics) countIn(chain, resource.name, settings.metrics);
  }
  if (settings.metrics && (resource.name === 'virtualOutbound' || !isSidecars)) listener.access_log.push(claimNamespace);
  if (resource.name.startsWith('virtual')) listener.access_log.push(...settings.accessLogs.map(listenerLog));
  return makeResource(resource.name, Listener, listener);
}
