/**
 * The mesh's mutual TLS in the shared Envoy: sockets that a sidecar would fill with its own certificate get that of one
 * service account, by its SPIFFE id, from the agent. Accounts never share a cluster, and so neither connections nor TLS
 * sessions, since the name of the certificate is part of the cluster.
 */
import type { Cluster, Cluster_TransportSocketMatch } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ApiVersion } from '../../proto/generated/envoy/config/core/v3/config_source.js';
import type { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { ProxyProtocolUpstreamTransport } from '../../proto/generated/envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.js';
import { RawBuffer } from '../../proto/generated/envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.js';
import { SubjectAltNameMatcher_SanType, TlsParameters_TlsProtocol } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/common.js';
import { SdsSecretConfig } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import { CommonTlsContext, DownstreamTlsContext, UpstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import { ROOT_SECRET, WORKLOAD_SECRET } from '../../common/identity/secret-streams.js';
import { parseSpiffeId } from '../../common/identity/spiffe.js';
import { pack, unpack } from '../../common/xds/any.js';
import { mapEndpoints, SOCKET_MATCH } from './fold-endpoints.js';
import { needsSecrets, withFiles } from './fold-file-secrets.js';
import { FoldError } from './stock.js';

/** Envoy takes no other clusters in while one waits for its certificate; after this its connections fail until it is there. */
const FETCH_TIMEOUT_SECONDS = 2n;

const WITHIN_NODE = { underpass: 'direct' };

export const RAW_BUFFER: TransportSocket = { name: 'envoy.transport_sockets.raw_buffer', config_type: { $case: 'typed_config', value: pack(RawBuffer, RawBuffer.fromPartial({})) } };

/** Whether a TLS socket shows the workload's own certificate. */
export function usesIdentity(common: CommonTlsContext | undefined): boolean {
  return common?.tls_certificate_sds_secret_configs.some(({ name }) => name === WORKLOAD_SECRET) ?? false;
}

/**
 * Certificates are given out by SPIFFE id, and to whoever asks for one on Envoy's stream: what somebody wrote in an
 * EnvoyFilter must not be that question.
 * @throws FoldError when a socket names an account's certificate itself
 */
export function refuseNamedIdentity(socket: TransportSocket | undefined): void {
  const config = socket?.config_type?.value;
  const around = unpack(ProxyProtocolUpstreamTransport, config);
  if (around) return refuseNamedIdentity(around.transport_socket);
  const common = (unpack(UpstreamTlsContext, config) ?? unpack(DownstreamTlsContext, config))?.common_tls_context;
  // Of any other socket around a socket it can't be told what an id in it is for.
  const isNamed = common ? common.tls_certificate_sds_secret_configs.some(({ name }) => parseSpiffeId(name)) : config && Buffer.from(config.value).includes('spiffe://');
  if (isNamed) throw new FoldError(`transport_socket "${socket!.name}": a certificate is not to be asked for by its SPIFFE id; expected "${WORKLOAD_SECRET}", the workload's own`);
}

/** The cluster's sockets of the mesh's mutual TLS, with this account's certificate; none if it has none. */
export function meshSockets(cluster: Pick<Cluster, 'transport_socket' | 'transport_socket_matches'>, identity: string): Cluster_TransportSocketMatch[] {
  const own = cluster.transport_socket ? [{ name: 'tlsMode-istio', match: {}, transport_socket: cluster.transport_socket }] : [];
  const sockets = [...own, ...cluster.transport_socket_matches].flatMap(({ name, match = {}, transport_socket }) => {
    // A tunnel's is chosen by more than that.
    const isPlain = Object.keys(match).every((key) => key === 'tlsMode');
    const tls = isPlain && unpack(UpstreamTlsContext, transport_socket?.config_type?.value);
    if (!tls || !usesIdentity(tls.common_tls_context)) return [];
    return [{ name, match, transport_socket: { ...transport_socket!, config_type: { $case: 'typed_config' as const, value: pack(UpstreamTlsContext, { ...tls, common_tls_context: named(tls.common_tls_context!, identity) }) } } }];
  });
  // What is for whatever endpoint is not for those within the node.
  return sockets.some(({ match }) => Object.keys(match).length === 0) ? [{ name: 'direct', match: WITHIN_NODE, transport_socket: RAW_BUFFER }, ...sockets] : sockets;
}

/** A server's socket that ends TLS with a certificate of somebody's own, as a Sidecar's ingress listener may: by files. */
export function ownServerSocket(socket: TransportSocket | undefined): { socket: TransportSocket; needsSecrets: boolean } | undefined {
  const tls = unpack(DownstreamTlsContext, socket?.config_type?.value);
  if (!tls?.common_tls_context || usesIdentity(tls.common_tls_context)) return undefined;
  const common_tls_context = withFiles(tls.common_tls_context);
  return { socket: { ...socket!, config_type: { $case: 'typed_config', value: pack(DownstreamTlsContext, { ...tls, common_tls_context }) } }, needsSecrets: needsSecrets(common_tls_context) };
}

/** A server's socket of the mesh's mutual TLS, with this account's certificate; undefined for any other socket. */
export function serverSocket(socket: TransportSocket, identity: string): TransportSocket | undefined {
  const tls = unpack(DownstreamTlsContext, socket.config_type?.value);
  if (!tls || !usesIdentity(tls.common_tls_context)) return undefined;
  return { ...socket, config_type: { $case: 'typed_config', value: pack(DownstreamTlsContext, { ...tls, common_tls_context: named(tls.common_tls_context!, identity) }) } };
}

/** The names of peers that a server's socket of the mesh's mutual TLS takes. */
export function peerNames(socket: TransportSocket | undefined): StringMatcher[] {
  const validation = unpack(DownstreamTlsContext, socket?.config_type?.value)?.common_tls_context?.validation_context_type;
  const names = validation?.$case === 'combined_validation_context' ? validation.value.default_validation_context?.match_typed_subject_alt_names : undefined;
  return (names ?? []).flatMap(({ san_type, matcher }) => (san_type === SubjectAltNameMatcher_SanType.URI && matcher ? matcher : []));
}

/**
 * Where HBONE ends: TLS 1.3 with this account's certificate, for peers that show one of the mesh.
 * @param peers names that theirs may have; without any it is those of the account's own trust domain
 */
export function tunnelServerSocket(identity: string, peers: readonly StringMatcher[]): TransportSocket {
  return tlsSocket(DownstreamTlsContext, DownstreamTlsContext.fromPartial({ require_client_certificate: true, common_tls_context: tunnelTls(identity, peers) }));
}

/** The other side of it: where HBONE starts. */
export function tunnelClientSocket(identity: string, peers: readonly StringMatcher[]): TransportSocket {
  return tlsSocket(UpstreamTlsContext, UpstreamTlsContext.fromPartial({ common_tls_context: tunnelTls(identity, peers) }));
}

function tunnelTls(identity: string, peers: readonly StringMatcher[]): CommonTlsContext {
  const ownDomain = StringMatcher.fromPartial({ match_pattern: { $case: 'prefix', value: `spiffe://${parseSpiffeId(identity)!.trustDomain}/` } });
  const names = (peers.length > 0 ? peers : [ownDomain]).map((matcher) => ({ san_type: SubjectAltNameMatcher_SanType.URI, matcher }));
  return CommonTlsContext.fromPartial({
    alpn_protocols: ['h2'],
    // The upstream default stops at 1.2.
    tls_params: { tls_minimum_protocol_version: TlsParameters_TlsProtocol.TLSv1_3, tls_maximum_protocol_version: TlsParameters_TlsProtocol.TLSv1_3 },
    tls_certificate_sds_secret_configs: [fromAgent(identity)],
    validation_context_type: { $case: 'combined_validation_context', value: { default_validation_context: { match_typed_subject_alt_names: names }, validation_context_sds_secret_config: fromAgent(ROOT_SECRET) } },
  });
}

function tlsSocket<T>(codec: Parameters<typeof pack<T>>[0], context: T): TransportSocket {
  return { name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(codec, context) } };
}

/** Pods that this Envoy itself serves are reached in plaintext: they know the caller by its listener. */
export function directWithinNode(cluster: Cluster, assignment: ClusterLoadAssignment | undefined, local: ReadonlySet<string>): { cluster: Cluster; assignment: ClusterLoadAssignment | undefined } {
  if (cluster.transport_socket_matches.length === 0) return { cluster, assignment };
  const change = (from: ClusterLoadAssignment): ClusterLoadAssignment => mapEndpoints(from, (item, { address }) => {
    if (!local.has(address)) return item;
    return { ...item, metadata: { typed_filter_metadata: {}, ...item.metadata, filter_metadata: { ...item.metadata?.filter_metadata, [SOCKET_MATCH]: WITHIN_NODE } } };
  });
  return { cluster: cluster.load_assignment ? { ...cluster, load_assignment: change(cluster.load_assignment) } : cluster, assignment: assignment && change(assignment) };
}

function named(common: CommonTlsContext, identity: string): CommonTlsContext {
  const validation = common.validation_context_type;
  return {
    ...common,
    tls_certificate_sds_secret_configs: common.tls_certificate_sds_secret_configs.map((secret) => fromAgent(secret.name === WORKLOAD_SECRET ? identity : secret.name)),
    validation_context_type: validation?.$case === 'combined_validation_context' && validation.value.validation_context_sds_secret_config
      ? { $case: validation.$case, value: { ...validation.value, validation_context_sds_secret_config: fromAgent(validation.value.validation_context_sds_secret_config.name) } }
      : validation?.$case === 'validation_context_sds_secret_config' ? { $case: validation.$case, value: fromAgent(validation.value.name) } : validation,
  };
}

function fromAgent(name: string): SdsSecretConfig {
  return SdsSecretConfig.fromPartial({ name, sds_config: { config_source_specifier: { $case: 'ads', value: {} }, initial_fetch_timeout: { seconds: FETCH_TIMEOUT_SECONDS, nanos: 0 }, resource_api_version: ApiVersion.V3 } });
}

const MOST_ACCOUNTS = 4_096;
const accounts = new Map<string, { account?: string }>();

/** What is in the names of what an account's pods alone have, as a part of its content. */
export function ofAccount(identity: string | undefined): { account?: string } {
  if (identity === undefined) return {};
  let found = accounts.get(identity);
  if (!found) {
    const parsed = parseSpiffeId(identity);
    // A node has few at a time.
    if (accounts.size > MOST_ACCOUNTS) accounts.clear();
    accounts.set(identity, (found = parsed ? { account: `${parsed.namespace}/${parsed.serviceAccount}` } : {}));
  }
  return found;
}
