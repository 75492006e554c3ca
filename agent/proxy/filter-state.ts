/** Network filter set_filter_state, under names that do not clash with other messages called Config. */
import { FilterStateValue_SharedWithUpstream } from '../../proto/generated/envoy/extensions/filters/common/set_filter_state/v3/value.js';
import { Config as HttpConfig } from '../../proto/generated/envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.js';
import { HttpFilter } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { Config } from '../../proto/generated/envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.js';
import { ListenerFilter, type Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack } from '../../common/xds/any.js';

const LISTENER_SET_FILTER_STATE = 'type.googleapis.com/envoy.extensions.filters.listener.set_filter_state.v3.Config';

export { Config as SetFilterState };

export function packSetFilterState(config: Config): Any {
  return pack(Config, config);
}

/** `NAMESPACE/NAME` of the pod whose listener took the connection in, for logs. */
export const POD_STATE = 'underpass.pod';
/** The node id that its sidecar would have, for spans. */
export const NODE_STATE = 'underpass.node_id';
/** Its address, for spans of whom it calls. */
export const PEER_ADDRESS_STATE = 'underpass.peer_address';

/**
 * A listener filter that puts strings where upstream connections see them, whatever chain takes the connection. A connection pool is never
 * shared between connections whose first values differ; the others must follow from it, since Envoy hashes several in no particular
 * order, and connections that are alike would have pools of their own. Stands before what may wait for a client, since filters behind
 * one that waited in vain are left out.
 */
export function sharedStrings(name: string, values: Readonly<Record<string, string>>): ListenerFilter {
  const on_new_connection = Object.entries(values).map(([key, value], index) => ({
    key: { $case: 'object_key' as const, value: key },
    factory_key: index === 0 ? 'envoy.hashable_string' : 'envoy.string',
    value: {
      $case: 'format_string' as const,
      value: { format: { $case: 'text_format_source' as const, value: { specifier: { $case: 'inline_string' as const, value: value.replaceAll('%', '%%') } } } },
    },
    shared_with_upstream: FilterStateValue_SharedWithUpstream.TRANSITIVE,
  }));
  return ofListener(name, Config.fromPartial({ on_new_connection }));
}

/** The listener filter's message has the network filter's one field, under another name. */
function ofListener(name: string, config: Config): ListenerFilter {
  return ListenerFilter.fromPartial({ name, config_type: { $case: 'typed_config', value: { ...packSetFilterState(config), type_url: LISTENER_SET_FILTER_STATE } } });
}

/** A filter that gives its own connection a string, as Envoy's formatters make it, in the form that the key's reader expects. */
export function connectionString(name: string, key: string, format: string): Filter {
  const value = { key: { $case: 'object_key' as const, value: key }, value: { $case: 'format_string' as const, value: { format: { $case: 'text_format_source' as const, value: { specifier: { $case: 'inline_string' as const, value: format } } } } } };
  return { name, config_type: { $case: 'typed_config', value: packSetFilterState(Config.fromPartial({ on_new_connection: [value] })) } };
}

/** A filter that gives its connection, and the next one upstream, strings as Envoy's formatters make them; pools are not told apart by them. */
export function handedOn(name: string, formats: Readonly<Record<string, string>>): Filter {
  const on_new_connection = Object.entries(formats).map(([key, format]) => handedOnce(key, 'envoy.string', format));
  return { name, config_type: { $case: 'typed_config', value: packSetFilterState(Config.fromPartial({ on_new_connection })) } };
}

/** An HTTP filter by which requests with a value share connections upstream with those of the same value alone; those with none, with all such. */
export function pooledBy(name: string, key: string, format: string): HttpFilter {
  const value = { ...handedOnce(key, 'envoy.hashable_string', format), skip_if_empty: true };
  return HttpFilter.fromPartial({ name, config_type: { $case: 'typed_config', value: pack(HttpConfig, HttpConfig.fromPartial({ on_request_headers: [value] })) } });
}

function handedOnce(key: string, factory_key: string, format: string) {
  return {
    key: { $case: 'object_key' as const, value: key },
    factory_key,
    value: { $case: 'format_string' as const, value: { format: { $case: 'text_format_source' as const, value: { specifier: { $case: 'inline_string' as const, value: format } } } } },
    shared_with_upstream: FilterStateValue_SharedWithUpstream.ONCE,
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

/** A listener filter that gives a connection addresses, by their keys, as Envoy's formatters give them; what there is nothing for is left out. */
export function acceptedAddress(name: string, key: string, format: string): ListenerFilter {
  const value = { $case: 'format_string' as const, value: { format: { $case: 'text_format_source' as const, value: { specifier: { $case: 'inline_string' as const, value: format } } }, omit_empty_values: true } };
  return ofListener(name, Config.fromPartial({ on_new_connection: [{ key: { $case: 'object_key', value: key }, value }] }));
}

/** A filter that notes its connection's remote address, for rules that compare it with ranges. */
export function connectionAddress(name: string, key: string): Filter {
  const value = {
    key: { $case: 'object_key' as const, value: key },
    factory_key: 'envoy.network.ip',
    value: {
      $case: 'format_string' as const,
      value: { format: { $case: 'text_format_source' as const, value: { specifier: { $case: 'inline_string' as const, value: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%' } } } },
    },
  };
  return { name, config_type: { $case: 'typed_config', value: packSetFilterState(Config.fromPartial({ on_new_connection: [value] })) } };
}
