// What a real Envoy says to servers, and does not, about clients that the kernel learns from.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { OutlierDetection } from '../../proto/generated/envoy/config/cluster/v3/outlier_detection.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack } from '../../common/xds/any.js';
import { waitFor } from '../../common/retry.js';
import type { ProxyPod } from '../proxy/node-proxy.js';
import type { TestNetns } from '../testing/netns.js';
import { ENDPOINT, ProxyWorld, SERVICE_CLUSTER, SERVICE_VIP } from '../testing/proxy-world.js';
import { assignment, edsCluster, httpListener, tcpListener } from '../testing/resources.js';
import { CLASS_HEADER, endpointDraw, LESSON_HEADER, TAUGHT_MARK, TRIED_HEADER, weightDraw, type Teaching } from './names.js';

const [CANARY, FAR, GUARDED] = ['10.0.0.6', '10.0.0.9', '10.0.0.7'];
const COOKIE = 0x1234_5678_9abcn;
const HEADERS = { weight: 'x-w-3f9a', endpoint: 'x-e-3f9a', other: 'x-o-3f9a' };
/** What the kernel writes for an endpoint that it may learn of, with the blanks that make all lines as long. */
const to = (address: string, listener?: string): Record<string, string> => ({ [HEADERS.endpoint]: endpointDraw(address, 80, listener).padEnd(140) });
const FORGED = { [CLASS_HEADER]: '0000000f0000000f', [LESSON_HEADER]: '0000000f0000000f-000000000000000f-9' };
/** By index of route. */
const PATHS = ['/a', '/b', '/w', '/many', '/far', '/guarded', '/plain', '/retry', '/eject', '/tries'] as const;
const classes = PATHS.map((path, index) => (path === '/plain' ? undefined : `${(index + 1).toString(16).padStart(8, '0')}00000007`));
const teaching: Teaching = { headers: HEADERS, versionOf: () => '1', of: () => (table, host, index) => (['80', '8081'].includes(table) && host.startsWith('web') ? classes[index] : undefined) };

interface Seen {
  /** Whom the request came to: address and port. */
  server: string;
  /** Of the server's, over all of its addresses. */
  connection: number;
  lines: string[];
  /** The client's own port. */
  port: number;
  /** How often Envoy says that it has tried, if it does. */
  tried?: string;
}

/** Says what it has read: heads as they are, without bodies. @param failing address that answers 503 */
function rawServer(failing: string): string {
  return `let count = 0;
    require('net').createServer((socket) => {
      const connection = ++count; let text = '';
      const server = socket.localAddress.replace('::ffff:', '');
      socket.on('error', () => {});
      socket.on('data', (data) => {
        text += data;
        for (let end; (end = text.indexOf('\\r\\n\\r\\n')) >= 0; text = text.slice(end + 4)) {
          const lines = text.slice(0, end).split('\\r\\n');
          const fails = server === '${failing}' && lines[0].includes('/retry');
          const body = JSON.stringify({ server, connection, lines });
          socket.write('HTTP/1.1 ' + (fails ? '503 No' : '200 OK') + '\\r\\ncontent-length: ' + Buffer.byteLength(body) + '\\r\\n\\r\\n' + body);
        }
      });
    }).listen(80, () => console.log('ready'));`;
}

type Request = { path: string; headers?: Record<string, string>; /** Waits for the end of the program's input. */ later?: boolean };

