/** `underpass describe`: what applies to a pod or a service, gathered from the agents and their Envoys, with what is odd about it. */
import { Argument, type Command } from 'commander';
import type { AgentStatus, NodeObjects, PodStatus } from '../agent/client.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { nearest } from '../common/nearest.js';
import { addReachOptions, answered, askEach, findPod, reachAgents, statuses, type AgentHandle, type ReachOptions } from './agents.js';
import { podConfig, readClusterName, readConfig, readHosts, type EnvoyConfig, type Host, type Json } from './envoy/config.js';
import { nameOfPolicy } from './envoy/match.js';
import { gatewaysSelecting, gatewaysTo, type GatewayUse } from './describe-gateways.js';
import { outputOption, paint, parseAnswer, print, type Format } from './output.js';
import { tableText } from './table.js';

interface ServiceRef { host: string; port: number; subsets: string[]; rules: string[]; routes: string[] }

export interface PodDescription {
  pod: string;
  node: string;
  addresses: string[];
  mode: string;
  state: string;
  way: string;
  acceleration: string;
  /** Of mode node: whom its connections are known as, and until when its certificate is valid. */
  identity?: { principal: string; notAfter?: string; expired?: boolean };
  services: ServiceRef[];
  policies: string[];
  /** Whether plaintext from elsewhere is refused, of mode node: `STRICT`; `by port`; or `none`: PERMISSIVE or DISABLE, which come to the same here. */
  peerAuthentication?: { mode: 'STRICT' | 'by port' | 'none'; objects: string[] };
  /** Of a cluster: those that lead here, and those whose proxy the pod is. */
  gateways?: GatewayUse[];
  gatewayOf?: string[];
  inbound: { kernel: string[]; envoy: Record<string, string> };
  probation: { kind: string; what: string; verdict: string }[];
  warnings: string[];
}

export interface ServiceDescription {
  service: string;
  ports: { port: number; subsets: string[] }[];
  rules: string[];
  routes: string[];
  /** Of a cluster: those that lead here. */
  gateways?: GatewayUse[];
  endpoints: (Pick<Host, 'address' | 'port' | 'health' | 'locality'> & { node: string; subset: string; pod?: string; way?: string; policies?: string[] })[];
  warnings: string[];
}

interface NodeView { agent: AgentHandle; status: AgentStatus; config: EnvoyConfig; hosts: Host[]; objects: NodeObjects['objects'] }

export function configure(command: Command): void {
  addReachOptions(command)
    .addArgument(new Argument('<kind>').choices(['pod', 'service']))
    .argument('<name>', 'of a pod as elsewhere; of a service NAME, NAME.NAMESPACE, NAMESPACE/NAME or its whole host name')
    .option('-n, --namespace <name>', 'where it is (default: all)')
    .addOption(outputOption())
    .addHelpText('after', '\nRead from what is in force: the agents\' state, their Envoys\' configuration and the kernel\'s tables. A service that no pod of\nmode node can reach is not known here; `underpass analyze` looks at what was written.\nOf a cluster also: Gateways that lead there, by the VirtualServices and routes that are written, which needs list of those.')
    .action(async (kind: 'pod' | 'service', name: string, options: ReachOptions & { namespace?: string; output: Format }) => {
      const reach = await reachAgents(options);
      try {
        const all = await statuses(reach);
        if (kind === 'pod') {
          const { agent, status, pod } = findPod(all, name, options.namespace);
          const description = describePod(pod, await viewOf(agent, status));
          if (reach.client) {
            const { gateways, problems } = await gatewaysTo(reach.client, new Set(description.services.map(({ host }) => host)));
            description.gateways = gateways;
            description.warnings.push(...problems);
            description.gatewayOf = await gatewaysSelecting(reach.client, pod).catch((error: unknown) => (description.warnings.push(`whether it is a Gateway's proxy is not known: ${errorMessage(error)}`), []));
          }
          print(options.output, description, () => renderPod(description));
        } else {
          const agents = all.map(({ agent }) => agent);
          const views = answered(agents, await askEach(agents, (agent) => viewOf(agent, all.find((each) => each.agent === agent)!.status)));
          const description = describeService(name, options.namespace, views);
          if (reach.client) {
            const { gateways, problems } = await gatewaysTo(reach.client, new Set([description.service]));
            description.gateways = gateways;
            description.warnings.push(...problems);
          }
          print(options.output, description, () => renderService(description));
        }
      } finally {
        reach.close();
      }
    });
}

