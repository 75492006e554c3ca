/** The traffic policy of one port of a host, or of one of its subsets, out of a DestinationRule's three levels. */
import type { DestinationRule, PortTrafficPolicy, TrafficPolicy } from '../../common/kube/types.js';

/** Without the levels that are already taken into account. */
export type PortPolicy = Omit<TrafficPolicy, 'portLevelSettings'>;

const NONE: PortPolicy = {};

/** Settings of a port stand for themselves: what they leave out has its default, not the host's value. */
function merge(base: PortPolicy, policy: TrafficPolicy | undefined, port: number): PortPolicy {
  if (!policy) return base;
  const { portLevelSettings, ...general } = policy;
  const merged: PortPolicy = { ...base, ...general };
  const own: PortTrafficPolicy | undefined = portLevelSettings?.find((settings) => settings.port?.number === port);
  if (!own) return merged;
  const { proxyProtocol, retryBudget, tunnel } = merged;
  const { connectionPool, outlierDetection, loadBalancer, tls } = own;
  return defined({ connectionPool, outlierDetection, loadBalancer, tls, proxyProtocol, retryBudget, tunnel });
}

function defined(policy: { [K in keyof PortPolicy]: PortPolicy[K] | undefined }): PortPolicy {
  return Object.fromEntries(Object.entries(policy).filter(([, value]) => value !== undefined)) as PortPolicy;
}

/** @param subset empty for the host itself; a subset's fields replace the host's one by one */
export function portPolicy(rule: DestinationRule | undefined, subset: string, port: number): PortPolicy {
  if (!rule) return NONE;
  const host = merge(NONE, rule.spec.trafficPolicy, port);
  return subset ? merge(host, rule.spec.subsets?.find(({ name }) => name === subset)?.trafficPolicy, port) : host;
}
