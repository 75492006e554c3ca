/**
 * VirtualServices as generation needs them: every name in full (hosts in lower case, destinations, `namespace/name` of
 * gateways) and the routes of delegates in the place of what delegates to them. The shape stays the API's own.
 */
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { Destination, HttpMatchRequest, HttpRoute, RouteDestination, VirtualService } from '../../common/kube/types.js';
import { mergeDelegate } from './virtual-services-merge.js';
import { isExportedTo, parseExportTo, type ExportTo } from './export-to.js';
import { resolveHost } from './hosts.js';
import type { MeshConfig } from './mesh.js';

/** The reserved name that stands for all workloads. */
export const MESH_GATEWAY = 'mesh';

type Resolved = LoadedObject<VirtualService>;

export function virtualServiceExport({ object }: LoadedObject<VirtualService>, mesh: Pick<MeshConfig, 'defaultVirtualServiceExportTo'>): ExportTo {
  return parseExportTo(object.spec.exportTo, namespaceOf(object), mesh.defaultVirtualServiceExportTo);
}

/** Without gateways, or with the reserved name `mesh`, a VirtualService is for workloads; else for gateways only. */
export function appliesToMesh({ object }: LoadedObject<VirtualService>): boolean {
  const { gateways } = object.spec;
  return !gateways?.length || gateways.includes(MESH_GATEWAY);
}

/** Every destination that requests may be led to, mirrors included. */
export function destinationsOf({ spec }: VirtualService): Destination[] {
  const http = (spec.http ?? []).flatMap(({ route = [], mirror, mirrors = [] }) => [...route.map(({ destination }) => destination), ...(mirror ? [mirror] : []), ...mirrors.map(({ destination }) => destination)]);
  const plain = [...(spec.tcp ?? []), ...(spec.tls ?? [])].flatMap(({ route = [] }) => route.map(({ destination }) => destination));
  return [...http, ...plain];
}

/** Resolves a whole mesh's VirtualServices again and again; one that did not change, and delegates to none, is kept. */
export class VirtualServiceResolver {
  #known = new WeakMap<LoadedObject<VirtualService>, Resolved>();
  #clusterDomain = '';

  /**
   * @param written all, oldest first
   * @returns those with hosts, in the same order; a route that delegates to what does not exist, or is not exported to
   * the root's namespace, is left out, as in Istio
   */
  resolve(written: readonly LoadedObject<VirtualService>[], mesh: MeshConfig): Resolved[] {
    if (mesh.clusterDomain !== this.#clusterDomain) {
      this.#known = new WeakMap();
      this.#clusterDomain = mesh.clusterDomain;
    }
    const delegates = new Map<string, LoadedObject<VirtualService>>();
    for (const loaded of written) if (!loaded.object.spec.hosts?.length) delegates.set(`${namespaceOf(loaded.object)}/${loaded.object.metadata.name}`, loaded);
    return written.filter(({ object }) => object.spec.hosts?.length).map((loaded) => {
      const resolved = this.#inFull(loaded);
      const { spec } = resolved.object;
      if (!spec.http?.some(({ delegate }) => delegate)) return resolved;
      const namespace = namespaceOf(loaded.object);
      const http = spec.http.flatMap((route): HttpRoute[] => {
        if (!route.delegate) return [route];
        const delegate = delegates.get(`${route.delegate.namespace || namespace}/${route.delegate.name}`);
        if (!delegate || !isExportedTo(virtualServiceExport(delegate, mesh), namespace)) return [];
        return mergeDelegate(route, this.#inFull(delegate).object.spec.http ?? []);
      });
      return { ...resolved, object: { ...resolved.object, spec: { ...spec, http } } };
    });
  }

  #inFull(loaded: LoadedObject<VirtualService>): Resolved {
    let resolved = this.#known.get(loaded);
    if (!resolved) this.#known.set(loaded, (resolved = { ...loaded, object: inFull(loaded.object, this.#clusterDomain) }));
    return resolved;
  }
}

const namespaceOf = ({ metadata }: VirtualService): string => metadata.namespace ?? 'default';

function inFull(object: VirtualService, clusterDomain: string): VirtualService {
  const namespace = namespaceOf(object);
  const { spec } = object;
  const gateway = (name: string): string => (name === MESH_GATEWAY || name.includes('/') ? name.replace(/^\.\//, `${namespace}/`) : gatewayName(name, namespace));
  const gateways = <T extends { gateways?: string[] }>(match: T): T => (match.gateways?.length ? { ...match, gateways: match.gateways.map(gateway) } : match);
  const destination = (given: Destination): Destination => ({ ...given, host: resolveHost(given.host, namespace, clusterDomain).toLowerCase() });
  const routes = <T extends RouteDestination>(given: T[]): T[] => given.map((route) => ({ ...route, destination: destination(route.destination) }));
  return {
    ...object,
    spec: {
      ...spec,
      ...(spec.hosts ? { hosts: spec.hosts.map((host) => resolveHost(host, namespace, clusterDomain).toLowerCase()) } : {}),
      ...(spec.gateways ? { gateways: spec.gateways.map(gateway) } : {}),
      ...(spec.http
        ? {
            http: spec.http.map((http) => ({
              ...http,
              ...(http.match ? { match: http.match.map((match): HttpMatchRequest => gateways(match)) } : {}),
              ...(http.route ? { route: routes(http.route) } : {}),
              ...(http.mirror ? { mirror: destination(http.mirror) } : {}),
              ...(http.mirrors ? { mirrors: http.mirrors.map((mirror) => ({ ...mirror, destination: destination(mirror.destination) })) } : {}),
            })),
          }
        : {}),
      ...(spec.tcp ? { tcp: spec.tcp.map((tcp) => ({ ...tcp, ...(tcp.match ? { match: tcp.match.map(gateways) } : {}), route: routes(tcp.route ?? []) })) } : {}),
      ...(spec.tls ? { tls: spec.tls.map((tls) => ({ ...tls, match: (tls.match ?? []).map(gateways), route: routes(tls.route ?? []) })) } : {}),
    },
  };
}

/** `name` is a Gateway of the namespace; the form `name.namespace.svc…` is as old as Istio 1.0 and still read. */
function gatewayName(name: string, namespace: string): string {
  const [first, second] = name.split('.');
  return second ? `${second}/${first}` : `${namespace}/${first}`;
}
