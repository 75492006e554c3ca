/** What a gateway's proxy says about the proxies and load balancers before it: `gatewayTopology` of its ProxyConfig. */
import { pack } from '../../../common/xds/any.js';
import { ListenerFilter } from '../../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { ProxyProtocol } from '../../../proto/generated/envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.js';
import type { Proxy } from '../../model/proxy.js';

export interface GatewayTopology {
  /** How many proxies before this one are believed about the client's address. */
  numTrustedProxies?: number;
  /** What becomes of `x-forwarded-client-cert`; default: SANITIZE_SET. */
  forwardClientCertDetails?: string;
  /** Connections begin with a load balancer's word about the client. */
  proxyProtocol?: object;
}

export function gatewayTopology({ metadata }: Proxy): GatewayTopology {
  return (metadata['PROXY_CONFIG'] as { gatewayTopology?: GatewayTopology } | undefined)?.gatewayTopology ?? {};
}

export const proxyProtocol = ListenerFilter.fromPartial({
  name: 'envoy.filters.listener.proxy_protocol',
  config_type: { $case: 'typed_config', value: pack(ProxyProtocol, ProxyProtocol.fromPartial({})) },
});