/** Each list of requests over a connection of its own; all connections are open before the first request. */
function rawClient(lists: readonly (readonly Request[])[], to: { address: string; port: number }): string {
  return `(async () => {
    const over = new Promise((resolve) => process.stdin.on('end', resolve).resume());
    const lists = ${JSON.stringify(lists)};
    const sockets = await Promise.all(lists.map(() => new Promise((resolve, reject) => { const s = require('net').connect(${to.port}, '${to.address}', () => resolve(s)); s.on('error', reject); })));
    const results = await Promise.all(lists.map(async (list, index) => {
      const socket = sockets[index]; const found = []; let text = ''; let wake = () => {};
      socket.on('data', (data) => { text += data; wake(); });
      for (const { path, headers = {}, later } of list) {
        if (later) { console.log(); await over; }
        socket.write('GET ' + path + ' HTTP/1.1\\r\\nhost: web\\r\\n' + Object.entries(headers).map(([k, v]) => k + ': ' + v + '\\r\\n').join('') + '\\r\\n');
        for (;;) {
          const end = text.indexOf('\\r\\n\\r\\n');
          const length = end < 0 ? NaN : Number(/content-length: (\\d+)/i.exec(text)?.[1] ?? 0);
          if (end >= 0 && text.length >= end + 4 + length) {
            const tried = /${TRIED_HEADER}: (\\d+)/.exec(text.slice(0, end))?.[1];
            const body = text.slice(end + 4, end + 4 + length); text = text.slice(end + 4 + length);
            try { found.push({ ...JSON.parse(body), port: socket.localPort, tried }); } catch { found.push({ server: body, lines: [], port: socket.localPort, tried }); }
            break;
          }
          await new Promise((resolve) => { wake = resolve; });
        }
      }
      return found;
    }));
    console.log(JSON.stringify(results)); for (const s of sockets) s.destroy();
  })();`;
}

function table(name: string, clusters: Readonly<Record<'web' | 'canary' | 'many' | 'far' | 'guarded' | 'watched', string>>): Any {
  const by = (cluster: string): object => ({ cluster });
  const actions: Record<(typeof PATHS)[number], object> = {
    '/a': by(clusters.web), '/b': by(clusters.web), '/plain': by(clusters.many), '/many': by(clusters.many), '/far': by(clusters.far), '/guarded': by(clusters.guarded),
    '/w': { weighted_clusters: { clusters: [{ name: clusters.web, weight: 99 }, { name: clusters.canary, weight: 1 }] } },
    '/retry': { cluster: clusters.many, retry_policy: { retry_on: '5xx', num_retries: 2 } },
    '/eject': by(clusters.watched), '/tries': { cluster: clusters.watched, retry_policy: { retry_on: '5xx', num_retries: 5 } },
  };
  return pack(RouteConfiguration, RouteConfiguration.fromJSON({ name, virtual_hosts: [{ name: 'web:80', domains: ['*'], routes: PATHS.map((prefix) => ({ match: { prefix }, route: actions[prefix] })) }] }));
}

