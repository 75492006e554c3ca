/** The kinds of Istio's API and the Gateway API: the versions in which each is written, and the schema of its `spec`. */
import type { Schema } from './schema.js';
import { backendTlsPolicy, gatewayClass, grpcRoute, httpRoute, kubeGateway, referenceGrant, tcpRoute, tlsRoute } from './gateway-api-schema.js';
import { destinationRule } from './istio/destination-rule-schema.js';
import { envoyFilter, proxyConfig } from './istio/envoy-filter-schema.js';
import { gateway, sidecar } from './istio/gateway-schema.js';
import { authorizationPolicy, peerAuthentication, requestAuthentication } from './istio/security-schema.js';
import { serviceEntry, workloadEntry, workloadGroup } from './istio/service-schema.js';
import { telemetry, wasmPlugin } from './istio/telemetry-schema.js';
import { virtualService } from './istio/virtual-service-schema.js';

export interface Kind {
  group: string;
  kind: string;
  /** The newest first. */
  versions: readonly string[];
  spec: Schema;
  /** A policy may say nothing and still mean something. */
  specOptional?: boolean;
  /** The name must be one label of DNS, since it becomes part of others. */
  labelName?: boolean;
  /** Nothing acts on it: it passes with a warning. */
  unserved?: boolean;
  /** What of the kind as a whole needs to be known. */
  note?: string;
}

const NETWORKING = 'networking.istio.io';
const SECURITY = 'security.istio.io';
export const GATEWAY_API = 'gateway.networking.k8s.io';
const networking = ['v1', 'v1beta1', 'v1alpha3'];
const security = ['v1', 'v1beta1'];

export const kinds: readonly Kind[] = [
  { group: NETWORKING, kind: 'VirtualService', versions: networking, spec: virtualService },
  { group: NETWORKING, kind: 'DestinationRule', versions: networking, spec: destinationRule },
  { group: NETWORKING, kind: 'Gateway', versions: networking, spec: gateway, labelName: true },
  { group: NETWORKING, kind: 'ServiceEntry', versions: networking, spec: serviceEntry },
  { group: NETWORKING, kind: 'WorkloadEntry', versions: networking, spec: workloadEntry },
  { group: NETWORKING, kind: 'WorkloadGroup', versions: networking, spec: workloadGroup },
  { group: NETWORKING, kind: 'Sidecar', versions: networking, spec: sidecar },
  { group: NETWORKING, kind: 'EnvoyFilter', versions: networking, spec: envoyFilter },
  { group: NETWORKING, kind: 'ProxyConfig', versions: networking, spec: proxyConfig, specOptional: true, unserved: true },
  { group: SECURITY, kind: 'PeerAuthentication', versions: security, spec: peerAuthentication, specOptional: true },
  { group: SECURITY, kind: 'AuthorizationPolicy', versions: security, spec: authorizationPolicy, specOptional: true },
  { group: SECURITY, kind: 'RequestAuthentication', versions: security, spec: requestAuthentication, specOptional: true },
  { group: 'telemetry.istio.io', kind: 'Telemetry', versions: ['v1', 'v1alpha1'], spec: telemetry, specOptional: true },
  { group: 'extensions.istio.io', kind: 'WasmPlugin', versions: ['v1alpha1'], spec: wasmPlugin },
  { group: GATEWAY_API, kind: 'GatewayClass', versions: ['v1', 'v1beta1'], spec: gatewayClass },
  { group: GATEWAY_API, kind: 'Gateway', versions: ['v1', 'v1beta1'], spec: kubeGateway },
  { group: GATEWAY_API, kind: 'HTTPRoute', versions: ['v1', 'v1beta1'], spec: httpRoute },
  { group: GATEWAY_API, kind: 'GRPCRoute', versions: ['v1', 'v1alpha2'], spec: grpcRoute },
  { group: GATEWAY_API, kind: 'TLSRoute', versions: ['v1', 'v1alpha3', 'v1alpha2'], spec: tlsRoute },
  { group: GATEWAY_API, kind: 'TCPRoute', versions: ['v1', 'v1alpha2'], spec: tcpRoute },
  { group: GATEWAY_API, kind: 'ReferenceGrant', versions: ['v1', 'v1beta1', 'v1alpha2'], spec: referenceGrant },
  { group: GATEWAY_API, kind: 'BackendTLSPolicy', versions: ['v1', 'v1alpha3'], spec: backendTlsPolicy, unserved: true },
];

const byName = new Map(kinds.map((kind) => [`${kind.group}/${kind.kind}`, kind]));

/** By API group and kind. */
export function findKind(group: string, kind: string): Kind | undefined {
  return byName.get(`${group}/${kind}`);
}

/** Kinds that exist and whose fields are not looked at. */
export const unknownKinds: ReadonlySet<string> = new Set(['extensions.istio.io/TrafficExtension', `${GATEWAY_API}/UDPRoute`, `${GATEWAY_API}/ListenerSet`, `${GATEWAY_API}/BackendLBPolicy`]);
