/**
 * Rules about callers that fold-inbound.ts can't rewrite for callers of the same node: RBAC as a tree of matchers, and RBAC inside
 * of something else. Left as they are they would find no identity and no address, so that a rule that is to keep somebody out
 * keeps nobody out.
 */
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { RBAC as HttpRbac } from '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { RBAC as NetworkRbac } from '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { unpack } from '../../common/xds/any.js';

/** Also of RBACPerRoute. */
const RBAC_TYPE = /envoy\.extensions\.filters\.(network|http)\.rbac\.v3\.RBAC/;

/** Why a chain's rules can't be enforced; undefined: they can. */
export function unreadRules({ filters }: FilterChain): string | undefined {
  for (const { name, config_type } of filters) {
    const why = config_type?.$case === 'typed_config' ? unread(name, config_type.value) : undefined;
    if (why !== undefined) return why;
  }
  return undefined;
}

function unread(name: string, config: Any): string | undefined {
  const rbac = unpack(NetworkRbac, config) ?? unpack(HttpRbac, config);
  if (rbac) return rbac.matcher || rbac.shadow_matcher ? `filter "${name}": a tree of matchers can't be given the caller's identity; expected rules` : undefined;
  const manager = unpack(HttpConnectionManager, config);
  if (!manager) return mentionsRbac(config.value) ? `filter "${name}": RBAC inside of ${config.type_url} can't be given the caller's identity` : undefined;
  for (const filter of manager.http_filters) {
    if (filter.config_type?.$case === 'config_discovery' && filter.config_type.value.type_urls.some((type) => RBAC_TYPE.test(type))) return `filter "${filter.name}": RBAC that is discovered can't be given the caller's identity`;
    const why = filter.config_type?.$case === 'typed_config' ? unread(filter.name, filter.config_type.value) : undefined;
    if (why !== undefined) return why;
  }
  const routes = manager.route_specifier?.$case === 'route_config' ? RouteConfiguration.encode(manager.route_specifier.value).finish() : undefined;
  return routes && mentionsRbac(routes) ? `filter "${name}": RBAC of a route can't be given the caller's identity` : undefined;
}

/** Type URLs stand in messages as they are written. */
function mentionsRbac(bytes: Uint8Array): boolean {
  return RBAC_TYPE.test(Buffer.from(bytes).toString('latin1'));
}
