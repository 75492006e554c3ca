/**
 * Whether a pod's inbound listener lets fewer callers in than the one before it did, so that connections that are open may be
 * forbidden now. Judged from what the control plane sent, since WDS has no word for much of what Envoy enforces. Where it can't
 * be told it is taken to be so.
 */
import { RBAC_Action, Policy } from '../../proto/generated/envoy/config/rbac/v3/rbac.js';
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RBAC as HttpRbac } from '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { RBAC as NetworkRbac } from '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { unpack } from '../../common/xds/any.js';
import { contentHash, Facts, hashBytes } from '../xds/resource-type.js';
import { INBOUND_PORT } from './fold-inbound.js';
import { isNeutral } from './neutral-chain.js';

export interface PortPolicy {
  /** Somebody without mutual TLS may call. */
  takesPlaintext: boolean;
  /** Whatever comes is HTTP. */
  isHttp: boolean;
  /** What each keeps somebody out: DENY rules, and filters that may have a say. */
  barriers: ReadonlySet<string>;
  /** By layer, where there is an ALLOW policy: whom it lets in. */
  allowed: ReadonlyMap<string, ReadonlySet<string>>;
}

/** By port; 0: all others. */
export type InboundPolicy = ReadonlyMap<number, PortPolicy>;

/** Istio's way to ask an external authorizer (action CUSTOM) about some requests alone. */
const ASKS_ELSEWHERE = 'istio_ext_authz_';

/** Of a `virtualInbound`, as the control plane sent it. */
export const inboundPolicies = new Facts(inboundPolicy);

/** Whether a connection that was let in may be refused now. */
export function narrowsInbound(before: InboundPolicy, now: InboundPolicy): boolean {
  if (before === now) return false;
  return [...new Set([...before.keys(), ...now.keys()])].some((port) => {
    const [was, is] = [before.get(port) ?? before.get(0), now.get(port) ?? now.get(0)];
    return was !== undefined && (is === undefined || narrowsPort(was, is));
  });
}

/** Ports where all that either lets in is HTTP. */
export function httpPorts(before: InboundPolicy, now: InboundPolicy): Set<number> {
  return new Set([...now].flatMap(([port, { isHttp }]) => (port !== 0 && isHttp && (before.get(port) ?? before.get(0))?.isHttp ? port : [])));
}

function narrowsPort(was: PortPolicy, is: PortPolicy): boolean {
  if (was.takesPlaintext && !is.takesPlaintext) return true;
  if ([...is.barriers].some((barrier) => !was.barriers.has(barrier))) return true;
  return [...is.allowed].some(([layer, allowed]) => {
    const before = was.allowed.get(layer);
    return !before || [...before].some((rule) => !allowed.has(rule));
  });
}

export function inboundPolicy({ filter_chains, default_filter_chain }: Listener): InboundPolicy {
  const groups = new Map<number, FilterChain[]>();
  for (const chain of [...filter_chains, ...(default_filter_chain ? [default_filter_chain] : [])]) {
    const port = chain.filter_chain_match?.destination_port ?? 0;
    if (port !== INBOUND_PORT) groups.set(port, [...(groups.get(port) ?? []), chain]);
  }
  return new Map([...groups].map(([port, chains]) => [port, readPort(chains)]));
}

function readPort(chains: readonly FilterChain[]): PortPolicy {
  const barriers = new Set<string>();
  const allowed = new Map<string, Set<string>>();
  let isHttp = true;
  const readFilter = (layer: string, config: Any): void => {
    const rbac = unpack(NetworkRbac, config) ?? unpack(HttpRbac, config);
    if (!rbac && !isNeutral(config)) barriers.add(`${config.type_url} ${hashBytes(config.value)}`);
    if (!rbac) return;
    if (rbac.matcher) barriers.add(`${layer} matchers ${hashBytes(config.value)}`);
    if (rbac.shadow_rules && rbac.shadow_rules_stat_prefix.startsWith(ASKS_ELSEWHERE)) for (const rule of rulesOf(rbac.shadow_rules.policies)) barriers.add(`${layer} asks ${rule}`);
    const { action = RBAC_Action.LOG, policies = {} } = rbac.rules ?? {};
    if (action === RBAC_Action.DENY) for (const rule of rulesOf(policies)) barriers.add(`${layer} ${rule}`);
    if (action === RBAC_Action.ALLOW && rbac.rules) allowed.set(layer, new Set([...(allowed.get(layer) ?? []), ...rulesOf(policies)]));
  };
  for (const { filters } of chains) {
    let hasManager = false;
    for (const { config_type } of filters) {
      if (config_type?.$case !== 'typed_config') continue;
      const manager = unpack(HttpConnectionManager, config_type.value);
      if (!manager) {
        readFilter('network', config_type.value);
        continue;
      }
      hasManager = true;
      for (const { config_type: each } of manager.http_filters) if (each?.$case === 'typed_config') readFilter('http', each.value);
    }
    isHttp &&= hasManager;
  }
  return { takesPlaintext: chains.some(({ transport_socket, filter_chain_match: match }) => !transport_socket && match?.transport_protocol !== 'tls'), isHttp, barriers, allowed };
}

function rulesOf(policies: Readonly<Record<string, Policy>>): string[] {
  return Object.entries(policies).map(([name, policy]) => `${name} ${contentHash(Policy, policy)}`);
}
