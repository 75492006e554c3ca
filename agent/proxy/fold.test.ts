import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { Cluster, type Cluster_TransportSocketMatch } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import type { Address, SocketAddress } from '../../proto/generated/envoy/config/core/v3/address.js';
import type { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import { ProxyProtocolUpstreamTransport } from '../../proto/generated/envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.js';
import { DownstreamTlsContext, UpstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack, unpack } from '../../common/xds/any.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { chooseChain, chooseListener, targetOf, type Connection } from '../testing/chain-choice.js';
import { Recording } from '../testing/recording.js';
import { assignment, blackHoleCluster, edsCluster, httpListener, passthroughCluster, routes, sidecarState, sniffedListener, tcpListener } from '../testing/resources.js';
import { stockExtensions } from '../testing/stock-envoy.js';
import { Folder, type FoldPod, type FoldResult } from './fold.js';
import { release } from './made-any.js';
import { CDS, EDS, LDS, RDS, type Snapshot } from './snapshot.js';

const extensions = stockExtensions();
const pod: FoldPod = { uid: 'u1', netnsPath: '/run/underpass/default/netns/u1', ipv6: false, classKey: 'c1' };

const WEB = 'outbound|80||web.shop.svc.cluster.local';
const basic = (change: Readonly<Record<string, Any>> = {}): SidecarState =>
  sidecarState({
    [`cds ${WEB}`]: edsCluster(WEB), 'cds PassthroughCluster': passthroughCluster(), 'cds BlackHoleCluster': blackHoleCluster(),
    [`eds ${WEB}`]: assignment(WEB, ['10.0.0.5:80']), 'lds 0.0.0.0_80': httpListener(80), 'rds 80': routes(80, { web: WEB }), ...change,
  });

function fold(state_: SidecarState, item = pod): FoldResult {
  return new Folder(extensions).fold([{ key: 'c1', state: state_ }], [item]);
}
function listenerOf(result: FoldResult, uid = 'u1'): Listener {
  const entry = result.snapshot.get(LDS, `pod/${uid}/outbound`);
  assert.ok(entry);
  return Listener.decode(entry.any.value);
}
const decode = <T>(codec: { decode(bytes: Uint8Array): T }, any: Any | undefined): T => codec.decode(any?.value ?? Buffer.alloc(0));

describe('Folder: listeners', () => {
  it('makes one listener per pod in its namespace, IPv6 where the pod has it', () => {
    const addresses = (listener: Listener): unknown[] =>
      [listener.address, ...listener.additional_addresses.map((item) => item.address)].map((item) => {
        const socket = item?.address?.$case === 'socket_address' ? item.address.value : undefined;
        return [socket?.address, socket?.port_specifier?.value, socket?.network_namespace_filepath];
      });
    const plain = listenerOf(fold(basic()));
    assert.deepEqual(addresses(plain), [['127.0.0.1', 15001, pod.netnsPath]]);
    assert.deepEqual(addresses(listenerOf(fold(basic(), { ...pod, ipv6: true }))), [['127.0.0.1', 15001, pod.netnsPath], ['::1', 15001, pod.netnsPath]]);
    assert.equal(plain.stat_prefix, 'pod_u1');
    assert.equal(plain.use_original_dst, undefined);
    assert.equal(plain.continue_on_listener_filters_timeout, true);
  });

  it('says the namespace of each connection before anything may wait for what its client sends', () => {
    assert.equal(listenerOf(fold(basic())).listener_filters[0]?.name, 'underpass.upstream_netns');
  });

  it('has the same listener filters whatever ports there are, so that a new one changes filter chains only', () => {
    const constant = (change: Readonly<Record<string, Any>>): unknown => {
      const { listener_filters, listener_filters_timeout, continue_on_listener_filters_timeout } = listenerOf(fold(basic(change)));
      return { listener_filters, listener_filters_timeout, continue_on_listener_filters_timeout };
    };
    const before = constant({});
    assert.deepEqual(constant({ 'lds 10.96.0.7_5432': tcpListener('10.96.0.7', 5432, WEB), 'lds 0.0.0.0_8081': httpListener(8081), 'lds 10.96.0.8_7000': sniffedListener('10.96.0.8', 7000, WEB) }), before);
    assert.deepEqual(listenerOf(fold(basic())).listener_filters.map(({ name, filter_disabled }) => [name, /"start":\d+,"end":\d+/.test(JSON.stringify(filter_disabled) ?? '')]), [
      ['underpass.upstream_netns', false], ['envoy.filters.listener.original_dst', false], ['envoy.filters.listener.tls_inspector', true], ['envoy.filters.listener.http_inspector', true],
    ]);
  });

  it('hands plain TCP of many services on to a listener of the class, so that no pod has a copy of it', () => {
    const many = (count: number): Record<string, Any> => Object.fromEntries(Array.from({ length: count }, (_, i) => [`lds 10.97.${i >> 8}.${i & 255}_5432`, tcpListener(`10.97.${i >> 8}.${i & 255}`, 5432, `outbound|5432||db-${i}`)]));
    const folder = new Folder(extensions);
    const result = (state: SidecarState): FoldResult => folder.fold([{ key: 'c1', state }], [pod]);
    const chosen = ({ snapshot }: FoldResult, address: string, port: number): string => {
      const first = listenerOf({ snapshot } as FoldResult);
      const target = targetOf(chooseChain(first.filter_chains, first.default_filter_chain, connection({ address, port })));
      if (target !== 'cluster inspect/c1/plain' && target !== 'inspect/c1/plain') return target;
      const inner = decode(Listener, snapshot.get(LDS, 'inspect/c1/plain')?.any);
      assert.deepEqual(inner.listener_filters.map(({ name }) => name), ['envoy.filters.listener.original_dst'], 'nobody waits for what a client may send');
      return `handed on: ${targetOf(chooseChain(inner.filter_chains, inner.default_filter_chain, connection({ address, port })))}`;
    };
    const few = result(basic(many(3)));
    const expected = chosen(few, '10.97.0.2', 5432);
    assert.ok(expected.includes('db-2') && !expected.startsWith('handed on'), expected);
    const all = result(basic({ ...many(300), 'lds 0.0.0.0_6000': tcpListener('0.0.0.0', 6000, 'outbound|6000||any'), 'lds 10.97.9.9_6000': tcpListener('10.97.9.9', 6000, 'outbound|6000||one') }));
    assert.ok(listenerOf(all).filter_chains.length < 15, `${listenerOf(all).filter_chains.length} chains`);
    assert.equal(chosen(all, '10.97.0.2', 5432), `handed on: ${expected}`);
    assert.match(chosen(all, '10.97.1.40', 5432), /^handed on: .*db-296/);
    assert.equal(chosen(all, '10.99.0.1', 5432), chosen(few, '10.99.0.1', 5432), 'what is no service\'s passes as it would');
    assert.match(chosen(all, '10.97.9.9', 6000), /outbound\|6000\|\|one/);
    assert.match(chosen(all, '10.99.0.1', 6000), /outbound\|6000\|\|any/, 'a port that one listener takes all addresses of is not handed on');
    assert.equal(chosen(result(basic(many(3))), '10.97.0.2', 5432), `handed on: ${expected}`, 'chains do not move back and forth');
  });

  it('hands on what has to be inspected: declared HTTP without a time-out, unknown protocols with one', () => {
    const result = fold(basic({ 'lds 0.0.0.0_8081': httpListener(8081), 'lds 10.96.0.8_7000': sniffedListener('10.96.0.8', 7000, WEB), 'lds 10.96.0.7_5432': tcpListener('10.96.0.7', 5432, WEB) }));
    const listener = listenerOf(result);
    const at = (port: number, address = '10.96.0.8'): string => targetOf(chooseChain(listener.filter_chains, listener.default_filter_chain, connection({ address, port })));
    assert.deepEqual([at(8081), at(7000), at(5432, '10.96.0.7'), at(80), at(9)], ['cluster inspect/c1/http', 'cluster inspect/c1/unknown', `cluster ${WEB}`, 'cluster inspect/c1/http', 'cluster inspect/c1/plain']);
    const timeout = (kind: string): unknown => decode(Listener, result.snapshot.get(LDS, `inspect/c1/${kind}`)?.any).listener_filters_timeout?.seconds;
    assert.deepEqual([timeout('http'), timeout('unknown')], [0n, 1n]);
  });

  it('names no ports when a class refuses what matches no service', () => {
    const frame = (cluster: string): Any => {
      const listener = Listener.decode(tcpListener('0.0.0.0', 15001, cluster).value);
      return pack(Listener, { ...listener, name: 'virtualOutbound', bind_to_port: undefined });
    };
    assert.deepEqual(fold(basic({ 'lds virtualOutbound': frame('PassthroughCluster') })).ports, [80]);
    assert.equal(fold(basic({ 'lds virtualOutbound': frame('BlackHoleCluster') })).ports, 'all');
    const open = { key: 'c1', state: basic() };
    assert.equal(new Folder(extensions).fold([open, { key: 'c2', state: basic({ 'lds virtualOutbound': frame('BlackHoleCluster') }) }], [pod]).ports, 'all');
  });

  it('has a pod that has a waypoint for Envoy on every port, and ports of others as before', () => {
    const own = { ...pod, addresses: ['10.0.0.8', 'fd00::8'] };
    const to = (waypoint: string, addresses: string[], ports?: number[]) => ({ waypoint, addresses, ...(ports ? { ports, hostname: 'web' } : {}) });
    const waypoints = { waypoints: { w: { endpoints: ['10.0.9.9:15008'], peers: [] } }, destinations: [to('w', ['fd00::8', '10.0.0.8']), to('w', ['10.0.7.7']), to('w', ['10.96.0.10'], [80])] };
    const { ports, proxied } = new Folder(extensions).fold([{ key: 'c1', state: basic() }], [own], new Set(), new Map(), waypoints);
    assert.deepEqual([ports, proxied], [[80], ['10.0.0.8', 'fd00::8']]);
  });

  it('forgets the last good version of what is gone', () => {
    const folder = new Folder(extensions);
    folder.fold([{ key: 'c1', state: basic() }], [pod]);
    const { remembered } = folder;
    for (let round = 0; round < 20; round++) {
      const name = `outbound|80|v${round}|web`;
      folder.fold([{ key: 'c1', state: basic({ [`cds ${name}`]: edsCluster(name), [`lds 10.96.0.7_${5000 + round}`]: tcpListener('10.96.0.7', 5000 + round, name) }) }, { key: `k${round}`, state: basic() }], [pod]);
    }
    folder.fold([{ key: 'c1', state: basic() }], [pod]);
    assert.equal(folder.remembered, remembered);
  });

  it('keeps connections to the listener itself closed, also against a service on its port', () => {
    const listener = listenerOf(fold(basic({ 'lds 10.96.0.7_15001': tcpListener('10.96.0.7', 15001, WEB) })));
    for (const address of ['127.0.0.1', '10.96.0.7']) {
      assert.equal(targetOf(chooseChain(listener.filter_chains, listener.default_filter_chain, connection({ address, port: 15001 }))), 'closed');
    }
  });

  it('refuses what a filter that this Envoy lacks may have to decide, and keeps the last good listener', () => {
    const folder = new Folder(extensions);
    const good = basic({ 'lds 10.96.0.7_5432': tcpListener('10.96.0.7', 5432, WEB) });
    const before = listenerOf(folder.fold([{ key: 'c1', state: good }], [pod]));
    const guarded = Listener.decode(tcpListener('10.96.0.7', 5432, 'elsewhere').value);
    guarded.filter_chains[0]?.filters.unshift({ name: 'corp.guard', config_type: { $case: 'typed_config', value: { type_url: 'type.googleapis.com/corp.Guard', value: Buffer.alloc(0) } } });
    const result = folder.fold([{ key: 'c1', state: basic({ 'lds 10.96.0.7_5432': pack(Listener, guarded) }) }], [pod]);
    assert.deepEqual(result.problems.map(({ resource, message }) => [resource, message]), [['LDS 10.96.0.7_5432', 'filter "corp.guard": this Envoy has no extension for corp.Guard']]);
    assert.deepEqual(listenerOf(result), before);
    const first = fold(basic({ 'lds 10.96.0.7_5432': pack(Listener, guarded) }));
    assert.equal(first.problems.length, 1);
    assert.ok(!JSON.stringify(listenerOf(first).filter_chains.map((chain) => chain.name)).includes('5432'));
  });

  it('leaves a listener without routes no reason to wait: an unknown route name gets an empty table', () => {
    const { snapshot } = fold(basic({ 'lds 0.0.0.0_8080': httpListener(8080) }));
    assert.deepEqual(decode(RouteConfiguration, snapshot.get(RDS, '8080')?.any).virtual_hosts, []);
    assert.deepEqual([...(snapshot.get(LDS, 'pod/u1/outbound')?.needs ?? [])].sort(), ['80', '8080']);
  });
});

/** Endpoints that HBONE reaches, as the control plane has them. */
function tunnelled(...endpoint_ids: string[]): Any {
  return pack(ClusterLoadAssignment, ClusterLoadAssignment.fromPartial({
    cluster_name: WEB,
    endpoints: [{ lb_endpoints: endpoint_ids.map((endpoint_id) => ({
      host_identifier: { $case: 'endpoint' as const, value: { address: { address: { $case: 'envoy_internal_address' as const, value: { address_name_specifier: { $case: 'server_listener_name' as const, value: 'connect_originate' }, endpoint_id } } } } },
      metadata: { filter_metadata: { 'envoy.transport_socket_match': { tunnel: 'http' }, 'envoy.filters.listener.original_dst': { local: endpoint_id }, istio: { workload: 'w' } } },
    })) }],
  }));
}

describe('Folder: clusters and endpoints', () => {
  it('opens connections in the pod\'s namespace, marked, in plaintext, straight to the pod behind an HBONE endpoint', () => {
    const { snapshot } = fold(basic({ [`eds ${WEB}`]: tunnelled('10.0.0.5:80', '[fd00::5]:80', 'gateway.example:15008') }));
    const folded = decode(ClusterLoadAssignment, snapshot.get(EDS, WEB)?.any);
    assert.deepEqual(folded.endpoints[0]?.lb_endpoints.map((endpoint) => {
      const socket = endpoint.host_identifier?.$case === 'endpoint' && endpoint.host_identifier.value.address?.address;
      return [socket && socket.$case === 'socket_address' && [socket.value.address, socket.value.port_specifier?.value], Object.keys(endpoint.metadata?.filter_metadata ?? {}).sort()];
    }), [[['10.0.0.5', 80], ['envoy.transport_socket_match', 'istio']], [['fd00::5', 80], ['envoy.transport_socket_match', 'istio']]]);
    assert.deepEqual([snapshot.get(LDS, 'hbone'), decode(Cluster, snapshot.get(CDS, WEB)?.any).transport_socket_matches], [undefined, []], 'without certificates there is no HBONE');
    const cluster = decode(Cluster, snapshot.get(CDS, WEB)?.any);
    assert.equal(cluster.upstream_bind_config?.local_address_selector?.name, 'envoy.upstream.local_address_selector.filter_state_override');
    assert.deepEqual(cluster.upstream_bind_config?.socket_options.map(({ level, name, value }) => [level, name, value?.value]), [[1n, 36n, 1337n]]);
  });

  it('leaves out endpoints that are Unix sockets: on the node they would be other sockets than in the pod', () => {
    const lbEndpoint = (address: Address['address']) => ({ host_identifier: { $case: 'endpoint' as const, value: { address: { address } } } });
    const sockets = ClusterLoadAssignment.fromPartial({ cluster_name: WEB, endpoints: [{ lb_endpoints: [lbEndpoint({ $case: 'pipe', value: { path: '/run/app.sock', mode: 0 } }), lbEndpoint({ $case: 'socket_address', value: { address: '10.0.0.5', port_specifier: { $case: 'port_value', value: 80 } } as SocketAddress })] }] });
    const ofEds = fold(basic({ [`eds ${WEB}`]: pack(ClusterLoadAssignment, sockets) })).snapshot;
    const inline = fold(basic({ [`cds ${WEB}`]: pack(Cluster, Cluster.fromPartial({ name: WEB, load_assignment: sockets })) })).snapshot;
    for (const assignment of [decode(ClusterLoadAssignment, ofEds.get(EDS, WEB)?.any), decode(Cluster, inline.get(CDS, WEB)?.any).load_assignment]) {
      assert.deepEqual(assignment?.endpoints[0]?.lb_endpoints.map(({ host_identifier: host }) => host?.$case === 'endpoint' && host.value.address?.address?.$case), ['socket_address']);
    }
  });

  it('has callers of a pod pass its inbound side where that delivers elsewhere than they meant; a Unix socket of the pod\'s is a problem that is said', () => {
    const inbound = (address: Address['address']): FoldResult => {
      const cluster = Cluster.fromPartial({ name: 'inbound|80||', load_assignment: { cluster_name: 'inbound|80||', endpoints: [{ lb_endpoints: [{ host_identifier: { $case: 'endpoint', value: { address: { address } } } }] }] } });
      const listener = Listener.fromPartial({ ...Listener.decode(tcpListener('0.0.0.0', 15006, 'inbound|80||').value), name: 'virtualInbound' });
      return fold(basic({ 'cds inbound|80||': pack(Cluster, cluster), 'lds virtualInbound': pack(Listener, listener) }));
    };
    assert.deepEqual([...fold(basic()).enforcing], []);
    const elsewhere = inbound({ $case: 'socket_address', value: { address: '127.0.0.1', port_specifier: { $case: 'port_value', value: 8080 } } as SocketAddress });
    assert.deepEqual([[...elsewhere.enforcing], elsewhere.problems], [['u1'], []]);
    assert.match(inbound({ $case: 'pipe', value: { path: '/run/app.sock', mode: 0 } }).problems.map(({ resource, message }) => `${resource}: ${message}`).join(), /CDS inbound\|80\|\|: a Unix socket/);
  });

  it('makes copies of requests from the first pod of the class: they carry no filter state that says from whose', () => {
    const mirrored = (): SidecarState => {
      const table = unpack(RouteConfiguration, routes(80, { web: WEB }))!;
      const { action } = table.virtual_hosts[0]!.routes[0]!;
      if (action?.$case === 'route') action.value.request_mirror_policies.push({ cluster: WEB } as never);
      return basic({ 'rds 80': pack(RouteConfiguration, RouteConfiguration.fromPartial(table)) });
    };
    const pods = ['u2', 'u1', 'u3'].map((uid): FoldPod => ({ ...pod, uid, netnsPath: `/netns/${uid}`, classKey: uid === 'u3' ? 'c2' : 'c1' }));
    const { snapshot } = new Folder(extensions).fold([{ key: 'c1', state: mirrored() }, { key: 'c2', state: mirrored() }], pods);
    const bindOf = (name: string): unknown => {
      const bind = decode(Cluster, snapshot.get(CDS, name)?.any).upstream_bind_config;
      return [bind?.source_address?.network_namespace_filepath, bind?.extra_source_addresses[0]?.address?.network_namespace_filepath, bind?.local_address_selector !== undefined];
    };
    assert.deepEqual([WEB, `${WEB}~mirror`, `${WEB}~mirror~c2`].map(bindOf), [['', '', true], ['/netns/u1', '/netns/u1', false], ['/netns/u3', '/netns/u3', false]]);
    assert.equal(decode(ClusterLoadAssignment, snapshot.get(EDS, `${WEB}~mirror`)?.any).endpoints.length, 1);
    const target = (name: string): unknown => {
      const { action } = decode(RouteConfiguration, snapshot.get(RDS, name)?.any).virtual_hosts[0]!.routes[0]!;
      return action?.$case === 'route' && [action.value.cluster_specifier?.value, action.value.request_mirror_policies[0]?.cluster];
    };
    assert.deepEqual([target('80'), target('80~c2')], [[WEB, `${WEB}~mirror`], [WEB, `${WEB}~mirror~c2`]]);
  });

  it('leaves out the inbound side, and what only stock Envoy\'s lack forbids', () => {
    const recording = Recording.open('canary');
    assert.ok(recording?.sidecars[0]);
    const { snapshot, problems } = fold(recording.state(recording.sidecars[0], 1));
    assert.deepEqual(problems, []);
    assert.deepEqual([...snapshot.entries(CDS).keys()].filter((name) => !/^(inspect\/|pods$)/.test(name)).sort(), [
      'BlackHoleCluster', 'PassthroughCluster', 'outbound|443||kubernetes.default.svc.cluster.local', 'outbound|80|v1|canary.canary.svc.cluster.local',
      'outbound|80|v2|canary.canary.svc.cluster.local', 'outbound|80||canary.canary.svc.cluster.local',
    ]);
    const cluster = decode(Cluster, snapshot.get(CDS, 'outbound|80||canary.canary.svc.cluster.local')?.any);
    assert.deepEqual([cluster.filters, cluster.transport_socket_matches, cluster.transport_socket], [[], [], undefined]);
    assert.equal(cluster.alt_stat_name, recording.state(recording.sidecars[0], 1).clusters.get(cluster.name)?.message.alt_stat_name);
    const manager = listenerOf(fold(recording.state(recording.sidecars[0]))).filter_chains.flatMap((chain) => chain.filters)
      .map((filter) => filter.config_type?.$case === 'typed_config' && unpack(HttpConnectionManager, filter.config_type.value)).find((item) => item);
    assert.deepEqual(manager && manager.http_filters.map((filter) => filter.name), ['envoy.filters.http.grpc_stats', 'envoy.filters.http.fault', 'envoy.filters.http.cors', 'envoy.filters.http.router']);
  });

  it('reaches endpoints of other nodes that take HBONE through one listener, which leads to the cluster of the caller\'s identity', () => {
    const identity = 'spiffe://cluster.local/ns/shop/sa/client';
    const state = basic({ [`eds ${WEB}`]: tunnelled('10.0.0.5:80', '[fd00::5]:80') });
    const own: FoldPod = { ...pod, addresses: ['10.0.0.5'] };
    const folded = ({ certified }: { certified: boolean }): Snapshot => new Folder(extensions).fold([{ key: 'c1', state, identity, certified }], [own]).snapshot;
    const snapshot = folded({ certified: true });
    const cluster = decode(Cluster, snapshot.get(CDS, WEB)?.any);
    assert.deepEqual(cluster.transport_socket_matches.map(({ match }) => match), [{ underpass: 'hbone' }]);
    const [local, remote] = decode(ClusterLoadAssignment, snapshot.get(EDS, WEB)?.any).endpoints[0]!.lb_endpoints;
    assert.equal(local!.host_identifier?.$case === 'endpoint' && local!.host_identifier.value.address?.address?.$case, 'socket_address', 'a pod of this node needs no tunnel');
    const internal = remote!.host_identifier?.$case === 'endpoint' && remote!.host_identifier.value.address?.address;
    assert.deepEqual(internal && internal.$case === 'envoy_internal_address' && [internal.value.address_name_specifier?.value, internal.value.endpoint_id], ['hbone', '[fd00::5]:80']);
    assert.deepEqual([remote!.metadata?.filter_metadata['envoy.transport_socket_match'], remote!.metadata?.filter_metadata['envoy.filters.listener.original_dst']], [{ underpass: 'hbone' }, { local: '[fd00::5]:80' }]);
    const ofAccount = decode(Cluster, snapshot.get(CDS, `hbone/${identity}`)?.any);
    const tls = unpack(UpstreamTlsContext, ofAccount.transport_socket?.config_type?.value)?.common_tls_context;
    assert.deepEqual([tls?.alpn_protocols, tls?.tls_certificate_sds_secret_configs.map(({ name }) => name)], [['h2'], [identity]]);
    const without = folded({ certified: false });
    assert.deepEqual([without.get(CDS, `hbone/${identity}`), without.get(EDS, WEB)?.version], [undefined, snapshot.get(EDS, WEB)?.version], 'what is not there yet is not made up for by plaintext');
  });

  it('keeps TLS that a DestinationRule originates, beside HBONE or alone, and drops the mesh\'s own', () => {
    const socket = (secret: string | undefined): TransportSocket => ({
      name: 'envoy.transport_sockets.tls',
      config_type: { $case: 'typed_config', value: pack(UpstreamTlsContext, UpstreamTlsContext.fromPartial({ sni: 'a', common_tls_context: { tls_certificate_sds_secret_configs: secret ? [{ name: secret }] : [] } })) },
    });
    const folded = (change: Partial<Cluster>): string | undefined => {
      const cluster = { ...Cluster.decode(edsCluster(WEB).value), ...change };
      return decode(Cluster, fold(basic({ [`cds ${WEB}`]: pack(Cluster, cluster) })).snapshot.get(CDS, WEB)?.any).transport_socket?.name;
    };
    const match = (name: string, by: Record<string, string>, transport_socket: TransportSocket): Cluster_TransportSocketMatch => ({ name, match: by, transport_socket });
    const hbone = match('hbone', { tunnel: 'http' }, socket('default'));
    assert.equal(folded({ transport_socket: socket(undefined) }), 'envoy.transport_sockets.tls');
    assert.equal(folded({ transport_socket_matches: [hbone, match('tls', {}, socket(undefined))] }), 'envoy.transport_sockets.tls');
    assert.equal(folded({ transport_socket: socket('default') }), undefined);
    assert.equal(folded({ transport_socket_matches: [hbone, match('tlsMode-istio', {}, socket('default'))] }), undefined);
    assert.equal(folded({ transport_socket_matches: [hbone, match('tlsMode-istio', { tlsMode: 'istio' }, socket(undefined))] }), undefined);
  });
});

/** The mesh's mutual TLS is for this endpoint. */
function withTls(endpoint: string): Any {
  const endpoints = ClusterLoadAssignment.decode(assignment(WEB, [endpoint]).value);
  for (const item of endpoints.endpoints[0]!.lb_endpoints) item.metadata = { typed_filter_metadata: {}, filter_metadata: { 'envoy.transport_socket_match': { tlsMode: 'istio' } } };
  return pack(ClusterLoadAssignment, endpoints);
}

describe('Folder: several classes', () => {
  const second: FoldPod = { ...pod, uid: 'u2', classKey: 'c2', netnsPath: '/run/underpass/default/netns/u2' };

  it('shares what is equal', () => {
    const folder = new Folder(extensions);
    const { snapshot, split } = folder.fold([{ key: 'c1', state: basic() }, { key: 'c2', state: basic() }], [pod, second]);
    assert.deepEqual([...split], []);
    const own = (type: string): string[] => [...snapshot.entries(type).keys()].filter((name) => !/^(inspect\/|pods$)/.test(name));
    assert.deepEqual(own(CDS), [WEB, 'PassthroughCluster', 'BlackHoleCluster']);
    assert.deepEqual(own(RDS), ['80']);
    assert.equal(own(LDS).length, 2);
  });

  it('gives the younger class names of its own for what differs, wherever it refers to them', () => {
    const folder = new Folder(extensions);
    const other = basic({ [`eds ${WEB}`]: assignment(WEB, ['10.0.0.9:80']), 'lds 10.96.0.7_5432': tcpListener('10.96.0.7', 5432, WEB) });
    const { snapshot, split } = folder.fold([{ key: 'c1', state: basic() }, { key: 'c2', state: other }], [pod, second]);
    assert.deepEqual([...split], [`CDS ${WEB}~c2`, 'RDS 80~c2', 'LDS inspect/c2/plain']);
    const cluster = decode(Cluster, snapshot.get(CDS, `${WEB}~c2`)?.any);
    assert.deepEqual([cluster.name, cluster.alt_stat_name, cluster.eds_cluster_config?.service_name], [`${WEB}~c2`, WEB, `${WEB}~c2`]);
    assert.equal(decode(ClusterLoadAssignment, snapshot.get(EDS, `${WEB}~c2`)?.any).cluster_name, `${WEB}~c2`);
    assert.ok(JSON.stringify(RouteConfiguration.toJSON(decode(RouteConfiguration, snapshot.get(RDS, '80~c2')?.any))).includes(`${WEB}~c2`));
    const listener = listenerOf({ snapshot, problems: [], split, ports: [], proxied: [], enforcing: new Set<string>(), inbound: new Map<string, string>(), tunnelled: new Set<string>(), repeated: new Map() }, 'u2');
    const at = (port: number, address = '10.96.0.7', protocol: Connection['protocol'] = ''): string =>
      targetOf(chooseChain(listener.filter_chains, listener.default_filter_chain, connection({ address, port, protocol })));
    assert.deepEqual([at(5432), at(80, '10.96.0.10', 'http/1.1'), at(81)], [`cluster ${WEB}~c2`, 'route 80~c2', 'cluster inspect/c2/plain']);
    assert.deepEqual(snapshot.get(LDS, 'pod/u2/outbound')?.needs, ['80~c2']);
    const first = listenerOf({ snapshot, problems: [], split, ports: [], proxied: [], enforcing: new Set<string>(), inbound: new Map<string, string>(), tunnelled: new Set<string>(), repeated: new Map() }, 'u1');
    assert.ok(!Buffer.from(Listener.encode(first).finish()).includes('~c2'));
  });

  it('waits for the table that an internal listener asks for now, when two classes\' tables are equal again', () => {
    const folder = new Folder(extensions);
    const inspected = (host: string): SidecarState => basic({ 'lds 0.0.0.0_8081': httpListener(8081), 'rds 8081': routes(8081, { [host]: WEB }) });
    const needs = (host: string): string[] => [...folder.fold([{ key: 'c1', state: inspected('web') }, { key: 'c2', state: inspected(host) }], [pod, second]).snapshot.get(LDS, 'pod/u2/outbound')!.needs].sort();
    assert.deepEqual([needs('other'), needs('web')], [['80', '8081~c2'], ['80', '8081']]);
  });

  it('has a cluster for each identity where the mesh\'s mutual TLS may be used, each with that account\'s certificate, and one for all elsewhere', () => {
    const tls = (change: Partial<Cluster_TransportSocketMatch>): Any => {
      const context = UpstreamTlsContext.fromPartial({ sni: 'web', common_tls_context: { tls_certificate_sds_secret_configs: [{ name: 'default' }], validation_context_type: { $case: 'combined_validation_context', value: { default_validation_context: {}, validation_context_sds_secret_config: { name: 'ROOTCA' } } } } });
      const socket: TransportSocket = { name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(UpstreamTlsContext, context) } };
      return pack(Cluster, { ...Cluster.decode(edsCluster(WEB).value), transport_socket_matches: [{ name: 'tlsMode-istio', match: { tlsMode: 'istio' }, transport_socket: socket, ...change }] });
    };
    const [alice, bob] = ['spiffe://cluster.local/ns/shop/sa/alice', 'spiffe://cluster.local/ns/shop/sa/bob'];
    const folded = (cluster: Any): FoldResult => {
      const endpoints = ClusterLoadAssignment.decode(assignment(WEB, ['10.0.0.5:80', '10.0.0.6:80', '10.0.0.7:80']).value);
      for (const item of endpoints.endpoints[0]!.lb_endpoints) item.metadata = { typed_filter_metadata: {}, filter_metadata: { 'envoy.transport_socket_match': { tlsMode: 'istio' } } };
      const own = (): SidecarState => basic({ [`cds ${WEB}`]: cluster, [`eds ${WEB}`]: pack(ClusterLoadAssignment, endpoints) });
      return new Folder(extensions).fold([{ key: 'c1', state: own(), identity: alice }, { key: 'c2', state: own(), identity: bob }, { key: 'c3', state: own(), identity: bob }], [{ ...pod, addresses: ['10.0.0.6'] }, second, { ...second, uid: 'u3', classKey: 'c3' }]);
    };
    const { snapshot, split } = folded(tls({}));
    const clusters = [...snapshot.entries(CDS).keys()].filter((name) => name.startsWith(WEB));
    const [ALICE, BOB] = [`${WEB}~shop/alice`, `${WEB}~shop/bob`];
    assert.deepEqual([clusters, [...split]], [[ALICE, BOB], []], 'accounts do not share, pods of one do, and nobody waits for that');
    assert.deepEqual([...snapshot.entries(RDS).keys()], ['80~shop/alice', '80~shop/bob']);
    const secrets = (name: string, index = 0): unknown => {
      const socket = decode(Cluster, snapshot.get(CDS, name)?.any).transport_socket_matches[index]?.transport_socket;
      const common = unpack(UpstreamTlsContext, socket?.config_type?.value)?.common_tls_context;
      const validation = common?.validation_context_type;
      return [...common!.tls_certificate_sds_secret_configs, ...(validation?.$case === 'combined_validation_context' ? [validation.value.validation_context_sds_secret_config!] : [])].map((secret) => [secret.name, secret.sds_config?.config_source_specifier?.$case]);
    };
    assert.deepEqual([secrets(ALICE), secrets(BOB)], [[[alice, 'ads'], ['ROOTCA', 'ads']], [[bob, 'ads'], ['ROOTCA', 'ads']]]);
    const matches = ({ snapshot: of }: FoldResult): unknown => decode(ClusterLoadAssignment, of.get(EDS, ALICE)?.any).endpoints[0]!.lb_endpoints.map(({ metadata }) => metadata?.filter_metadata['envoy.transport_socket_match']);
    assert.deepEqual(matches({ snapshot } as FoldResult), [{ tlsMode: 'istio' }, { underpass: 'direct' }, { tlsMode: 'istio' }], 'a pod of this node is spoken to in plaintext');
    // ISTIO_MUTUAL asks it of whatever endpoint, but not within the node.
    const mutual = folded(tls({ match: undefined }));
    assert.deepEqual(decode(Cluster, mutual.snapshot.get(CDS, ALICE)?.any).transport_socket_matches.map(({ name, match }) => [name, match]), [['direct', { underpass: 'direct' }], ['tlsMode-istio', {}]]);
    const plain = folded(edsCluster(WEB));
    assert.deepEqual([...plain.snapshot.entries(CDS).keys()].filter((name) => name.startsWith(WEB)), [WEB]);
  });

  it('gives nobody another account\'s certificate, whatever an EnvoyFilter asks for', () => {
    const common_tls_context = { tls_certificate_sds_secret_configs: [{ name: 'spiffe://cluster.local/ns/shop/sa/bob', sds_config: { config_source_specifier: { $case: 'ads' as const, value: {} } } }] };
    const upstream: TransportSocket = { name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(UpstreamTlsContext, UpstreamTlsContext.fromPartial({ common_tls_context })) } };
    const downstream: TransportSocket = { name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(DownstreamTlsContext, DownstreamTlsContext.fromPartial({ common_tls_context })) } };
    const wrapped: TransportSocket = { name: 'envoy.transport_sockets.starttls', config_type: { $case: 'typed_config', value: { type_url: 'type.googleapis.com/envoy.extensions.transport_sockets.starttls.v3.StartTlsConfig', value: Buffer.from(DownstreamTlsContext.encode(DownstreamTlsContext.fromPartial({ common_tls_context })).finish()) } } };
    const listener = (transport_socket: TransportSocket): Any => {
      const own = Listener.decode(tcpListener('10.96.0.7', 5432, WEB).value);
      return pack(Listener, { ...own, filter_chains: own.filter_chains.map((chain) => ({ ...chain, transport_socket })) });
    };
    const states = [
      basic({ [`cds ${WEB}`]: pack(Cluster, { ...Cluster.decode(edsCluster(WEB).value), transport_socket: upstream }) }),
      basic({ [`cds ${WEB}`]: pack(Cluster, { ...Cluster.decode(edsCluster(WEB).value), transport_socket_matches: [{ name: 'x', match: {}, transport_socket: upstream }] }) }),
      basic({ 'lds 10.96.0.7_5432': listener(downstream) }),
      basic({ 'lds 10.96.0.7_5432': listener(wrapped) }),
    ];
    for (const state of states) {
      const { snapshot, problems } = new Folder(extensions).fold([{ key: 'c1', state, identity: 'spiffe://cluster.local/ns/shop/sa/alice' }], [pod]);
      assert.match(problems.map(({ message }) => message).join(), /not to be asked for by its SPIFFE id/);
      for (const { name, any } of [CDS, LDS].flatMap((type) => [...snapshot.entries(type).values()])) assert.ok(!Buffer.from(any.value).includes('sa/bob'), name);
    }
  });

  it('knows whom a socket within the PROXY protocol may meet from whose certificate it asks for', () => {
    const within = (name: string): Any => {
      const context = UpstreamTlsContext.fromPartial({
        common_tls_context: {
          tls_certificate_sds_secret_configs: [{ name, sds_config: { config_source_specifier: { $case: 'ads', value: {} } } }],
          validation_context_type: { $case: 'validation_context', value: { match_typed_subject_alt_names: [{ san_type: 3, matcher: { match_pattern: { $case: 'exact', value: 'spiffe://cluster.local/ns/shop/sa/web' } } }] } },
        },
      });
      const inner: TransportSocket = { name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(UpstreamTlsContext, context) } };
      const outer: TransportSocket = { name: 'envoy.transport_sockets.upstream_proxy_protocol', config_type: { $case: 'typed_config', value: pack(ProxyProtocolUpstreamTransport, ProxyProtocolUpstreamTransport.fromPartial({ transport_socket: inner })) } };
      return pack(Cluster, { ...Cluster.decode(edsCluster(WEB).value), transport_socket: outer });
    };
    const problemsOf = (name: string): string => new Folder(extensions).fold([{ key: 'c1', state: basic({ [`cds ${WEB}`]: within(name) }), identity: 'spiffe://cluster.local/ns/shop/sa/alice' }], [pod]).problems.map(({ message }) => message).join();
    assert.equal(problemsOf('default'), '');
    assert.match(problemsOf('spiffe://cluster.local/ns/shop/sa/bob'), /not to be asked for by its SPIFFE id/);
  });

  it('never gives a name that one account\'s requests may still be sent to over to another account', () => {
    const context = UpstreamTlsContext.fromPartial({ sni: 'web', common_tls_context: { tls_certificate_sds_secret_configs: [{ name: 'default' }] } });
    const transport_socket: TransportSocket = { name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(UpstreamTlsContext, context) } };
    const cluster = pack(Cluster, { ...Cluster.decode(edsCluster(WEB).value), transport_socket_matches: [{ name: 'tlsMode-istio', match: { tlsMode: 'istio' }, transport_socket }] });
    const of = (key: string, name: string): { key: string; state: SidecarState; identity: string } => ({ key, state: basic({ [`cds ${WEB}`]: cluster, [`eds ${WEB}`]: withTls('10.0.0.5:80'), 'lds 10.96.0.7_5432': tcpListener('10.96.0.7', 5432, WEB) }), identity: `spiffe://cluster.local/ns/shop/sa/${name}` });
    const folder = new Folder(extensions);
    const [alice, bob] = [of('c1', 'alice'), of('c2', 'bob')];
    const all = folder.fold([alice, bob], [pod, second]).snapshot;
    // The senior class is gone, or of another key since its labels changed.
    const later = folder.fold([bob, of('c3', 'alice')], [second, { ...pod, classKey: 'c3' }]).snapshot;
    const versions = (snapshot: FoldResult['snapshot'], type: string): string[] => [...snapshot.entries(type).values()].filter(({ name }) => name.includes('~')).map(({ name, version }) => `${name} ${version}`).sort();
    for (const type of [CDS, EDS, RDS]) {
      assert.equal(versions(all, type).length, 2);
      assert.deepEqual(versions(later, type), versions(all, type));
    }
    assert.ok(![...all.entries(CDS).keys(), ...all.entries(RDS).keys()].some((name) => name === WEB || name === '80'), 'nothing that bears an identity has the plain name');
  });

  it('has one cluster for all accounts until an endpoint elsewhere asks for the mesh\'s mutual TLS, and from then on one for each', () => {
    const context = UpstreamTlsContext.fromPartial({ sni: 'web', common_tls_context: { tls_certificate_sds_secret_configs: [{ name: 'default' }] } });
    const transport_socket: TransportSocket = { name: 'envoy.transport_sockets.tls', config_type: { $case: 'typed_config', value: pack(UpstreamTlsContext, context) } };
    const cluster = pack(Cluster, { ...Cluster.decode(edsCluster(WEB).value), transport_socket_matches: [{ name: 'tlsMode-istio', match: { tlsMode: 'istio' }, transport_socket }] });
    const of = (endpoints: Any) => ['alice', 'bob'].map((name, index) => ({ key: `c${index + 1}`, state: basic({ [`cds ${WEB}`]: cluster, [`eds ${WEB}`]: endpoints }), identity: `spiffe://cluster.local/ns/shop/sa/${name}` }));
    const folder = new Folder(extensions);
    const names = (endpoints: Any): string[] => [...folder.fold(of(endpoints), [{ ...pod, addresses: ['10.0.0.6'] }, second]).snapshot.entries(CDS).keys()].filter((name) => name.startsWith(WEB));
    const routes = (endpoints: Any): string[] => [...folder.fold(of(endpoints), [pod, second]).snapshot.entries(RDS).keys()];
    assert.deepEqual(names(assignment(WEB, ['10.0.0.5:80'])), [WEB]);
    assert.deepEqual(routes(assignment(WEB, ['10.0.0.5:80'])), ['80~shop/alice', '80~shop/bob'], 'tables of routes are an account\'s own all the same');
    const bobsAlone = folder.fold(of(assignment(WEB, ['10.0.0.5:80'])).slice(1), [second]).snapshot;
    assert.deepEqual([...bobsAlone.entries(RDS).keys()], ['80~shop/bob'], 'and keep their name when the others leave');
    assert.deepEqual(names(withTls('10.0.0.6:80')), [WEB], 'a pod of this node is spoken to in plaintext');
    assert.deepEqual(names(withTls('10.0.0.5:80')), [`${WEB}~shop/alice`, `${WEB}~shop/bob`]);
    assert.deepEqual(names(assignment(WEB, ['10.0.0.5:80'])), [`${WEB}~shop/alice`, `${WEB}~shop/bob`], 'a name that comes and goes would end connections each time');
  });

  it('folds again only what has changed: entries of before are the same objects', () => {
    const folder = new Folder(extensions);
    const OTHER = 'outbound|80||other';
    const states = ['c1', 'c2'].map((key) => ({ key, state: basic({ [`cds ${OTHER}`]: edsCluster(OTHER), [`eds ${OTHER}`]: assignment(OTHER, ['10.0.0.9:80']) }) }));
    const before = folder.fold(states, [pod, second]).snapshot;
    const changed = states.map(({ key, state }) => ({ key, state: { ...state, endpoints: new Map([...state.endpoints, [WEB, basic({ [`eds ${WEB}`]: assignment(WEB, ['10.0.0.8:80']) }).endpoints.get(WEB)!]]) } }));
    const after_ = folder.fold(changed, [pod, second]).snapshot;
    for (const type of [CDS, LDS, RDS]) for (const [name, entry] of after_.entries(type)) {
      assert.equal(entry.version, before.get(type, name)?.version, name);
      if (!name.startsWith('inspect/') && name !== WEB) assert.ok(entry.any === before.get(type, name)?.any, name);
    }
    assert.ok(after_.get(EDS, OTHER) === before.get(EDS, OTHER));
    assert.notEqual(after_.get(EDS, WEB)?.version, before.get(EDS, WEB)?.version);
  });

  it('gives the same versions as the agent before did, if it knows that one\'s names, so that a restarted agent resends nothing', () => {
    const classes = (): { key: string; state: SidecarState }[] => [{ key: 'c1', state: basic() }, { key: 'c2', state: basic({ [`eds ${WEB}`]: assignment(WEB, []) }) }];
    const versions = (result: FoldResult): string[] => [CDS, EDS, LDS, RDS].flatMap((type) => [...result.snapshot.entries(type).values()].map(({ name, version }) => `${name} ${version}`)).sort();
    const folder = new Folder(extensions);
    folder.fold([{ key: 'c2', state: basic({ [`eds ${WEB}`]: assignment(WEB, []) }) }], [second]);
    folder.commit();
    const both = versions(folder.fold(classes(), [pod, second]));
    folder.commit();
    const next = (): Folder => new Folder(extensions, JSON.parse(JSON.stringify({ accountClusters: [...folder.accountClusters], names: folder.names })) as ConstructorParameters<typeof Folder>[1]);
    assert.deepEqual(versions(next().fold(classes(), [second, pod])), both);
    const bobsAlone = versions(folder.fold(classes().slice(1), [second]));
    assert.deepEqual(versions(next().fold(classes().slice(1), [second])), bobsAlone);
    assert.deepEqual(bobsAlone.filter((entry) => !both.includes(entry)), [], 'who stays keeps all as it was');
  });

  it('keeps everything of the pods that stay as it is when the class leaves whose versions have the plain names', () => {
    const folder = new Folder(extensions);
    const of = (key: string, ...endpoints: string[]) => ({ key, state: basic({ [`eds ${WEB}`]: assignment(WEB, endpoints) }) });
    const third: FoldPod = { ...second, uid: 'u3', classKey: 'c3' };
    const all = folder.fold([of('c1', '10.0.0.5:80'), of('c2', '10.0.0.6:80'), of('c3', '10.0.0.6:80')], [pod, second, third]).snapshot;
    folder.commit();
    for (const [left, pods] of [[[of('c2', '10.0.0.6:80'), of('c3', '10.0.0.6:80')], [second, third]], [[of('c3', '10.0.0.6:80')], [third]]] as const) {
      const { snapshot } = folder.fold(left, pods);
      folder.commit();
      for (const type of [CDS, EDS, LDS, RDS]) for (const [name, { version }] of snapshot.entries(type)) assert.equal(version, all.get(type, name)?.version, name);
    }
  });

  it('folded step by step is what is folded from scratch, whatever changes, comes and goes', () => {
    const random = generator(3);
    const any = (below: number): number => Math.floor(random() * below);
    const names = Array.from({ length: 6 }, (_, index) => `outbound|80||s${index}.shop.svc.cluster.local`);
    const fresh = (): Record<string, Any> => Object.fromEntries([
      ...names.flatMap((name) => (random() < 0.8 ? [[`cds ${name}`, edsCluster(name)], [`eds ${name}`, assignment(name, [`10.0.0.${any(3)}:80`])]] : [])),
      ['rds 80', routes(80, Object.fromEntries(names.map((name) => [name.split('||')[1]!, random() < 0.1 ? names[any(6)]! : name])))],
      ...(random() < 0.5 ? [['lds 10.96.0.7_5432', tcpListener('10.96.0.7', 5432, names[any(6)]!)]] : []),
    ] as [string, Any][]);
    let classes = Array.from({ length: 3 }, (_, index) => ({ key: `c${index}`, state: basic(fresh()) }));
    const folder = new Folder(extensions);
    let came = 3;
    for (let step = 0; step < 150; step++) {
      const names = structuredClone(folder.names);
      const change = any(5);
      if (change === 0 && classes.length > 1) classes = classes.toSpliced(any(classes.length), 1);
      else if (change === 1 && classes.length < 5) classes = classes.toSpliced(any(classes.length + 1), 0, { key: `c${came++}`, state: basic(fresh()) });
      else if (change === 2) {
        // What one class is sent all are.
        const { state } = { state: basic(fresh()) };
        classes = classes.map(({ key, state: own }) => ({ key, state: { ...own, routes: state.routes } }));
      } else {
        const [at, kind] = [any(classes.length), (['clusters', 'endpoints', 'listeners', 'routes'] as const)[any(4)]!];
        classes = classes.with(at, { ...classes[at]!, state: { ...classes[at]!.state, [kind]: basic(fresh())[kind] } });
      }
      const pods = classes.flatMap(({ key }, index) => [{ ...pod, uid: `${key}-a`, classKey: key, addresses: [`10.0.0.${any(3)}`] }, { ...pod, uid: `${key}-b`, classKey: key, ipv6: index % 2 === 0 }]);
      const driven = new Set(random() < 0.3 ? ['10.0.0.1:80'] : []);
      const [stepped, scratch] = [folder.fold(classes, pods, driven), new Folder(extensions, { names, accountClusters: [...folder.accountClusters] }).fold(classes, pods, driven)];
      const entries = ({ snapshot }: FoldResult, type: string): unknown => [...snapshot.entries(type)].map(([name, { any: { type_url, value }, ...entry }]) => [name, entry, type_url, value.toString('latin1')]);
      for (const type of [CDS, EDS, LDS, RDS]) assert.deepEqual(entries(stepped, type), entries(scratch, type), `step ${step}`);
      // As Envoy acknowledges: what is told of later is what was sent.
      if (random() < 0.5) for (const type of [CDS, EDS, LDS]) for (const entry of stepped.snapshot.entries(type).values()) release(entry);
      assert.deepEqual([stepped.problems, stepped.split, stepped.ports], [scratch.problems, scratch.split, scratch.ports]);
    }
  });
});