async function viewOf(agent: AgentHandle, status: AgentStatus): Promise<NodeView> {
  const [config, hosts, { objects }] = await Promise.all([readConfig(agent), readHosts(agent), agent.ask('/v1/objects').then((text) => parseAnswer<NodeObjects>(text, "the agent's objects"))]);
  return { agent, status, config, hosts, objects };
}

const ruleOf = (item: Json): string | undefined => {
  const [, namespace, kind, name] = /\/namespaces\/([^/]+)\/([^/]+)\/([^/]+)$/.exec(String(item['metadata']?.filter_metadata?.istio?.config ?? '')) ?? [];
  return namespace === undefined ? undefined : `${kind} ${namespace}/${name}`;
};
const sorted = (words: Iterable<string | undefined>): string[] => [...new Set([...words].filter((word) => word !== undefined))].sort();

/** What routes lead to each cluster of a host. */
function routesTo(host: string, { routes }: EnvoyConfig): string[] {
  const found = routes.flatMap((table) => ((table['virtual_hosts'] ?? []) as Json[]).flatMap((virtualHost) => ((virtualHost['routes'] ?? []) as Json[]).filter((route) => clustersOf(route).some((name) => readClusterName(name).host === host)).map((route) => {
    const rule = ruleOf(route);
    return rule === undefined ? undefined : `${rule}${route['name'] ? ` "${route['name']}"` : ''}`;
  })));
  return sorted(found);
}

const clustersOf = ({ route }: Json): string[] => [...(route?.cluster === undefined ? [] : [String(route.cluster)]), ...((route?.weighted_clusters?.clusters ?? []) as Json[]).map(({ name }) => String(name))];

function policiesOf(pod: PodStatus, config: EnvoyConfig): string[] {
  const text = config.listeners.filter(({ name }) => String(name).startsWith(`pod/${pod.uid}/inbound`)).map((listener) => JSON.stringify(listener)).join('');
  return sorted([...text.matchAll(/"(ns\[[^\]]*\]-policy\[[^\]]*\]-rule\[\d+\])"/g)].map(([, name]) => nameOfPolicy(name!)));
}

/** By the policies that the control plane makes of PeerAuthentications, which the kernel has. */
function peerAuthenticationOf(pod: PodStatus, { status, objects }: Pick<NodeView, 'status' | 'objects'>): PodDescription['peerAuthentication'] {
  if (pod.mode !== 'node' || !status.policies) return undefined;
  const name = `${pod.namespace}/${pod.name}`;
  const found = objects.filter(({ object, resources }) => object.startsWith('PeerAuthentication/') && resources.some((each) => each.type === 'policy' && each.name === name)).map(({ object }) => object);
  const named = found.filter((object) => !object.startsWith('PeerAuthentication/*.'));
  return { mode: named.length > 0 ? 'by port' : found.length > 0 ? 'STRICT' : 'none', objects: named };
}

