/** The HTTP connection managers of a filter chain. */
import { pack, unpack } from '../../common/xds/any.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';

/** Changes them in place. */
export function editManagers(chain: FilterChain, edit: (manager: HttpConnectionManager) => void): void {
  for (const filter of chain.filters) {
    const manager = filter.config_type?.$case === 'typed_config' ? unpack(HttpConnectionManager, filter.config_type.value) : undefined;
    if (!manager) continue;
    edit(manager);
    filter.config_type = { $case: 'typed_config', value: pack(HttpConnectionManager, manager) };
  }
}
