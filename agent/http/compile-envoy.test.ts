/**
 * Random routes and random policies, and random requests: what the tables make of them, beside what a real Envoy does with the very
 * same configuration. Where the tables say anything but "Envoy", Envoy has to say the same; and where nothing that can't be told is in
 * the way, they have to say it. UNDERPASS_SEED repeats a run.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, request as httpRequest } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import '../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import { httpListener } from '../testing/resources.js';
import { StaticEnvoy } from '../testing/static-envoy.js';
import { compileTable } from './compile.js';
import { policyOf } from './compile-policy.js';
import { CALLER, HEADERS, names } from './compile-testing.js';
import { classOfRequest, judge, type HttpRequest } from './interpret.js';
import { className, ENVOY, type HttpTable } from './table.js';

const TABLES = 100;
const POLICIES = 100;
const REQUESTS = 100;
const IDENTITY = CALLER.identity;

const seed = Number(process.env['UNDERPASS_SEED'] ?? Date.now() % 1_000_000);

/** mulberry32. */
class Chance {
  #state: number;

  constructor(from: number) {
    this.#state = from;
  }

  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }

  is(share: number): boolean {
    return this.next() < share;
  }

  upTo(most: number): number {
    return Math.floor(this.next() * (most + 1));
  }

  of<T>(values: readonly T[]): T {
    return values[this.upTo(values.length - 1)]!;
  }

  list<T>(fewest: number, most: number, make: () => T): T[] {
    return Array.from({ length: fewest + this.upTo(most - fewest) }, make);
  }
}

const chance = new Chance(seed);
/** What can't be told stands in the way of all that comes after it, so half of the cases have none of that. */
let isOdd = true;
const odd = (share: number): boolean => isOdd && chance.is(share);
const PATHS = ['/', '/a', '/a/', '/a/b', '/ab', '/A', '/b'];
const VALUES = ['v', 'vw', 'w', 'V'];
const HOSTS = ['a', 'b', 'a:80', 'c.d'];
const DOMAINS = [...HOSTS, '*.d', 'c.*', '*', 'E'];
const METHODS = ['GET', 'PUT', 'DELETE'];

function text(values: readonly string[]): object {
  const value = chance.of(values);
  const pattern = chance.is(0.5) ? { exact: value } : !odd(0.3) ? { prefix: value.slice(0, 1 + chance.upTo(value.length - 1)) } : chance.of([{ suffix: value }, { contains: value }, { safe_regex: { regex: `${value}.*` } }]);
  return { ...pattern, ...(!('safe_regex' in pattern) && odd(0.15) ? { ignore_case: true } : {}) };
}

function headerMatch(): object {
  const kind = chance.upTo(9);
  const inverts = chance.is(0.3) ? { invert_match: true } : {};
  if (kind < 2) return { name: ':method', string_match: { exact: chance.of(METHODS) }, ...inverts };
  if (kind < 3 && isOdd) return { name: ':authority', string_match: text(HOSTS), ...inverts };
  const name = chance.of(['x-a', 'X-B', 'x_c']);
  if (kind < 5) return { name, present_match: chance.is(0.7), ...inverts };
  return { name, string_match: text(VALUES), ...inverts, ...(chance.is(0.3) ? { treat_missing_header_as_empty: true } : {}) };
}

function routeMatch(): object {
  const path = chance.of(PATHS);
  const kind = chance.upTo(9);
  const where = kind < 4 ? { prefix: path } : kind < 7 ? { path } : kind < 9 && !path.endsWith('/') ? { path_separated_prefix: path } : odd(0.4) ? { safe_regex: { regex: `${path}.*` } } : { prefix: path };
  return {
    ...where, ...(odd(0.08) ? { case_sensitive: false } : {}), ...(chance.is(0.5) ? { headers: chance.list(1, 2, headerMatch) } : {}),
    ...(odd(0.06) ? { query_parameters: [{ name: 'q', present_match: true }] } : {}), ...(odd(0.04) ? { grpc: {} } : {}),
  };
}

interface Routes {
  config: { name: string; ignore_port_in_host_matching: boolean; virtual_hosts: { name: string; domains: string[]; routes: { match: object }[] }[] };
  table: HttpTable;
}

