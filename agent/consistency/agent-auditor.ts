/** The auditor of an agent: what it compares, and which objects a drift is of. */
import type { PodRecord } from '../../common/lab-api.js';
import type { Logger } from '../../common/log.js';
import type { AgentKernel, AgentProxy } from '../parts.js';
import { Auditor } from './auditor.js';
import type { Drift } from './drift.js';

export interface AuditedAgent {
  kernel: Pick<AgentKernel, 'checks'> | undefined;
  proxy: Pick<AgentProxy, 'checks'>;
  records(): readonly Pick<PodRecord, 'uid' | 'name' | 'namespace'>[];
  resolver: { servicesAt(address: string, port: number): string[] } | undefined;
  policies: { policiesOf(uid: string): string[] } | undefined;
  logger: Logger;
}

/** Starts it. */
export function agentAuditor({ kernel, proxy, records, resolver, policies, logger }: AuditedAgent): Auditor {
  const objectsOf = (drift: Drift): string[] => {
    const pod = records().find(({ uid }) => uid === drift.pod);
    return [
      ...(drift.objects ?? []),
      ...(pod ? [`Pod/${pod.name}.${pod.namespace}`] : []),
      ...(drift.kind === 'service' ? servicesOf(drift.name, resolver) : []),
      ...(drift.kind === 'policy' && drift.pod !== undefined ? (policies?.policiesOf(drift.pod) ?? []).map(policyObject) : []),
    ];
  };
  const auditor = new Auditor({ checks: [...(kernel?.checks?.() ?? []), ...(proxy.checks?.() ?? [])], objectsOf, logger });
  auditor.start();
  return auditor;
}

/** @param place `10.96.0.7:80` or `[fd00::1]:80` */
function servicesOf(place: string, resolver: AuditedAgent['resolver']): string[] {
  const [, address = '', port] = /^\[?(.*?)\]?:(\d+)$/.exec(place) ?? [];
  return (resolver?.servicesAt(address, Number(port)) ?? []).map((name) => {
    const [namespace = '', hostname = ''] = name.split('/');
    const [service] = hostname.split('.', 1);
    return hostname.startsWith(`${service}.${namespace}.svc.`) ? `Service/${service}.${namespace}` : `ServiceEntry/${hostname}.${namespace}`;
  });
}

/** What istiod's WDS calls policies: an AuthorizationPolicy by its name, what it makes of a PeerAuthentication by a name of its own. */
const CONVERTED = 'converted_peer_authentication_';
export function policyObject(name: string): string {
  const at = name.indexOf('/');
  const [namespace, own] = [name.slice(0, at), name.slice(at + 1)];
  if (own === 'istio_converted_static_strict') return `PeerAuthentication/*.${namespace}`;
  return own.startsWith(CONVERTED) ? `PeerAuthentication/${own.slice(CONVERTED.length)}.${namespace}` : `AuthorizationPolicy/${own}.${namespace}`;
}
