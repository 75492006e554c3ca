/**
 * Route tables of large meshes are made of parts that hardly differ between clients: the routes of a service are the same
 * for all, its domains differ between its own namespace and others. Both are made, and encoded, once.
 */
import type { VirtualService } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { Memo } from '../../common/memo.js';
import { encode } from '../../common/xds/any.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { VirtualHost, type Route } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import type { MeshConfig } from '../model/mesh.js';
import type { MeshService } from '../model/model.js';
import type { Scope } from '../model/scope.js';
import type { Visibility } from '../model/visibility.js';
import { makePartedResource, type Resource } from './resource.js';

/** A field of protobuf with number 2 and a length: RouteConfiguration.virtual_hosts. */
const VIRTUAL_HOSTS_TAG = 0x12;

/** Of the settings that counted when they were made. */
interface RoutesOf<K> {
  mesh: MeshConfig;
  made: Map<K, Route[]>;
}

const byService = new Memo<MeshService, RoutesOf<number>>();
const byVirtualService = new Memo<LoadedObject<VirtualService>, RoutesOf<string>>();
/** By the domains. */
const hosts = new Memo<readonly Route[], Map<string, VirtualHost>>();
const encodedHosts = new Memo<VirtualHost, Buffer>();

function routesOnce<O extends object, K>(kept: Memo<O, RoutesOf<K>>, object: O, key: K, { model: { mesh, usesHashing } }: Scope, make: () => Route[]): Route[] {
  // Where rules hash, routes depend on the client's namespace and are made anew.
  if (usesHashing) return make();
  let found = kept.get(object);
  if (found?.mesh !== mesh) kept.set(object, (found = { mesh, made: new Map() }));
  let routes = found.made.get(key);
  if (!routes) found.made.set(key, (routes = make()));
  return routes;
}

/** The routes of a service that nobody routes. */
export function serviceRoutesOnce(scope: Scope, service: MeshService, port: number, make: () => Route[]): Route[] {
  return routesOnce(byService, service, port, scope, make);
}

/** Routes of a VirtualService, which stay when others change. @param key all that they depend on besides itself and the mesh */
export function virtualServiceRoutesOnce(scope: Scope, loaded: LoadedObject<VirtualService>, key: string, make: () => Route[]): Route[] {
  return routesOnce(byVirtualService, loaded, key, scope, make);
}

export interface GeneralHosts {
  hosts: VirtualHost[];
  byName: ReadonlyMap<string, VirtualHost>;
  /** Those without a namespace, in lower case: what a short name may collide with. */
  shortDomains: ReadonlySet<string>;
}

const general = new Memo<Visibility, Map<string, GeneralHosts>>();

/** A port's virtual hosts as clients of any namespace without services of its own see them. */
export function generalHostsOnce(scope: Scope, key: string, make: () => VirtualHost[]): GeneralHosts {
  const made = general.once(scope.visibility, () => new Map());
  // Where rules hash, a client's namespace counts for the routes themselves.
  const full = `${key} ${scope.sidecar?.key ?? ''} ${scope.model.usesHashing ? scope.namespace : ''}`;
  let found = made.get(full);
  if (!found) {
    const hosts = make();
    found = { hosts, byName: new Map(hosts.map((host) => [host.name, host])), shortDomains: new Set(hosts.flatMap((host) => host.domains.filter((domain) => domain.lastIndexOf('.') < 2).map((domain) => domain.toLowerCase()))) };
    made.set(full, found);
  }
  return found;
}

/** The same object for the same routes and the same domains; neither is to be changed. */
export function virtualHostOnce(routes: readonly Route[], domains: readonly string[], make: () => VirtualHost): VirtualHost {
  const made = hosts.once(routes, () => new Map());
  const key = domains.join(' ');
  let host = made.get(key);
  if (!host) made.set(key, (host = make()));
  return host;
}

export function encodedHost(host: VirtualHost): Buffer {
  return encodedHosts.once(host, () => {
    const body = encode(VirtualHost, host);
    const head = [VIRTUAL_HOSTS_TAG];
    for (let rest = body.length; ; rest >>>= 7) {
      head.push(rest > 127 ? (rest & 127) | 128 : rest);
      if (rest <= 127) break;
    }
    return Buffer.concat([Buffer.from(head), body]);
  });
}

/** A table put together from encoded virtual hosts; in protobuf the order of different fields does not count. */
export function routeResource(name: string, table: RouteConfiguration, virtualHosts: readonly VirtualHost[]): Resource {
  return makePartedResource(name, RouteConfiguration, [encode(RouteConfiguration, { ...table, virtual_hosts: [] }), ...virtualHosts.map(encodedHost)]);
}
