// A destination's policy as the shared Envoy enforces it: who is let in by the two listeners of its pod.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { RBAC_Action } from '../../proto/generated/envoy/config/rbac/v3/rbac.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain, type Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { DownstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { RBAC } from '../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import { RBAC as HttpRbac } from '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { Wasm } from '../../proto/generated/envoy/extensions/filters/http/wasm/v3/wasm.js';
import { TypedStruct } from '../../proto/generated/udpa/type/v1/typed_struct.js';
import { pack, unpack } from '../../common/xds/any.js';
import { stockExtensions } from '../testing/stock-envoy.js';
import { socketAddress } from './fold-endpoints.js';
import { CLOSED, foldInbound, inboundListeners, meshListenerName, throughInbound } from './fold-inbound.js';
import { FoldError } from './stock.js';

const extensions = stockExtensions();
const filter = (name: string, value: ReturnType<typeof pack>): Filter => ({ name, config_type: { $case: 'typed_config', value } });
const tcp = filter('tcp', pack(TcpProxy, TcpProxy.fromPartial({ stat_prefix: 'app', cluster_specifier: { $case: 'cluster', value: 'inbound|8080||' } })));
const rbac = filter('rbac', pack(RBAC, RBAC.fromPartial({
  stat_prefix: 'tcp.',
  rules: { action: RBAC_Action.ALLOW, policies: { who: { permissions: [{ rule: { $case: 'any', value: true } }], principals: [{ identifier: { $case: 'not_id', value: { identifier: { $case: 'and_ids', value: { ids: [{ identifier: { $case: 'authenticated', value: { principal_name: { match_pattern: { $case: 'exact', value: 'spiffe://a' } } } } }] } } } } }] } } },
})));
const tls = { name: 'tls' };
const chain = (match: Parameters<typeof FilterChain.fromPartial>[0]['filter_chain_match'], filters: Filter[], isTls = false): FilterChain => FilterChain.fromPartial({ name: 'c', filter_chain_match: match, filters, ...(isTls ? { transport_socket: tls } : {}) });
const inbound = (...filter_chains: FilterChain[]): Listener => Listener.fromPartial({ name: 'virtualInbound', filter_chains });
const clusterOf = (from: FilterChain): string => {
  const config = from.filters.at(-1)?.config_type;
  const specifier = config?.$case === 'typed_config' ? unpack(TcpProxy, config.value)?.cluster_specifier : undefined;
  return specifier?.$case === 'cluster' ? specifier.value : '';
};
const rulesOf = (from: FilterChain): string => {
  const config = from.filters[0]?.config_type;
  return JSON.stringify(RBAC.toJSON((config?.$case === 'typed_config' && unpack(RBAC, config.value)) || assert.fail('no RBAC')));
};

