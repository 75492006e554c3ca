// Which ports' callers the kernel may judge instead of Envoy: Envoy's rules beside those of WDS, as both come from one policy.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RBAC_Action, type Policy } from '../../proto/generated/envoy/config/rbac/v3/rbac.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, type Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { RBAC as HttpRbac } from '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import { RBAC } from '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import { ExtAuthz } from '../../proto/generated/envoy/extensions/filters/network/ext_authz/v3/ext_authz.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { DownstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { Action, Authorization, Scope, type Match } from '../../proto/generated/istio/security/authorization.js';
import { pack } from '../../common/xds/any.js';
import { inboundNeeds } from '../proxy/inbound-needs.js';
import { Recording } from '../testing/recording.js';
import type { Identity } from './authorization.js';
import { judgedPorts } from './judged-ports.js';

const filter = (name: string, value: ReturnType<typeof pack>): Filter => ({ name, config_type: { $case: 'typed_config', value } });
const tcp = (more: Partial<TcpProxy> = {}): Filter => filter('tcp', pack(TcpProxy, TcpProxy.fromPartial({ stat_prefix: 'app', cluster_specifier: { $case: 'cluster', value: 'inbound|9000||' }, ...more })));
const any: Policy['permissions'] = [{ rule: { $case: 'any', value: true } }];
const caller = (id: string): Policy['principals'][number] => ({ identifier: { $case: 'authenticated', value: { principal_name: { match_pattern: { $case: 'exact', value: id }, ignore_case: false } } } });
const alice: Policy = { permissions: any, principals: [caller('spiffe://cluster.local/ns/shop/sa/alice')], condition: undefined, checked_condition: undefined, cel_config: undefined } as unknown as Policy;
const rbac = (policies: Record<string, Policy>, action = RBAC_Action.ALLOW, more: Partial<RBAC> = {}): Filter => filter('rbac', pack(RBAC, RBAC.fromPartial({ stat_prefix: 'tcp.', rules: { action, policies }, ...more } as never)));
const ALLOW_ALICE = rbac({ 'ns[shop]-policy[p]-rule[0]': alice });
const MESH_TLS: FilterChain['transport_socket'] = { name: 'tls', config_type: { $case: 'typed_config', value: pack(DownstreamTlsContext, DownstreamTlsContext.fromPartial({ common_tls_context: { tls_certificate_sds_secret_configs: [{ name: 'default' }] } })) } };
const port = (filters: Filter[], more: Partial<FilterChain> = {}, destination_port = 9000): FilterChain[] => ['tls', 'raw_buffer'].map((transport_protocol) =>
  FilterChain.fromPartial({ name: 'c', filter_chain_match: { destination_port, transport_protocol }, filters, ...(transport_protocol === 'tls' ? { transport_socket: MESH_TLS } : {}), ...more } as never));
const inbound = (filter_chains: FilterChain[], more: Partial<Listener> = {}): Listener => Listener.fromPartial({ name: 'virtualInbound', filter_chains, ...more } as never);

const exact = (value: string): Match['principals'][number] => ({ match_type: { $case: 'exact', value } });
const match = (about: Partial<Match>): Match => ({
  namespaces: [], not_namespaces: [], principals: [], not_principals: [], source_ips: [], not_source_ips: [], destination_ips: [], not_destination_ips: [],
  destination_ports: [], not_destination_ports: [], service_accounts: [], not_service_accounts: [], ...about,
});
const policy = (name: string, action: Action, ...matches: Match[]): Authorization => Authorization.fromPartial({ name, namespace: 'shop', scope: Scope.NAMESPACE, action, groups: matches.map((one) => ({ rules: [{ matches: [one] }] })) });
const P = policy('p', Action.ALLOW, match({ principals: [exact('cluster.local/ns/shop/sa/alice')] }));
const IDENTITIES: Identity[] = ['alice', 'bob'].map((serviceAccount) => ({ trustDomain: 'cluster.local', namespace: 'shop', serviceAccount }));
const judged = (listener: Listener, policies: Authorization[] = [P]): [readonly number[], Record<string, string>] => {
  const { ports, reasons } = judgedPorts(inboundNeeds({ any: pack(Listener, listener), message: listener }, new Map()), policies, IDENTITIES);
  return [ports, Object.fromEntries(reasons)];
};
const why = (listener: Listener, policies?: Authorization[]): string => Object.values(judged(listener, policies)[1]).join();

