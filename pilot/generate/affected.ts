/** What a change may alter for one proxy, asked in the same way by several generators. */
import type { ChangeSet } from '../model/changes.js';
import { podName, type Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { podOf } from './inbound-ports.js';
import { SECURITY_KINDS } from './security/filters.js';

/** Something that decides which services and routes a client sees, or a rule that it obeys. */
export function outboundChanged(change: ChangeSet): boolean {
  return change.full || change.services.size + change.routes.size + change.rules.size + change.identities.size > 0 || change.touches('VirtualService', 'Sidecar', 'HTTPRoute', 'GRPCRoute', 'TLSRoute', 'TCPRoute', 'ReferenceGrant');
}

/** Of the workload itself: its pod's labels and ports, the Services that select it, its Sidecar resource. */
export function inboundChanged(model: Model, proxy: Proxy, change: ChangeSet): boolean {
  const pod = podOf(model, proxy);
  const name = pod ? podName(pod) : `${proxy.namespace}/${proxy.name}`;
  return (
    change.full ||
    change.inboundNamespaces.has(proxy.namespace) ||
    change.pods.has(name) ||
    change.pods.has(`${proxy.namespace}/${proxy.name}`) ||
    change.touchesIn([proxy.namespace, model.mesh.rootNamespace], 'Sidecar')
  );
}

/** Policies of the workload's namespace or of the whole mesh: they stand in its listeners. */
export function policyChanged(model: Model, proxy: Proxy, change: ChangeSet): boolean {
  return change.touchesIn([proxy.namespace, model.mesh.rootNamespace], ...SECURITY_KINDS);
}

/** What a waypoint is there for, and what its services' routes and policies say: WDS's names tell of the first. */
export function waypointChanged(proxy: Proxy, change: ChangeSet): boolean {
  return proxy.type === 'waypoint' && (outboundChanged(change) || change.addresses.size > 0 || change.touches('Gateway', 'GatewayClass', ...SECURITY_KINDS));
}

/** The servers of a gateway's proxy. */
export function gatewayChanged(proxy: Proxy, change: ChangeSet): boolean {
  return proxy.type === 'router' && change.touches('Gateway', 'GatewayClass', 'HTTPRoute', 'GRPCRoute', 'TLSRoute', 'TCPRoute', 'ReferenceGrant');
}