describe('a pod\'s inbound side', () => {
  it('stands in nobody\'s way where nothing decides who may call', () => {
    const folded = foldInbound(inbound(chain({ destination_port: 8080, transport_protocol: 'tls' }, [tcp], true), chain({ destination_port: 8080, transport_protocol: 'raw_buffer' }, [tcp])), extensions);
    assert.equal(folded.enforces, false);
  });

  it('stands in the way where requests are changed, or where more than one route leads on', () => {
    const http = (routes: Parameters<typeof RouteConfiguration.fromPartial>[0]): Filter => filter('http', pack(HttpConnectionManager, HttpConnectionManager.fromPartial({ stat_prefix: 'x', route_specifier: { $case: 'route_config', value: routes } })));
    const enforces = (routes: Parameters<typeof RouteConfiguration.fromPartial>[0]): boolean => foldInbound(inbound(chain({ destination_port: 8080 }, [http(routes)])), extensions).enforces;
    const route = { name: 'default', match: { path_specifier: { $case: 'prefix' as const, value: '/' } }, decorator: { operation: 'web' }, action: { $case: 'route' as const, value: { cluster_specifier: { $case: 'cluster' as const, value: 'inbound|8080||' }, timeout: { seconds: 0n, nanos: 0 } } } };
    const host = { name: 'inbound|http|80', domains: ['*'], routes: [route] };
    assert.equal(enforces({ name: 'inbound', validate_clusters: false, virtual_hosts: [host] }), false);
    const header = [{ header: { key: 'x', value: 'y' } }];
    for (const virtual_host of [{ ...host, response_headers_to_add: header }, { ...host, routes: [{ ...route, request_headers_to_add: header }] }, { ...host, routes: [{ ...route, match: { path_specifier: { $case: 'prefix' as const, value: '/a' } } }, route] }]) {
      assert.equal(enforces({ virtual_hosts: [virtual_host] }), true, JSON.stringify(virtual_host, (_, value: unknown) => (typeof value === 'bigint' ? Number(value) : value)));
    }
    assert.equal(enforces({ virtual_hosts: [host], response_headers_to_add: header }), true);
  });

  it('ends TLS with a certificate of the port\'s own, by files for all callers alike; one in a Secret lets nobody in, and is said', () => {
    const own = (name: string): FilterChain => {
      const context = DownstreamTlsContext.fromPartial({ common_tls_context: { tls_certificate_sds_secret_configs: [{ name }] } });
      return { ...chain({ destination_port: 8443, transport_protocol: 'tls' }, [tcp]), transport_socket: { name: 'tls', config_type: { $case: 'typed_config', value: pack(DownstreamTlsContext, context) } } };
    };
    const files = foldInbound(inbound(own('file-cert:/c.pem~/k.pem')), extensions);
    assert.deepEqual([files.enforces, files.refused], [true, []]);
    for (const [, ends] of [files.direct, files.mesh]) {
      const config = ends!.transport_socket?.config_type;
      const [certificate] = (config?.$case === 'typed_config' && unpack(DownstreamTlsContext, config.value)?.common_tls_context?.tls_certificates) || [];
      assert.deepEqual([certificate?.certificate_chain?.specifier?.value, certificate?.private_key?.specifier?.value, clusterOf(ends!)], ['/c.pem', '/k.pem', 'inbound|8080||']);
    }
    const secret = foldInbound(inbound(own('kubernetes://web')), extensions);
    assert.match(secret.refused.join(), /certificate is in a Secret/);
    for (const side of [secret.direct, secret.mesh]) assert.deepEqual(side.map(clusterOf), ['BlackHoleCluster', 'BlackHoleCluster']);
  });

  it('looks for HTTP in what is sent to a port only where a chain asks for it', () => {
    const folded = foldInbound(inbound(chain({ destination_port: 9000, transport_protocol: 'tls', application_protocols: ['istio'] }, [tcp], true), chain({ destination_port: 9000, transport_protocol: 'raw_buffer' }, [rbac, tcp]), chain({ destination_port: 8080, application_protocols: ['http/1.1'] }, [rbac, tcp])), extensions);
    const [direct] = inboundListeners({ uid: 'u', netnsPath: '/n', ipv6: false }, folded, (same) => same);
    const disabled = Listener.decode(direct!.any.value).listener_filters.map(({ filter_disabled }) => [...(JSON.stringify(filter_disabled) ?? '').matchAll(/"start":(\d+)/g)].map((match) => Number(match[1])));
    assert.deepEqual(disabled, [[], [8080, 15006], [9000, 15006]]);
  });

  it('binds what it opens to the caller only where programs can be told, and not on ports that lead elsewhere than the caller meant', () => {
    const folded = foldInbound(inbound(chain({ destination_port: 8080 }, [rbac, tcp])), extensions);
    const names = (showsCallers: boolean): string[][] => inboundListeners({ uid: 'u', netnsPath: '/n', ipv6: false, showsCallers }, folded, (same) => same, [8081]).map(({ any }) => Listener.decode(any.value).listener_filters.map(({ name, filter_disabled }) => `${name.replace('envoy.filters.listener.', '')}${/"start":8081/.test(JSON.stringify(filter_disabled) ?? '') ? ' but 8081' : ''}`));
    assert.deepEqual(names(false), [['original_dst', 'tls_inspector', 'http_inspector'], ['underpass.source', 'original_dst', 'tls_inspector', 'http_inspector']]);
    // The inner one's remote address is for policies and logs again when its chain is looked for.
    assert.deepEqual(names(true), [
      ['original_dst', 'original_src but 8081', 'tls_inspector', 'http_inspector'],
      ['underpass.shown_source.ipv4', 'underpass.shown_source.ipv6', 'original_dst', 'original_src but 8081', 'underpass.source', 'original_dst', 'tls_inspector', 'http_inspector'],
    ]);
  });

  it('looks into nothing that the node\'s own pods send to a port where TLS and other bytes lead the same way', () => {
    const port = (second: Filter): FilterChain[] => ['tls', 'raw_buffer'].map((transport_protocol, index) => chain({ destination_port: 9000, transport_protocol }, index === 0 ? [rbac, tcp] : [second, tcp]));
    const mesh = (second: Filter): [number, string][] => foldInbound(inbound(chain({ destination_port: 9000, transport_protocol: 'tls', application_protocols: ['istio'] }, [rbac, tcp], true), ...port(second)), extensions).mesh.slice(1).map(({ filter_chain_match: match }) => [match!.destination_port!, match!.transport_protocol]);
    assert.deepEqual(mesh(rbac), [[9000, '']]);
    assert.deepEqual(mesh(tcp), [[9000, 'tls'], [9000, 'raw_buffer']]);
  });

  it('refuses plaintext and certificates from the network where mutual TLS is a must, and takes the node\'s own pods', () => {
    const folded = foldInbound(inbound(chain({ destination_port: 8080, transport_protocol: 'tls' }, [tcp], true)), extensions);
    assert.equal(folded.enforces, true);
    assert.deepEqual(folded.direct.map(clusterOf), ['BlackHoleCluster', 'BlackHoleCluster']);
    assert.deepEqual(folded.mesh.map((item) => [item.filter_chain_match?.destination_port, item.filter_chain_match?.transport_protocol, item.transport_socket, clusterOf(item)]), [[15006, '', undefined, 'BlackHoleCluster'], [8080, '', undefined, 'inbound|8080||']]);
  });

  it('ends mutual TLS of what comes over the network with the certificate of the pod\'s account, and no other TLS', () => {
    const socket = (secret: string): FilterChain['transport_socket'] => ({ name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(DownstreamTlsContext, DownstreamTlsContext.fromPartial({ require_client_certificate: true, common_tls_context: { tls_certificate_sds_secret_configs: [{ name: secret }], validation_context_type: { $case: 'combined_validation_context', value: { default_validation_context: {}, validation_context_sds_secret_config: { name: 'ROOTCA' } } } } })) } });
    const listener = inbound(
      { ...chain({ destination_port: 8080, transport_protocol: 'tls' }, [rbac, tcp]), transport_socket: socket('default') },
      { ...chain({ destination_port: 8443, transport_protocol: 'tls' }, [tcp]), transport_socket: socket('file-cert:/a~/b') },
    );
    const folded = foldInbound(listener, extensions, 'spiffe://cluster.local/ns/shop/sa/web');
    const [, own, other] = folded.direct;
    const tls = unpack(DownstreamTlsContext, own?.transport_socket?.config_type?.value);
    const validation = tls?.common_tls_context?.validation_context_type;
    assert.deepEqual([tls?.require_client_certificate, tls?.common_tls_context?.tls_certificate_sds_secret_configs.map(({ name, sds_config }) => [name, sds_config?.config_source_specifier?.$case])], [true, [['spiffe://cluster.local/ns/shop/sa/web', 'ads']]]);
    assert.deepEqual(validation?.$case === 'combined_validation_context' && validation.value.validation_context_sds_secret_config?.name, 'ROOTCA');
    assert.match(rulesOf(own!), /"authenticated":/, 'the certificate says who calls');
    assert.deepEqual([clusterOf(own!), clusterOf(other!), other!.transport_socket], ['inbound|8080||', 'BlackHoleCluster', undefined]);
    const without = foldInbound(listener, extensions).direct.map(clusterOf);
    assert.deepEqual(without, ['BlackHoleCluster', 'BlackHoleCluster', 'BlackHoleCluster']);
  });

  it('knows the caller by its listener within the node, and by nothing else from outside', () => {
    const folded = foldInbound(inbound(chain({ destination_port: 8080, transport_protocol: 'tls' }, [rbac, tcp], true), chain({ destination_port: 8080, transport_protocol: 'raw_buffer' }, [rbac, tcp])), extensions);
    assert.equal(folded.enforces, true);
    const [, direct] = folded.direct.filter((item) => item.filter_chain_match?.transport_protocol !== 'tls');
    assert.match(rulesOf(direct!), /"authenticated":/);
    assert.match(rulesOf(folded.mesh[1]!), /"filterState":\{"key":"io\.istio\.peer_principal","stringMatch":\{"exact":"spiffe:\/\/a"\}\}|"filter_state":\{"key":"io\.istio\.peer_principal"/);
    assert.doesNotMatch(rulesOf(folded.mesh[1]!), /authenticated/);
  });

  it('gives no identity to callers of a port that takes no mutual TLS: sidecars would show none', () => {
    const folded = foldInbound(inbound(chain({ destination_port: 8080, transport_protocol: 'raw_buffer' }, [rbac, tcp])), extensions);
    assert.match(rulesOf(folded.mesh[1]!), /"authenticated":/);
  });

  it('is an error with a filter that this Envoy lacks, and what stands in for it lets nobody in', () => {
    const unknown = filter('x', { ...pack(Wasm, Wasm.fromPartial({})), type_url: 'type.googleapis.com/x.Unknown' });
    assert.throws(() => foldInbound(inbound(chain({}, [unknown, tcp])), extensions), FoldError);
    assert.ok(CLOSED.enforces);
    assert.deepEqual([...CLOSED.direct, ...CLOSED.mesh].map(clusterOf), ['BlackHoleCluster', 'BlackHoleCluster']);
  });

  it('lets nobody in where rules can not be given the caller\'s identity, and says why; other ports stay', () => {
    const any = (message: ReturnType<typeof pack>): Filter => filter('x', message);
    const manager = (more: Parameters<typeof HttpConnectionManager.fromPartial>[0]): Filter => any(pack(HttpConnectionManager, HttpConnectionManager.fromPartial({ stat_prefix: 'x', ...more })));
    const inHttp = (config: ReturnType<typeof pack>): Filter => manager({ http_filters: [{ name: 'y', config_type: { $case: 'typed_config', value: config } }] });
    const tree = { matcher: { on_no_match: { on_match: { $case: 'action' as const, value: { name: 'a', typed_config: { type_url: 'a', value: Buffer.alloc(0) } } } } } };
    const perRoute = { type_url: 'type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute', value: Buffer.alloc(0) };
    const cases: [Filter, RegExp][] = [
      [any(pack(RBAC, RBAC.fromPartial({ stat_prefix: 'x', ...tree }))), /filter "x": a tree of matchers/],
      [any(pack(RBAC, RBAC.fromPartial({ stat_prefix: 'x', shadow_matcher: tree.matcher }))), /filter "x": a tree of matchers/],
      [inHttp(pack(HttpRbac, HttpRbac.fromPartial(tree))), /filter "y": a tree of matchers/],
      [inHttp(pack(TypedStruct, TypedStruct.fromPartial({ type_url: 'type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC' }))), /filter "y": RBAC inside of .*TypedStruct/],
      [manager({ route_specifier: { $case: 'route_config', value: { name: 'r', virtual_hosts: [{ name: 'v', domains: ['*'], typed_per_filter_config: { rbac: perRoute } }] } } }), /filter "x": RBAC of a route/],
    ];
    for (const [rules, expected] of cases) {
      for (const isTls of [true, false]) {
        const folded = foldInbound(inbound(chain({ destination_port: 8080, transport_protocol: isTls ? 'tls' : '' }, [rules, tcp], isTls), chain({ destination_port: 9090 }, [tcp])), extensions);
        assert.equal(folded.enforces, true);
        assert.match(folded.refused.join(), expected);
        for (const side of [folded.direct, folded.mesh]) assert.deepEqual(side.map((item) => [item.filter_chain_match?.destination_port, clusterOf(item)]), [[15006, 'BlackHoleCluster'], [8080, 'BlackHoleCluster'], [9090, 'inbound|8080||']]);
      }
    }
  });

  it('has an internal listener of another name under other policies, so that no pooled connection outlives them', () => {
    const pod = { uid: 'u', netnsPath: '/n', ipv6: true };
    const [one, other] = [[tcp], [rbac, tcp]].map((filters) => foldInbound(inbound(chain({ destination_port: 8080 }, filters)), extensions));
    assert.notEqual(meshListenerName('u', one!), meshListenerName('u', other!));
    assert.deepEqual(inboundListeners(pod, one!, (same) => same).map(({ name }) => name), ['pod/u/inbound', meshListenerName('u', one!)]);
  });
});

it('endpoints of pods that enforce policy lead to their internal listeners, all others stay', () => {
  const assignment = ClusterLoadAssignment.fromPartial({ cluster_name: 'c', endpoints: [{ lb_endpoints: ['10.0.0.1', '10.0.0.2'].map((address) => ({ host_identifier: { $case: 'endpoint' as const, value: { address: socketAddress(address, 80) } } })) }] });
  const changed = throughInbound(Cluster.fromPartial({ name: 'c' }), assignment, new Map([['10.0.0.2', 'pod/u/inbound-mesh/1']]));
  const [first, second] = changed.assignment!.endpoints[0]!.lb_endpoints;
  assert.deepEqual(first, assignment.endpoints[0]!.lb_endpoints[0]);
  assert.deepEqual(second!.metadata?.filter_metadata, { 'envoy.transport_socket_match': { underpass: 'inbound' }, 'envoy.filters.listener.original_dst': { local: '10.0.0.2:80', called_by_ipv4: 'x' } });
  assert.equal(changed.cluster.transport_socket_matches.length, 1);
  assert.equal(throughInbound(Cluster.fromPartial({ name: 'c' }), assignment, new Map([['10.0.0.9', 'x']])).assignment, assignment);
});