/** A pod's inbound side that decides nothing. */
function virtualInbound(): Any {
  const manager = {
    '@type': 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager', stat_prefix: 'inbound', common_http_protocol_options: { idle_timeout: { seconds: '1' } },
    route_config: { name: 'inbound|80||', validate_clusters: false, virtual_hosts: [{ name: 'inbound|http|80', domains: ['*'], routes: [{ match: { prefix: '/' }, route: { cluster: 'inbound|80||' } }] }] },
    http_filters: [{ name: 'envoy.filters.http.router', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router' } }],
  };
  return pack(Listener, Listener.fromJSON({
    name: 'virtualInbound', address: { socket_address: { address: '0.0.0.0', port_value: 15006 } }, traffic_direction: 'INBOUND',
    filter_chains: [{ filter_chain_match: { destination_port: 80 }, filters: [{ name: 'envoy.filters.network.http_connection_manager', typed_config: manager }] }],
  }));
}

describe('Envoy teaches', () => {
  const world = new ProxyWorld();
  let a: { pod: ProxyPod; netns: TestNetns };
  let plain: { pod: ProxyPod; netns: TestNetns };
  let guarded: { pod: ProxyPod; netns: TestNetns };
  let servers: { pod: ProxyPod; netns: TestNetns };

  before(async () => {
    const { controlPlane } = world;
    const names = { web: SERVICE_CLUSTER, canary: 'outbound|80||canary', many: 'outbound|80||many', far: 'outbound|80||far', guarded: 'outbound|80||guarded', watched: 'outbound|80||watched' };
    for (const [name, addresses] of [[names.canary, [CANARY]], [names.many, [ENDPOINT, CANARY, FAR]], [names.far, [FAR]], [names.guarded, [GUARDED]], [names.watched, [ENDPOINT, CANARY]]] as const) {
      const outliers = name === names.watched ? { enforcing_success_rate: 0, consecutive_5xx: 1, max_ejection_percent: 100, base_ejection_time: { seconds: '60' } } : undefined;
      controlPlane.set(outliers ? pack(Cluster, { ...Cluster.decode(edsCluster(name).value), outlier_detection: OutlierDetection.fromJSON(outliers) }) : edsCluster(name), name);
      controlPlane.set(assignment(name, addresses.map((address) => `${address}:80`)), name);
    }
    await world.start({ showsCallers: false, fastPath: { tables: { ...teaching, table: () => undefined, renew: () => undefined }, repeater: { suspend: () => undefined, repeat: () => undefined } } });
    for (const port of ['80', '8081']) controlPlane.set(table(port, names), port);
    controlPlane.set(httpListener(8081), '0.0.0.0_8081');
    controlPlane.set(tcpListener('10.96.0.11', 9000, names.guarded), '10.96.0.11_9000');
    controlPlane.set(pack(Cluster, Cluster.fromJSON({ name: 'inbound|80||', type: 'ORIGINAL_DST', lb_policy: 'CLUSTER_PROVIDED', connect_timeout: { seconds: '1' } })), 'inbound|80||');
    controlPlane.set(virtualInbound(), 'virtualInbound');
    a = await world.pod('pod-a', { taught: { netnsCookie: COOKIE } });
    plain = await world.pod('pod-plain', { ips: ['10.0.1.2'] });
    guarded = await world.pod('pod-guarded', { ips: [GUARDED], redirected: true });
    // Of what is not behind an inbound chain the servers are in the namespaces of those who call.
    servers = await world.pod('pod-servers', { ips: [ENDPOINT, CANARY] });
    for (const { netns } of [a, plain, guarded]) {
      for (const address of [CANARY, FAR, GUARDED]) await netns.ip('addr', 'add', `${address}/32`, 'dev', 'lo');
      await netns.serve(rawServer(CANARY));
    }
    world.running.setEventDriven(new Set([ENDPOINT, CANARY, FAR, GUARDED].map((address) => `${address}:80`)));
    world.running.setPods([a.pod, plain.pod, guarded.pod, servers.pod]);
    await world.ready(a.pod, plain.pod, guarded.pod);
    await world.settled();
  });
  after(() => world.close());

  const call = (netns: TestNetns, lists: readonly (readonly Request[])[], port = 80, address = SERVICE_VIP, meanwhile: () => Promise<unknown> = () => Promise.resolve()): Promise<Seen[][]> =>
    netns.script<Seen[][]>(rawClient(lists, { address, port }), { onOutput: async () => void (await meanwhile()) });
  const header = (seen: Seen | undefined, name: string): string[] => (seen?.lines ?? []).filter((line) => line.toLowerCase().startsWith(`${name}:`)).map((line) => line.slice(name.length + 2));
  const lesson = (path: (typeof PATHS)[number], port: number): string => `${classes[PATHS.indexOf(path)]}-${COOKIE.toString(16).padStart(16, '0')}-${port}`;

  const draws = (path: string, headers: Record<string, string>, count: number): Request[] => Array.from({ length: count }, () => ({ path, headers }));
  /** Nothing of the fast path but the lesson, and that not as the first header. */
  const assertClean = (seen: Seen, lessons: readonly string[]): void => {
    assert.deepEqual(header(seen, LESSON_HEADER), lessons, seen.lines.join('\n'));
    if (lessons.length > 0) assert.ok(!seen.lines[1]!.startsWith(LESSON_HEADER), 'its line is blanked together with the end of the line before it');
    for (const name of [CLASS_HEADER, ...Object.values(HEADERS)]) assert.deepEqual(header(seen, name), [], name);
  };

  it('tells a server class, namespace and port of each request, over one upstream connection for each of the client\'s', async () => {
    assert.deepEqual(world.running.status().nacks, []);
    const paths = ['/a', '/b', '/a', '/b'] as const;
    const results = await call(a.netns, Array.from({ length: 4 }, () => paths.map((path) => ({ path, headers: to(ENDPOINT) }))));
    for (const seen of results) {
      seen.forEach((each, index) => assertClean(each, [lesson(paths[index]!, each.port)]));
      assert.equal(new Set(seen.map(({ connection }) => connection)).size, 1);
    }
    assert.equal(new Set(results.flat().map(({ connection }) => connection)).size, 4, 'no two of the client\'s connections share one');
    assert.equal(new Set(results.flat().map(({ port }) => port)).size, 4);
  });

  it('tells the same of a port that is inspected in another listener', async () => {
    const [seen] = await call(a.netns, [[{ path: '/a', headers: to(ENDPOINT) }, { path: '/b', headers: to(ENDPOINT) }]], 8081);
    seen!.forEach((each, index) => assertClean(each, [lesson((['/a', '/b'] as const)[index]!, each.port)]));
  });

  it('lets nothing through that a client writes itself, on taught and untaught routes', async () => {
    for (const port of [80, 8081]) {
      // Without what the kernel writes, with it, and as somebody may write it who knows the names.
      for (const headers of [FORGED, { ...FORGED, ...to(ENDPOINT) }, { ...FORGED, [HEADERS.weight]: 'x', [HEADERS.endpoint]: 'nobody', [HEADERS.other]: 'nobody' }]) {
        const [seen] = await call(a.netns, [PATHS.map((path) => ({ path, headers }))], port);
        PATHS.forEach((path, index) => {
          const each = seen![index]!;
          assertClean(each, HEADERS.endpoint in headers && path !== '/plain' && each.server !== FAR ? [lesson(path, each.port)] : []);
        });
      }
    }
  });

  it('is as it would be without the kernel where no endpoint is drawn that it could learn of: connections are shared, nothing is said', async () => {
    for (const [drawn, server] of [[{}, undefined], [{ [HEADERS.other]: endpointDraw(FAR, 80) }, FAR], [{ [HEADERS.other]: endpointDraw(CANARY, 80) }, CANARY]] as const) {
      const known = new Set<string>();
      for (let round = 0; round < 5; round++) {
        for (const each of (await call(a.netns, [draws('/many', drawn, 4)]))[0]!) {
          assertClean(each, []);
          if (server !== undefined) assert.equal(each.server, server);
          known.add(`${each.server} ${each.connection}`);
        }
      }
      assert.ok(known.size <= 3, `the connections of five clients, one after another: ${[...known].join()}`);
    }
  });

  it('says nothing to endpoints elsewhere', async () => {
    const [seen] = await call(a.netns, [draws('/far', to(FAR), 3)]);
    for (const each of seen!) {
      assert.equal(each.server, FAR);
      assertClean(each, []);
    }
  });

  it('obeys the draw of a destination, be it one of a hundred', async () => {
    const [rare] = await call(a.netns, [draws('/w', { [HEADERS.weight]: weightDraw(99).padEnd(20), ...to(CANARY) }, 100)]);
    assert.deepEqual([...new Set(rare!.map(({ server }) => server))], [CANARY]);
    for (const each of rare!) assertClean(each, [lesson('/w', each.port)]);
    const [usual] = await call(a.netns, [draws('/w', { [HEADERS.weight]: weightDraw(0), ...to(ENDPOINT) }, 20)]);
    assert.deepEqual([...new Set(usual!.map(({ server }) => server))], [ENDPOINT]);
    const [elsewhere] = await call(a.netns, [draws('/w', { [HEADERS.weight]: weightDraw(99), [HEADERS.other]: endpointDraw(CANARY, 80) }, 20)]);
    assert.deepEqual([...new Set(elsewhere!.map(({ server }) => server))], [CANARY]);
  });

  it('obeys the draw of an endpoint, and chooses by itself when there is none of that name', async () => {
    for (const address of [CANARY, FAR, ENDPOINT]) {
      const [seen] = await call(a.netns, [draws('/many', to(address), 20)]);
      assert.deepEqual([...new Set(seen!.map(({ server }) => server))], [address]);
      for (const each of seen!) assertClean(each, address === FAR ? [] : [lesson('/many', each.port)]);
    }
    const [others] = await call(a.netns, [draws('/many', to('10.0.0.77'), 40)]);
    assert.ok(new Set(others!.map(({ server }) => server)).size > 1);
  });

  it('writes the lesson anew for a second try, and none where that goes elsewhere', async () => {
    const [seen] = await call(a.netns, [draws('/retry', to(CANARY), 30)]);
    const servers_ = new Set(seen!.filter(({ lines }) => lines.length > 0).map(({ server }) => server));
    assert.ok(servers_.has(ENDPOINT) && servers_.has(FAR), [...servers_].join());
    for (const each of seen!) assertClean(each, each.server === FAR ? [] : [lesson('/retry', each.port)]);
  });

  it('keeps the connections that the kernel may use when their endpoint fails', async () => {
    const [seen] = await call(a.netns, [[...draws('/eject', to(CANARY), 2), ...draws('/eject/retry', to(CANARY), 2), ...draws('/eject', to(CANARY), 200)]]);
    assert.deepEqual([new Set(seen!.map(({ server }) => server)), new Set(seen!.map(({ connection }) => connection)).size], [new Set([CANARY]), 1]);
  });

  it('says of answers for a cluster with outlier detection how often it has tried, if the endpoint was drawn', async () => {
    const other = (address: string): Record<string, string> => ({ [HEADERS.other]: endpointDraw(address, 80) });
    const [once, again, elsewhere, undrawn, unwatched] = await call(a.netns, [draws('/eject', to(ENDPOINT), 2), draws('/tries/retry', to(CANARY), 2), draws('/eject', other(ENDPOINT), 2), draws('/eject', {}, 2), draws('/many', to(ENDPOINT), 2)]);
    assert.deepEqual([once, elsewhere, undrawn, unwatched].map((seen) => seen!.map(({ tried }) => tried)), [['1', '1'], ['1', '1'], [undefined, undefined], [undefined, undefined]]);
    for (const { server, tried } of again!) assert.deepEqual([server, Number(tried) > 1], [ENDPOINT, true], `by the try number ${tried}`);
  });

  it('obeys the draw of an endpoint that it has ejected itself', async () => {
    const other = { [HEADERS.other]: endpointDraw(CANARY, 80) };
    const [failed] = await call(a.netns, [draws('/eject/retry', other, 1)]);
    assert.equal(failed![0]!.server, CANARY);
    const isEjected = async (): Promise<boolean> => (await call(a.netns, [draws('/eject', {}, 10)]))[0]!.every(({ server }) => server === ENDPOINT);
    await waitFor('Envoy to eject it for what is not drawn', isEjected, { everyMs: 50 });
    const [drawn] = await call(a.netns, [draws('/eject', other, 10)]);
    assert.deepEqual([...new Set(drawn!.map(({ server }) => server))], [CANARY]);
  });

  it('has the lesson written by a pod\'s own inbound chain where callers pass it', async () => {
    await waitFor('the inbound side', async () => (await call(a.netns, [[{ path: '/guarded' }]]))[0]![0]!.server === GUARDED && world.running.settled);
    const listener = (await world.running.envoy.admin.listeners()).find(({ name }) => name.startsWith('pod/pod-guarded/inbound-mesh/'))!.name;
    const requests = draws('/guarded', { ...FORGED, ...to(GUARDED, listener) }, 3);
    const results = await call(a.netns, [requests, requests]);
    for (const seen of results) {
      for (const each of seen) assertClean(each, [lesson('/guarded', each.port)]);
      assert.equal(new Set(seen.map(({ connection }) => connection)).size, 1);
    }
    assert.notEqual(results[0]![0]!.connection, results[1]![0]!.connection);
    const [undrawn] = await call(a.netns, [draws('/guarded', FORGED, 3)]);
    for (const each of undrawn!) assertClean(each, []);
  });

  it('keeps no connection to an inbound chain whose client is silent or gone, and the server\'s for the client that is there', async () => {
    const { admin } = world.running.envoy;
    const listener = (await admin.listeners()).find(({ name }) => name.startsWith('pod/pod-guarded/inbound-mesh/'))!.name;
    const active = async (): Promise<number> => [...(await admin.stats('^http\\.inbound.*downstream_cx_active$')).values()].reduce((sum, value) => sum + value, 0);
    const [before, after] = draws('/guarded', to(GUARDED, listener), 2);
    // Envoy ends what is idle after its time of draining, five seconds.
    const results = await call(a.netns, [[before!, { ...after!, later: true }], [before!, { ...after!, later: true }]], 80, SERVICE_VIP, async () => {
      await waitFor('the clients to be at the chain', async () => (await active()) >= 2, { everyMs: 20 });
      await waitFor('the chain to have no connection left', async () => (await active()) === 0, { everyMs: 50 });
    });
    for (const seen of results) {
      for (const each of seen) assertClean(each, [lesson('/guarded', each.port)]);
      assert.equal(new Set(seen.map(({ connection }) => connection)).size, 1, 'its own again');
    }
    assert.notEqual(results[0]![0]!.connection, results[1]![0]!.connection);
    await waitFor('nothing to be left of clients that are gone', async () => (await active()) === 0, { everyMs: 100 });
  });

  it('lets nobody but taught clients\' HTTP make a lesson in an inbound chain', async () => {
    const forged = { path: '/guarded', headers: FORGED };
    // Another pod, the taught pod's own TCP, and what comes to the redirected port from outside.
    const [other] = await call(plain.netns, [[forged]]);
    const [tcp] = await call(a.netns, [[forged]], 9000, '10.96.0.11');
    const redirected = ['OUTPUT', '-p', 'tcp', '-d', GUARDED, '-m', 'mark', '!', '--mark', '1337', '-j', 'REDIRECT', '--to-ports', '15006'];
    await guarded.netns.exec('iptables', '-t', 'nat', '-A', ...redirected);
    const [outside] = await call(guarded.netns, [[forged]], 80, GUARDED);
    await guarded.netns.exec('iptables', '-t', 'nat', '-D', ...redirected);
    assert.ok(header(outside![0], 'x-request-id').length > 0, 'it passed Envoy');
    for (const seen of [other, tcp, outside]) {
      assert.equal(seen![0]!.server, GUARDED);
      assertClean(seen![0]!, []);
    }
  });

  it('marks the sockets that may teach, and no others', async () => {
    const held = await a.netns.serve(`const s = require('net').connect(80, '${SERVICE_VIP}'); const next = [['/a', ['x-e-3f9a: ${ENDPOINT}:80', '']], ['/plain', ['']]]; s.on('data', () => (next.length ? ask() : console.log('ready'))); function ask() { const [path, lines] = next.shift(); s.write(['GET ' + path + ' HTTP/1.1', 'host: web', ...lines, ''].join('\r\n')); } ask();`.replaceAll('\r\n', '\\r\\n'));
    const marks = (await a.netns.exec('ss', '-Htne', 'state', 'established', '( dport = :80 )')).split('\n').flatMap((line) => /fwmark:(0x[0-9a-f]+)/.exec(line)?.[1] ?? []);
    held.kill('SIGKILL');
    assert.ok(marks.includes(`0x${TAUGHT_MARK.toString(16)}`) && marks.includes('0x539'), marks.join());
  });

  it('leaves pods that are not taught as they are', async () => {
    const [one, two] = await call(plain.netns, [draws('/a', {}, 2), draws('/b', {}, 2)]);
    for (const each of [...one!, ...two!]) assertClean(each, []);
  });
});
