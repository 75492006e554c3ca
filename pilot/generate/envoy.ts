/** Small pieces of Envoy configuration that all generators use. */
import { isIP } from 'node:net';
import { pack } from '../../common/xds/any.js';
import { Address, type SocketAddress } from '../../proto/generated/envoy/config/core/v3/address.js';
import { ApiConfigSource_ApiType, ApiVersion, ConfigSource } from '../../proto/generated/envoy/config/core/v3/config_source.js';
import type { Duration } from '../../proto/generated/google/protobuf/duration.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { SdsSecretConfig } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import {
  CommonTlsContext,
  DownstreamTlsContext,
  UpstreamTlsContext,
} from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import { TlsParameters_TlsProtocol, type CertificateValidationContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/common.js';
import { RawBuffer } from '../../proto/generated/envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';

export const HTTP_PROTOCOL_OPTIONS = 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions';

export function millis(ms: number): Duration {
  const seconds = Math.trunc(ms / 1_000);
  return { seconds: BigInt(seconds), nanos: Math.round((ms - seconds * 1_000) * 1e6) };
}

export const seconds = (amount: number): Duration => ({ seconds: BigInt(amount), nanos: 0 });

/** Where an endpoint is: `unix:///path`, or an address or host name and a port. */
export function endpointAddress(address: string, port: number): Address {
  if (!address.startsWith('unix://')) return socketAddress(address, port);
  return Address.fromPartial({ address: { $case: 'pipe', value: { path: address.slice('unix://'.length) } } });
}

export function socketAddress(address: string, port: number): Address {
  return Address.fromPartial({ address: { $case: 'socket_address', value: { address, port_specifier: { $case: 'port_value', value: port } } satisfies Partial<SocketAddress> } });
}

const UNLIMITED = 0xffff_ffff;
/** None; what is left out is 1,024. */
export const circuit_breakers = { thresholds: [{ max_connections: UNLIMITED, max_pending_requests: UNLIMITED, max_requests: UNLIMITED, max_retries: UNLIMITED }] };

/** As in `host:port`. */
export const bracketed = (address: string): string => (isIP(address) === 6 ? `[${address}]` : address);

/** Of a listener within Envoy. @param endpoint_id tells several endpoints apart that lead there */
export function internalAddress(listener: string, endpoint_id = ''): Address {
  return Address.fromPartial({ address: { $case: 'envoy_internal_address', value: { address_name_specifier: { $case: 'server_listener_name', value: listener }, endpoint_id } } });
}

export const ads: ConfigSource = ConfigSource.fromPartial({
  config_source_specifier: { $case: 'ads', value: {} },
  initial_fetch_timeout: seconds(0),
  resource_api_version: ApiVersion.V3,
});

/** Certificates come from the static cluster `sds-grpc`: on a sidecar its own agent's SDS server. */
export const sdsSecret = (name: string, fetchTimeoutSeconds = 0): SdsSecretConfig =>
  SdsSecretConfig.fromPartial({
    name,
    sds_config: {
      config_source_specifier: {
        $case: 'api_config_source',
        value: {
          api_type: ApiConfigSource_ApiType.GRPC,
          grpc_services: [{ target_specifier: { $case: 'envoy_grpc', value: { cluster_name: 'sds-grpc' } } }],
          set_node_on_first_message_only: true,
          transport_api_version: ApiVersion.V3,
        },
      },
      initial_fetch_timeout: seconds(fetchTimeoutSeconds),
      resource_api_version: ApiVersion.V3,
    },
  });

/** Secrets of Kubernetes come with everything else, from the control plane. */
export const adsSecret = (name: string): SdsSecretConfig =>
  SdsSecretConfig.fromPartial({ name, sds_config: { config_source_specifier: { $case: 'ads', value: {} }, resource_api_version: ApiVersion.V3 } });

export const rawBufferSocket: TransportSocket = TransportSocket.fromPartial({
  name: 'envoy.transport_sockets.raw_buffer',
  config_type: { $case: 'typed_config', value: pack(RawBuffer, RawBuffer.fromPartial({})) },
});

const { TLSv1_2, TLSv1_3 } = TlsParameters_TlsProtocol;

/** Any of the mesh's when none is listed. */
export function exactNames(sans: readonly string[]): Partial<CertificateValidationContext> {
  return { match_subject_alt_names: sans.map((san) => StringMatcher.fromPartial({ match_pattern: { $case: 'exact', value: san } })) };
}

/** Istio's mutual TLS as a client: its workload certificate, and what is asked of the server's. */
export function istioUpstreamTls(sni: string, alpn: readonly string[], names: Partial<CertificateValidationContext>, minVersion: 'TLSV1_2' | 'TLSV1_3' = 'TLSV1_2'): TransportSocket {
  const context = UpstreamTlsContext.fromPartial({
    sni,
    common_tls_context: CommonTlsContext.fromPartial({
      alpn_protocols: [...alpn],
      tls_params: { tls_minimum_protocol_version: minVersion === 'TLSV1_3' ? TLSv1_3 : TLSv1_2, tls_maximum_protocol_version: TLSv1_3 },
      tls_certificate_sds_secret_configs: [sdsSecret('default')],
      validation_context_type: {
        $case: 'combined_validation_context',
        value: {
          default_validation_context: names,
          validation_context_sds_secret_config: sdsSecret('ROOTCA'),
        },
      },
    }),
  });
  return TransportSocket.fromPartial({ name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(UpstreamTlsContext, context) } });
}

