/** Virtual hosts of a gateway's servers: the routes of all VirtualServices bound to them, merged host by host. */
import { VirtualHost_TlsRequirementType, type Route, type VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import type { VirtualService } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { bySpecificity, hostMatches } from '../model/hosts.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { catchAllsLast, virtualServiceRoutes } from './routes-http.js';
import { virtualHost } from './routes.js';

/** One server of a Gateway resource. All servers of one route configuration are given together. */
export interface GatewayServer {
  /** `namespace/name` of the Gateway. */
  gateway: string;
  /** As written: `host`, `namespace/host`, with `.` for the Gateway's namespace and `*` for any. */
  hosts: readonly string[];
  /** The Gateway's port, not the one that the pod listens on. */
  port: number;
  /** The listener terminates TLS. */
  tls: boolean;
  httpsRedirect: boolean;
}

/** The VirtualServices bound to a Gateway (`namespace/name`), oldest first, as the gateway's proxy sees them. */
export function virtualServicesForGateway(scope: Scope, gateway: string): LoadedObject<VirtualService>[] {
  return scope.virtualServices.filter(({ object }) => object.spec.gateways?.includes(gateway));
}

/** Of a server's hosts those that VirtualServices of `namespace` may bind to, without their namespace. */
export function serverHostsFor(server: Pick<GatewayServer, 'gateway' | 'hosts'>, namespace: string): string[] {
  const own = server.gateway.slice(0, server.gateway.indexOf('/'));
  return server.hosts.flatMap((written) => {
    const slash = written.indexOf('/');
    if (slash < 0) return [written.toLowerCase()];
    const where = written.slice(0, slash);
    return where === '*' || (where === '.' ? own : where) === namespace ? [written.slice(slash + 1).toLowerCase()] : [];
  });
}

/** The hosts that both name: of a wildcard and what it covers the narrower. */
export function commonHosts(a: readonly string[], b: readonly string[]): string[] {
  return [...new Set(a.flatMap((one) => b.flatMap((other) => (hostMatches(other, one) ? [one] : hostMatches(one, other) ? [other] : []))))];
}

/**
 * Several VirtualServices on a host are merged: their routes in the order of age, what takes everything last. Hosts
 * with the very same routes share a virtual host. Without any host a `blackhole` that answers 404.
 * @param bound the VirtualServices of a Gateway by `namespace/name`; default: those that name it in `gateways`
 */
export function gatewayVirtualHosts(
  scope: Scope,
  proxy: Proxy,
  servers: readonly GatewayServer[],
  bound: (gateway: string) => readonly LoadedObject<VirtualService>[] = (gateway) => virtualServicesForGateway(scope, gateway),
): VirtualHost[] {
  const hosts = new Map<string, Host>();
  const hostOf = (name: string, port: number): Host => {
    let host = hosts.get(name);
    if (!host) hosts.set(name, (host = { name: `${name}:${port}`, lists: new Set(), tls: false }));
    return host;
  };
  // A list of routes is made once: equal lists are known by being the same.
  const made = new Map<string, Route[]>();
  for (const server of servers) {
    for (const loaded of bound(server.gateway)) {
      const common = commonHosts(serverHostsFor(server, loaded.object.metadata.namespace ?? 'default'), (loaded.object.spec.hosts ?? []).map((host) => host.toLowerCase()));
      if (common.length === 0) continue;
      const key = `${server.gateway} ${server.port} ${server.tls} ${loaded.key}`;
      let routes = made.get(key);
      if (!routes) made.set(key, (routes = virtualServiceRoutes(scope, { proxy, port: server.port, gateway: server.gateway }, loaded, { tls: server.tls })));
      if (routes.length === 0) continue;
      for (const name of common) {
        const host = hostOf(name, server.port);
        host.lists.add(routes);
        host.tls ||= server.httpsRedirect;
      }
    }
    if (!server.httpsRedirect) continue;
    for (const written of server.hosts) hostOf(written.slice(written.indexOf('/') + 1).toLowerCase(), server.port).tls = true;
  }
  if (hosts.size === 0) return [{ ...virtualHost([], `blackhole:${servers[0]?.port ?? 0}`, ['*']), include_request_attempt_count: false }];
  return collapse(hosts);
}

interface Host {
  name: string;
  lists: Set<Route[]>;
  /** Requests in plaintext are redirected to https. */
  tls: boolean;
}

function collapse(hosts: ReadonlyMap<string, Host>): VirtualHost[] {
  const ids = new Map<Route[], number>();
  const idOf = (list: Route[]): number => ids.get(list) ?? (ids.set(list, ids.size), ids.size - 1);
  const shared = new Map<string, VirtualHost>();
  for (const [domain, { name, lists, tls }] of [...hosts].sort(([a], [b]) => bySpecificity(a, b))) {
    const key = `${tls} ${[...lists].map(idOf).join(' ')}`;
    const known = shared.get(key);
    if (known) known.domains.push(domain);
    else shared.set(key, { ...virtualHost(catchAllsLast([...lists].flat()), name, [domain]), require_tls: tls ? VirtualHost_TlsRequirementType.ALL : VirtualHost_TlsRequirementType.NONE });
  }
  return [...shared.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}
