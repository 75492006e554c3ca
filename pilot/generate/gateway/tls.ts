/** TLS that ends at a gateway. Certificates come by SDS: from Secrets over ADS, from files by the proxy's own SDS server. */
import { isCipherSuite } from '../../../common/kube/istio/gateway-schema.js';
import type { GatewayServer } from '../../../common/kube/types.js';
import { pack } from '../../../common/xds/any.js';
import { TransportSocket } from '../../../proto/generated/envoy/config/core/v3/base.js';
import { CertificateValidationContext_TrustChainVerification, TlsParameters, TlsParameters_TlsProtocol } from '../../../proto/generated/envoy/extensions/transport_sockets/tls/v3/common.js';
import type { SdsSecretConfig } from '../../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import { CommonTlsContext, CommonTlsContext_CombinedCertificateValidationContext, DownstreamTlsContext } from '../../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import type { MeshConfig } from '../../model/mesh.js';
import { adsSecret, istioDownstreamTls, sdsSecret } from '../envoy.js';
import { trustDomains } from '../security/trust-domains.js';

const HTTP_ALPN = ['h2', 'http/1.1'];

const PROTOCOLS: Record<string, TlsParameters_TlsProtocol> = {
  TLSV1_0: TlsParameters_TlsProtocol.TLSv1_0,
  TLSV1_1: TlsParameters_TlsProtocol.TLSv1_1,
  TLSV1_2: TlsParameters_TlsProtocol.TLSv1_2,
  TLSV1_3: TlsParameters_TlsProtocol.TLSv1_3,
};

type ServerTls = NonNullable<GatewayServer['tls']>;

/** @param isHttp whether HTTP is offered in the handshake */
export function gatewayTls(tls: ServerTls, isHttp: boolean, mesh: MeshConfig): TransportSocket {
  if (tls.mode === 'ISTIO_MUTUAL') return istioDownstreamTls(isHttp ? HTTP_ALPN : ['istio-peer-exchange', ...HTTP_ALPN], trustDomains(mesh), mesh.meshMtlsMinProtocolVersion, tls.subjectAltNames);
  const parameters = tlsParameters(tls);
  const common = CommonTlsContext.fromPartial({
    alpn_protocols: isHttp ? HTTP_ALPN : [],
    tls_certificate_sds_secret_configs: certificates(tls),
    ...(parameters ? { tls_params: parameters } : {}),
    ...(tls.mode === 'MUTUAL' || tls.mode === 'OPTIONAL_MUTUAL' ? { validation_context_type: { $case: 'combined_validation_context', value: clientValidation(tls) } } : {}),
  });
  const context = DownstreamTlsContext.fromPartial({ common_tls_context: common, require_client_certificate: tls.mode === 'MUTUAL' });
  return TransportSocket.fromPartial({ name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(DownstreamTlsContext, context) } });
}

function clientValidation(tls: ServerTls): CommonTlsContext_CombinedCertificateValidationContext {
  const { subjectAltNames = [], verifyCertificateSpki = [], verifyCertificateHash = [], insecureSkipVerify = false } = tls;
  return CommonTlsContext_CombinedCertificateValidationContext.fromPartial({
    default_validation_context: {
      match_subject_alt_names: subjectAltNames.map((name) => ({ match_pattern: { $case: 'exact' as const, value: name } })),
      verify_certificate_spki: verifyCertificateSpki,
      verify_certificate_hash: verifyCertificateHash,
      ...(insecureSkipVerify ? { trust_chain_verification: CertificateValidationContext_TrustChainVerification.ACCEPT_UNTRUSTED } : {}),
    },
    validation_context_sds_secret_config: authority(tls),
  });
}

function certificates(tls: ServerTls): SdsSecretConfig[] {
  if (tls.credentialNames?.length) return tls.credentialNames.map((name) => adsSecret(secretName(name)));
  if (tls.credentialName) return [adsSecret(secretName(tls.credentialName))];
  const pairs = tls.tlsCertificates ?? [];
  if (pairs.length > 0) return pairs.map(({ serverCertificate, privateKey }) => fileSecret(`file-cert:${serverCertificate}~${privateKey}`));
  return [fileSecret(`file-cert:${tls.serverCertificate}~${tls.privateKey}`)];
}

function authority(tls: ServerTls): SdsSecretConfig {
  if (tls.caCertCredentialName) return adsSecret(secretName(tls.caCertCredentialName));
  const credential = tls.credentialName ?? tls.credentialNames?.[0];
  return credential ? adsSecret(`${secretName(credential)}-cacert`) : fileSecret(`file-root:${tls.caCertificates}`);
}

/** Files are read by the proxy's own SDS server; a listener waits for them no longer than Envoy does by default. */
function fileSecret(name: string): SdsSecretConfig {
  const secret = sdsSecret(name);
  return { ...secret, sds_config: secret.sds_config && { ...secret.sds_config, initial_fetch_timeout: undefined } };
}

const secretName = (credential: string): string => (/^[a-z-]+:\/\//.test(credential) ? credential : `kubernetes://${credential}`);

function tlsParameters({ minProtocolVersion, maxProtocolVersion, cipherSuites }: ServerTls): TlsParameters | undefined {
  const [min, max] = [minProtocolVersion && PROTOCOLS[minProtocolVersion], maxProtocolVersion && PROTOCOLS[maxProtocolVersion]];
  // For one that it does not know Envoy would refuse the whole listener.
  const suites = [...new Set(cipherSuites ?? [])].filter(isCipherSuite);
  if (!min && !max && suites.length === 0) return undefined;
  return TlsParameters.fromPartial({
    ...(min ? { tls_minimum_protocol_version: min } : {}),
    ...(max ? { tls_maximum_protocol_version: max } : {}),
    cipher_suites: suites,
  });
}
