import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChainMatch } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { pack, unpack } from '../../common/xds/any.js';
import { Recording } from '../testing/recording.js';
import { assignment, edsCluster, httpListener, routes, sniffedListener, tcpListener } from '../testing/resources.js';
import { sidecarTypes, type SidecarState } from '../xds/sidecar-stream.js';
import { PlainPorts } from './plain-ports.js';

const HOST = 'db.shop.svc.cluster.local';
const VIP = '10.96.0.5';
const TCP = `outbound|5432||${HOST}`;
const HTTP = `outbound|80||${HOST}`;

/** pack's and unpack's. */
type MessageCodec<T> = Parameters<typeof pack<T>>[0] & Parameters<typeof unpack<T>>[0];

interface Parts {
  listeners?: Any[];
  clusters?: Any[];
  routes?: Any[];
}

function state({ listeners = [tcpListener(VIP, 5432, TCP), httpListener(80)], clusters = [edsCluster(TCP), edsCluster(HTTP)], routes: tables = [routes(80, { [HOST]: HTTP })] }: Parts = {}): SidecarState {
  const out = { clusters: new Map(), endpoints: new Map(), listeners: new Map(), routes: new Map() } as Record<keyof SidecarState, Map<string, unknown>>;
  const put = (kind: keyof SidecarState, resource: Any): void => {
    const { name } = decodeAny(kind, resource);
    out[kind].set(name, sidecarTypes[kind].decode(name, '1', resource));
  };
  listeners.forEach((each) => put('listeners', each));
  clusters.forEach((each) => put('clusters', each));
  tables.forEach((each) => put('routes', each));
  put('endpoints', assignment(TCP, ['10.0.0.1:7000']));
  return out as unknown as SidecarState;
}

function decodeAny(kind: keyof SidecarState, any: Any): { name: string } {
  if (kind === 'endpoints') return { name: TCP };
  return { listeners: Listener, clusters: Cluster, routes: RouteConfiguration }[kind].decode(any.value);
}

const judge = (port: number, ...states: SidecarState[]) => new PlainPorts(states.map((each, index) => ({ key: `c${index}`, state: each }))).judge(VIP, port, HOST);

function changed<T>(codec: MessageCodec<T>, any: Any, change: (message: T) => void): Any {
  const message = unpack(codec, any) as T;
  change(message);
  return pack(codec, message);
}

function inFilter<T>(codec: MessageCodec<T>, listener: Any, change: (message: T) => void): Any {
  return changed(Listener, listener, ({ filter_chains: [chain] }) => {
    const config = chain!.filters.at(-1)!.config_type!;
    if (config.$case === 'typed_config') config.value = changed(codec, config.value, change);
  });
}

const stats = { name: 'istio.stats', config_type: { $case: 'typed_config' as const, value: { type_url: 'type.googleapis.com/stats.PluginConfig', value: Buffer.alloc(0) } } };
const accessLog = { name: 'envoy.access_loggers.stdout', filter: undefined, config_type: undefined };
const foreign = { name: 'wasm', config_type: { $case: 'typed_config' as const, value: { type_url: 'type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm', value: Buffer.alloc(0) } } };