test('a port whose chains hold the rules that the kernel has is the kernel\'s; one of another kind beside it is Envoy\'s', () => {
  const http = filter('http', pack(HttpConnectionManager, HttpConnectionManager.fromPartial({ stat_prefix: 'x', http_filters: [{ name: 'r', config_type: { $case: 'typed_config', value: pack(HttpRbac, HttpRbac.fromPartial({})) } }] })));
  assert.deepEqual(judged(inbound([...port([ALLOW_ALICE, tcp()]), ...port([http], {}, 8080)])), [[9000], { 8080: 'its requests are judged or changed one by one' }]);
  assert.deepEqual(judged(inbound(port([tcp()])), []), [[9000], {}], 'STRICT alone');
});

test('everything else that Envoy would do for a port keeps it: logs, time-outs, other filters, dry runs, audits, rules that no policy has', () => {
  const log = { access_log: [{ name: 'log', filter: undefined, config_type: undefined }] } as never;
  const cases: [Listener, RegExp][] = [
    [inbound(port([ALLOW_ALICE, tcp(log)])), /connections are logged/],
    [inbound(port([ALLOW_ALICE, tcp()]), log), /all connections are logged/],
    [inbound(port([ALLOW_ALICE, tcp({ idle_timeout: { seconds: 5n, nanos: 0 } })])), /settings/],
    [inbound(port([ALLOW_ALICE, filter('authz', pack(ExtAuthz, ExtAuthz.fromPartial({}))), tcp()])), /filter authz has a say/],
    [inbound(port([rbac({}, RBAC_Action.ALLOW, { shadow_rules: { action: RBAC_Action.DENY, policies: {} } } as never), tcp()])), /dry run/],
    [inbound(port([rbac({ 'ns[shop]-policy[p]-rule[0]': alice }, RBAC_Action.LOG), tcp()])), /audited/],
    [inbound(port([rbac({ mine: alice }), tcp()])), /rule mine, which no AuthorizationPolicy has/],
    [inbound(port([ALLOW_ALICE, tcp()]), { listener_filters: [{ name: 'envoy.filters.listener.proxy_protocol' }] } as never), /filter envoy\.filters\.listener\.proxy_protocol/],
    [inbound(port([ALLOW_ALICE, tcp()], { filter_chain_match: { destination_port: 9000, source_ports: [1] } as never })), /by more than their protocol/],
    [inbound(port([ALLOW_ALICE, tcp()], { transport_socket: undefined })), /no mutual TLS, so that callers have no identity/],
    [inbound([port([ALLOW_ALICE, tcp()])[0]!, port([tcp()])[1]!]), /different policies/],
  ];
  for (const [listener, expected] of cases) assert.match(why(listener), expected);
});

test('rules that differ from the kernel\'s are Envoy\'s, whichever stream is ahead', () => {
  const listener = inbound(port([ALLOW_ALICE, tcp()]));
  const cases: [Authorization[], RegExp][] = [
    [[], /does not have its policy shop\/p/],
    [[{ ...P, action: Action.DENY }], /has it otherwise/],
    [[policy('p', Action.ALLOW)], /not all rules/],
    [[policy('p', Action.ALLOW, match({ principals: [exact('cluster.local/ns/shop/sa/bob')] }))], /another one in the kernel/],
    [[P, policy('q', Action.ALLOW, match({ destination_ports: [1] }))], /do not name its policy shop\/q/],
  ];
  for (const [policies, expected] of cases) assert.match(why(listener, policies), expected);
  const strict = { ...policy('istio_converted_static_strict', Action.DENY, match({ not_principals: [{ match_type: { $case: 'presence', value: {} } }] })), namespace: 'istio-system' };
  assert.deepEqual(judged(listener, [strict, P]), [[9000], {}], 'a PeerAuthentication is filter chains to Envoy');
  const remote: Policy = { ...alice, principals: [{ identifier: { $case: 'remote_ip', value: { address_prefix: '10.0.0.0', prefix_len: 8 } } }] } as never;
  assert.match(why(inbound(port([rbac({ 'ns[shop]-policy[p]-rule[0]': remote }), tcp()])), [policy('p', Action.ALLOW, match({}))]), /more than L4 knows/);
});

test('istiod\'s own listeners and policies, as recorded for one workload, are compared: HTTP is Envoy\'s', () => {
  const recording = Recording.open('authz-sidecar') ?? assert.fail('no recording');
  const session = recording.sidecars.find(({ name }) => name.startsWith('httpbin')) ?? assert.fail('no session');
  const { listeners, clusters } = recording.state(session, 1);
  const needs = inboundNeeds(listeners.get('virtualInbound')!, clusters);
  assert.deepEqual([...needs].map(([at, { reason }]) => [at, reason]), [[80, 'its requests are judged or changed one by one']]);
});