export function describePod(pod: PodStatus, { status, config, hosts, objects }: NodeView): PodDescription {
  const own = podConfig(config, pod.uid);
  const services = new Map<string, ServiceRef>();
  for (const { cluster, address } of hosts) {
    const { host, port, subset, direction } = readClusterName(cluster);
    if (direction !== 'outbound' || port === undefined || !pod.ips.includes(address)) continue;
    const service = services.get(`${host}:${port}`) ?? { host, port, subsets: [], rules: [], routes: routesTo(host, config) };
    services.set(`${host}:${port}`, service);
    if (subset !== '' && !service.subsets.includes(subset)) service.subsets.push(subset);
    service.rules = sorted([...service.rules, ...config.clusters.filter(({ name }) => name === cluster).map(ruleOf)]);
  }
  const name = `${pod.namespace}/${pod.name}`;
  const peerAuthentication = peerAuthenticationOf(pod, { status, objects });
  const inbound = status.policies?.inbound.find((each) => each.pod === name);
  const certificate = own?.principal === undefined ? undefined : status.proxy.certificates?.identities.find(({ id }) => id === own.principal);
  const probation = status.probation.filter((each) => each.namespace === pod.namespace && each.pod === pod.name);
  const warnings = [
    ...(pod.error === undefined ? [] : [pod.error]),
    ...(pod.reason === undefined ? [] : [pod.reason]),
    ...pod.notes,
    ...(pod.settled ? [] : ['its mode, way or acceleration is just being changed']),
    ...(pod.mode === 'node' && services.size === 0 ? ['no service that a pod of this node can reach has it as an endpoint'] : []),
    ...hosts.filter(({ address, health }) => pod.ips.includes(address) && health !== 'healthy').map(({ cluster, port, health }) => `port ${port} is ${health} for callers of this node (${readClusterName(cluster).host})`),
    ...(certificate?.expired ? [`the certificate of ${certificate.id} has expired: new connections by mutual TLS are refused`] : []),
    ...(status.acceleration.on || pod.acceleration === 'off' ? [] : [`acceleration is off on this node: ${status.acceleration.reason ?? ''}`]),
    ...probation.filter(({ kind, verdict }) => kind === 'listener' && (verdict === 'blocking' || verdict === 'spliced')).map(({ program, verdict, reason }) => `${program ?? 'a listener'} is ${verdict}, so that its connections are plain TCP: ${reason}`),
    ...(status.policies?.unreadable ?? []).filter((each) => each.pod === name).flatMap(({ reasons }) => reasons),
  ];
  return {
    pod: name, node: status.node, addresses: [...pod.ips], mode: pod.mode, state: pod.state, way: pod.way, acceleration: pod.acceleration,
    ...(own?.principal === undefined ? {} : { identity: { principal: own.principal, ...(certificate?.notAfter === undefined ? {} : { notAfter: String(certificate.notAfter) }), ...(certificate?.expired ? { expired: true } : {}) } }),
    services: [...services.values()], policies: policiesOf(pod, config), ...(peerAuthentication ? { peerAuthentication } : {}), inbound: { kernel: (inbound?.kernel ?? []).map(String), envoy: inbound?.envoy ?? {} },
    probation: probation.map(({ kind, key, program, verdict }) => ({ kind, what: kind === 'listener' ? key.replace(/@\d+$/, '') : (program ?? key), verdict })),
    warnings: [...new Set(warnings)],
  };
}

/** @throws UnderpassError `UNDERPASS_UNKNOWN_SERVICE` with the nearest names */
export function describeService(word: string, namespace: string | undefined, views: readonly NodeView[]): ServiceDescription {
  const clusters = views.flatMap((view) => view.config.clusters.map((cluster) => ({ view, cluster, ...readClusterName(String(cluster['name'])) }))).filter(({ direction }) => direction === 'outbound');
  const known = sorted(clusters.map(({ host }) => host));
  const [first, second] = word.includes('/') ? word.split('/').reverse() : [word, namespace];
  const wanted = second === undefined ? first! : `${first}.${second}`;
  const fits = known.filter((host) => host === wanted || host.startsWith(`${wanted}.`));
  if (fits.length > 1) throw new UnderpassError('UNDERPASS_AMBIGUOUS_SERVICE', `service ${word}: it may be ${fits.join(', ')}`, { hint: 'name one by its namespace, NAME.NAMESPACE' });
  const [host] = fits;
  if (host === undefined) {
    const near = nearest(first!, known.map((each) => each.split('.')[0]!)).flatMap((name) => known.filter((each) => each.startsWith(`${name}.`)));
    throw new UnderpassError('UNDERPASS_UNKNOWN_SERVICE', `service ${word}: no Envoy that was asked knows it`, { hint: near.length > 0 ? `did you mean ${near.slice(0, 3).join(', ')}?` : `${known.length} services are known` });
  }
  const own = clusters.filter((each) => each.host === host);
  const ports = [...new Set(own.map(({ port }) => port!))].sort((a, b) => a - b).map((port) => ({ port, subsets: sorted(own.filter((each) => each.port === port && each.subset !== '').map(({ subset }) => subset)) }));
  const endpoints = new Map<string, ServiceDescription['endpoints'][number]>();
  const warnings: string[] = [];
  for (const { view, cluster, subset, port } of own) {
    const hosts = view.hosts.filter((each) => each.cluster === cluster['name']);
    if (hosts.length === 0) warnings.push(`port ${port}${subset === '' ? '' : `, subset ${subset}`} has no endpoint on node ${view.status.node}: requests get 503`);
    for (const { address, port: at, health, locality } of hosts) {
      const pod = views.flatMap(({ status, config }) => status.pods.map((each) => ({ pod: each, config }))).find((each) => each.pod.ips.includes(address));
      const key = `${address} ${at} ${subset}`;
      if (subset !== '' || !endpoints.has(key)) endpoints.set(key, { node: view.status.node, subset, address, port: at, health, locality, ...(pod ? { pod: `${pod.pod.namespace}/${pod.pod.name}`, way: pod.pod.way, policies: policiesOf(pod.pod, pod.config) } : {}) });
      if (health !== 'healthy') warnings.push(`${address}:${at} is ${health}, seen from node ${view.status.node}`);
    }
  }
  return { service: host, ports, rules: sorted(own.map(({ cluster }) => ruleOf(cluster))), routes: sorted(views.flatMap(({ config }) => routesTo(host, config))), endpoints: [...endpoints.values()], warnings: [...new Set(warnings)] };
}

