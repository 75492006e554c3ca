/**
 * The caller's own address (`ipBlocks`, `source.ip`) in policies for callers of the same node. In an internal listener RBAC's
 * direct_remote_ip sees no address at all, whatever address the connection was given, and remote_ip also believes headers:
 * so the connection's address is put into filter state, and looked for there.
 */
import type { Filter, FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { Principal, RBAC as Rules } from '../../proto/generated/envoy/config/rbac/v3/rbac.js';
import { RBAC as HttpRbac } from '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { RBAC as NetworkRbac } from '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack, unpack } from '../../common/xds/any.js';
import { connectionAddress } from './filter-state.js';

const CALLER_ADDRESS = 'underpass.caller_address';

/** The chain with rules that know the caller's address; the same object when none asks for it. */
export function byCallerAddress(chain: FilterChain): FilterChain {
  let asks = false;
  const changed = (config: Any): Any => {
    const found = rewriteConfig(config);
    asks ||= found !== config;
    return found;
  };
  const filters = chain.filters.map((filter): Filter => (filter.config_type?.$case === 'typed_config' ? { ...filter, config_type: { $case: 'typed_config', value: changed(filter.config_type.value) } } : filter));
  return asks ? { ...chain, filters: [connectionAddress('underpass.caller_address', CALLER_ADDRESS), ...filters] } : chain;
}

function rewriteConfig(config: Any): Any {
  const network = unpack(NetworkRbac, config);
  if (network) return rewriteRules([network.rules, network.shadow_rules]) ? pack(NetworkRbac, network) : config;
  const http = unpack(HttpRbac, config);
  if (http) return rewriteRules([http.rules, http.shadow_rules]) ? pack(HttpRbac, http) : config;
  const manager = unpack(HttpConnectionManager, config);
  let asks = false;
  for (const { config_type } of manager?.http_filters ?? []) {
    if (config_type?.$case !== 'typed_config') continue;
    const found = rewriteConfig(config_type.value);
    asks ||= found !== config_type.value;
    config_type.value = found;
  }
  return asks ? pack(HttpConnectionManager, manager!) : config;
}

/** In place. @returns whether any rule asks for the address */
function rewriteRules(rules: readonly (Rules | undefined)[]): boolean {
  return rules.flatMap((item) => Object.values(item?.policies ?? {})).flatMap(({ principals }) => principals.map(rewritePrincipal)).includes(true);
}

function rewritePrincipal(principal: Principal): boolean {
  const { identifier } = principal;
  switch (identifier?.$case) {
    case 'and_ids':
    case 'or_ids':
      return identifier.value.ids.map(rewritePrincipal).includes(true);
    case 'not_id':
      return rewritePrincipal(identifier.value);
    case 'direct_remote_ip':
      principal.identifier = { $case: 'filter_state', value: { key: CALLER_ADDRESS, matcher: { $case: 'address_match', value: { ranges: [identifier.value] } } } };
      return true;
    default:
      return false;
  }
}
