/**
 * Waypoints: Gateways of the Gateway API through which, by the label `istio.io/use-waypoint`, clients reach services and
 * workloads. WDS names them; which label counts, and what a waypoint is for, is by Istio's rules.
 */
import { isIP } from 'node:net';
import { HBONE_PORT } from '../../common/istio-iptables.js';
import { apiGroup, type GatewayClass, type GatewayListener, type KubeGateway, type KubeObject } from '../../common/kube/types.js';
import { GATEWAY_API } from '../gateway-api/parents.js';
import { selectorMatches } from '../mesh-config/discovery.js';
import type { Configs } from './configs.js';
import { serviceHost } from './hosts.js';

const USE = 'istio.io/use-waypoint';
const USE_NAMESPACE = 'istio.io/use-waypoint-namespace';
const FOR = 'istio.io/waypoint-for';
const NONE = 'none';
const CLASS = 'istio-waypoint';
const CONTROLLER = 'istio.io/mesh-controller';
const GATEWAY_NAME_LABEL = 'gateway.networking.k8s.io/gateway-name';
const MANAGED_LABEL = 'gateway.istio.io/managed';
/** Proxies of the mesh themselves: their Services have no waypoint. */
const MANAGED_BY_MESH: ReadonlySet<string | undefined> = new Set(['istio.io-mesh-controller', 'istio.io-eastwest-controller']);

export interface Waypoint {
  namespace: string;
  name: string;
  /** A host name, or an IP address where its status has no name. */
  address: string;
  /** `service`, `workload`, `all`, `none`. */
  trafficType: string;
  allowedNamespaces: NonNullable<NonNullable<GatewayListener['allowedRoutes']>['namespaces']>;
}

export interface WaypointSources {
  configs: Configs;
  clusterDomain(): string;
  namespaceLabels(namespace: string): Readonly<Record<string, string>>;
  hasService(host: string): boolean;
}

type Labels = Readonly<Record<string, string>>;

/** What a workload or service has of its object. */
export interface Labelled {
  namespace: string;
  labels: Labels | undefined;
}

export class Waypoints {
  #known: ReadonlyMap<string, Waypoint> | undefined;
  /** Until anything changes. */
  readonly #made = new Map<string, unknown>();

  constructor(readonly sources: WaypointSources) {}

  /** By `namespace/name`: those that have an address. */
  get all(): ReadonlyMap<string, Waypoint> {
    return (this.#known ??= this.#find());
  }

  /** What is made of the whole mesh for a waypoint: once, until the model changes. */
  once<T>(waypoint: Waypoint, what: string, make: () => T): T {
    const key = `${waypoint.namespace}/${waypoint.name} ${what}`;
    if (!this.#made.has(key)) this.#made.set(key, make());
    return this.#made.get(key) as T;
  }

  modelChanged(): void {
    this.#made.clear();
  }

  /** @returns whether any may be another now: asked of what was changed, when all changes are in */
  concerns({ apiVersion, kind, metadata }: KubeObject): boolean {
    if (kind === 'GatewayClass') return true;
    if (kind === 'Gateway') return apiGroup(apiVersion) === GATEWAY_API;
    // One without a status has the address of its Service, once that is there.
    return kind === 'Service' && this.#gateways().some((gateway) => gateway.metadata.name === metadata.name && namespaceOf(gateway) === (metadata.namespace ?? 'default'));
  }

  /** Looks again. @returns `namespace/name` of those that are others now */
  refresh(): Set<string> {
    const before = this.#known ?? new Map<string, Waypoint>();
    const now = (this.#known = this.#find());
    const names = new Set([...before.keys(), ...now.keys()]);
    for (const name of names) if (JSON.stringify(before.get(name)) === JSON.stringify(now.get(name))) names.delete(name);
    return names;
  }

  /** Which one its labels, or else its namespace's, name, whether there is such a one or not. */
  named({ namespace, labels }: Labelled): string | undefined {
    const from = labels?.[USE] === undefined ? this.sources.namespaceLabels(namespace) : labels;
    const name = from[USE];
    return name === undefined || name === NONE ? undefined : `${from[USE_NAMESPACE] ?? namespace}/${name}`;
  }

  ofService(service: Labelled): Waypoint | undefined {
    if (MANAGED_BY_MESH.has(service.labels?.[MANAGED_LABEL])) return undefined;
    return this.#taking(service, 'service');
  }

  ofWorkload(workload: Labelled): Waypoint | undefined {
    const own = workload.labels?.[GATEWAY_NAME_LABEL];
    // One that is a waypoint itself has none.
    if (own !== undefined && this.all.has(`${workload.namespace}/${own}`)) return undefined;
    return this.#taking(workload, 'workload');
  }

  #taking(target: Labelled, type: 'service' | 'workload'): Waypoint | undefined {
    if (this.all.size === 0) return undefined;
    const found = this.all.get(this.named(target) ?? '');
    if (!found || (found.trafficType !== type && found.trafficType !== 'all')) return undefined;
    return this.#allows(found, target.namespace) ? found : undefined;
  }

  #allows({ namespace: own, allowedNamespaces: { from = 'Same', selector } }: Waypoint, namespace: string): boolean {
    if (from === 'All') return true;
    if (from !== 'Selector') return own === namespace;
    return selector !== undefined && selectorMatches(selector, { 'kubernetes.io/metadata.name': namespace, ...this.sources.namespaceLabels(namespace) });
  }

  #gateways(): KubeGateway[] {
    return this.sources.configs.all<KubeGateway>('Gateway').map(({ object }) => object).filter(({ apiVersion }) => apiGroup(apiVersion) === GATEWAY_API);
  }

  #find(): Map<string, Waypoint> {
    const classes = new Map(this.sources.configs.all<GatewayClass>('GatewayClass').map(({ object }) => [object.metadata.name, object]));
    const found = new Map<string, Waypoint>();
    for (const gateway of this.#gateways()) {
      const { metadata, spec } = gateway;
      const given = classes.get(spec.gatewayClassName);
      const address = this.#address(gateway, given ? given.spec.controllerName === CONTROLLER : spec.gatewayClassName === CLASS);
      if (address === undefined) continue;
      const namespace = namespaceOf(gateway);
      const listener = spec.listeners.find(({ protocol, port }) => protocol === 'HBONE' && port === HBONE_PORT);
      found.set(`${namespace}/${metadata.name}`, {
        namespace, name: metadata.name, address,
        trafficType: metadata.labels?.[FOR] ?? given?.metadata.labels?.[FOR] ?? 'service',
        allowedNamespaces: listener?.allowedRoutes?.namespaces ?? {},
      });
    }
    return found;
  }

  /**
   * What its status says, a name before an IP address. Of a class whose controller is nobody's here there may be no status:
   * then its Service counts, which has its name.
   */
  #address(gateway: KubeGateway, isWaypointClass: boolean): string | undefined {
    const { metadata, status } = gateway;
    const addresses = status?.addresses ?? [];
    const host = addresses.find(({ type }) => type === 'Hostname')?.value;
    const ip = addresses.find(({ type, value }) => (type ?? 'IPAddress') === 'IPAddress' && isIP(value) !== 0)?.value;
    if (host ?? ip) return host ?? ip;
    const own = serviceHost(metadata.name, namespaceOf(gateway), this.sources.clusterDomain());
    return isWaypointClass && addresses.length === 0 && this.sources.hasService(own) ? own : undefined;
  }
}

function namespaceOf({ metadata }: KubeObject): string {
  return metadata.namespace ?? 'default';
}
