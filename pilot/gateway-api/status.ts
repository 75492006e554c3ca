/** What the Gateway API's objects have as their status: what was accepted, attached and resolved. Written back by whoever can. */
import type { Condition, KubeGateway, KubeObject, ParentReference, RouteStatus } from '../../common/kube/types.js';
import { kindsOf, namespaceOf, type Refusal } from './parents.js';

export const CONTROLLER_NAME = 'underpass.io/gateway-controller';

export interface GatewayApiStatus {
  gateways: { gateway: string; status: NonNullable<KubeGateway['status']> }[];
  /** `Kind namespace/name` of the route. */
  routes: { route: string; status: RouteStatus }[];
}

interface StatusCondition extends Condition {
  reason: string;
  message: string;
}

const condition = (type: string, isTrue: boolean, reason: string, message = ''): StatusCondition => ({ type, status: isTrue ? 'True' : 'False', reason, message });

const REFUSALS: Record<Refusal, string> = {
  NoMatchingParent: 'the parent has no such listener, or there is no such Service',
  NotAllowedByListeners: "no listener takes routes of this kind from this namespace: see the listeners' allowedRoutes",
  NoMatchingListenerHostname: "no listener has a host name in common with the route's",
};

/** What is to be said of a listener. */
export interface ListenerFindings {
  /** Traffic is served, if perhaps not all that was asked for. */
  isProgrammed: boolean;
  /** Nothing here speaks its protocol. */
  isUnsupported?: true;
  conflict?: 'ProtocolConflict' | 'HostnameConflict';
  /** Why something that it refers to can't be used. */
  unresolved?: 'InvalidCertificateRef' | 'RefNotPermitted' | 'InvalidRouteKinds';
}

export class StatusBuilder {
  readonly #attached = new Map<string, number>();
  readonly #findings = new Map<string, ListenerFindings>();
  readonly #routes = new Map<string, RouteStatus>();

  constructor(readonly gateways: readonly KubeGateway[]) {}

  attached(gateway: KubeGateway, listener: string): void {
    const key = listenerKey(gateway, listener);
    this.#attached.set(key, (this.#attached.get(key) ?? 0) + 1);
  }

  listener(gateway: KubeGateway, listener: string, findings: ListenerFindings): void {
    this.#findings.set(listenerKey(gateway, listener), findings);
  }

  /** @param unresolved reasons of backends that can't be led to */
  route(route: KubeObject, parentRef: ParentReference, refusal: Refusal | undefined, unresolved: readonly string[]): void {
    const key = `${route.kind} ${namespaceOf(route)}/${route.metadata.name}`;
    let status = this.#routes.get(key);
    if (!status) this.#routes.set(key, (status = { parents: [] }));
    const conditions = [
      refusal ? condition('Accepted', false, refusal, REFUSALS[refusal]) : condition('Accepted', true, 'Accepted'),
      unresolved.length > 0 ? condition('ResolvedRefs', false, unresolved[0]!, `backends that can't be led to are answered with 500: ${[...new Set(unresolved)].join(', ')}`) : condition('ResolvedRefs', true, 'ResolvedRefs'),
    ];
    status.parents.push({ parentRef, controllerName: CONTROLLER_NAME, conditions });
  }

  result(): GatewayApiStatus {
    return {
      gateways: this.gateways.map((gateway) => ({ gateway: `${namespaceOf(gateway)}/${gateway.metadata.name}`, status: this.#gatewayStatus(gateway) })),
      routes: [...this.#routes].map(([route, status]) => ({ route, status })),
    };
  }

  #gatewayStatus(gateway: KubeGateway): NonNullable<KubeGateway['status']> {
    const listeners = gateway.spec.listeners.map((listener) => {
      const { isProgrammed, isUnsupported, conflict, unresolved } = this.#findings.get(listenerKey(gateway, listener.name)) ?? { isProgrammed: false };
      const refusal = isUnsupported ? 'UnsupportedProtocol' : conflict;
      return {
        name: listener.name,
        supportedKinds: kindsOf(listener).map((kind) => ({ group: 'gateway.networking.k8s.io', kind })),
        attachedRoutes: this.#attached.get(listenerKey(gateway, listener.name)) ?? 0,
        conditions: [
          condition('Accepted', refusal === undefined, refusal ?? 'Accepted'),
          condition('Conflicted', conflict !== undefined, conflict ?? 'NoConflicts'),
          condition('ResolvedRefs', unresolved === undefined, unresolved ?? 'ResolvedRefs'),
          condition('Programmed', isProgrammed, isProgrammed ? 'Programmed' : 'Invalid'),
        ],
      };
    });
    const named = (type: string, status: Condition['status']): string[] => listeners.filter(({ conditions }) => conditions.some((one) => one.type === type && one.status === status)).map(({ name }) => name);
    const refused = named('Accepted', 'False');
    const isUsable = named('Programmed', 'True').length > 0;
    return {
      conditions: [
        condition('Accepted', refused.length < listeners.length, refused.length > 0 ? 'ListenersNotValid' : 'Accepted', refused.length > 0 ? `listeners that are not accepted: ${refused.join(', ')}` : ''),
        condition('Programmed', isUsable, isUsable ? 'Programmed' : 'Invalid'),
      ],
      listeners,
    };
  }
}

function listenerKey(gateway: KubeGateway, listener: string): string {
  return `${namespaceOf(gateway)}/${gateway.metadata.name}/${listener}`;
}