/** Pseudo-random numbers from 0 to 1, the same each time (a linear congruence of Numerical Recipes). */
function generator(seed: number): () => number {
  let at = seed;
  return () => (at = (Math.imul(at, 1_664_525) + 1_013_904_223) >>> 0) / 2 ** 32;
}

describe('folded listeners send each connection where the sidecar\'s listeners would', () => {
  for (const scenario of ['canary', 'base-world', 'match-kinds', 'timeout-retry-fault', 'tcp-tls-routes', 'service-entry', 'service-kinds', 'sidecar-scope', 'delegate', 'node-streams']) {
    it(scenario, (test) => {
      const recording = Recording.open(scenario);
      if (!recording) return test.diagnostic('the recording is not beside this checkout');
      let compared = 0;
      let fewer = 0;
      for (const session of recording.sidecars) {
        for (const { step } of recording.steps) {
          const recorded = recording.state(session, step);
          if (recorded.listeners.size === 0) continue;
          const sources = [...recorded.listeners.values()].map(({ message }) => message);
          const result: FoldResult = fold(recorded);
          const folded = listenerOf(result);
          // Of pods that came many at a time.
          const brief = listenerOf(fold(recorded, { ...pod, brief: true }));
          assert.ok(brief.filter_chains.every((chain) => folded.filter_chains.some((each) => isDeepStrictEqual(each, chain))) && isDeepStrictEqual(brief.default_filter_chain, folded.default_filter_chain), 'it becomes whole by additions alone');
          fewer += folded.filter_chains.length - brief.filter_chains.length;
          const inner: ReadonlyMap<string, Listener> = new Map(['http', 'unknown', 'plain'].map((kind) => [`cluster inspect/c1/${kind}`, decode(Listener, result.snapshot.get(LDS, `inspect/c1/${kind}`)?.any)]));
          for (const item of connections(sources)) {
            const source = chooseListener(sources, item);
            const expected = targetOf(chooseChain(source?.filter_chains ?? [], source?.default_filter_chain, item));
            for (const [how, own] of [['whole', folded], ['brief', brief]] as const) {
              const first: string = targetOf(chooseChain(own.filter_chains, own.default_filter_chain, item));
              const next: Listener | undefined = inner.get(first);
              const found: string = next ? targetOf(chooseChain(next.filter_chains, next.default_filter_chain, item)) : first;
              assert.equal(found, expected, `step ${step}, ${session.name}, ${how}: ${JSON.stringify(item)}`);
            }
            compared++;
          }
        }
      }
      assert.ok(compared > 100 && fewer > 0, `${compared} connections, ${fewer} chains fewer`);
    });
  }
});

