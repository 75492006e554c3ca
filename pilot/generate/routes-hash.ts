/** Consistent hashing: what of a request or connection is hashed stands in its route, the ring in the cluster. */
import type { ConsistentHash, Destination, DestinationRule, TrafficPolicy } from '../../common/kube/types.js';
import { parseDurationMs } from '../../common/kube/schema.js';
import { RouteAction_HashPolicy } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import type { Scope } from '../model/scope.js';
import { millis } from './envoy.js';

const ofPort = (policy: TrafficPolicy | undefined, port: number | undefined): ConsistentHash | undefined => policy?.portLevelSettings?.find((setting) => setting.port?.number === port)?.loadBalancer?.consistentHash;
const subsetPolicy = (rule: DestinationRule | undefined, subset: string | undefined): TrafficPolicy | undefined => (subset ? rule?.spec.subsets?.find(({ name }) => name === subset)?.trafficPolicy : undefined);

/** Of a service that no VirtualService routes. */
export function serviceHash(scope: Scope, host: string, port: number): ConsistentHash | undefined {
  const policy = scope.rule(host)?.object.spec.trafficPolicy;
  return ofPort(policy, port) ?? policy?.loadBalancer?.consistentHash;
}

/** Of a route's destination: the subset's policy over the host's, the port's over both where the destination names a port. */
export function destinationHash(scope: Scope, { host, subset, port }: Destination): ConsistentHash | undefined {
  const rule = scope.rule(host)?.object;
  const policy = rule?.spec.trafficPolicy;
  const own = subsetPolicy(rule, subset);
  const number = port?.number;
  return (number === undefined ? undefined : ofPort(own, number)) ?? own?.loadBalancer?.consistentHash ?? (number === undefined ? undefined : ofPort(policy, number)) ?? policy?.loadBalancer?.consistentHash;
}

/** Whether connections to a destination are spread by the client's address: the only key that plain TCP has. */
export function hashesSourceIp(rule: DestinationRule | undefined, subset: string | undefined): boolean {
  const own = subsetPolicy(rule, subset)?.loadBalancer;
  // A subset that balances in another way is not hashed by the host's key.
  return Boolean((own ?? rule?.spec.trafficPolicy?.loadBalancer)?.consistentHash?.useSourceIp);
}

export function hashPolicy(hash: ConsistentHash | undefined): RouteAction_HashPolicy[] {
  if (hash?.httpHeaderName) return [RouteAction_HashPolicy.fromPartial({ policy_specifier: { $case: 'header', value: { header_name: hash.httpHeaderName } } })];
  if (hash?.httpCookie) {
    const { name, path = '', ttl, attributes = [] } = hash.httpCookie;
    const ttlMs = ttl === undefined ? undefined : parseDurationMs(ttl);
    // With a time to live, even of zero, Envoy makes the cookie for those who have none; zero is a session's.
    const cookie = { name, path, ...(ttlMs === undefined ? {} : { ttl: millis(ttlMs) }), attributes: attributes.map((attribute) => ({ name: attribute.name, value: attribute.value ?? '' })) };
    return [RouteAction_HashPolicy.fromPartial({ policy_specifier: { $case: 'cookie', value: cookie } })];
  }
  if (hash?.useSourceIp) return [RouteAction_HashPolicy.fromPartial({ policy_specifier: { $case: 'connection_properties', value: { source_ip: true } } })];
  if (hash?.httpQueryParameterName) return [RouteAction_HashPolicy.fromPartial({ policy_specifier: { $case: 'query_parameter', value: { name: hash.httpQueryParameterName } } })];
  return [];
}
