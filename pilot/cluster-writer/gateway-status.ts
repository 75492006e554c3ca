/** The status of the Gateway API's objects in the cluster, as the model has it. What other controllers say there stays. */
import { isDeepStrictEqual } from 'node:util';
import { resourceOf, type KubeClient } from '../../common/kube/client.js';
import type { Condition, GatewayClass, KubeGateway, KubeObject, RouteStatus, Service } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { CONTROLLER_NAME, type GatewayApiStatus } from '../gateway-api/status.js';
import { CONTROLLERS, deploymentName, isManaged, isWaypointClass } from '../gateway-controller/provision.js';
import { writeEach } from './reconciler.js';

const GROUP = 'gateway.networking.k8s.io';
type Objects = ReadonlyMap<string, LoadedObject>;

export interface StatusUpdate {
  /** As it is in the cluster, with the version that the new status is for. */
  object: KubeObject;
  status: object;
}

/** Also what they refer to: backends, certificates, namespaces that a listener selects by their labels. */
const CONCERNED = [`${GROUP}/`, '/Service/', 'networking.istio.io/ServiceEntry/', '/Secret/', '/Namespace/'];

export function concernsGatewayStatus(key: string): boolean {
  return CONCERNED.some((prefix) => key.startsWith(prefix));
}

/** What is to be written: only what differs from the status that is there. @param now ISO 8601, when a condition that changed did so */
export function statusUpdates(objects: Objects, { gateways, routes }: GatewayApiStatus, clusterDomain: string, now: string): StatusUpdate[] {
  const updates: StatusUpdate[] = [];
  const offer = (object: KubeObject & { status?: unknown }, status: object): void => {
    // One of a file has no version, and no status.
    if (object.metadata.resourceVersion !== undefined && !isDeepStrictEqual(without(object.status), without(status))) updates.push({ object, status });
  };
  const wantedRoutes = new Map(routes.map(({ route, status }) => [route, status]));
  for (const [key, { object }] of objects) {
    if (!key.startsWith(`${GROUP}/`)) continue;
    const { generation = 0 } = object.metadata;
    if (object.kind === 'GatewayClass') {
      const { spec, status } = object as GatewayClass & { status?: { conditions?: Condition[] } };
      if (CONTROLLERS.has(spec.controllerName) || isWaypointClass(object as GatewayClass)) offer(object, { ...status, conditions: conditions(status?.conditions, [{ type: 'Accepted', status: 'True', reason: 'Accepted', message: '' }], generation, now) });
    }
    if (object.kind.endsWith('Route')) {
      const { status } = object as KubeObject & { status?: RouteStatus };
      const present = status?.parents ?? [];
      const others = present.filter(({ controllerName }) => controllerName !== CONTROLLER_NAME);
      const own = (wantedRoutes.get(`${object.kind} ${object.metadata.namespace}/${object.metadata.name}`)?.parents ?? []).map((parent) => {
        const before = present.find(({ controllerName, parentRef }) => controllerName === CONTROLLER_NAME && isSameParent(parentRef, parent.parentRef));
        return { ...parent, conditions: conditions(before?.conditions, parent.conditions, generation, now) };
      });
      // A route that never was ours has no status from here.
      if (own.length > 0 || others.length < present.length) offer(object, { parents: [...others, ...own] });
    }
  }
  for (const { gateway, status } of gateways) {
    const object = objects.get(`${GROUP}/Gateway/${gateway}`)?.object as KubeGateway | undefined;
    if (object) offer(object, gatewayStatus(object, status, objects, clusterDomain, now));
  }
  return updates;
}

/** One that has changed meanwhile (409) is refused, and looked at again. */
export function writeStatuses(client: KubeClient, updates: readonly StatusUpdate[], signal: AbortSignal): Promise<void> {
  return writeEach(updates, signal, ({ object: { apiVersion, kind, metadata: { namespace, name, resourceVersion } }, status }) =>
    client.merge(resourceOf(apiVersion, kind), { namespace, name, subresource: 'status' }, { metadata: { resourceVersion }, status }, signal),
  );
}

function gatewayStatus(gateway: KubeGateway, wanted: NonNullable<KubeGateway['status']>, objects: Objects, clusterDomain: string, now: string): NonNullable<KubeGateway['status']> {
  const { status: present, metadata: { generation = 0 } } = gateway;
  const addresses = addressesOf(gateway, objects, clusterDomain);
  const own = (wanted.conditions ?? []).map((item) =>
    item.type === 'Programmed' && item.status === 'True' && addresses.length === 0 ? { ...item, status: 'False', reason: 'AddressNotAssigned', message: 'its Service is not there or has no address yet' } : item,
  );
  const listeners = (wanted.listeners ?? []).map((listener) => ({ ...listener, conditions: conditions(present?.listeners?.find(({ name }) => name === listener.name)?.conditions, listener.conditions, generation, now) }));
  return { ...present, addresses, conditions: conditions(present?.conditions, own, generation, now), listeners };
}

/** Those of the Service that leads to the gateway's proxies: the load balancer's, else the Service's name. */
function addressesOf(gateway: KubeGateway, objects: Objects, clusterDomain: string): { type: string; value: string }[] {
  const namespace = gateway.metadata.namespace ?? 'default';
  const named = gateway.spec.addresses?.find(({ type }) => type === 'Hostname')?.value;
  const [name = '', home = namespace] = isManaged(gateway) ? [deploymentName(gateway)] : (named?.split('.') ?? []);
  const service = objects.get(`/Service/${home}/${name}`)?.object as Service | undefined;
  if (!service) return [];
  if (service.spec.type !== 'LoadBalancer') return [{ type: 'Hostname', value: `${name}.${home}.svc.${clusterDomain}` }];
  return (service.status?.loadBalancer?.ingress ?? []).flatMap(({ ip, hostname }) => (ip ? [{ type: 'IPAddress', value: ip }] : hostname ? [{ type: 'Hostname', value: hostname }] : []));
}

/** One of each type: ours in the place of those that are there, those of others as they are. */
function conditions(present: readonly Condition[] | undefined, own: readonly Condition[], observedGeneration: number, now: string): Condition[] {
  const ours = own.map((condition) => {
    const before = present?.find(({ type }) => type === condition.type);
    return { ...condition, message: condition.message ?? '', observedGeneration, lastTransitionTime: before?.status === condition.status && before.lastTransitionTime ? before.lastTransitionTime : now };
  });
  return [...ours, ...(present ?? []).filter(({ type }) => !own.some((condition) => condition.type === type))];
}

function isSameParent(a: object, b: object): boolean {
  const { group = GROUP, kind = 'Gateway', ...rest } = a as { group?: string; kind?: string };
  const { group: otherGroup = GROUP, kind: otherKind = 'Gateway', ...other } = b as { group?: string; kind?: string };
  return group === otherGroup && kind === otherKind && isDeepStrictEqual(rest, other);
}

/** For comparing: the API server stores no undefined, and fills in the parent's defaults. */
function without(status: unknown): unknown {
  return JSON.parse(JSON.stringify(status ?? {}, (key, value: unknown) => (key === 'parentRef' ? { group: GROUP, kind: 'Gateway', ...(value as object) } : value)));
}