describe('PlainPorts', () => {
  it('finds TCP and HTTP plain as the control plane sends them for a service that asks for nothing', () => {
    const tcp = judge(5432, state());
    assert.equal(tcp.kind, 'tcp');
    assert.equal(tcp.kind && tcp.assignments[0]?.endpoints.length, 1);
    assert.equal(judge(80, state()).kind, 'http');
    const sniffed = state({ listeners: [sniffedListener(VIP, 5432, TCP)], routes: [routes(80, { [HOST]: TCP })] });
    const withRoutes = { ...sniffed, routes: new Map([['5432', sniffed.routes.get('80')!]]) } as SidecarState;
    assert.equal(judge(5432, withRoutes).kind, 'http', JSON.stringify(judge(5432, withRoutes)));
  });

  it('asks all classes, and is the proxy\'s when one of them asks for more, or when there is none', () => {
    assert.equal(judge(5432, state(), state()).kind, 'tcp');
    assert.match(judge(5432, state(), state({ listeners: [] })).reason ?? '', /no listener/);
    assert.match(judge(5432).reason ?? '', /nothing is known/);
  });

  it('Istio\'s own statistics are nothing that is asked for, changed ones are', () => {
    const withStats = (value: string): Any => changed(Listener, tcpListener(VIP, 5432, TCP), ({ filter_chains: [chain] }) => void chain!.filters.unshift({ ...stats, config_type: { ...stats.config_type, value: { ...stats.config_type.value, value: Buffer.from(value, 'hex') } } }));
    assert.equal(judge(5432, state({ listeners: [withStats('')] })).kind, 'tcp');
    assert.match(judge(5432, state({ listeners: [withStats('0a0161')] })).reason ?? '', /Telemetry/);
  });

  const tcpCases: Record<string, [Parts, RegExp]> = {
    'an access log of the listener': [{ listeners: [changed(Listener, tcpListener(VIP, 5432, TCP), (each) => void each.access_log.push(accessLog))] }, /access log/],
    'an access log of the connection': [{ listeners: [inFilter(TcpProxy, tcpListener(VIP, 5432, TCP), (each) => void each.access_log.push(accessLog))] }, /logged/],
    'an access log of all connections': [{ listeners: [tcpListener(VIP, 5432, TCP), changed(Listener, tcpListener('0.0.0.0', 15001, 'PassthroughCluster'), (each) => { each.name = 'virtualOutbound'; each.access_log.push(accessLog); })] }, /all connections are logged/],
    'an idle time-out': [{ listeners: [inFilter(TcpProxy, tcpListener(VIP, 5432, TCP), (each) => (each.idle_timeout = { seconds: 5n, nanos: 0 }))] }, /settings/],
    'weighted clusters': [{ listeners: [inFilter(TcpProxy, tcpListener(VIP, 5432, TCP), (each) => (each.cluster_specifier = { $case: 'weighted_clusters', value: { clusters: [] } }))] }, /several clusters/],
    'a route elsewhere': [{ listeners: [tcpListener(VIP, 5432, 'outbound|5432|v2|db.shop.svc.cluster.local')] }, /is led to outbound\|5432\|v2/],
    'a filter of an EnvoyFilter': [{ listeners: [changed(Listener, tcpListener(VIP, 5432, TCP), ({ filter_chains: [chain] }) => void chain!.filters.unshift(foreign))] }, /wasm has a say/],
    'a match by server name': [{ listeners: [changed(Listener, tcpListener(VIP, 5432, TCP), ({ filter_chains: [chain] }) => void (chain!.filter_chain_match = FilterChainMatch.fromPartial({ server_names: ['a.example'] })))] }, /more than their protocol/],
    'a DestinationRule': [{ clusters: [changed(Cluster, edsCluster(TCP), (each) => (each.metadata = { filter_metadata: { istio: { config: '/apis/x/destination-rule/db' } }, typed_filter_metadata: {} }))] }, /destination-rule\/db has settings/],
    'outlier detection': [{ clusters: [changed(Cluster, edsCluster(TCP), (each) => (each.outlier_detection = Cluster.fromPartial({ outlier_detection: { interval: { seconds: 1n } } }).outlier_detection))] }, /cluster has settings/],
    'limits': [{ clusters: [changed(Cluster, edsCluster(TCP), (each) => (each.circuit_breakers = Cluster.fromPartial({ circuit_breakers: { thresholds: [{ max_connections: 5 }] } }).circuit_breakers))] }, /limited/],
    'endpoints by DNS': [{ clusters: [changed(Cluster, edsCluster(TCP), (each) => (each.cluster_discovery_type = { $case: 'type', value: 1 }))] }, /not a list of addresses/],
    'a hash of the client': [{ clusters: [changed(Cluster, edsCluster(TCP), (each) => (each.lb_policy = 2))] }, /more than weight/],
    'no cluster': [{ clusters: [] }, /no cluster/],
  };
  for (const [what, [parts, reason]] of Object.entries(tcpCases)) {
    it(`leaves TCP with ${what} to the proxy`, () => assert.match(judge(5432, state(parts)).reason ?? 'plain', reason));
  }

  const httpCases: Record<string, [Parts, RegExp]> = {
    'routes of a VirtualService': [{ routes: [changed(RouteConfiguration, routes(80, { [HOST]: HTTP }), ({ virtual_hosts: [host] }) => (host!.routes[0]!.metadata = { filter_metadata: { istio: { config: '/apis/x/virtual-service/db' } }, typed_filter_metadata: {} }))] }, /virtual-service\/db has routes/],
    'a time-out': [{ routes: [changed(RouteConfiguration, routes(80, { [HOST]: HTTP }), ({ virtual_hosts: [host] }) => { const { action } = host!.routes[0]!; if (action?.$case === 'route') action.value.timeout = { seconds: 1n, nanos: 0 }; })] }, /route has settings/],
    'two routes': [{ routes: [changed(RouteConfiguration, routes(80, { [HOST]: HTTP }), ({ virtual_hosts: [host] }) => void host!.routes.push(host!.routes[0]!))] }, /2 routes/],
    'no route': [{ routes: [routes(80, { 'other.example': HTTP })] }, /no route of 80/],
    'another filter': [{ listeners: [inFilter(HttpConnectionManager, httpListener(80), (each) => void each.http_filters.unshift({ ...foreign, is_optional: false, disabled: false }))] }, /wasm has a say/],
    'an access log': [{ listeners: [inFilter(HttpConnectionManager, httpListener(80), (each) => void each.access_log.push(accessLog))] }, /logged/],
    'a tracing provider': [{ listeners: [inFilter(HttpConnectionManager, httpListener(80), (each) => (each.tracing = HttpConnectionManager.fromPartial({ tracing: { provider: { name: 'zipkin' } } }).tracing))] }, /traced/],
  };
  for (const [what, [parts, reason]] of Object.entries(httpCases)) {
    it(`leaves HTTP with ${what} to the proxy`, () => assert.match(judge(80, state(parts)).reason ?? 'plain', reason));
  }

  it('judges what istiod was recorded to serve', (context) => {
    if (!Recording.open('service-kinds') || !Recording.open('base-world')) return context.skip('the shared recordings are not there');
    const of = (scenario: string, address: string, port: number, host: string) => {
      const recording = Recording.open(scenario);
      const session = recording?.sidecars.find((each) => recording.state(each).listeners.size > 0);
      assert.ok(recording && session, scenario);
      const { kind, reason } = new PlainPorts([{ key: 'c', state: recording.state(session) }]).judge(address, port, host);
      return kind ?? reason;
    };
    assert.equal(of('service-kinds', '10.96.75.6', 27017, 'mongo.kinds.svc.cluster.local'), 'tcp');
    assert.match(of('base-world', '10.96.2.30', 6379, 'redis.ambient.svc.cluster.local'), /logged/);
  });
});
