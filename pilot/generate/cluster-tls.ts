/**
 * How a client's cluster speaks to its endpoints: mutual TLS of the mesh where it is detected, or what a DestinationRule
 * says (plaintext, TLS to a server outside, mutual TLS with certificates of one's own or the mesh's).
 */
import { Cluster_DiscoveryType, type Cluster, type Cluster_TransportSocketMatch } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ProxyProtocolConfig_Version } from '../../proto/generated/envoy/config/core/v3/proxy_protocol.js';
import { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import { ProxyProtocolUpstreamTransport } from '../../proto/generated/envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.js';
import { CertificateValidationContext_TrustChainVerification } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/common.js';
import { SdsSecretConfig } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import { CommonTlsContext, UpstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import type { ClientTls } from '../../common/kube/types.js';
import { pack } from '../../common/xds/any.js';
import type { MeshPort, MeshService, Model } from '../model/model.js';
import { takesMtls } from '../model/peer-authentication.js';
import { isTunnelled } from '../model/pods.js';
import type { PortPolicy } from '../model/traffic-policy.js';
import type { UpstreamHttp } from './cluster-policy.js';
import { adsSecret, exactNames, istioUpstreamTls, rawBufferSocket, sdsSecret, spiffeId } from './envoy.js';
import { tunnelledMatch } from './hbone-originate.js';
import { clusterSni } from './names.js';
import { trustDomains } from './security/trust-domains.js';

const plaintext: Cluster_TransportSocketMatch = { name: 'tlsMode-disabled', match: {}, transport_socket: rawBufferSocket };

/**
 * Envoy takes no other clusters in while one waits for its secret. A path that leads nowhere must not hold all of them up
 * for ever: that cluster then answers 503. (istiod lets it wait.)
 */
const FILE_TIMEOUT_SECONDS = 5;

export interface TlsTarget {
  model: Model;
  service: MeshService;
  port: MeshPort;
  subset: string;
  policy: PortPolicy;
  /** Whether the mesh's TLS is used towards endpoints that take it, with no rule that says so. */
  auto: boolean;
}

/** Sets the cluster's transport sockets; `http` learns what they ask of HTTP. */
export function applyTls(cluster: Cluster, http: UpstreamHttp, target: TlsTarget): void {
  const { policy, service, model, auto } = target;
  const { tls } = policy;
  const originalDestination = cluster.cluster_discovery_type?.$case === 'type' && cluster.cluster_discovery_type.value === Cluster_DiscoveryType.ORIGINAL_DST;
  if (tls && tls.mode !== undefined && tls.mode !== 'DISABLE') {
    const socket = tls.mode === 'ISTIO_MUTUAL' ? meshTls(target, http, tls) : ownTls(tls, http, service);
    if (originalDestination) cluster.transport_socket = socket;
    // No condition: it is for all endpoints. The name is istiod's.
    else cluster.transport_socket_matches = [{ name: 'tlsMode-istio', match: undefined, transport_socket: socket }];
  } else if (tls?.mode === 'DISABLE' || tls || !auto || service.external) {
    cluster.transport_socket_matches = [plaintext];
  } else if (originalDestination) {
    // Such a cluster knows nothing of its endpoints: all or none.
    const endpoints = model.endpoints(service);
    if (endpoints.length > 0 && endpoints.every((endpoint) => takesMtls(model, endpoint, endpoint.ports.get(target.port.name) ?? 0))) cluster.transport_socket = meshTls(target, http);
    else cluster.transport_socket_matches = [plaintext];
  } else {
    cluster.transport_socket_matches = [{ name: 'tlsMode-istio', match: { tlsMode: 'istio' }, transport_socket: meshTls(target, http) }, plaintext];
  }
  const isOwn = tls?.mode === 'SIMPLE' || tls?.mode === 'MUTUAL';
  if (!originalDestination && model.hasTunnelled && model.endpoints(service).some(isTunnelled)) cluster.transport_socket_matches.unshift(tunnelledMatch((isOwn && cluster.transport_socket_matches[0]?.transport_socket) || rawBufferSocket));
  const version = policy.proxyProtocol && ProxyProtocolConfig_Version[policy.proxyProtocol.version ?? 'V1'];
  if (version === undefined) return;
  const wrapped = (socket: TransportSocket | undefined): TransportSocket => withProxyProtocol(socket ?? rawBufferSocket, version);
  if (cluster.transport_socket) cluster.transport_socket = wrapped(cluster.transport_socket);
  cluster.transport_socket_matches = cluster.transport_socket_matches.map((match) => ({ ...match, transport_socket: wrapped(match.transport_socket) }));
}

function withProxyProtocol(socket: TransportSocket, version: ProxyProtocolConfig_Version): TransportSocket {
  const message = ProxyProtocolUpstreamTransport.fromPartial({ config: { version }, transport_socket: socket });
  return TransportSocket.fromPartial({ name: 'envoy.transport_sockets.upstream_proxy_protocol', config_type: { $case: 'typed_config', value: pack(ProxyProtocolUpstreamTransport, message) } });
}

/** The identities of the service's workloads, unless the rule or the ServiceEntry lists others. */
function meshTls({ model, service, port, subset }: TlsTarget, http: UpstreamHttp, tls?: ClientTls): TransportSocket {
  const domains = trustDomains(model.mesh);
  const accounts = new Set(model.endpoints(service).flatMap(({ serviceAccount, namespace }) => (serviceAccount ? domains.map((domain) => spiffeId(domain, namespace ?? service.namespace, serviceAccount)) : [])));
  const sans = tls?.subjectAltNames?.length ? tls.subjectAltNames : [...new Set([...accounts, ...service.subjectAltNames])].sort();
  const alpn = ['istio-peer-exchange', 'istio', ...(http.protocol === 'http2' ? ['h2'] : [])];
  return istioUpstreamTls(tls?.sni || clusterSni(port.port, subset, service.host), alpn, exactNames(sans));
}

/** SIMPLE and MUTUAL: certificates from a Secret (by the control plane) or from files (by the proxy's own secret server). */
function ownTls(tls: ClientTls, http: UpstreamHttp, service: MeshService): TransportSocket {
  const { credentialName, clientCertificate, privateKey, caCertificates, insecureSkipVerify } = tls;
  const subjectAltNames = tls.subjectAltNames?.length ? tls.subjectAltNames : [...service.subjectAltNames];
  const certificate: SdsSecretConfig | undefined =
    tls.mode !== 'MUTUAL' ? undefined : credentialName ? adsSecret(`kubernetes://${credentialName}`) : clientCertificate ? sdsSecret(`file-cert:${clientCertificate}~${privateKey}`, FILE_TIMEOUT_SECONDS) : undefined;
  const trusted = credentialName ? adsSecret(`kubernetes://${credentialName}-cacert`) : sdsSecret(`file-root:${caCertificates || 'system'}`, FILE_TIMEOUT_SECONDS);
  const checked = !insecureSkipVerify;
  const common = CommonTlsContext.fromPartial({
    ...(certificate ? { tls_certificate_sds_secret_configs: [certificate] } : {}),
    ...(http.protocol === 'http2' ? { alpn_protocols: ['h2'] } : http.protocol === 'downstream' ? { alpn_protocols: ['h2', 'http/1.1'] } : {}),
    validation_context_type: checked
      ? {
          $case: 'combined_validation_context',
          value: {
            default_validation_context: { match_subject_alt_names: subjectAltNames.map((san) => ({ match_pattern: { $case: 'exact' as const, value: san } })) },
            validation_context_sds_secret_config: trusted,
          },
        }
      : { $case: 'validation_context', value: { trust_chain_verification: CertificateValidationContext_TrustChainVerification.ACCEPT_UNTRUSTED } },
  });
  if (!tls.sni) {
    http.autoSni = true;
    if (checked && subjectAltNames.length === 0) http.autoSanValidation = true;
  }
  const context = UpstreamTlsContext.fromPartial({ common_tls_context: common, sni: tls.sni ?? '' });
  return TransportSocket.fromPartial({ name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(UpstreamTlsContext, context) } });
}
