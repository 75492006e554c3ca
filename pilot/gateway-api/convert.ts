/**
 * The Gateway API as Istio's Gateways and VirtualServices, so that one generator serves both. A pure function of the objects;
 * names are deterministic. What does not fit together is said in the objects' status and answered as the API demands.
 */
import type { BackendObjectReference, Gateway, GatewayListener, GRPCRoute, HTTPRoute, KubeGateway, ParentReference, ServiceEntry, TCPRoute, TLSRoute, VirtualService } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { ROUTE_SEMANTICS_ANNOTATION } from '../generate/routes-http.js';
import type { Configs } from '../model/configs.js';
import type { MeshConfig } from '../model/mesh.js';
import { serviceHost } from '../model/hosts.js';
import type { MeshService } from '../model/types.js';
import { MESH_GATEWAY } from '../model/virtual-services.js';
import { isGranted } from './grants.js';
import { gatewaysOf, internalName, ownGateways } from './listeners.js';
import { attach, GATEWAY_API, isGatewayReference, isMeshReference, namespaceOf, type Attachment, type NamespaceLabels, type RouteKind } from './parents.js';
import { byPrecedence, convertRules, l4Destinations, type ConversionContext, type ConvertedRule, type ResolveBackend } from './rules.js';
import { StatusBuilder, type GatewayApiStatus } from './status.js';

export interface GatewayApiSources {
  configs: Configs;
  mesh: MeshConfig;
  service: (host: string) => MeshService | undefined;
  namespaceLabels: NamespaceLabels;
}

export interface ConvertedGatewayApi {
  gateways: readonly LoadedObject<Gateway>[];
  virtualServices: readonly LoadedObject<VirtualService>[];
  status: GatewayApiStatus;
}

const NOTHING: ConvertedGatewayApi = { gateways: [], virtualServices: [], status: { gateways: [], routes: [] } };

type AnyRoute = HTTPRoute | GRPCRoute | TLSRoute | TCPRoute;
const ROUTE_KINDS: readonly RouteKind[] = ['HTTPRoute', 'GRPCRoute', 'TLSRoute', 'TCPRoute'];

export function convertGatewayApi(sources: GatewayApiSources): ConvertedGatewayApi {
  const { configs } = sources;
  const gateways = ownGateways(configs);
  const routes = ROUTE_KINDS.flatMap((kind) => configs.all<AnyRoute>(kind));
  if (gateways.length + routes.length === 0) return NOTHING;
  return new Conversion(sources, gateways).run(routes);
}

/** What a VirtualService is for: a host as some Gateways have it, or as clients in the mesh do. */
interface Binding {
  /** Of the VirtualService. */
  name: string;
  gateway: string;
  host: string;
  namespace: string;
  /** For clients of this namespace only. */
  isPrivate: boolean;
  /** Of the mesh's clients those that dial this port. */
  port?: number | undefined;
}

class Conversion {
  readonly #gateways: ReadonlyMap<string, LoadedObject<KubeGateway>>;
  readonly #virtualServices: LoadedObject<VirtualService>[] = [];
  /** HTTP rules by the VirtualService that they go into, since the order between rules of all routes of a host is the API's. */
  readonly #http = new Map<string, { binding: Binding; origin: LoadedObject; rules: ConvertedRule[] }>();
  readonly #status: StatusBuilder;

  constructor(readonly sources: GatewayApiSources, gateways: readonly LoadedObject<KubeGateway>[]) {
    this.#gateways = new Map(gateways.map((loaded) => [`${namespaceOf(loaded.object)}/${loaded.object.metadata.name}`, loaded]));
    this.#status = new StatusBuilder(gateways.map(({ object }) => object));
  }

