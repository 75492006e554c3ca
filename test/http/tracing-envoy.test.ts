/**
 * What a real Envoy makes of the kernel's draw in requests of a traced class, and of what they say themselves: whether it traces is
 * in what the server is told. And what bpf/http-parse.h reads of trace contexts, beside the same Envoy.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, createServer, request as httpRequest, type IncomingHttpHeaders, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { taughtCopies } from '../../agent/http/taught-clusters.js';
import { taughtTable } from '../../agent/http/taught-routes.js';
import { StaticEnvoy } from '../../agent/testing/static-envoy.js';
import { stockExtensions } from '../../agent/testing/stock-envoy.js';
import { waitFor } from '../../common/retry.js';
import { Bootstrap } from '../../proto/generated/envoy/config/bootstrap/v3/bootstrap.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import '../../proto/generated/envoy/config/trace/v3/opentelemetry.js';
import '../../proto/generated/envoy/config/trace/v3/zipkin.js';
import '../../proto/generated/envoy/extensions/filters/http/router/v3/router.js';
import '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { read, TRACE } from '../fuzz/parser.js';

const KINDS = ['b3', 'w3c'] as const;
type Kind = (typeof KINDS)[number];
const HEADERS = { weight: 'x-w-1', endpoint: 'x-e-1', other: 'x-o-1' };
const [SAMPLED, NOT_SAMPLED] = ['x-s-1', 'x-w-1'];
const RATE = 20;
const ID = '4bf92f3577b34da6a3ce929d0e0e4736';
const SPAN = '00f067aa0ba902b7';

const folder = mkdtempSync(join(tmpdir(), 'up-tracing-'));
const agent = new Agent({ keepAlive: true, maxSockets: 8 });
const servers: Server[] = [];
interface Span {
  name: string;
  kind: string;
  tags: Record<string, string>;
}
const spans: Span[] = [];
let envoy: StaticEnvoy;
let web: number;

async function listen(server: Server): Promise<number> {
  servers.push(server);
  await once(server.listen(0, '127.0.0.1'), 'listening');
  return (server.address() as AddressInfo).port;
}

function cluster(name: string, port: number): Cluster {
  return Cluster.fromJSON({
    name, type: 'STATIC', connect_timeout: { seconds: '1' }, lb_policy: 'LEAST_REQUEST',
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: '127.0.0.1', port_value: port } } } }] }] },
  });
}

const TABLE = RouteConfiguration.fromJSON({
  name: '80',
  virtual_hosts: [{
    name: 'web', domains: ['*'],
    routes: [{ match: { prefix: '/w' }, route: { weighted_clusters: { clusters: [{ name: 'web', weight: 50 }, { name: 'canary', weight: 50 }] } } }, { match: { prefix: '/' }, route: { cluster: 'web' }, decorator: { operation: 'to web' } }],
  }],
});

function tracer(kind: Kind): object {
  return kind === 'b3'
    ? { name: 'envoy.tracers.zipkin', typed_config: { '@type': 'type.googleapis.com/envoy.config.trace.v3.ZipkinConfig', collector_cluster: 'collector', collector_endpoint: '/', collector_endpoint_version: 'HTTP_JSON', shared_span_context: false } }
    : { name: 'envoy.tracers.opentelemetry', typed_config: { '@type': 'type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig', service_name: 'a', grpc_service: { envoy_grpc: { cluster_name: 'collector' } } } };
}

function listener(name: string, kind: Kind, percent: number, table: RouteConfiguration): Listener {
  return Listener.fromJSON({
    name, address: { socket_address: { address: '127.0.0.1', port_value: 0 } },
    filter_chains: [{
      filters: [{
        name: 'http',
        typed_config: {
          '@type': 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager', stat_prefix: 'a', route_config: RouteConfiguration.toJSON(table),
          http_filters: [{ name: 'router', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router' } }],
          tracing: { client_sampling: { value: 100 }, random_sampling: { value: percent }, overall_sampling: { value: 100 }, custom_tags: [{ tag: 'mine', literal: { value: 'x' } }], provider: tracer(kind) },
        },
      }],
    }],
  });
}

before(async () => {
  // keepAliveTimeout: an idle connection that the server ends just as Envoy takes it for a request would be a 503.
  const echo = (server: string): Server => createServer({ keepAliveTimeout: 0 }, (request, response) => response.end(JSON.stringify({ server, headers: request.headers })));
  web = await listen(echo('web'));
  const canary = await listen(echo('canary'));
  const collector = await listen(createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk)).on('end', () => {
      if (request.url === '/') spans.push(...(JSON.parse(body) as Span[]));
      response.writeHead(202).end();
    });
  }));
  const plain = [cluster('web', web), cluster('canary', canary)];
  const copies = plain.flatMap((each) => Object.entries(taughtCopies(each, HEADERS)).map(([kind, copy]) => ({ ...(copy as Cluster), name: `${each.name}~${kind}`, alt_stat_name: each.name })));
  const { table } = taughtTable(TABLE, stockExtensions(), (name) => name, { classOf: () => '0000000000000001', headers: HEADERS, canTeach: () => true, isTraced: true });
  const listeners = KINDS.flatMap((kind) => [...[0, RATE, 100].map((percent) => listener(`${kind} plain ${percent}`, kind, percent, TABLE)), listener(`${kind} taught`, kind, RATE, table)]);
  const bootstrap = Bootstrap.fromPartial({ static_resources: { clusters: [...plain, ...copies, cluster('collector', collector)], listeners }, admin: { address: { address: { $case: 'socket_address', value: { address: '127.0.0.1', port_specifier: { $case: 'port_value', value: 0 } } } } } } as never);
  bootstrap.node = { id: 'a', cluster: 'a' } as never;
  writeFileSync(join(folder, 'envoy.pb'), Bootstrap.encode(Bootstrap.fromPartial(bootstrap as never)).finish());
  envoy = await StaticEnvoy.start({ folder, config: 'envoy.pb', listeners: listeners.length });
});
after(async () => {
  agent.destroy();
  await envoy?.close();
  for (const server of servers) server.close();
  rmSync(folder, { recursive: true, force: true });
});

interface Seen {
  server: string;
  headers: IncomingHttpHeaders;
}

/** @returns what the server saw */
function ask(name: string, headers: readonly (readonly [string, string])[], path = '/'): Promise<Seen> {
  return new Promise((resolve, reject) => {
    httpRequest({ agent, host: '127.0.0.1', port: envoy.ports.get(name)!, path, headers: ['host', 'web', ...headers.flat()] as never, setHost: false }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (body += chunk)).on('end', () => {
        if (response.statusCode === 200) resolve(JSON.parse(body) as Seen);
        else reject(new Error(`${response.statusCode} ${body}`));
      });
    }).on('error', reject).end();
  });
}