function randomRoutes(_: unknown, at: number): Routes {
  isOdd = at % 2 === 0;
  const free = [...DOMAINS].sort(() => chance.next() - 0.5);
  const virtual_hosts = chance.list(1, 4, () => ({ domains: free.splice(0, 1 + chance.upTo(1)), routes: chance.list(1, 6, () => ({ match: routeMatch() })) })).filter(({ domains }) => domains.length > 0).map((host, at) => ({ name: `h${at}`, ...host }));
  const config = { name: '80', ignore_port_in_host_matching: chance.is(0.3), virtual_hosts };
  const routed = { ...config, virtual_hosts: virtual_hosts.map((host) => ({ ...host, routes: host.routes.map((route) => ({ ...route, route: { cluster: 'web', timeout: {} } })) })) };
  const table = compileTable({
    listeners: [{ any: httpListener(80), message: Listener.decode(httpListener(80).value) }], routes: new Map([['80', RouteConfiguration.fromJSON(routed)]]), caller: CALLER, headers: HEADERS, takeName: names(), local: new Map([['10.244.0.5', {}]]), teachable: new Set(['10.244.0.5:8080']),
    clusters: new Map([['web', { cluster: Cluster.fromJSON({ name: 'web', type: 'EDS' }), assignment: ClusterLoadAssignment.fromJSON({ endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: '10.244.0.5', port_value: 8080 } } } }] }] }) }]]),
  });
  return { config, table };
}

function permission(depth: number): object {
  const kind = chance.upTo(depth > 0 ? 9 : 5);
  if (kind === 0) return { any: true };
  if (kind < 3) return { url_path: { path: text(PATHS) } };
  if (kind < 6) return { header: headerMatch() };
  if (kind < 7) return { not_rule: permission(depth - 1) };
  return { [kind === 7 ? 'or_rules' : 'and_rules']: { rules: chance.list(1, 3, () => permission(depth - 1)) } };
}

function principal(depth: number): object {
  const kind = chance.upTo(depth > 0 ? 7 : 4);
  if (kind < 2) return { any: true };
  if (kind < 4) return { filter_state: { key: 'io.istio.peer_principal', string_match: chance.of([{ exact: IDENTITY }, { exact: 'spiffe://cluster.local/ns/other/sa/x' }, { prefix: 'spiffe://cluster.local/ns/default/' }, { suffix: '/sa/client' }, { safe_regex: { regex: '.*/ns/default/.*' } }, { safe_regex: { regex: '.*/ns/def/.*' } }]) } };
  if (kind === 4) return { header: headerMatch() };
  if (kind === 5) return { not_id: principal(depth - 1) };
  return { [kind === 6 ? 'or_ids' : 'and_ids']: { ids: chance.list(1, 3, () => principal(depth - 1)) } };
}

