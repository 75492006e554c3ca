/**
 * A class's clusters as the shared Envoy needs them: with what stock Envoy has, every upstream connection opened in the
 * client pod's network namespace.
 */
import { BindConfig, SocketAddress_Protocol } from '../../proto/generated/envoy/config/core/v3/address.js';
import type { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { TypedExtensionConfig } from '../../proto/generated/envoy/config/core/v3/extension.js';
import { SocketOption, SocketOption_SocketState } from '../../proto/generated/envoy/config/core/v3/socket_option.js';
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { CaresDnsResolverConfig } from '../../proto/generated/envoy/extensions/network/dns_resolver/cares/v3/cares_dns_resolver.js';
import { UpstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { Config as FilterStateOverride } from '../../proto/generated/envoy/extensions/local_address_selectors/filter_state_override/v3/config.js';
import { pack, unpack } from '../../common/xds/any.js';
import type { EnvoyExtensions } from './extensions.js';
import { foldAssignment } from './fold-endpoints.js';
import { withFiles } from './fold-file-secrets.js';
import { meshSockets, refuseNamedIdentity, usesIdentity } from './fold-identity.js';
import { keepExtension } from './stock.js';

/** Filter state that `local_address_selectors.filter_state_override` reads. */
export const NETNS_FILTER_STATE = 'envoy.network.upstream_bind_override.network_namespace';
/** Marks Envoy's own connections, so that a pod's REDIRECT rules let them pass (Istio's number). */
export const PROXY_MARK = 1337;

const SOL_SOCKET = 1;
const SO_MARK = 36;

/** What this step does not fold: a pod's inbound side, and what only leads to internal listeners. */
const INBOUND_CLUSTERS: ReadonlySet<string> = new Set(['InboundPassthroughCluster', 'connect_originate', 'inner_connect_originate', 'main_internal', 'sds-grpc']);

export function isFoldedCluster(name: string): boolean {
  return !name.startsWith('inbound|') && !name.startsWith('inbound-vip|') && !INBOUND_CLUSTERS.has(name);
}

/** @param identity the SPIFFE id whose certificate the mesh's mutual TLS shows; without one it is left out, and endpoints that ask for it are spoken to in plaintext */
export function foldCluster(source: Cluster, extensions: EnvoyExtensions, identity?: string): Cluster {
  // Its parts are the source's own for the most part: a mesh has very many.
  const cluster = { ...source };
  cluster.filters = cluster.filters.filter((filter) => keepExtension(extensions, 'filters', filter.name, filter.typed_config));
  for (const socket of [cluster.transport_socket, ...cluster.transport_socket_matches.map((match) => match.transport_socket)]) refuseNamedIdentity(socket);
  const sockets = identity === undefined ? [] : meshSockets(cluster, identity);
  cluster.transport_socket = originatedTls(cluster);
  cluster.transport_socket_matches = sockets;
  if (cluster.load_assignment) cluster.load_assignment = foldAssignment(cluster.load_assignment);
  if (asksAnyResolver(cluster.typed_dns_resolver_config)) cluster.typed_dns_resolver_config = undefined;
  return inCallersNamespace(cluster);
}

/** Istio gives each cluster a resolver that asks the servers of /etc/resolv.conf; which those are on this node Envoy's bootstrap says. */
function asksAnyResolver(resolver: TypedExtensionConfig | undefined): boolean {
  return unpack(CaresDnsResolverConfig, resolver?.typed_config)?.resolvers.length === 0;
}

/** Every connection is opened in the network namespace that the caller's filter state names. */
export function inCallersNamespace(cluster: Cluster): Cluster {
  return { ...cluster, upstream_bind_config: callersBindConfig };
}

/** Not one of those for copies of requests and the like, with which no caller's identity goes. */
export function opensForCallers({ upstream_bind_config }: Cluster): boolean {
  return upstream_bind_config?.local_address_selector !== undefined;
}

/** For connections that no pod's filter state goes with: all are opened in one pod's network namespace. */
export function boundTo(netnsPath: string, cluster: Cluster): Cluster {
  const { local_address_selector: _, ...bind } = podBindConfig(netnsPath);
  return { ...cluster, upstream_bind_config: BindConfig.fromPartial(bind) };
}

/**
 * The socket for endpoints of any kind, if it originates TLS as a DestinationRule asks. Istio puts it beside HBONE into
 * transport_socket_matches, with an empty match.
 */
function originatedTls(cluster: Cluster): TransportSocket | undefined {
  const anyEndpoint = cluster.transport_socket_matches.find(({ match }) => Object.keys(match ?? {}).length === 0)?.transport_socket;
  const socket = cluster.transport_socket ?? anyEndpoint;
  const tls = unpack(UpstreamTlsContext, socket?.config_type?.value);
  if (!tls || usesIdentity(tls.common_tls_context)) return undefined;
  return { ...socket!, config_type: { $case: 'typed_config', value: pack(UpstreamTlsContext, { ...tls, common_tls_context: tls.common_tls_context && withFiles(tls.common_tls_context) }) } };
}

function podBindConfig(network_namespace_filepath = ''): BindConfig {
  const any = (address: string) => ({ address, protocol: SocketAddress_Protocol.TCP, port_specifier: { $case: 'port_value' as const, value: 0 }, network_namespace_filepath });
  return BindConfig.fromPartial({
    source_address: any('0.0.0.0'),
    extra_source_addresses: [{ address: any('::') }],
    local_address_selector: {
      name: 'envoy.upstream.local_address_selector.filter_state_override',
      typed_config: pack(FilterStateOverride, FilterStateOverride.fromPartial({})),
    },
    socket_options: [markOption()],
  });
}

const callersBindConfig = podBindConfig();

/** The cluster with another mark on its connections. */
export function markedWith(cluster: Cluster, mark: number): Cluster {
  const bind = cluster.upstream_bind_config;
  return bind ? { ...cluster, upstream_bind_config: { ...bind, socket_options: [...bind.socket_options.filter(({ level, name }) => level !== BigInt(SOL_SOCKET) || name !== BigInt(SO_MARK)), markOption(mark)] } } : cluster;
}

export function markOption(mark = PROXY_MARK): SocketOption {
  return SocketOption.fromPartial({
    description: 'SO_MARK',
    level: BigInt(SOL_SOCKET),
    name: BigInt(SO_MARK),
    value: { $case: 'int_value', value: BigInt(mark) },
    state: SocketOption_SocketState.STATE_PREBIND,
  });
}
