/** RDS of a gateway. */
import type { Model } from '../../model/model.js';
import type { Proxy } from '../../model/proxy.js';
import { RouteConfiguration } from '../../../proto/generated/envoy/config/route/v3/route.js';
import { makeResource, type Resource } from '../resource.js';
import { gatewayVirtualHosts } from '../routes-gateway.js';
import { routeTable } from '../routes.js';
import { hboneRoutes } from './hbone.js';
import { gatewayServers, isHbone, isHttps, isPlainHttp, routeName } from './servers.js';

/** The route configuration of that name; an unknown one is empty, as istiod answers. */
export function gatewayRoutes(model: Model, proxy: Proxy, name: string): Resource {
  const servers = gatewayServers(model, proxy).filter((bound) => (isPlainHttp(bound) || isHttps(bound) || isHbone(bound)) && routeName(bound) === name);
  if (servers.length === 0) return makeResource(name, RouteConfiguration, RouteConfiguration.fromPartial({ name, validate_clusters: false }));
  if (servers.some(isHbone)) return hboneRoutes(model.scopeOf(proxy), name);
  const given = servers.map((bound) => ({
    gateway: bound.gateway,
    hosts: bound.server.hosts,
    port: bound.server.port.number,
    tls: isHttps(bound),
    httpsRedirect: bound.server.tls?.httpsRedirect ?? false,
  }));
  return makeResource(name, RouteConfiguration, routeTable(name, gatewayVirtualHosts(model.scopeOf(proxy), proxy, given)));
}
