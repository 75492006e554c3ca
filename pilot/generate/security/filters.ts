/**
 * What policies put into a proxy's filter chains. HTTP filters stand in Istio's order: external authorization, [WasmPlugins
 * of phase AUTHN], tokens, [AUTHZ], policies, [STATS], then the proxy's own.
 */
import type { Filter } from '../../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { HttpFilter } from '../../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import type { Model } from '../../model/model.js';
import type { Proxy } from '../../model/proxy.js';
import { authorizationFilters } from './authorization.js';
import { jwtFilter } from './jwt.js';
import { policyTarget, type PolicyTarget } from './targets.js';

export interface SecurityFilters {
  custom: readonly HttpFilter[];
  authentication: readonly HttpFilter[];
  authorization: readonly HttpFilter[];
  /** Of connections that are not HTTP, before anything else. */
  network: readonly Filter[];
}

/**
 * Of a sidecar's inbound chains, and of all of a gateway's.
 * @param hbone of those of a sidecar's that follow the end of a tunnel
 */
export function securityFilters(model: Model, proxy: Proxy, hbone = false): SecurityFilters {
  return targetFilters(model, policyTarget(model, proxy), proxy.type === 'sidecar', hbone);
}

export function targetFilters(model: Model, target: PolicyTarget, isSidecar: boolean, hbone: boolean): SecurityFilters {
  const { customHttp, http, network } = authorizationFilters(model, target, hbone);
  const jwt = jwtFilter(model, target, !isSidecar);
  return { custom: customHttp, authentication: jwt ? [jwt] : [], authorization: http, network };
}

export function securityHttpFilters(model: Model, proxy: Proxy): HttpFilter[] {
  const { custom, authentication, authorization } = securityFilters(model, proxy);
  return [...custom, ...authentication, ...authorization];
}

export function securityNetworkFilters(model: Model, proxy: Proxy): Filter[] {
  return [...securityFilters(model, proxy).network];
}

/** Kinds that alter these filters. */
export const SECURITY_KINDS = ['AuthorizationPolicy', 'RequestAuthentication', 'PeerAuthentication'] as const;
