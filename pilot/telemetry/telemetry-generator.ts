/**
 * Listeners with tracing, access logs, metrics and the mesh's path normalization laid over them. What was made is kept by the
 * listener that it was made from, so that proxies with the same settings share one; with the mesh's defaults nothing is.
 */
import { pack, unpack } from '../../common/xds/any.js';
import { AccessLogFilter } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { Metadata } from '../../proto/generated/envoy/config/core/v3/base.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager, HttpConnectionManager_PathWithEscapedSlashesAction } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { UuidRequestIdConfig } from '../../proto/generated/envoy/extensions/request_id/uuid/v3/uuid.js';
import type { Generator, Names } from '../generate/generator.js';
import { CONNECT_ORIGINATE } from '../generate/hbone-originate.js';
import { CONNECT_TERMINATE, isInboundListener } from '../generate/names.js';
import { makeResource, TYPE, type Resource } from '../generate/resource.js';
import type { ChangeSet } from '../model/changes.js';
import type { MeshConfig } from '../model/mesh.js';
import type { Model } from '../model/model.js';
import type { HeaderDropper, Proxy } from '../model/proxy.js';
import { accessLog } from './access-logs.js';
import { readTunnelCaller } from './caller-state.js';
import { claimNamespace, countIn, hidePeer } from './metrics.js';
import { settingsFor, type SideSettings } from './settings.js';
import { tracingConfig } from './tracing.js';

/** Connections that no filter chain took have no filter that could log them. */
const UNTAKEN = AccessLogFilter.fromPartial({ filter_specifier: { $case: 'response_flag_filter', value: { flags: ['NR'] } } });

function normalize(manager: HttpConnectionManager, normalization: MeshConfig['pathNormalization']): void {
  if (normalization === 'BASE') return;
  manager.normalize_path = normalization !== 'NONE';
  manager.merge_slashes = normalization === 'MERGE_SLASHES' || normalization === 'DECODE_AND_MERGE_SLASHES';
  if (normalization === 'DECODE_AND_MERGE_SLASHES') manager.path_with_escaped_slashes_action = HttpConnectionManager_PathWithEscapedSlashesAction.UNESCAPE_AND_FORWARD;
}

function overFilter(filter: Filter, { tracing, accessLogs }: SideSettings, normalization: MeshConfig['pathNormalization']): void {
  if (filter.config_type?.$case !== 'typed_config') return;
  const logs = accessLogs.map((each) => accessLog(each));
  const manager = unpack(HttpConnectionManager, filter.config_type.value);
  if (manager) {
    if (tracing) {
      manager.tracing = tracingConfig(tracing);
      if (!tracing.byRequestId) manager.request_id_extension = { typed_config: pack(UuidRequestIdConfig, UuidRequestIdConfig.fromPartial({ use_request_id_for_trace_sampling: false })), _unknownFields: {} };
    }
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

const isPlain = ({ tracing, accessLogs, metrics, metricsNote }: SideSettings): boolean => !tracing && accessLogs.length === 0 && !metrics && !metricsNote;

/** Of the metadata of a listener: what the agent of a node makes of its pods' metrics. */
const METRICS_NOTE = 'underpass.metrics';

export class TelemetryGenerator implements Generator {
  readonly typeUrl = TYPE.listener;
  readonly wildcard = true;
  readonly #made = new WeakMap<Resource, Map<string, Resource>>();

  constructor(readonly model: Model, readonly inner: Generator) {}

  all(proxy: Proxy): Resource[] {
    const resources = this.inner.all(proxy);
    const { CLIENT, SERVER } = settingsFor(this.model, proxy);
    const normalization = this.model.mesh.pathNormalization;
    // Clients' sidecars say who they are whether or not this proxy counts. One that counts puts its own word in the place of its application's.
    const { dropsBy, canCount, type } = proxy;
    if (isPlain(CLIENT) && isPlain(SERVER) && normalization === 'BASE' && !dropsBy) return resources;
    const keys = { CLIENT: JSON.stringify([CLIENT, normalization, dropsBy, canCount, type]), SERVER: JSON.stringify([SERVER, normalization, dropsBy, canCount]) };
    return resources.map((resource) => {
      // What is inside of tunnels is logged and traced.
      if (resource.name.endsWith(CONNECT_ORIGINATE) || (resource.name === CONNECT_TERMINATE && !canCount)) return resource;
      const side = isInboundListener(resource.name) ? 'SERVER' : 'CLIENT';
      let made = this.#made.get(resource);
      if (!made) this.#made.set(resource, (made = new Map()));
      let result = made.get(keys[side]);
      const dropper = side === 'SERVER' || type !== 'sidecar' || !canCount ? dropsBy : undefined;
      if (!result) made.set(keys[side], (result = over(resource, side === 'SERVER' ? SERVER : CLIENT, normalization, type === 'sidecar', dropper)));
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

function over(resource: Resource, settings: SideSettings, normalization: MeshConfig['pathNormalization'], isSidecars: boolean, dropper: HeaderDropper | undefined): Resource {
  const listener = Listener.decode(resource.body.value);
  if (resource.name === CONNECT_TERMINATE) {
    for (const chain of listener.filter_chains) readTunnelCaller(chain);
    return makeResource(resource.name, Listener, listener);
  }
  for (const chain of [...listener.filter_chains, ...(listener.default_filter_chain ? [listener.default_filter_chain] : [])]) {
    for (const filter of chain.filters) overFilter(filter, settings, normalization);
    if (dropper) hidePeer(chain, settings.metrics, dropper);
    if (settings.metrics) countIn(chain, resource.name, settings.metrics);
  }
  if (settings.metrics && (resource.name === 'virtualOutbound' || !isSidecars)) listener.access_log.push(claimNamespace);
  if (settings.metricsNote && resource.name.startsWith('virtual')) listener.metadata = Metadata.fromPartial({ ...listener.metadata, filter_metadata: { ...listener.metadata?.filter_metadata, [METRICS_NOTE]: settings.metricsNote } });
  if (resource.name.startsWith('virtual')) listener.access_log.push(...settings.accessLogs.map((each) => accessLog(each, UNTAKEN)));
  return makeResource(resource.name, Listener, listener);
}