function connection(change: Partial<Connection>): Connection {
  return { address: '10.0.0.1', port: 80, serverName: '', transport: 'raw_buffer', protocol: '', ...change };
}

/** Every address, port and server name that is spoken of, and one of each that is not, in every combination. */
function connections(sources: readonly Listener[]): Connection[] {
  const addresses = new Set(['192.0.2.1']);
  const ports = new Set([9, 15001]);
  const names = new Set(['', 'unknown.example']);
  for (const listener of sources) {
    if (listener.bind_to_port !== false || listener.address?.address?.$case !== 'socket_address') continue;
    if (listener.address.address.value.address !== '0.0.0.0') addresses.add(listener.address.address.value.address);
    ports.add(listener.address.address.value.port_specifier?.value as number);
    for (const chain of listener.filter_chains) for (const name of chain.filter_chain_match?.server_names ?? []) names.add(name.replace('*', 'any'));
  }
  const kinds: Pick<Connection, 'transport' | 'protocol'>[] = [
    { transport: 'raw_buffer', protocol: '' }, { transport: 'raw_buffer', protocol: 'http/1.1' }, { transport: 'raw_buffer', protocol: 'h2c' }, { transport: 'tls', protocol: 'h2' }, { transport: 'tls', protocol: '' },
  ];
  const result: Connection[] = [];
  for (const address of addresses) {
    for (const port of ports) {
      for (const kind of kinds) for (const serverName of kind.transport === 'tls' ? names : ['']) result.push({ address, port, serverName, ...kind });
    }
  }
  return result;
}