function isTraced(kind: Kind, { headers }: Seen): boolean {
  // Two in one line are what was sent: Envoy makes no span, and hands on what it can't read.
  if (kind === 'w3c' && String(headers['traceparent']).includes(',')) return false;
  // A request with the one header has it back.
  const said = kind === 'w3c' ? String(headers['traceparent']).slice(-1) : headers['x-b3-sampled'] ?? /^\w+-\w+-([01])(?:-\w+)?$/.exec(String(headers['b3']))?.[1];
  assert.match(String(said), /^[01]$/, JSON.stringify(headers));
  return said === '1';
}

async function tracedOf(count: number, kind: Kind, headers: readonly (readonly [string, string])[], path = '/'): Promise<number> {
  let traced = 0;
  for (let at = 0; at < count; at += 8) for (const seen of await Promise.all(Array.from({ length: Math.min(8, count - at) }, () => ask(`${kind} taught`, headers, path)))) traced += Number(isTraced(kind, seen));
  return traced;
}

/** 99.99 % of a binomial distribution. */
function assertShare(traced: number, count: number): void {
  const share = RATE / 100;
  assert.ok(Math.abs(traced - count * share) <= 3.9 * Math.sqrt(count * share * (1 - share)), `${traced} of ${count}`);
}

for (const kind of KINDS) {
  const context = (sampled: 0 | 1): [string, string] => (kind === 'b3' ? ['x-b3-sampled', `${sampled}`] : ['traceparent', `00-${ID}-${SPAN}-0${sampled}`]);

  for (const endpoint of [HEADERS.endpoint, HEADERS.other]) {
    test(`${kind}: what the kernel drew to be traced is traced, what it did not is not, by ${endpoint === HEADERS.other ? 'shared connections' : 'connections of the client\'s own'}; nothing of it gets to the server`, async () => {
      const drawn = [endpoint, `127.0.0.1:${web}`] as const;
      assert.equal(await tracedOf(200, kind, [[SAMPLED!, '0'], drawn]), 200);
      assert.equal(await tracedOf(200, kind, [[NOT_SAMPLED!, '0'], drawn]), 0);
      for (const mark of [SAMPLED!, NOT_SAMPLED!]) {
        const { headers } = await ask(`${kind} taught`, [[mark, '0'], drawn]);
        assert.deepEqual(Object.keys(headers).filter((name) => /^x-[a-z]-1$|underpass/.test(name)), []);
      }
    });
  }

  test(`${kind}: without a word of the kernel's Envoy draws at its own rate`, async () => {
    assertShare(await tracedOf(2_000, kind, []), 2_000);
    assertShare(await tracedOf(1_000, kind, [], '/w'), 1_000);
  });

  test(`${kind}: either way Envoy obeys the draw of the destination`, async () => {
    for (const mark of [SAMPLED!, NOT_SAMPLED!]) {
      for (const [weight, server] of [['0', 'web'], ['50', 'canary']] as const) {
        for (let i = 0; i < 10; i++) assert.equal((await ask(`${kind} taught`, [[mark, weight], [HEADERS.endpoint, '127.0.0.1:1']], '/w')).server, server);
      }
    }
  });

  test(`${kind}: a context of the request's own counts, whatever the kernel drew; undrawn, as one with a sampled context comes, it is what it would be without the fast path`, async () => {
    const drawn = [HEADERS.endpoint, `127.0.0.1:${web}`] as const;
    if (kind === 'b3') assert.equal(await tracedOf(50, kind, [context(1)]), 50);
    // Envoy's OpenTelemetry wants its own decision, too, which a request that another Envoy traces has in its id.
    else assertShare(await tracedOf(400, kind, [context(1)]), 400);
    assert.equal(await tracedOf(50, kind, [context(1), ['x-request-id', '0aa5d0b4-4a3e-9e0e-9e6e-1f1f1f1f1f1f']]), 50);
    assert.equal(await tracedOf(50, kind, [context(0)]), 0);
    assert.equal(await tracedOf(20, kind, [[SAMPLED!, '0'], drawn, context(0)]), 0);
    assert.equal(await tracedOf(20, kind, [['x-client-trace-id', '1']]), 20);
  });

  test(`${kind}: a client that writes the kernel's headers itself gains no more than to be traced, or not`, async () => {
    // The kernel says nothing: no draw without an endpoint.
    assertShare(await tracedOf(400, kind, [[SAMPLED!, '0']]), 400);
    // Its line comes behind the kernel's.
    assert.equal(await tracedOf(20, kind, [[NOT_SAMPLED!, '0'], [HEADERS.endpoint, `127.0.0.1:${web}`], [SAMPLED!, '0']]), 20);
    const { headers } = await ask(`${kind} taught`, [[SAMPLED!, '0'], [NOT_SAMPLED!, '0']]);
    assert.deepEqual(Object.keys(headers).filter((name) => /^x-[a-z]-1$/.test(name)), []);
  });

  test(`${kind}: what the parser reads of a request's headers is what this tracer makes of them`, async (t) => {
    const single = [
      ...['0', '1', 'd', '', '00', 'true', `${ID}-${SPAN}-0`, `${ID}-${SPAN}-1`, `${ID}-${SPAN}-d`, `${ID.slice(16)}-${SPAN}-0`, `${ID}-${SPAN}`, `${ID}-${SPAN}-0-${SPAN}`, `${ID}-${SPAN}-1-${SPAN}`].map((value): [string, string] => ['b3', value]),
      ...['0', '1', 'd', '', 'true', 'false', 'x'].map((value): [string, string] => ['x-b3-sampled', value]),
      ['x-b3-traceid', ID], ['x-b3-spanid', SPAN], ['x-b3-flags', '1'], ['x-b3-flags', '0'],
      ...['00', '01', '02', '03', '08', '09', '0a', '0e', '0f', 'ff', 'zz'].map((flags): [string, string] => ['traceparent', `00-${ID}-${SPAN}-${flags}`]),
      ['traceparent', `01-${ID}-${SPAN}-01`], ['traceparent', `00-${'0'.repeat(32)}-${SPAN}-00`], ['traceparent', `00-${ID}-${SPAN}`], ['traceparent', ''], ['tracestate', 'a=b'],
      ...['4', '9', 'a', 'b', 'B', '0'].map((version): [string, string] => ['x-request-id', `00000000-4a3e-${version}e0e-9e6e-1f1f1f1f1f1f`]), ['x-request-id', 'x'], ['x-request-id', ''],
      ['x-client-trace-id', '1'], ['x-client-trace-id', ''], ['sw8', '1-x'], ['x-ot-span-context', 'x'], ['x-datadog-sampling-priority', '1'],
    ] as [string, string][];
    const pairs = Array.from({ length: 300 }, () => [single, single].map((from) => from[Math.floor(Math.random() * from.length)]!));
    const cases: [string, string][][] = [[], ...single.map((each) => [each]), ...pairs];
    const readings = await read(cases.map((headers) => ({ kind: 'request', head: `GET / HTTP/1.1\r\nHost: web\r\n${headers.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n` })), 'user space');
    const [says, asked] = kind === 'b3' ? [TRACE.b3, TRACE.b3Asked] : [TRACE.w3c, TRACE.w3cAsked];
    const counts = { envoy: 0, never: 0, drawn: 0 };
    for (const [at, headers] of cases.entries()) {
      const { doubt, trace } = readings[at]!;
      const what = JSON.stringify({ headers, trace });
      assert.equal(doubt, 'PLAIN', what);
      if (trace & (asked | TRACE.asked)) {
        counts.envoy++;
        continue;
      }
      const context = async (percent: number): Promise<boolean> => {
        const seen = await ask(`${kind} plain ${percent}`, headers);
        return isTraced(kind, seen);
      };
      assert.equal(await context(0), false, `${what}: traced without a draw`);
      if (trace & says) {
        counts.never++;
        assert.equal(await context(100), false, `${what}: drawn`);
      } else counts.drawn++;
    }
    t.diagnostic(JSON.stringify(counts));
    assert.ok(Object.values(counts).every((count) => count > 10), JSON.stringify(counts));
  });
}

test('b3: the span of a request that the kernel drew is that of any other, but for the copy of the cluster', async () => {
  const without = ({ kind, name, tags }: Span): object => ({ kind, name, tags: { ...tags, 'guid:x-request-id': undefined, upstream_cluster: undefined, 'upstream_address': undefined, 'peer.address': undefined } });
  const spanOf = async (name: string, path: string, headers: [string, string][]): Promise<Span> => {
    await ask(name, headers, path);
    return waitFor('the span', () => spans.find(({ tags }) => tags['http.url']?.endsWith(path)), { timeoutMs: 120_000, everyMs: 50 }) as Promise<Span>;
  };
  const plain = await spanOf('b3 plain 100', '/same?plain', []);
  const drawn = await spanOf('b3 taught', '/same?drawn', [[SAMPLED!, '0'], [HEADERS.endpoint, `127.0.0.1:${web}`]]);
  for (const span of [plain, drawn]) span.tags['http.url'] = span.tags['http.url']!.replace(/\?.*/, '');
  assert.deepEqual(without(drawn), without(plain));
  assert.equal(drawn.tags['mine'], 'x');
  assert.deepEqual([plain.tags['upstream_cluster'], drawn.tags['upstream_cluster']], ['web', 'web~taught']);
});
