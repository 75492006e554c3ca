// Which changes of a pod's inbound listener may forbid connections that are open.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Policy, RBAC, RBAC_Action } from '../../proto/generated/envoy/config/rbac/v3/rbac.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, type Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RBAC as HttpRbac } from '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import { Wasm } from '../../proto/generated/envoy/extensions/filters/http/wasm/v3/wasm.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { RBAC as NetworkRbac } from '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { pack } from '../../common/xds/any.js';
import { httpPorts, inboundPolicy, narrowsInbound } from './inbound-policy.js';

const filter = (name: string, value: ReturnType<typeof pack>): Filter => ({ name, config_type: { $case: 'typed_config', value } });
const policyFor = (who: string): Policy => Policy.fromPartial({ permissions: [{ rule: { $case: 'any', value: true } }], principals: [{ identifier: { $case: 'authenticated', value: { principal_name: { match_pattern: { $case: 'exact', value: who } } } } }] });
const rules = (action: RBAC_Action, ...whom: string[]): RBAC => RBAC.fromPartial({ action, policies: Object.fromEntries(whom.map((who) => [`ns[n]-policy[${who}]-rule[0]`, policyFor(who)])) });
const [allow, deny] = [RBAC_Action.ALLOW, RBAC_Action.DENY].map((action) => (...whom: string[]) => filter('rbac', pack(NetworkRbac, NetworkRbac.fromPartial({ rules: rules(action, ...whom) })))) as [(...whom: string[]) => Filter, (...whom: string[]) => Filter];
const dryRun = filter('rbac', pack(NetworkRbac, NetworkRbac.fromPartial({ shadow_rules: rules(RBAC_Action.DENY, 'alice'), shadow_rules_stat_prefix: 'istio_dry_run_allow_' })));
const asksElsewhere = filter('rbac', pack(NetworkRbac, NetworkRbac.fromPartial({ shadow_rules: rules(RBAC_Action.DENY, 'alice'), shadow_rules_stat_prefix: 'istio_ext_authz_' })));
const tcp = filter('tcp', pack(TcpProxy, TcpProxy.fromPartial({ stat_prefix: 'app' })));
const http = (...http_filters: Filter[]): Filter => filter('http', pack(HttpConnectionManager, HttpConnectionManager.fromPartial({ stat_prefix: 'x', http_filters: http_filters as never })));
const httpAllow = (...whom: string[]): Filter => filter('rbac', pack(HttpRbac, HttpRbac.fromPartial({ rules: rules(RBAC_Action.ALLOW, ...whom) })));
const wasm = filter('wasm', pack(Wasm, Wasm.fromPartial({ config: { name: 'w' } })));

interface Shape {
  port?: number;
  tls?: boolean;
  filters: Filter[];
}
const listener = (...shapes: Shape[]): Listener => Listener.fromPartial({
  filter_chains: shapes.map(({ port, tls, filters }) => FilterChain.fromPartial({
    filter_chain_match: { ...(port === undefined ? {} : { destination_port: port }), transport_protocol: tls ? 'tls' : 'raw_buffer' }, filters, ...(tls ? { transport_socket: { name: 'tls' } } : {}),
  })),
});
const tcpPort = (...filters: Filter[]): Listener => listener({ port: 8080, filters: [...filters, tcp] });
const narrows = (before: Listener, now: Listener): boolean => narrowsInbound(inboundPolicy(before), inboundPolicy(now));

describe('narrowsInbound', () => {
  const cases: [string, Listener, Listener, boolean][] = [
    ['the same', tcpPort(allow('alice')), tcpPort(allow('alice')), false],
    ['a first ALLOW', tcpPort(), tcpPort(allow('alice')), true],
    ['another ALLOW beside it', tcpPort(allow('alice')), tcpPort(allow('alice', 'bob')), false],
    ['one ALLOW less', tcpPort(allow('alice', 'bob')), tcpPort(allow('alice')), true],
    ['the last ALLOW', tcpPort(allow('alice')), tcpPort(), false],
    ['an ALLOW that lets nobody in', tcpPort(), tcpPort(allow()), true],
    ['a DENY', tcpPort(), tcpPort(deny('bob')), true],
    ['one DENY less', tcpPort(deny('alice', 'bob')), tcpPort(deny('alice')), false],
    ['a dry run', tcpPort(), tcpPort(dryRun), false],
    ['an external authorizer that is asked', tcpPort(), tcpPort(asksElsewhere), true],
    ['ALLOW for requests', listener({ port: 8080, filters: [http()] }), listener({ port: 8080, filters: [http(httpAllow('alice'))] }), true],
    ['a filter of somebody\'s for requests', listener({ port: 8080, filters: [http()] }), listener({ port: 8080, filters: [http(wasm)] }), true],
    ['its end', listener({ port: 8080, filters: [http(wasm)] }), listener({ port: 8080, filters: [http()] }), false],
    ['STRICT', listener({ port: 8080, filters: [tcp] }, { port: 8080, tls: true, filters: [tcp] }), listener({ port: 8080, tls: true, filters: [tcp] }), true],
    ['a port that gets chains of its own, with the policy of all others', listener({ filters: [allow('alice'), tcp] }), listener({ port: 8080, filters: [allow('alice'), tcp] }, { filters: [allow('alice'), tcp] }), false],
    ['a port that gets a policy of its own', listener({ filters: [tcp] }), listener({ port: 8080, filters: [allow('alice'), tcp] }, { filters: [tcp] }), true],
    ['a port that loses its chains, with the policy of all others', listener({ port: 8080, filters: [allow('alice'), tcp] }, { filters: [allow('alice'), tcp] }), listener({ filters: [allow('alice'), tcp] }), false],
    ['a port that nothing is left for', tcpPort(), listener(), true],
  ];
  for (const [what, before, now, expected] of cases) it(`${what}: ${expected ? 'may forbid' : 'forbids nothing'}`, () => assert.equal(narrows(before, now), expected));
});

it('httpPorts: those alone where all that comes is HTTP, before and now', () => {
  const before = listener({ port: 80, filters: [http()] }, { port: 81, filters: [tcp] }, { filters: [http()] });
  const now = listener({ port: 80, filters: [http()] }, { port: 81, filters: [http()] }, { port: 82, filters: [http()] }, { port: 82, tls: true, filters: [tcp] }, { port: 83, filters: [http()] });
  assert.deepEqual([...httpPorts(inboundPolicy(before), inboundPolicy(now))].sort(), [80, 83]);
});
