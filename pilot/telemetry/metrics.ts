/**
 * Istio's metrics of sidecars, gateways and waypoints, by stock Envoy's access logger for statistics. The text of these loggers is the
 * same for all workloads, so that proxies go on sharing listeners: what a proxy itself is stands in filter state, set for each
 * connection out of the node that it introduced itself with. What the other end is: for a client the endpoint's and the cluster's
 * metadata (pilot/telemetry/workload-metadata.ts) and its certificate; for a server the caller's certificate, and what the caller's
 * proxy says in a header, which is believed of callers that have proven to be of the mesh.
 */
import { BinaryReader, BinaryWriter } from '@bufbuild/protobuf/wire';
import { ROOT_SECRET } from '../../common/identity/secret-streams.js';
import { CONNECTIONS, MESSAGES, NO_FLAGS, REQUEST_HISTOGRAMS, REQUESTS, UNKNOWN } from '../../common/telemetry/istio-metrics.js';
import type { TagTerm } from '../../common/telemetry/metric-tags.js';
import { both, countsBy, endsAlone, GRPC_STATUS, hasKnownStatus, isFailed, isGrpc, isUp, ofType, RECEIVED, REQUEST_QUANTITIES, REQUEST_VALUES, SENT } from '../../common/telemetry/stats-logger.js';
import { PEER_HEADER } from '../../common/telemetry/peer-header.js';
import { pack, unpack } from '../../common/xds/any.js';
import { AccessLog, type AccessLogFilter } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { Filter, type FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { AccessLogType } from '../../proto/generated/envoy/data/accesslog/v3/accesslog.js';
import { Config_Stat } from '../../proto/generated/envoy/extensions/access_loggers/stats/v3/stats.js';
import type { FilterStateValue } from '../../proto/generated/envoy/extensions/filters/common/set_filter_state/v3/value.js';
import { HeaderMutation } from '../../proto/generated/envoy/extensions/filters/http/header_mutation/v3/header_mutation.js';
import { Config as HeaderToMetadata } from '../../proto/generated/envoy/extensions/filters/http/header_to_metadata/v3/header_to_metadata.js';
import { Wasm } from '../../proto/generated/envoy/extensions/filters/http/wasm/v3/wasm.js';
import { HttpConnectionManager, type HttpFilter } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { Config as SetFilterState } from '../../proto/generated/envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.js';
import { TcpProxy, TcpProxy_TcpAccessLogOptions } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { DownstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { MAIN_INTERNAL } from '../generate/names.js';
import { PEER_PRINCIPAL } from '../generate/security/rules.js';
import type { HeaderDropper } from '../model/proxy.js';
import { CALLER_NAMESPACE, state, stateOf, tunnelState } from './caller-state.js';
import { countMessages, hasMessages, MESSAGE_VALUES } from './grpc-messages.js';
import { editManagers } from './managers.js';
import { CLUSTER_SERVICE, ENDPOINT_WORKLOAD, OWN_WORKLOAD, WORKLOAD_PARTS, type WorkloadPart } from './workload-metadata.js';

export type Reporter = 'source' | 'destination' | 'waypoint';

/** What a Telemetry makes of a metric: nothing, or other labels; null: none of that name. */
export type MetricOverride = 'off' | Readonly<Record<string, readonly TagTerm[] | null>>;

export interface MetricsSettings {
  reporter: Reporter;
  /** By the metric's name. */
  overrides: Readonly<Record<string, MetricOverride>>;
}

type Labels = Readonly<Record<string, string>>;

/** Series of each metric. */
const MAX_SERIES = 4_096;
/**
 * Envoy's page for Prometheus puts `envoy_` before all names but those of namespaces that some extension has asked for; of stock
 * Envoy's the one that does without a library to load is that for Wasm.
 */
const NAMESPACE = 'wasmcustom';
const SCOPE = { prefix: NAMESPACE, sharing_name: NAMESPACE, enable_eviction: true, max_counters: 7 * MAX_SERIES, max_histograms: REQUEST_QUANTITIES.length * MAX_SERIES };

const UNKNOWN_STATE = 'underpass.unknown';
/** Of what a peer says of itself, as long as Kubernetes lets a name be. */
const MAX_LABEL_CHARS = 253;
const PEER = 'underpass.peer';

const ownState = (part: WorkloadPart): string => `${OWN_WORKLOAD}.${part}`;

/** The first that has a value. */
function firstOf(...commands: readonly (string | { command: string; param: string; max_length?: number })[]): string {
  return `%COALESCE(${JSON.stringify({ operators: [...commands, { command: 'FILTER_STATE', param: `${UNKNOWN_STATE}:PLAIN` }] })})%`;
}

/** Of a Telemetry's tag. What has no value is `unknown`, of several the part. */
export function formatOf(terms: readonly TagTerm[]): string {
  const [first] = terms;
  if (terms.length === 1 && first && 'command' in first) return firstOf(first.param === undefined ? first.command : { command: first.command, param: first.param });
  return terms.map((term) => ('text' in term ? term.text.replaceAll('%', '%%') : `%${term.command}${term.param === undefined ? '' : `(${term.param})`}%`)).join('');
}

const node = (field: string): string => `%CEL(xds.node.metadata['${field}'])%`;
const label = (name: string): string => `%CEL(xds.node.metadata['LABELS']['${name}'])%`;
/** Of several the last that has a value counts. */
const OWN: Readonly<Record<WorkloadPart, readonly string[]>> = {
  workload: [UNKNOWN, node('WORKLOAD_NAME')],
  namespace: [UNKNOWN, node('NAMESPACE')],
  name: [stateOf(ownState('workload')), label('app'), label('app.kubernetes.io/name'), label('service.istio.io/canonical-name')],
  revision: ['latest', label('version'), label('app.kubernetes.io/version'), label('service.istio.io/canonical-revision')],
  cluster: [UNKNOWN, node('CLUSTER_ID')],
};

const ownWorkload: Filter = Filter.fromPartial({
  name: 'underpass.workload',
  config_type: { $case: 'typed_config', value: pack(SetFilterState, SetFilterState.fromPartial({
    on_new_connection: [
      state(UNKNOWN_STATE, UNKNOWN),
      ...WORKLOAD_PARTS.flatMap((part) => OWN[part].map((format) => state(ownState(part), format))),
      state(OWN_WORKLOAD, WORKLOAD_PARTS.map((part) => stateOf(ownState(part))).join(';')),
    ],
  })) },
});

/** Of a connection by mutual TLS, once: both ends' names by their certificates, and the namespace in the caller's. */
const SHOWN = { caller: 'underpass.caller', namespace: 'underpass.caller.namespace', answering: 'underpass.answering' } as const;

/** The field of the filter's configuration for what is set when the handshake is over; the package that has its messages does not know it. */
const ON_HANDSHAKE = 2;

function onHandshake(values: readonly FilterStateValue[]): Filter {
  const config = pack(SetFilterState, SetFilterState.fromPartial({ on_new_connection: [...values] }));
  // Both fields are lists of the same messages, so that the tag is all that differs.
  const [writer, reader] = [new BinaryWriter(), new BinaryReader(config.value)];
  while (reader.pos < reader.len) {
    reader.uint32();
    writer.uint32((ON_HANDSHAKE << 3) | 2).bytes(reader.bytes());
  }
  return Filter.fromPartial({ name: 'underpass.caller', config_type: { $case: 'typed_config', value: { ...config, value: Buffer.from(writer.finish()) } } });
}

const callerShown: Filter = onHandshake([
  ...Object.values(SHOWN).map((key) => state(key, UNKNOWN)),
  state(SHOWN.caller, '%DOWNSTREAM_PEER_URI_SAN%'),
  state(SHOWN.namespace, CALLER_NAMESPACE),
  state(SHOWN.answering, '%DOWNSTREAM_LOCAL_URI_SAN%'),
]);

const httpFilter = <T>(codec: Parameters<typeof pack<T>>[0], message: T): HttpFilter => ({ name: 'underpass.peer', is_optional: false, disabled: false, config_type: { $case: 'typed_config', value: pack(codec, message) } });

/** What is not of this form is as nothing. */
const SAID = `^(?:${WORKLOAD_PARTS.map(() => '([^;,]*)').join(';')}|.*)$`;
const SAID_PARTS = WORKLOAD_PARTS.filter((part) => part !== 'namespace');

/** Takes from the request what its client's proxy says of itself, for nobody behind it to see; its namespace is its certificate's. */
const readPeer: HttpFilter = httpFilter(HeaderToMetadata, HeaderToMetadata.fromPartial({
  request_rules: SAID_PARTS.map((key, index) => ({
    header: PEER_HEADER,
    on_header_present: { metadata_namespace: PEER, key, regex_value_rewrite: { pattern: { regex: SAID }, substitution: `\\${WORKLOAD_PARTS.indexOf(key) + 1}` } },
    remove: index === SAID_PARTS.length - 1,
  })),
}));

/** Take it away, unread. */
const DROPPING: Readonly<Record<HeaderDropper, HttpFilter>> = {
  'envoy.filters.http.header_mutation': httpFilter(HeaderMutation, HeaderMutation.fromPartial({ mutations: { request_mutations: [{ action: { $case: 'remove', value: PEER_HEADER } }] } })),
  'envoy.filters.http.header_to_metadata': httpFilter(HeaderToMetadata, HeaderToMetadata.fromPartial({ request_rules: [{ header: PEER_HEADER, on_header_present: { metadata_namespace: PEER, key: 'dropped', value: 'yes' }, remove: true }] })),
};

const LABELS_OF: Readonly<Record<string, WorkloadPart>> = { workload: 'workload', workload_namespace: 'namespace', canonical_service: 'name', canonical_revision: 'revision', app: 'name', version: 'revision', cluster: 'cluster' };

function endLabels(end: 'source' | 'destination', of: (part: WorkloadPart) => string, principal: string): Labels {
  return { ...Object.fromEntries(Object.entries(LABELS_OF).map(([name, part]) => [`${end}_${name}`, of(part)])), [`${end}_principal`]: principal };
}

const endpointPart = (part: WorkloadPart): string => firstOf({ command: 'UPSTREAM_METADATA', param: `${ENDPOINT_WORKLOAD}:${part}` });
const peerPart = (part: WorkloadPart): string => firstOf({ command: 'DYNAMIC_METADATA', param: `${PEER}:${part}`, max_length: MAX_LABEL_CHARS });
const servicePart = (part: string): string => firstOf({ command: 'METADATA', param: `CLUSTER:${CLUSTER_SERVICE}:${part}` });
const SERVICE: Labels = { destination_service: servicePart('host'), destination_service_name: servicePart('name'), destination_service_namespace: servicePart('namespace') };
/** Out of a tunnel it is known by who came through it. */
const CALLER = firstOf('DOWNSTREAM_PEER_URI_SAN', { command: 'FILTER_STATE', param: `${PEER_PRINCIPAL}:PLAIN` });

/**
 * By what it is known who calls: `header`: requests of clients' proxies say so, and `callerShown` stands in the chain; `tunnel`: the
 * request for the tunnel that this came out of has said so.
 */
type Telling = 'header' | 'tunnel' | undefined;

/** All labels that requests and connections have in common, but for flags. */
function commonLabels(reporter: Reporter, security: 'mutual_tls' | 'none' | 'unknown', telling: Telling): Labels {
  const own = (part: WorkloadPart): string => stateOf(ownState(part));
  const isTold = telling === 'header';
  const saying = {
    header: (part: WorkloadPart): string => (part === 'namespace' ? stateOf(SHOWN.namespace) : peerPart(part)),
    tunnel: (part: WorkloadPart): string => stateOf(tunnelState(part)),
    nobody: (): string => UNKNOWN,
  };
  const said = saying[telling ?? 'nobody'];
  const caller = isTold ? stateOf(SHOWN.caller) : CALLER;
  const ends = reporter === 'destination'
    ? { ...endLabels('source', said, caller), ...endLabels('destination', own, isTold ? stateOf(SHOWN.answering) : firstOf('DOWNSTREAM_LOCAL_URI_SAN')) }
    : { ...(reporter === 'source' ? endLabels('source', own, firstOf('UPSTREAM_LOCAL_URI_SAN')) : endLabels('source', said, caller)), ...endLabels('destination', endpointPart, firstOf('UPSTREAM_PEER_URI_SAN')) };
  return { reporter, ...ends, ...SERVICE, connection_security_policy: security };
}

function stat(name: string, labels: Labels, { overrides }: MetricsSettings): { stat: Config_Stat } | undefined {
  const override = overrides[name] ?? {};
  if (override === 'off') return undefined;
  const all: Record<string, string | null> = { ...labels, ...Object.fromEntries(Object.entries(override).map(([tag, terms]) => [tag, terms && formatOf(terms)])) };
  return { stat: Config_Stat.fromPartial({ name, tags: Object.entries(all).flatMap(([tag, value_format]) => (value_format === null ? [] : [{ name: tag, value_format }])) }) };
}

function logger(of: AccessLogFilter, config: Parameters<typeof countsBy>[2]): AccessLog[] {
  return (config.counters?.length ?? 0) + (config.histograms?.length ?? 0) === 0 ? [] : [countsBy('underpass.metrics', of, { ...config, stats_scope: SCOPE })];
}

function requestLoggers(settings: MetricsSettings, common: Labels, manager: HttpConnectionManager): AccessLog[] {
  const messages = (['request', 'response'] as const).filter((of) => settings.overrides[MESSAGES[of].name] !== 'off');
  const countsMessages = messages.length > 0 && countMessages(manager);
  const each = (of: AccessLogFilter, more: Labels): AccessLog[] => {
    const labels = { ...common, ...more, response_code: '%RESPONSE_CODE%', response_flags: '%RESPONSE_FLAGS%' };
    const total = stat(REQUESTS.name, labels, settings);
    const histograms = REQUEST_QUANTITIES.flatMap((quantity) => {
      const { format, unit } = REQUEST_VALUES[quantity];
      const found = stat(REQUEST_HISTOGRAMS[quantity].name, labels, settings);
      return found ? [{ ...found, unit, value_format: format }] : [];
    });
    const counted = countsMessages && more['request_protocol'] === 'grpc' ? messages.flatMap((which) => {
      const found = stat(MESSAGES[which].name, labels, settings);
      return found ? [{ ...found, value_format: MESSAGE_VALUES[which] }] : [];
    }) : [];
    return [...logger(of, { counters: total ? [{ ...total, value_fixed: 1n }] : [], histograms }), ...logger(both(of, hasMessages), { counters: counted })];
  };
  return [
    ...each(isGrpc(true), { request_protocol: 'http' }),
    ...each(both(isGrpc(false), hasKnownStatus(false)), { request_protocol: 'grpc', grpc_response_status: GRPC_STATUS }),
    ...each(both(isGrpc(false), hasKnownStatus(true)), { request_protocol: 'grpc' }),
  ];
}

function connectionLoggers(settings: MetricsSettings, common: Labels): AccessLog[] {
  const labels = { ...common, request_protocol: 'tcp', response_flags: NO_FLAGS };
  const ends = ofType([AccessLogType.TcpConnectionEnd]);
  const counter = (of: keyof typeof CONNECTIONS, value: { value_fixed: bigint } | { value_format: string }, more: Labels = {}) => {
    const found = stat(CONNECTIONS[of].name, { ...labels, ...more }, settings);
    return found ? [{ ...found, ...value }] : [];
  };
  // A server's proxy connects on before the handshake with its client is over.
  const early: Labels = settings.reporter === 'source' ? {} : { source_principal: UNKNOWN };
  const [opened, closed] = [counter('opened', { value_fixed: 1n }, early), counter('closed', { value_fixed: 1n }, { response_flags: '%RESPONSE_FLAGS%' })];
  return [
    ...logger(ofType([AccessLogType.TcpUpstreamConnected]), { counters: opened }),
    ...logger(both(ends, isUp()), { counters: [...closed, ...counter('received', { value_format: RECEIVED }), ...counter('sent', { value_format: SENT })] }),
    // What never was is told as opened when it has ended.
    ...logger(both(ends, isFailed()), { counters: [...opened, ...closed] }),
  ];
}

/** Who comes in by it has shown a certificate; `byMesh`: one of the mesh. */
function clientCertificate({ transport_socket: socket }: FilterChain): 'none' | 'other' | 'byMesh' {
  const context = socket?.config_type?.$case === 'typed_config' ? unpack(DownstreamTlsContext, socket.config_type.value) : undefined;
  if (context?.require_client_certificate !== true) return 'none';
  const validation = context.common_tls_context?.validation_context_type;
  return validation?.$case === 'combined_validation_context' && validation.value.validation_context_sds_secret_config?.name === ROOT_SECRET ? 'byMesh' : 'other';
}

/** Applications, and whoever is behind a gateway, are not to see what proxies tell each other, nor to say it in their place. */
export function hidePeer(chain: FilterChain, settings: Pick<MetricsSettings, 'reporter'> | undefined, dropper: HeaderDropper): void {
  const isRead = settings !== undefined && settings.reporter !== 'source' && clientCertificate(chain) === 'byMesh';
  editManagers(chain, (manager) => void manager.http_filters.unshift(isRead ? readPeer : DROPPING[dropper]));
}

/** Has a filter chain's requests and connections counted. */
export function countIn(chain: FilterChain, listener: string, settings: MetricsSettings): void {
  const certificate = clientCertificate(chain);
  const isTunnelled = listener === MAIN_INTERNAL;
  const security = settings.reporter === 'source' ? 'unknown' : certificate !== 'none' || isTunnelled ? 'mutual_tls' : 'none';
  const isTold = settings.reporter !== 'source' && certificate === 'byMesh';
  const telling = isTunnelled ? 'tunnel' : isTold ? 'header' : undefined;
  for (const filter of chain.filters) {
    if (filter.config_type?.$case !== 'typed_config') continue;
    const manager = unpack(HttpConnectionManager, filter.config_type.value);
    if (manager) {
      manager.access_log.push(...requestLoggers(settings, commonLabels(settings.reporter, security, telling), manager));
      filter.config_type = { $case: 'typed_config', value: pack(HttpConnectionManager, manager) };
      continue;
    }
    const proxy = unpack(TcpProxy, filter.config_type.value);
    if (!proxy) continue;
    if (!proxy.access_log_options) endsAlone(proxy.access_log);
    proxy.access_log.push(...connectionLoggers(settings, commonLabels(settings.reporter, security, isTunnelled ? 'tunnel' : undefined)));
    proxy.access_log_options = TcpProxy_TcpAccessLogOptions.fromPartial({ ...proxy.access_log_options, flush_access_log_on_connected: true });
    filter.config_type = { $case: 'typed_config', value: pack(TcpProxy, proxy) };
  }
  chain.filters.unshift(ownWorkload, ...(isTold ? [callerShown] : []));
}

/** The smallest program that Envoy takes; nothing of it ever runs. A memory, `proxy_abi_version_0_2_1()` and `malloc(i32): i32`. */
const NOTHING = Buffer.from('AGFzbQEAAAABCQJgAABgAX8BfwMDAgABBQMBAAEHLQMGbWVtb3J5AgAXcHJveHlfYWJpX3ZlcnNpb25fMF8yXzEAAAZtYWxsb2MAAQoJAgIACwQAQQAL', 'base64');

/** Asks for the namespace of names: an access log of a listener that no connection is ever logged by. */
export const claimNamespace: AccessLog = AccessLog.fromPartial({
  name: 'underpass.namespace',
  filter: { filter_specifier: { $case: 'runtime_filter', value: { runtime_key: 'underpass.never', percent_sampled: {} } } },
  config_type: {
    $case: 'typed_config',
    value: {
      type_url: 'type.googleapis.com/envoy.extensions.access_loggers.wasm.v3.WasmAccessLog',
      // The message has this one field, as that of Wasm's HTTP filter has.
      value: pack(Wasm, Wasm.fromPartial({ config: {
        name: 'underpass.namespace',
        vm: { $case: 'vm_config', value: { vm_id: 'underpass.namespace', runtime: 'envoy.wasm.runtime.v8', code: { specifier: { $case: 'local', value: { specifier: { $case: 'inline_bytes', value: NOTHING } } } } } },
      } })).value,
    },
  },
});
