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

/** Pseudo-random numbers from 0 to 1, the same each time (a linear congruence of Numerical Recipes). */
function generator(seed: number): () => number {
  let at = seed;
  return () => (at = (Math.imul(at, 1_664_525) + 1_013_904_223) >>> 0) / 2 ** 32;
}

describe('PlainPorts', () => {
  it('finds TCP and HTTP plain as the control plane sends them for a service that asks for nothing', () => {
    const tcp = judge(5432, state());
    assert.equal(tcp.kind, 'tcp');
    assert.equal(tcp.kind && tcp.assignments[0]?.message.endpoints.length, 1);
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

  it('names what it may judge otherwise than before: all else is judged the same, whatever has changed', () => {
    const random = generator(11);
    const any = (below: number): number => Math.floor(random() * below);
    const services = Array.from({ length: 12 }, (_, index) => ({ host: `s${index}.shop.svc.cluster.local`, vip: `10.96.1.${index}`, port: index % 2 === 0 ? 80 : 5432 }));
    const clusterOf = ({ host, port }: { host: string; port: number }): string => `outbound|${port}||${host}`;
    const decode = (kind: keyof SidecarState, name: string, resource: Any): unknown => sidecarTypes[kind].decode(name, '1', resource);
    const table = (lead: (service: (typeof services)[number]) => string | undefined): Any => routes(80, Object.fromEntries(services.flatMap((each) => (each.port === 80 ? [[each.host, lead(each) ?? clusterOf(each)]] : []))));
    const first = (): SidecarState => ({
      clusters: new Map(services.map((each) => [clusterOf(each), decode('clusters', clusterOf(each), edsCluster(clusterOf(each)))])),
      endpoints: new Map(services.map((each) => [clusterOf(each), decode('endpoints', clusterOf(each), assignment(clusterOf(each), ['10.0.0.1:1']))])),
      listeners: new Map([['0.0.0.0_80', decode('listeners', '0.0.0.0_80', httpListener(80))], ...services.flatMap((each) => (each.port === 80 ? [] : [[`${each.vip}_5432`, decode('listeners', `${each.vip}_5432`, tcpListener(each.vip, 5432, clusterOf(each)))] as const]))]),
      routes: new Map([['80', decode('routes', '80', table(() => undefined))]]),
    }) as unknown as SidecarState;
    const change = (state: SidecarState): SidecarState => {
      const service = services[any(services.length)]!;
      const name = clusterOf(service);
      const next = { ...state } as unknown as Record<keyof SidecarState, Map<string, unknown>>;
      const put = (kind: keyof SidecarState, key: string, value: unknown): void => void (next[kind] = new Map(next[kind]).set(key, value));
      const kind = any(6);
      if (kind === 0) put('clusters', name, decode('clusters', name, random() < 0.5 ? edsCluster(name) : changed(Cluster, edsCluster(name), (each) => (each.lb_policy = 2))));
      else if (kind === 1) put('endpoints', name, decode('endpoints', name, assignment(name, [`10.0.0.${any(3)}:1`])));
      else if (kind === 2 && service.port !== 80) put('listeners', `${service.vip}_5432`, decode('listeners', `${service.vip}_5432`, tcpListener(service.vip, 5432, random() < 0.5 ? name : 'elsewhere')));
      else if (kind === 3) (next.clusters = new Map(next.clusters)).delete(name);
      else put('routes', '80', decode('routes', '80', table((each) => (random() < 0.15 ? `outbound|80|v2|${each.host}` : undefined))));
      return next as unknown as SidecarState;
    };
    let states = [first(), first()];
    let before = new PlainPorts(states.map((state, index) => ({ key: `c${index}`, state })));
    const judged = (ports: PlainPorts, { host, vip, port }: (typeof services)[number]) => ports.judge(vip, port, host);
    let kept = services.map((each) => judged(before, each));
    let left = 0;
    for (let step = 0; step < 400; step++) {
      states = states.map((state) => (random() < 0.6 ? change(state) : state));
      const now = new PlainPorts(states.map((state, index) => ({ key: `c${index}`, state })));
      const concerned = now.changedSince(before);
      assert.ok(concerned, 'nothing that could not be told');
      kept = services.map((each, index) => (concerned.has(each.host) || concerned.has(each.vip) ? judged(now, each) : kept[index]!));
      left += services.filter((each) => !concerned.has(each.host) && !concerned.has(each.vip)).length;
      // From scratch: with nothing that was kept of earlier tables.
      const anew = new PlainPorts(states.map((state, index) => ({ key: `c${index}`, state: { ...state, routes: new Map([...state.routes].map(([name, { any: bytes }]) => [name, { ...state.routes.get(name)!, message: RouteConfiguration.decode(bytes.value) }])) } })));
      assert.deepEqual(kept, services.map((each) => judged(anew, each)), `step ${step}`);
      before = now;
    }
    assert.ok(left > 400, `${left} times something was left as it was`);
    const frame = changed(Listener, tcpListener('0.0.0.0', 15001, 'PassthroughCluster'), (each) => void (each.name = 'virtualOutbound'));
    const all = new PlainPorts([{ key: 'c0', state: { ...states[0]!, listeners: new Map([...states[0]!.listeners, ['virtualOutbound', sidecarTypes.listeners.decode('virtualOutbound', '1', frame)]]) } }, { key: 'c1', state: states[1]! }]);
    assert.equal(all.changedSince(before), undefined, 'the frame of all listeners');
    assert.equal(new PlainPorts([]).changedSince(before), undefined, 'other classes');
  });

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

  it('asks only classes whose pods have the address\'s family', () => {
    const six = { key: 'six', state: state({ listeners: [] }), addresses: ['fd00::1'] };
    const four = { key: 'four', state: state(), addresses: ['10.0.0.9'] };
    assert.equal(new PlainPorts([four, six]).judge(VIP, 5432, HOST).kind, 'tcp');
    assert.equal(new PlainPorts([four, { ...six, addresses: ['fd00::1', '10.0.0.8'] }]).judge(VIP, 5432, HOST).reason, "a client's proxy has no listener for it");
    assert.equal(new PlainPorts([six]).judge(VIP, 5432, HOST).reason, 'no pod of this node has an address of its family');
  });
});
