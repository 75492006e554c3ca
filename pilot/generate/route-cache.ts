/**
 * Route tables of large meshes are made of parts that hardly differ between clients: the routes of a service are the same
 * for all, its domains differ between its own namespace and others. Both are made, and encoded, once.
 */
import type { VirtualService } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { VirtualHost, type Route } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import type { MeshConfig } from '../model/mesh.js';
import type { MeshService } from '../model/model.js';
import type { Scope } from '../model/scope.js';
import type { Visibility } from '../model/visibility.js';
import { makePartedResource, type Resource } from './resource.js';

/** A field of protobuf with number 2 and a length: RouteConfiguration.virtual_hosts. */
const VIRTUAL_HOSTS_TAG = 0x12;

const byService = new WeakMap<MeshConfig, WeakMap<MeshService, Map<number, Route[]>>>();
const byVirtualService = new WeakMap<MeshConfig, WeakMap<LoadedObject<VirtualService>, Map<string, Route[]>>>();
const hosts = new WeakMap<readonly Route[], WeakMap<readonly string[], VirtualHost>>();
const encodedHosts = new WeakMap<VirtualHost, Buffer>();

function inner<K extends object, V extends object>(map: WeakMap<K, V>, key: K, make: () => V): V {
  let value = map.get(key);
  if (!value) map.set(key, (value = make()));
  return value;
}

/** The routes of a service that nobody routes. Where rules hash, they depend on the client's namespace and are made anew. */
export function serviceRoutesOnce(scope: Scope, service: MeshService, port: number, make: () => Route[]): Route[] {
  if (scope.model.usesHashing) return make();
  const made = inner(inner(byService, scope.model.mesh, () => new WeakMap()), service, () => new Map<number, Route[]>());
  let routes = made.get(port);
  if (!routes) made.set(port, (routes = make()));
  return routes;
}

/** Routes of a VirtualService, which stay when others change. @param key all that they depend on besides itself and the mesh */
export function virtualServiceRoutesOnce(scope: Scope, loaded: LoadedObject<VirtualService>, key: string, make: () => Route[]): Route[] {
  if (scope.model.usesHashing) return make();
  const made = inner(inner(byVirtualService, scope.model.mesh, () => new WeakMap()), loaded, () => new Map<string, Route[]>());
  let routes = made.get(key);
  if (!routes) made.set(key, (routes = make()));
  return routes;
}

export interface GeneralHosts {
  hosts: VirtualHost[];
  byName: ReadonlyMap<string, VirtualHost>;
  /** Those without a namespace, in lower case: what a short name may collide with. */
  shortDomains: ReadonlySet<string>;
}

const general = new WeakMap<Visibility, Map<string, GeneralHosts>>();

/** A port's virtual hosts as clients of any namespace without services of its own see them. */
export function generalHostsOnce(scope: Scope, key: string, make: () => VirtualHost[]): GeneralHosts {
  const made = inner(general, scope.visibility, () => new Map<string, GeneralHosts>());
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

/** The same object for the same routes and the same list of domains; neither is to be changed. */
export function virtualHostOnce(routes: readonly Route[], domains: readonly string[], make: () => VirtualHost): VirtualHost {
  const made = inner(hosts, routes, () => new WeakMap<readonly string[], VirtualHost>());
  let host = made.get(domains);
  if (!host) made.set(domains, (host = make()));
  return host;
}

export function encodedHost(host: VirtualHost): Buffer {
  let bytes = encodedHosts.get(host);
  if (!bytes) {
    const body = VirtualHost.encode(host).finish();
    const head = [VIRTUAL_HOSTS_TAG];
    for (let rest = body.length; ; rest >>>= 7) {
      head.push(rest > 127 ? (rest & 127) | 128 : rest);
      if (rest <= 127) break;
    }
    encodedHosts.set(host, (bytes = Buffer.concat([Buffer.from(head), body])));
  }
  return bytes;
}

/** A table put together from encoded virtual hosts; in protobuf the order of different fields does not count. */
export function routeResource(name: string, table: RouteConfiguration, virtualHosts: readonly VirtualHost[]): Resource {
  return makePartedResource(name, RouteConfiguration, [RouteConfiguration.encode({ ...table, virtual_hosts: [] }).finish(), ...virtualHosts.map(encodedHost)]);
}