const HTTP_MANAGER = 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager';
const router = { name: 'router', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router' } };
const answer = (status: number, body: string): object => ({ direct_response: { status, body: { inline_string: body } } });
const knowsCaller = { name: 'caller', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config', on_new_connection: [{ object_key: 'io.istio.peer_principal', factory_key: 'envoy.string', format_string: { text_format_source: { inline_string: IDENTITY } } }] } };

function manager(http_filters: object[], route_config: object): object {
  return { name: 'http', typed_config: { '@type': HTTP_MANAGER, stat_prefix: 'a', http_filters: [...http_filters, router], route_config } };
}

interface Policy {
  filters: object[];
  verdict: ReturnType<typeof policyOf>;
}

function randomPolicy(_: unknown, at: number): Policy {
  isOdd = at % 2 === 0;
  const filters = chance.list(1, 3, () => {
    const policies = Object.fromEntries(chance.list(1, 2, () => ({ permissions: chance.list(1, 2, () => permission(2)), principals: chance.list(1, 2, () => principal(2)) })).map((policy, at) => [`p${at}`, policy]));
    return { name: 'rbac', typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC', rules: { action: chance.is(0.4) ? 'DENY' : 'ALLOW', policies } } };
  });
  const routes = { virtual_hosts: [{ name: 'a', domains: ['*'], routes: [{ match: { prefix: '/' }, route: { cluster: 'own', timeout: {} } }] }] };
  return { filters, verdict: policyOf([FilterChain.fromJSON({ filters: [manager(filters, routes)] })], CALLER, { address: '10.244.0.5', port: 8080 }) };
}

function randomRequest(hosts: readonly string[] = HOSTS): HttpRequest {
  const headers = chance.list(0, 3, () => [chance.of(['x-a', 'x-b', 'x_c']), chance.of([...VALUES, ''])] as const);
  return { method: chance.of(METHODS), target: `${chance.of([...PATHS, '/a/b/c', '/aa'])}${chance.of(['', '', '?q=1', '?/a'])}`, host: chance.is(0.7) ? chance.of(hosts).replace('*', 'x') : chance.of([...HOSTS, 'A', 'b:81', 'x.d', 'c.x', 'z', 'e']), headers };
}

describe(`tables beside a real Envoy, seed ${seed}`, () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-compile-'));
  const agent = new Agent({ keepAlive: true, maxSockets: 4 });
  const routes = Array.from({ length: TABLES }, randomRoutes);
  const policies = Array.from({ length: POLICIES }, randomPolicy);
  let envoy: StaticEnvoy;

  before(async () => {
    const listener = (name: string, filters: object[]): object => ({ name, address: { socket_address: { address: '127.0.0.1', port_value: 0 } }, filter_chains: [{ filters }] });
    const listeners = [
      ...routes.map(({ config }, at) => listener(`routes${at}`, [manager([], { ...config, virtual_hosts: config.virtual_hosts.map((host) => ({ ...host, routes: host.routes.map((route, index) => ({ ...route, ...answer(200, `${host.name} ${index}`) })) })) })])),
      ...policies.map(({ filters }, at) => listener(`policy${at}`, [knowsCaller, manager(filters, { virtual_hosts: [{ name: 'a', domains: ['*'], routes: [{ match: { prefix: '/' }, ...answer(200, 'allowed') }] }] })])),
    ];
    writeFileSync(join(folder, 'envoy.json'), JSON.stringify({ admin: { address: { socket_address: { address: '127.0.0.1', port_value: 0 } } }, static_resources: { listeners } }));
    envoy = await StaticEnvoy.start({ folder, config: 'envoy.json', listeners: listeners.length });
  });
  after(async () => {
    agent.destroy();
    await envoy?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  const ask = (name: string, { method, target, host, headers }: HttpRequest): Promise<{ status: number; body: string }> =>
    new Promise((resolve, reject) => {
      const raw = ['host', host, ...headers.flat()];
      const sent = httpRequest({ agent, host: '127.0.0.1', port: envoy.ports.get(name)!, method, path: target, headers: raw as never, setHost: false }, (response) => {
        let body = '';
        response.setEncoding('utf8').on('data', (chunk: string) => (body += chunk)).on('end', () => resolve({ status: response.statusCode!, body }));
      });
      sent.on('error', reject).end();
    });

  /** Of some requests at a time, in order. */
  async function each<T>(count: number, body: (at: number) => Promise<T>): Promise<T[]> {
    const results: T[] = [];
    for (let at = 0; at < count; at += 16) results.push(...(await Promise.all(Array.from({ length: Math.min(16, count - at) }, (_, n) => body(at + n)))));
    return results;
  }

  it('a class is that of the very route that Envoy takes', async (context) => {
    let told = 0;
    let missed = 0;
    for (const [at, { config, table }] of routes.entries()) {
      const hosts = config.virtual_hosts.flatMap(({ domains }) => domains);
      await each(REQUESTS, async () => {
        const request = randomRequest(hosts);
        const index = classOfRequest(table, { address: '10.96.0.1', port: 80 }, request);
        const { status, body } = await ask(`routes${at}`, request);
        const [host = '', route = ''] = body.split(' ');
        const taken = status === 200 ? table.classOf('80', host, Number(route)) : undefined;
        const what = (): string => JSON.stringify({ config, request, body, status });
        if (index !== ENVOY) {
          told++;
          assert.equal(className(table.classes[index]!), taken, what());
          return;
        }
        if (taken === undefined) return;
        const { routes: own, domains } = config.virtual_hosts.find(({ name }) => name === host)!;
        const doubtful = new Set(request.headers.map(([name]) => name)).size < request.headers.length || own.slice(0, Number(route)).some((_, before) => table.classOf('80', host, before) === undefined);
        const isNamed = domains.includes(config.ignore_port_in_host_matching ? request.host.replace(/:80$/, '') : request.host);
        if (!doubtful && isNamed) assert.fail(`Envoy's without need: ${what()}`);
        missed++;
      });
    }
    context.diagnostic(`${told} of ${TABLES * REQUESTS} requests had a class, ${missed} more of Envoy's could have had one`);
    assert.ok(told > TABLES * REQUESTS * 0.15, `only ${told} requests had a class`);
  });

  it('what a policy allows Envoy lets in', async (context) => {
    let allowed = 0;
    let missed = 0;
    for (const [at, { filters, verdict }] of policies.entries()) {
      await each(REQUESTS, async () => {
        const request = randomRequest();
        const judged = verdict === 'open' ? 'allowed' : 'reason' in verdict ? 'envoy' : judge(verdict, request, 'envoy');
        const { status } = await ask(`policy${at}`, request);
        if (judged === 'allowed') {
          allowed++;
          assert.equal(status, 200, JSON.stringify({ filters, verdict, request }));
        } else if (status === 200) missed++;
      });
    }
    context.diagnostic(`${allowed} of ${POLICIES * REQUESTS} requests were allowed, ${missed} more were Envoy's to let in`);
    assert.ok(allowed > POLICIES * REQUESTS * 0.08, `only ${allowed} requests were allowed`);
  });
});