  run(routes: readonly LoadedObject<AnyRoute>[]): ConvertedGatewayApi {
    for (const loaded of routes) this.#attachRoute(loaded);
    for (const { binding, origin, rules } of this.#http.values()) this.#addVirtualService(origin, binding, { http: rules.sort(byPrecedence).map(({ route }) => route) });
    const { configs, mesh, service } = this.sources;
    const gateways = [...this.#gateways.values()].flatMap((loaded) =>
      gatewaysOf({ configs, clusterDomain: mesh.clusterDomain, service }, loaded, (listener, findings) => this.#status.listener(loaded.object, listener.name, findings)),
    );
    return { gateways, virtualServices: this.#virtualServices, status: this.#status.result() };
  }

  #attachRoute(loaded: LoadedObject<AnyRoute>): void {
    const { object } = loaded;
    const namespace = namespaceOf(object);
    /** Reasons by listener: two references may lead to the same one, which takes the route once. */
    const bound = new Map<GatewayListener, string[]>();
    for (const reference of object.spec.parentRefs ?? []) {
      const unresolved: string[] = [];
      const context = { resolve: this.#resolver(object.kind, namespace), unresolved: (reason: string) => void unresolved.push(reason) };
      if (isMeshReference(reference)) {
        const services = this.#meshParents(reference, namespace);
        const names = object.kind === 'TLSRoute' ? object.spec.hostnames : undefined;
        // Istio asks for no grants here: clients of the mesh may go to any of these services anyway.
        for (const { host, namespace: home } of services) {
          const binding = { name: `${namespace}~${reference.port ?? '*'}~${host}`, gateway: MESH_GATEWAY, host, namespace, isPrivate: home !== namespace, port: reference.port };
          this.#bind(loaded, binding, names, { ...context, resolve: this.#resolver(undefined, namespace) });
        }
        this.#status.route(object, reference, services.length > 0 ? undefined : 'NoMatchingParent', unresolved);
        continue;
      }
      if (!isGatewayReference(reference)) continue;
      const gateway = this.#gateways.get(`${reference.namespace ?? namespace}/${reference.name}`);
      // A Gateway of another controller is none of ours.
      if (!gateway) continue;
      const hostnames = 'hostnames' in object.spec ? object.spec.hostnames : undefined;
      const attached = attach(gateway.object, reference, { kind: object.kind, namespace, hostnames }, this.sources.namespaceLabels);
      if (typeof attached === 'string') {
        this.#status.route(object, reference, attached, []);
        continue;
      }
      for (const attachment of attached) {
        let reasons = bound.get(attachment.listener);
        if (!reasons) {
          const found: string[] = [];
          bound.set(attachment.listener, (reasons = found));
          this.#status.attached(gateway.object, attachment.listener.name);
          this.#bindToListener(loaded, gateway.object, attachment, { ...context, unresolved: (reason) => void found.push(reason) });
        }
        unresolved.push(...reasons);
      }
      this.#status.route(object, reference, undefined, unresolved);
    }
  }

  /** The hosts that a Service or ServiceEntry has, and whose namespace they are of. */
  #meshParents({ kind, name, namespace }: ParentReference, from: string): Pick<MeshService, 'host' | 'namespace'>[] {
    const home = namespace ?? from;
    if (kind === 'ServiceEntry') return (this.sources.configs.get<ServiceEntry>('ServiceEntry', home, name)?.object.spec.hosts ?? []).map((host) => ({ host, namespace: home }));
    const service = this.sources.service(serviceHost(name, home, this.sources.mesh.clusterDomain));
    return service ? [service] : [];
  }

  #bindToListener(loaded: LoadedObject<AnyRoute>, gateway: KubeGateway, { listener, hostnames }: Attachment, context: ConversionContext): void {
    const internal = internalName(gateway, listener);
    const namespace = namespaceOf(gateway);
    const binding = { gateway: `${namespace}/${internal}`, namespace, isPrivate: false };
    // Connections by TLS are told apart in one VirtualService, by their names there.
    for (const host of loaded.object.kind === 'TLSRoute' ? hostnames.slice(0, 1) : hostnames) this.#bind(loaded, { ...binding, name: `${internal}~${host}`, host }, hostnames, context);
  }

  /** @param names SNI of a TLSRoute; default: the host itself */
  #bind(loaded: LoadedObject<AnyRoute>, binding: Binding, names: readonly string[] | undefined, context: ConversionContext): void {
    const { object } = loaded;
    const { host, port } = binding;
    if (object.kind === 'HTTPRoute' || object.kind === 'GRPCRoute') {
      const rules = convertRules(object, context, port);
      const key = `${binding.namespace} ${binding.gateway} ${host}`;
      const known = this.#http.get(key);
      if (known) known.rules.push(...rules);
      else this.#http.set(key, { binding, origin: loaded, rules });
      return;
    }
    const own = { ...binding, name: `${object.metadata.name}~${namespaceOf(object)}~${binding.name}` };
    const onPort = port === undefined ? {} : { port };
    // No rule has a condition of its own, so that the first one takes all.
    if (object.kind === 'TLSRoute') {
      const sniHosts = names?.length ? [...names] : [host];
      this.#addVirtualService(loaded, own, { hosts: binding.gateway === MESH_GATEWAY ? [host] : sniHosts, tls: object.spec.rules.map(({ backendRefs }) => ({ match: [{ sniHosts, ...onPort }], route: l4Destinations(backendRefs, context) })) });
    } else this.#addVirtualService(loaded, own, { tcp: object.spec.rules.map(({ backendRefs }) => ({ ...(port === undefined ? {} : { match: [onPort] }), route: l4Destinations(backendRefs, context) })) });
  }

  #addVirtualService(origin: LoadedObject, { name, gateway, host, namespace, isPrivate }: Binding, routes: VirtualService['spec']): void {
    const spec = { hosts: [host], gateways: [gateway], ...routes, ...(isPrivate ? { exportTo: ['.'] } : {}) };
    const object: VirtualService = {
      apiVersion: 'networking.istio.io/v1',
      kind: 'VirtualService',
      metadata: { name, namespace, annotations: { [ROUTE_SEMANTICS_ANNOTATION]: 'gateway' }, creationTimestamp: origin.object.metadata.creationTimestamp ?? '' },
      spec,
    };
    this.#virtualServices.push({ ...origin, object, key: `networking.istio.io/VirtualService/${namespace}/${name}` });
  }

  /** @param kind of the route, whose backends in other namespaces need their consent; undefined: none is needed */
  #resolver(kind: RouteKind | undefined, from: string): ResolveBackend {
    return (reference: BackendObjectReference) => {
      const { group = '', kind: targetKind = 'Service', name, port } = reference;
      const namespace = reference.namespace ?? from;
      if (kind && !isGranted(this.sources.configs, { group: GATEWAY_API, kind, namespace: from }, { group, kind: targetKind, namespace, name })) return 'RefNotPermitted';
      // Istio's own: a host of a ServiceEntry.
      const host = group === 'networking.istio.io' && targetKind === 'Hostname' ? name : group === '' && targetKind === 'Service' ? serviceHost(name, namespace, this.sources.mesh.clusterDomain) : undefined;
      if (host === undefined) return 'InvalidKind';
      const service = this.sources.service(host);
      return service && (port === undefined || service.ports.some((candidate) => candidate.port === port)) ? { host, port } : 'BackendNotFound';
    };
  }
}
