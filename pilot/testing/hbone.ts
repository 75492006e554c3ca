/** Takes HBONE out of what a recorded istiod answered: pilot's sidecars reach such endpoints in plaintext; node agents decide by WDS. */
import { isObject, rewrite, type Json } from './istiod.js';

export function withoutHbone(json: Json): Json {
  return rewrite(json, (object) => {
    // Set where some endpoint is reached by HBONE.
    delete object['disable_mx'];
    const address = object['address'];
    const internal = isObject(address) && address['$case'] === 'envoy_internal_address' && isObject(address['value']) ? address['value'] : undefined;
    if (internal?.['endpoint_id']) {
      const id = String(internal['endpoint_id']);
      const colon = id.lastIndexOf(':');
      object['address'] = { $case: 'socket_address', value: { protocol: 0, address: id.slice(0, colon).replace(/^\[|\]$/g, ''), port_specifier: { $case: 'port_value', value: Number(id.slice(colon + 1)) }, resolver_name: '', ipv4_compat: false, network_namespace_filepath: '' } };
    }
    delete object['envoy.filters.listener.original_dst'];
    const match = object['envoy.transport_socket_match'];
    if (isObject(match) && 'tunnel' in match) delete object['envoy.transport_socket_match'];
    return object;
  });
}
