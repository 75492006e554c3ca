/**
 * The kernel's tables for one config class, from what its proxy is sent: what the kernel may do without Envoy is what it can do in
 * the same way, and anything else, or in doubt, is Envoy's, with a reason in plain words for `explain`.
 */
import type { FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { Route, VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { endpointKey } from '../proxy/pool-renewal.js';
import { destinationsOf, hostReason, tableReason, type Destinations, type Reason } from './compile-action.js';
import { drawOf, serviceOf, type ClusterView, type Draw, type DrawnEndpoint } from './compile-cluster.js';
import { routeCondition } from './compile-match.js';
import { policyOf, type Caller } from './compile-policy.js';
import { routedPorts, type ListenerResource, type RoutedPort } from './compile-ports.js';
import { tracedRoute, type Traced } from './compile-tracing.js';
import { alternatives, isAlways, type Alternatives } from './conditions.js';
import { HTTP_ENDPOINT_TEXT, HTTP_HOST_MAX, HTTP_RULES_EACH, HTTP_WEIGHT_TEXT } from './limits.js';
import { endpointDraw, weightDraw, type DrawHeaders } from './names.js';
import { className, ENVOY, type ClassIndex, type Finding, type HttpClass, type HttpCluster, type HttpEndpoint, type HttpPort, type HttpRoutes, type HttpRule, type HttpSplit, type HttpTable, type Judgement, type RuleList } from './table.js';

/** A pod of this node, as the node's own pods reach it. */
export interface LocalPod {
  /** Its inbound chains, if callers have to pass them; undefined: it lets in whoever calls. */
  inbound?: readonly FilterChain[];
  /** The internal listener that it is reached by. */
  listener?: string;
  /** Its inbound side does more than to pass on what comes to where it was going: why. */
  reason?: string;
}

export interface CompileInput {
  /** As the control plane sent them, by its names. */
  listeners: Iterable<ListenerResource>;
  routes: ReadonlyMap<string, RouteConfiguration>;
  /** Folded, by the control plane's names. */
  clusters: ReadonlyMap<string, ClusterView>;
  caller: Caller;
  /** By address. What is not there is not on this node, or not known well enough. */
  local: ReadonlyMap<string, LocalPod>;
  /** Keys of endpoints (pool-renewal.ts) that Envoy can teach of. */
  teachable: ReadonlySet<string>;
  /** The internal listener that endpoints elsewhere are reached by where they take HBONE. */
  tunnels?: string;
  headers: DrawHeaders;
  /** A name that no class ever had; undefined: there are as many as there can be. */
  takeName(): { index: number; generation: number } | undefined;
}

/** @throws RangeError when the names of the draw's headers are so long that there is no room for what they say */
export function compileTable(input: CompileInput): HttpTable {
  return new Compiler(input).table();
}

type Policy = HttpEndpoint['policy'];

const WITH_PORT = /^(?:[^:]+|\[.*\]):\d+$/;

/** Of a route, whatever else there is. */
interface ReadRoute {
  matched: Alternatives | undefined;
  destinations: Destinations | Reason;
}

const readRoutes = new WeakMap<Route, ReadRoute>();

function readRoute(route: Route): ReadRoute {
  let found = readRoutes.get(route);
  if (!found) readRoutes.set(route, (found = { matched: alternatives(routeCondition(route.match), 'over'), destinations: destinationsOf(route) }));
  return found;
}

class Compiler {
  readonly #classes: HttpClass[] = [];
  readonly #clusters: HttpCluster[] = [];
  readonly #policies: RuleList<Judgement>[] = [];
  readonly #virtualHosts: RuleList<ClassIndex>[] = [];
  readonly #findings: Finding[] = [];
  readonly #names = new Map<string, string>();
  /** By name: what there is to draw from, or why it is Envoy's. */
  readonly #draws = new Map<string, Draw | Reason>();
  readonly #made = new Map<string, HttpCluster | Reason>();
  readonly #judged = new Map<string, Policy>();
  readonly #lists = new Map<string, number>();
  #traced: Traced | undefined;

  constructor(readonly input: CompileInput) {}

  table(): HttpTable {
    const { ports, portsOf } = this.#ports();
    const routes: HttpRoutes[] = [];
    const indexes = new Map<string, number>();
    for (const [name, at] of portsOf) {
      const hosts = this.#routes(name, at);
      if (hosts.length === 0) continue;
      indexes.set(name, routes.length);
      routes.push({ name, hosts });
    }
    return {
      ports: this.#keys(ports, indexes), routes, virtualHosts: this.#virtualHosts, classes: this.#classes, clusters: this.#clusters, policies: this.#policies, findings: this.#findings, ...(this.#traced && { isTraced: true }),
      classOf: (...route) => this.#names.get(JSON.stringify(route)),
    };
  }

  #ports(): { ports: RoutedPort[]; portsOf: Map<string, Set<number>> } {
    const ports = this.#tracedAlike(routedPorts(this.input.listeners));
    const portsOf = new Map<string, Set<number>>();
    for (const { address = '*', port, leads } of ports) {
      if (leads === 'tcp') continue;
      if ('reason' in leads) this.#findings.push({ kind: 'port', name: `${address}:${port}`, reason: leads.reason });
      else portsOf.set(leads.routes, (portsOf.get(leads.routes) ?? new Set()).add(port));
    }
    return { ports, portsOf };
  }

  /** One tracer for all of a client's requests is what Istio has; a destination's inbound side relies on it. */
  #tracedAlike(ports: RoutedPort[]): RoutedPort[] {
    let first: RoutedPort | undefined;
    return ports.map((each) => {
      const { leads } = each;
      if (leads === 'tcp' || 'reason' in leads) return each;
      if (!first) [first, this.#traced] = [each, leads.traced];
      return JSON.stringify(leads.traced) === JSON.stringify(this.#traced) ? each : { ...each, leads: { reason: `its requests are traced in another way than those to port ${first.port}` } };
    });
  }

  /** An address with a listener of its own needs a key of its own where other addresses of its port have routes. */
  #keys(ports: readonly RoutedPort[], indexes: ReadonlyMap<string, number>): HttpPort[] {
    const keys = ports.map(({ address, port, leads }): HttpPort => ({ address, port, routes: typeof leads === 'object' && 'routes' in leads ? indexes.get(leads.routes) : undefined }));
    const shared = new Set(keys.filter(({ address, routes }) => address === undefined && routes !== undefined).map(({ port }) => port));
    const own = keys.filter(({ address, port, routes }) => routes !== undefined || (address !== undefined && shared.has(port)));
    const named = new Set(own.map(({ address, port }) => `${address} ${port}`));
    // No route applies to what is opened to the own address of a pod behind its listener, see proxy/pod-calls.ts.
    const called = [...this.input.local].flatMap(([address, { listener }]) => (listener === undefined ? [] : [...shared].map((port) => ({ address, port, routes: undefined }))));
    return [...own, ...called.filter(({ address, port }) => !named.has(`${address} ${port}`))];
  }

  /** @returns the hosts that lead anywhere but to Envoy, and those that must not be taken for any other */
  #routes(name: string, ports: ReadonlySet<number>): HttpRoutes['hosts'] {
    const config = this.input.routes.get(name);
    const reason = config ? tableReason(config) : 'its table of routes is not there';
    if (!config || reason !== undefined) {
      this.#findings.push({ kind: 'routes', name, reason: reason! });
      return [];
    }
    const domains = config.virtual_hosts.flatMap((host) => host.domains);
    // Nor is `*` for a known host with a port, where the port does not count.
    const takesAny = !config.ignore_port_in_host_matching && !domains.some((domain) => domain !== '*' && domain.includes('*'));
    const lists = config.virtual_hosts.map((host) => this.#host(config, host));
    const anyIsFast = takesAny && config.virtual_hosts.some(({ domains: own }, at) => own.includes('*') && isFast(lists[at]!));
    const hosts = new Map<string, number>();
    config.virtual_hosts.forEach((host, at) => {
      const list = lists[at]!;
      if (!isFast(list) && !anyIsFast) return;
      for (const domain of host.domains.map((each) => each.toLowerCase())) {
        if (domain.includes('*') && !(domain === '*' && anyIsFast)) {
          if (isFast(list)) this.#findings.push({ kind: 'host', name: `${name} ${domain}`, reason: 'hosts are matched by a part of their name' });
          continue;
        }
        if (Buffer.byteLength(domain) > HTTP_HOST_MAX) {
          this.#findings.push({ kind: 'host', name: `${name} ${domain}`, reason: `it has more than ${HTTP_HOST_MAX} bytes` });
          continue;
        }
        // What is compared has no port.
        if (config.ignore_port_in_host_matching && WITH_PORT.test(domain)) continue;
        hosts.set(domain, this.#listIndex(list));
        if (!config.ignore_port_in_host_matching || domain === '*') continue;
        for (const port of ports) if (Buffer.byteLength(`${domain}:${port}`) <= HTTP_HOST_MAX) hosts.set(`${domain}:${port}`, this.#listIndex(list));
      }
    });
    return [...hosts].map(([host, virtualHost]) => ({ host, virtualHost }));
  }

  #listIndex(list: RuleList<ClassIndex>): number {
    const key = JSON.stringify(list);
    let index = this.#lists.get(key);
    if (index === undefined) {
      this.#lists.set(key, (index = this.#virtualHosts.length));
      this.#virtualHosts.push(list);
    }
    return index;
  }

  #host(config: RouteConfiguration, host: VirtualHost): RuleList<ClassIndex> {
    const reason = hostReason(host);
    if (reason !== undefined) {
      this.#findings.push({ kind: 'host', name: `${config.name} ${host.name}`, reason });
      return { rules: [], otherwise: ENVOY };
    }
    const rules: HttpRule<ClassIndex>[] = [];
    let isFull = false;
    host.routes.forEach((route, at) => {
      const name = `${config.name} ${host.name} #${at}${route.name === '' ? '' : ` ${route.name}`}`;
      const last = rules.at(-1);
      if (isFull || (last && isAlways(last))) {
        this.#findings.push({ kind: 'route', name, reason: isFull ? `its host has more than ${HTTP_RULES_EACH} rules` : last!.verdict === ENVOY ? 'a route before it may be meant instead' : 'a route before it takes all requests' });
        return;
      }
      const { matched, destinations } = readRoute(route);
      isFull = matched === undefined || rules.length + matched.terms.length > HTTP_RULES_EACH - 1;
      const verdict = isFull ? { reason: `its host has more than ${HTTP_RULES_EACH} rules` } : matched!.inexact === undefined ? this.#class(destinations, route) : { reason: matched!.inexact };
      if (typeof verdict === 'number') {
        const named = className(this.#classes[verdict]!);
        const { trace } = this.#classes[verdict]!;
        this.#names.set(JSON.stringify([config.name, host.name, at]), named);
        this.#findings.push({ kind: 'route', name, class: named, ...(trace && { sampled: trace.sampled }) });
      } else this.#findings.push({ kind: 'route', name, reason: verdict.reason });
      const terms = isFull ? [] : matched!.terms;
      for (const term of terms) rules.push({ ...term, verdict: typeof verdict === 'number' ? verdict : ENVOY });
    });
    while (rules.at(-1)?.verdict === ENVOY) rules.pop();
    return { rules, otherwise: ENVOY };
  }

  #class(destinations: Destinations | Reason, { tracing }: Route): ClassIndex | Reason {
    if ('reason' in destinations) return destinations;
    const trace = this.#traced && tracedRoute(this.#traced, tracing);
    if (trace && 'reason' in trace) return trace;
    const draws = destinations.map(({ cluster }) => this.#draw(cluster));
    const refusal = (of: readonly (object | Reason)[]): Reason | undefined => {
      const at = of.findIndex((each) => 'reason' in each);
      return at < 0 ? undefined : { reason: `${destinations[at]!.cluster}: ${(of[at] as Reason).reason}` };
    };
    const refused = refusal(draws);
    if (refused) return refused;
    const isTaught = draws.some((draw) => 'endpoints' in draw && draw.endpoints.some(({ address, port }) => this.#policyOf(address, port) !== 'envoy'));
    if (!isTaught) return { reason: 'no endpoint of it is on this node, known to be event-driven, and open to its requests' };
    // Rows are made of those alone that lead somewhere.
    const clusters = destinations.map(({ cluster }, at) => this.#cluster(cluster, draws[at] as Draw));
    const unnamed = refusal(clusters);
    if (unnamed) return unnamed;
    const name = this.input.takeName();
    if (!name) return { reason: 'the kernel has no room for more classes' };
    let until = 0;
    const splits = destinations.map(({ weight }, at): HttpSplit => {
      const text = headerLine(this.input.headers.weight, weightDraw(until), HTTP_WEIGHT_TEXT);
      if (text === undefined) throw new RangeError(`the header ${this.input.headers.weight} does not fit ${HTTP_WEIGHT_TEXT} bytes with its value`);
      until += weight;
      return { until, cluster: this.#clusterIndex(clusters[at] as HttpCluster), text };
    });
    this.#classes.push({ ...name, splits, ...(trace && { trace }) });
    return this.#classes.length - 1;
  }

  #clusterIndex(cluster: HttpCluster): number {
    const index = this.#clusters.indexOf(cluster);
    return index >= 0 ? index : this.#clusters.push(cluster) - 1;
  }

  #draw(name: string): Draw | Reason {
    let found = this.#draws.get(name);
    if (found === undefined) {
      const view = this.input.clusters.get(name);
      this.#draws.set(name, (found = view ? drawOf(view) : { reason: 'there is no such cluster' }));
    }
    return found;
  }

  #cluster(name: string, { balance, outlierDetection, endpoints }: Draw): HttpCluster | Reason {
    let found = this.#made.get(name);
    if (found === undefined) {
      const rows = endpoints.map((each) => this.#endpoint(each));
      const isWhole = (row: HttpEndpoint | undefined): row is HttpEndpoint => row !== undefined;
      const service = serviceOf(name, this.input.clusters.get(name));
      this.#made.set(name, (found = rows.every(isWhole) ? { name, ...(service ? { service } : {}), balance, ...(outlierDetection ? { outlierDetection } : {}), endpoints: rows } : { reason: 'one of its endpoints has a name that is too long for a draw' }));
    }
    return found;
  }

  #endpoint({ address, port, isTunnelled, weight }: DrawnEndpoint): HttpEndpoint | undefined {
    const { local, teachable, tunnels, headers } = this.input;
    const pod = local.get(address);
    const listener = pod ? pod.listener : isTunnelled ? tunnels : undefined;
    const policy = this.#policyOf(address, port);
    const text = headerLine(policy === 'envoy' ? (headers.other ?? headers.endpoint) : headers.endpoint, endpointDraw(address, port, listener), HTTP_ENDPOINT_TEXT);
    return text === undefined ? undefined : { address, port, weight, policy, teachable: pod !== undefined && teachable.has(endpointKey(address, port)), text };
  }

  #policyOf(address: string, port: number): Policy {
    const pod = this.input.local.get(address);
    if (!pod) return 'envoy';
    const key = endpointKey(address, port);
    if (!this.input.teachable.has(key)) return 'envoy';
    let found = this.#judged.get(key);
    if (found !== undefined) return found;
    const verdict = pod.reason !== undefined ? { reason: pod.reason } : pod.inbound ? policyOf(pod.inbound, this.input.caller, { address, port }, this.#traced?.kind) : 'open';
    if (typeof verdict === 'string') found = verdict;
    else if ('reason' in verdict) {
      this.#findings.push({ kind: 'endpoint', name: key, reason: verdict.reason });
      found = 'envoy';
    } else {
      const same = this.#policies.findIndex((each) => JSON.stringify(each) === JSON.stringify(verdict));
      found = same >= 0 ? same : this.#policies.push(verdict) - 1;
    }
    this.#judged.set(key, found);
    return found;
  }
}

function isFast({ rules }: RuleList<ClassIndex>): boolean {
  return rules.some(({ verdict }) => verdict !== ENVOY);
}

/** `name: value`, blanks, CRLF: so many bytes. */
function headerLine(name: string, value: string, bytes: number): string | undefined {
  const text = `${name}: ${value}`;
  return text.length > bytes - 2 ? undefined : `${text.padEnd(bytes - 2)}\r\n`;
}