const list = (words: readonly string[], none = 'none'): string => (words.length === 0 ? none : words.join(', '));
const warned = (warnings: readonly string[]): string[] => (warnings.length === 0 ? [] : [paint('warning', 'Warnings'), ...warnings.map((each) => `  ${each}`)]);

function renderPod(description: PodDescription): string {
  const { pod, node, addresses, mode, state, way, acceleration, identity, services, policies, peerAuthentication, gateways, gatewayOf = [], inbound, probation, warnings } = description;
  return `${[
    `${paint('strong', `Pod ${pod}`)} on node ${node}: ${addresses.join(', ')}`,
    `  mode          ${mode}, ${state}`,
    `  way           ${way}, acceleration ${acceleration}`,
    `  identity      ${identity ? `${identity.principal}${identity.notAfter === undefined ? ', without a certificate' : `, certificate until ${identity.notAfter}`}` : 'none that this node\'s Envoy shows'}`,
    ...(services.length === 0 ? ['  services      none'] : services.flatMap(({ host, port, subsets, rules, routes }) => [`  service       ${host}:${port}${subsets.length === 0 ? '' : `, subsets ${subsets.join(', ')}`}`, `    rules       ${list(rules)}`, `    routes      ${list(routes)}`])),
    `  policies      ${list(policies, 'none that Envoy judges')}`,
    ...(peerAuthentication ? [`  mutual TLS    ${peerAuthentication.mode === 'STRICT' ? 'STRICT' : peerAuthentication.mode === 'by port' ? `by port: ${list(peerAuthentication.objects)}` : 'not asked for (PERMISSIVE, or DISABLE)'}`] : []),
    ...gatewayLines(gateways, '  gateway       '),
    ...(gatewayOf.length === 0 ? [] : [`  proxy of      ${gatewayOf.join(', ')}`]),
    ...(inbound.kernel.length === 0 ? [] : [`  judged        ports ${inbound.kernel.join(', ')} by the kernel for pods of this node`]),
    ...Object.entries(inbound.envoy).map(([port, why]) => `  judged        port ${port} by Envoy: ${why}`),
    ...probation.map(({ kind, what, verdict }) => `  ${kind.padEnd(12)}  ${what}: ${verdict}`),
    ...warned(warnings),
  ].join('\n')}\n`;
}

function gatewayLines(gateways: readonly GatewayUse[] | undefined, head: string): string[] {
  return gateways === undefined ? [] : gateways.length === 0 ? [`${head}none that leads here`] : gateways.map(({ gateway, by }) => `${head}${gateway}, by ${by}`);
}

function renderService({ service, ports, rules, routes, gateways, endpoints, warnings }: ServiceDescription): string {
  return [
    `${[paint('strong', `Service ${service}`), ...ports.map(({ port, subsets }) => `  port ${port}${subsets.length === 0 ? '' : `, subsets ${subsets.join(', ')}`}`), `  rules   ${list(rules)}`, `  routes  ${list(routes)}`, ...gatewayLines(gateways, '  gateway ')].join('\n')}\n`,
    tableText(['  ENDPOINT', 'SUBSET', 'HEALTH', 'POD', 'WAY', 'POLICIES'], endpoints.map(({ address, port, subset, health, pod, way, policies }) => [`  ${address}:${port}`, subset, health, pod ?? '', way ?? '', list(policies ?? [], '')])),
    warned(warnings).map((line) => `${line}\n`).join(''),
  ].join('');
}
