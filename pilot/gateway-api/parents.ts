/** Which listeners a route is attached to, by the Gateway API's rules: section, port, protocol, namespace and host names. */
import { apiGroup, type GatewayListener, type KubeGateway, type KubeObject, type ParentReference } from '../../common/kube/types.js';
import { selectorMatches } from '../mesh-config/discovery.js';

export const GATEWAY_API = 'gateway.networking.k8s.io';

export type RouteKind = 'HTTPRoute' | 'GRPCRoute' | 'TLSRoute' | 'TCPRoute';

const KINDS_OF: Record<string, readonly RouteKind[]> = {
  HTTP: ['HTTPRoute', 'GRPCRoute'],
  HTTPS: ['HTTPRoute', 'GRPCRoute'],
  TLS: ['TLSRoute', 'TCPRoute'],
  TCP: ['TCPRoute'],
};

/** What routes a listener takes by its protocol and its `allowedRoutes.kinds`. */
export function kindsOf({ protocol, allowedRoutes, tls }: GatewayListener): readonly RouteKind[] {
  const possible = (KINDS_OF[protocol] ?? []).filter((kind) => protocol !== 'TLS' || (kind === 'TLSRoute') === (tls?.mode === 'Passthrough'));
  const allowed = allowedRoutes?.kinds;
  if (!allowed?.length) return possible;
  return possible.filter((kind) => allowed.some((wanted) => wanted.kind === kind && (wanted.group ?? GATEWAY_API) === GATEWAY_API));
}

export const namespaceOf = ({ metadata }: KubeObject): string => metadata.namespace ?? 'default';

export type NamespaceLabels = (namespace: string) => Readonly<Record<string, string>>;

function takesNamespace(gateway: KubeGateway, { allowedRoutes }: GatewayListener, namespace: string, labelsOf: NamespaceLabels): boolean {
  const { from = 'Same', selector } = allowedRoutes?.namespaces ?? {};
  if (from === 'All') return true;
  if (from === 'Selector') return selector !== undefined && selectorMatches(selector, { 'kubernetes.io/metadata.name': namespace, ...labelsOf(namespace) });
  return from === 'Same' && namespace === namespaceOf(gateway);
}

/** The narrower of two names of which one may be a wildcard; undefined when they have nothing in common. */
export function commonName(a: string, b: string): string | undefined {
  const [x, y] = [a.toLowerCase(), b.toLowerCase()];
  if (x === '*' || x === y) return y;
  if (y === '*') return x;
  const covers = (pattern: string, name: string): boolean => pattern.startsWith('*.') && name.endsWith(pattern.slice(1)) && name !== pattern;
  if (covers(x, y)) return y;
  return covers(y, x) ? x : undefined;
}

export interface Attachment {
  listener: GatewayListener;
  /** Host names that both have; `*` for all. */
  hostnames: string[];
}

/** Why a route is not attached, in the words of the Gateway API's conditions. */
export type Refusal = 'NoMatchingParent' | 'NotAllowedByListeners' | 'NoMatchingListenerHostname';

export interface RouteToAttach {
  kind: RouteKind;
  namespace: string;
  hostnames: readonly string[] | undefined;
}

export function attach(gateway: KubeGateway, reference: ParentReference, route: RouteToAttach, labelsOf: NamespaceLabels): Attachment[] | Refusal {
  const meant = gateway.spec.listeners.filter(({ name, port }) => (reference.sectionName === undefined || reference.sectionName === name) && (reference.port === undefined || reference.port === port));
  if (meant.length === 0) return 'NoMatchingParent';
  const allowed = meant.filter((listener) => kindsOf(listener).includes(route.kind) && takesNamespace(gateway, listener, route.namespace, labelsOf));
  if (allowed.length === 0) return 'NotAllowedByListeners';
  const found = allowed.flatMap((listener): Attachment[] => {
    const own = listener.hostname ?? '*';
    // TCP knows no names.
    if (route.kind === 'TCPRoute') return [{ listener, hostnames: ['*'] }];
    const hostnames = (route.hostnames?.length ? route.hostnames : ['*']).flatMap((name) => commonName(name, own) ?? []);
    return hostnames.length > 0 ? [{ listener, hostnames: [...new Set(hostnames)] }] : [];
  });
  return found.length > 0 ? found : 'NoMatchingListenerHostname';
}

/** `Gateway` unless a parent reference says otherwise. */
export function isGatewayReference({ group = GATEWAY_API, kind = 'Gateway' }: ParentReference): boolean {
  return group === GATEWAY_API && kind === 'Gateway';
}

export function isServiceReference({ group = GATEWAY_API, kind = 'Gateway' }: ParentReference): boolean {
  return group === '' && kind === 'Service';
}

export const isGatewayApi = (object: KubeObject): boolean => apiGroup(object.apiVersion) === GATEWAY_API;
