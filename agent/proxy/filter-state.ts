/** Network filter set_filter_state, under names that do not clash with other messages called Config. */
import { FilterStateValue_SharedWithUpstream } from '../../proto/generated/envoy/extensions/filters/common/set_filter_state/v3/value.js';
import { Config } from '../../proto/generated/envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.js';
import type { Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack } from '../../common/xds/any.js';

export { Config as SetFilterState };

export function packSetFilterState(config: Config): Any {
  return pack(Config, config);
}

/**
 * A filter that puts a string where upstream connections see it. Hashable: a connection pool is never shared between
 * connections whose values differ.
 */
export function sharedString(name: string, key: string, value: string): Filter {
  return {
    name,
    config_type: {
      $case: 'typed_config',
      value: packSetFilterState(
        Config.fromPartial({
          on_new_connection: [
            {
              key: { $case: 'object_key', value: key },
              factory_key: 'envoy.hashable_string',
              value: {
                $case: 'format_string',
                value: { format: { $case: 'text_format_source', value: { specifier: { $case: 'inline_string', value: value.replaceAll('%', '%%') } } } },
              },
              read_only: true,
              shared_with_upstream: FilterStateValue_SharedWithUpstream.TRANSITIVE,
            },
          ],
        }),
      ),
    },
  };
}

/** A filter that hands addresses on to the next connection upstream, by their keys, as Envoy's formatters give them. */
export function sharedAddress(name: string, addresses: Readonly<Record<string, string>>): Filter {
  const values = Object.entries(addresses).map(([key, format]) => ({
    key: { $case: 'object_key' as const, value: key },
    value: {
      $case: 'format_string' as const,
      value: { format: { $case: 'text_format_source' as const, value: { specifier: { $case: 'inline_string' as const, value: format } } } },
    },
    shared_with_upstream: FilterStateValue_SharedWithUpstream.ONCE,
  }));
  return { name, config_type: { $case: 'typed_config', value: packSetFilterState(Config.fromPartial({ on_new_connection: values })) } };
}