const CIPHER_SUITES = [
  'ECDHE-ECDSA-AES256-GCM-SHA384',
  'ECDHE-RSA-AES256-GCM-SHA384',
  'ECDHE-ECDSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES128-GCM-SHA256',
  'AES256-GCM-SHA384',
  'AES128-GCM-SHA256',
];

/** Istio's mutual TLS as a server: a client certificate of one of the mesh's trust domains is required. */
export function istioDownstreamTls(alpn: readonly string[], trustDomains: readonly string[], minVersion: 'TLSV1_2' | 'TLSV1_3' = 'TLSV1_2', subjectAltNames: readonly string[] = []): TransportSocket {
  const names = subjectAltNames.length > 0 ? subjectAltNames.map((value) => ({ $case: 'exact' as const, value })) : trustDomains.map((domain) => ({ $case: 'prefix' as const, value: `spiffe://${domain}/` }));
  const context = DownstreamTlsContext.fromPartial({
    require_client_certificate: true,
    common_tls_context: CommonTlsContext.fromPartial({
      alpn_protocols: [...alpn],
      tls_params: { tls_minimum_protocol_version: minVersion === 'TLSV1_3' ? TLSv1_3 : TLSv1_2, tls_maximum_protocol_version: TLSv1_3, cipher_suites: CIPHER_SUITES },
      tls_certificate_sds_secret_configs: [sdsSecret('default')],
      validation_context_type: {
        $case: 'combined_validation_context',
        value: {
          default_validation_context: { match_subject_alt_names: names.map((match_pattern) => ({ match_pattern })) },
          validation_context_sds_secret_config: sdsSecret('ROOTCA'),
        },
      },
    }),
  });
  return TransportSocket.fromPartial({ name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(DownstreamTlsContext, context) } });
}

export function spiffeId(trustDomain: string, namespace: string, serviceAccount: string): string {
  return `spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}`;
}

const protocolOptions = (options: Parameters<typeof HttpProtocolOptions.fromPartial>[0]): Record<string, Any> => ({
  [HTTP_PROTOCOL_OPTIONS]: pack(HttpProtocolOptions, HttpProtocolOptions.fromPartial(options)),
});

export const http2Upstream = protocolOptions({
  upstream_protocol_options: { $case: 'explicit_http_config', value: { protocol_config: { $case: 'http2_protocol_options', value: {} } } },
});

/** Tunnels: each connection is a stream of few connections, which end when they have none for that long. */
export const http2ConnectUpstream = (idleSeconds: number): Record<string, Any> =>
  protocolOptions({
    common_http_protocol_options: { idle_timeout: seconds(idleSeconds) },
    upstream_protocol_options: { $case: 'explicit_http_config', value: { protocol_config: { $case: 'http2_protocol_options', value: { allow_connect: true } } } },
  });

/** The upstream is spoken to in the protocol that the client spoke. */
export const downstreamProtocolUpstream = protocolOptions({
  upstream_protocol_options: { $case: 'use_downstream_protocol_config', value: { http_protocol_options: {}, http2_protocol_options: {} } },
});

export const passthroughUpstream = protocolOptions({
  common_http_protocol_options: { idle_timeout: seconds(300) },
  upstream_protocol_options: { $case: 'use_downstream_protocol_config', value: { http_protocol_options: {}, http2_protocol_options: {} } },
});
