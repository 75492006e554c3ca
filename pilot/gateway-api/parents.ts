/** Which listeners a route is attached to, by the Gateway API's rules: section, port, protocol, namespace and host names. */
import type { GatewayListener, KubeGateway, KubeObject, ParentReference } from '../../common/kube/types.js';
import { selectorMatches } from '../mesh-config/discovery.js';

export const GATEWAY_API = 'gateway.networking.k8s.io';

export type RouteKind = 'HTTPRoute' | 'GRPCRoute' | 'TLSRoute' | 'TCPRoute';

const KINDS_OF: Record<string, readonly RouteKind[]> = {
  HTTP: ['HTTPRoute', 'GRPCRoute'],
  HTTPS: ['HTTPRoute', 'GRPCRoute'],
  TLS: ['TLSRoute', 'TCPRoute'],
  TCP: ['TCPRoute'],
};

/** What routes a listener could take by its protocol; without TLS of its own it knows names alone. */
const possibleKinds = ({ protocol, tls }: GatewayListener): readonly RouteKind[] => (KINDS_OF[protocol] ?? []).filter((kind) => kind !== 'TCPRoute' || tls?.mode !== 'Passthrough');

const isKind = ({ group = GATEWAY_API, kind }: { group?: string; kind: string }, route: RouteKind): boolean => kind === route && group === GATEWAY_API;

/** What routes a listener takes by its protocol and its `allowedRoutes.kinds`. */
export function kindsOf(listener: GatewayListener): readonly RouteKind[] {
  const { kinds } = listener.allowedRoutes ?? {};
  return possibleKinds(listener).filter((route) => !kinds?.length || kinds.some((wanted) => isKind(wanted, route)));
}

/** Whether `allowedRoutes` names a kind that the listener can't take. */
export function hasUnknownKinds(listener: GatewayListener): boolean {
  return listener.allowedRoutes?.kinds?.some((wanted) => !possibleKinds(listener).some((route) => isKind(wanted, route))) ?? false;
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

/** What one port can carry together: plaintext HTTP by the Host header, TLS by the SNI, plain TCP alone. */
const FAMILIES: Record<string, string> = { HTTP: 'http', HTTPS: 'tls', TLS: 'tls', TCP: 'tcp' };

export const isServed = ({ protocol }: GatewayListener): boolean => FAMILIES[protocol] !== undefined;

/** Listeners of one port and family, among which a host name decides. */
export const shareNames = (a: GatewayListener, b: GatewayListener): boolean => a.port === b.port && isServed(a) && FAMILIES[a.protocol] === FAMILIES[b.protocol];

export interface Attachment {
  listener: GatewayListener;
  /** Host names that both have, `*` for all; without those that another listener of the port is nearer to, perhaps none. */
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
    const nearer = gateway.spec.listeners.filter((other) => shareNames(listener, other) && other.hostname !== undefined && other.hostname !== own && commonName(other.hostname, own) === other.hostname.toLowerCase());
    return hostnames.length > 0 ? [{ listener, hostnames: [...new Set(hostnames)].filter((name) => !nearer.some(({ hostname }) => commonName(hostname!, name) === name)) }] : [];
  });
  return found.length > 0 ? found : 'NoMatchingListenerHostname';
}

/** `Gateway` unless a parent reference says otherwise. */
export function isGatewayReference({ group = GATEWAY_API, kind = 'Gateway' }: ParentReference): boolean {
  return group === GATEWAY_API && kind === 'Gateway';
}

/** A Service, or Istio's ServiceEntry: the route is for the mesh's own clients. */
export function isMeshReference({ group = GATEWAY_API, kind = 'Gateway' }: ParentReference): boolean {
  return (group === '' && kind === 'Service') || (group === 'networking.istio.io' && kind === 'ServiceEntry');
}
