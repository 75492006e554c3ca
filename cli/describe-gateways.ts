/**
 * The Gateways that traffic comes to a service or its pods by, out of what is written in the cluster: their own Envoys are not asked. That
 * needs `list` of VirtualServices, Gateways and routes of the Gateway API in all namespaces; a kind that the server does not have has none.
 */
import { errorMessage } from '../common/errors.js';
import { isRefusal, resourceOf, resourcePath, type KubeClient } from '../common/kube/client.js';
import { kinds } from '../common/kube/kinds.js';
import type { KubeObject } from '../common/kube/types.js';

interface VirtualService extends KubeObject {
  spec?: { gateways?: string[]; http?: Route[]; tcp?: Route[]; tls?: Route[] };
}
interface Route { route?: { destination?: { host?: string } }[]; mirror?: { host?: string } }
interface KubeRoute extends KubeObject {
  spec?: { parentRefs?: { group?: string; kind?: string; name: string; namespace?: string }[]; rules?: { backendRefs?: { kind?: string; name: string; namespace?: string }[] }[] };
}
interface SelectingGateway extends KubeObject {
  spec?: { selector?: Record<string, string> };
}

const ROUTES = ['HTTPRoute', 'GRPCRoute', 'TLSRoute', 'TCPRoute'];
const PAGE = 500;

export interface GatewayUse {
  /** `Gateway NAMESPACE/NAME`, of Istio's or the Gateway API, and by which object it leads here. */
  gateway: string;
  by: string;
}

/** @param hosts of services in full, e.g. `web.shop.svc.cluster.local` @returns `problems`: what could not be read */
export async function gatewaysTo(client: KubeClient, hosts: ReadonlySet<string>): Promise<{ gateways: GatewayUse[]; problems: string[] }> {
  const gateways: GatewayUse[] = [];
  const problems: string[] = [];
  const each = async <T extends KubeObject>(kind: string, take: (object: T) => void): Promise<void> => {
    try {
      for (const object of await listAll<T>(client, kind)) take(object);
    } catch (error) {
      problems.push(`which ${kind}s lead here is not known: ${errorMessage(error)}`);
    }
  };
  await each<VirtualService>('VirtualService', ({ metadata: { name, namespace = 'default' }, spec = {} }) => {
    const isHere = [...(spec.http ?? []), ...(spec.tcp ?? []), ...(spec.tls ?? [])].flatMap(({ route = [], mirror }) => [...route.map(({ destination }) => destination?.host), mirror?.host]).some((host) => host !== undefined && isOneOf(hosts, host, namespace));
    for (const gateway of isHere ? (spec.gateways ?? []) : []) if (gateway !== 'mesh') gateways.push({ gateway: `Gateway ${gateway.includes('/') ? gateway : `${namespace}/${gateway}`}`, by: `VirtualService ${namespace}/${name}` });
  });
  for (const kind of ROUTES) {
    await each<KubeRoute>(kind, ({ metadata: { name, namespace = 'default' }, spec = {} }) => {
      const isHere = (spec.rules ?? []).flatMap(({ backendRefs = [] }) => backendRefs).some((ref) => (ref.kind ?? 'Service') === 'Service' && isOneOf(hosts, ref.name, ref.namespace ?? namespace));
      for (const parent of isHere ? (spec.parentRefs ?? []) : []) if ((parent.kind ?? 'Gateway') === 'Gateway') gateways.push({ gateway: `Gateway ${parent.namespace ?? namespace}/${parent.name}`, by: `${kind} ${namespace}/${name}` });
    });
  }
  return { gateways, problems };
}

/** Gateways of Istio's API whose selector takes a pod with these labels for their own. */
export async function gatewaysSelecting(client: KubeClient, pod: { namespace: string; name: string }): Promise<string[]> {
  const { metadata: { labels = {} } } = await client.get(resourceOf('v1', 'Pod'), pod);
  const all = await listAll<SelectingGateway>(client, 'Gateway');
  return all.filter(({ spec: { selector = {} } = {} }) => Object.keys(selector).length > 0 && Object.entries(selector).every(([key, value]) => labels[key] === value)).map(({ metadata }) => `Gateway ${metadata.namespace ?? 'default'}/${metadata.name}`).sort();
}

/** A host of VirtualServices may be short, in their own namespace. */
function isOneOf(hosts: ReadonlySet<string>, host: string, namespace: string): boolean {
  if (hosts.has(host)) return true;
  const short = host.includes('.') ? `${host}.` : `${host}.${namespace}.`;
  return [...hosts].some((each) => each.startsWith(short) && each.includes('.svc.'));
}

/** Of Istio's where both have one of the name. */
async function listAll<T extends KubeObject>(client: KubeClient, name: string): Promise<T[]> {
  const kind = kinds.find((each) => each.kind === name)!;
  for (const version of kind.versions) {
    const found: T[] = [];
    try {
      let next = '';
      do {
        const query = new URLSearchParams({ limit: String(PAGE), ...(next === '' ? {} : { continue: next }) });
        const { items = [], metadata } = await client.request<{ items?: T[]; metadata?: { continue?: string } }>('GET', `${resourcePath(resourceOf(`${kind.group}/${version}`, kind.kind), {})}?${query.toString()}`);
        found.push(...items);
        next = metadata?.continue ?? '';
      } while (next !== '');
      return found;
    } catch (error) {
      if (!isRefusal(error, 404)) throw error;
    }
  }
  return [];
}
