/** `underpass proxy-config`: the shared Envoy's configuration, seen as one pod's. */
import { InvalidArgumentError, type Command } from 'commander';
import { UnderpassError } from '../common/errors.js';
import { wholeNumber } from '../common/arguments.js';
import { addReachOptions, findPod, reachAgents, statuses, type FoundPod, type ReachOptions } from './agents.js';
import { askEnvoy, podConfig, readClusterName, readConfig, readHosts, type Host, type Json, type PodConfig } from './envoy/config.js';
import { outputOption, paint, print, type Format } from './output.js';
import { tableText } from './table.js';

interface Filters {
  fqdn?: string;
  port?: number;
  direction?: 'inbound' | 'outbound';
  name?: string;
  address?: string;
}

type Options = ReachOptions & Filters & { namespace?: string; output: Format };

interface Section {
  name: string;
  aliases: readonly string[];
  summary: string;
  filters: readonly (keyof Filters)[];
  /** Envoy's own objects that pass the filters, and the table of them. */
  show(config: PodConfig, filters: Filters, hosts: () => Promise<Host[]>): Promise<{ value: unknown; header: string[]; rows: string[][] }>;
}

const FILTERS: Record<keyof Filters, { flags: string; text: string; parse?: (text: string) => unknown }> = {
  fqdn: { flags: '--fqdn <host>', text: 'of services whose host name has this in it' },
  port: { flags: '--port <port>', text: 'of this port', parse: wholeNumber(1, 65_535) },
  direction: { flags: '--direction <direction>', text: 'inbound or outbound', parse: direction },
  name: { flags: '--name <text>', text: 'whose name has this in it' },
  address: { flags: '--address <address>', text: 'of this address' },
};

function direction(text: string): string {
  if (text !== 'inbound' && text !== 'outbound') throw new InvalidArgumentError('expected inbound or outbound');
  return text;
}

const asked = <T>(wanted: T | undefined, found: T): boolean => wanted === undefined || wanted === found;
const holds = (wanted: string | undefined, found: string): boolean => wanted === undefined || found.includes(wanted);

const SECTIONS: readonly Section[] = [
  {
    name: 'listeners', aliases: ['listener', 'l'], summary: 'where the pod\'s connections arrive, and what each kind of them meets', filters: ['port', 'address', 'name', 'direction'],
    show: (config, filters) => {
      const wanted = config.listeners.filter((listener) => holds(filters.name, String(listener['name'])) && asked(filters.direction, directionOf(listener)) && addressesOf(listener).some(({ address }) => asked(filters.address, address)));
      const rows = wanted.flatMap((listener) => chainsOf(listener).filter((chain) => asked(filters.port, chain.port ?? addressesOf(listener)[0]?.port)).map((chain) => [shortName(listener), addressesOf(listener).map(({ address, port }) => (port === 0 ? address : `${address.includes(':') ? `[${address}]` : address}:${port}`)).join(' '), chain.match, chain.leadsTo]));
      return Promise.resolve({ value: wanted, header: ['LISTENER', 'ADDRESSES', 'MATCH', 'LEADS TO'], rows });
    },
  },
  {
    name: 'routes', aliases: ['route', 'r'], summary: 'its route tables: host, match, where to, and the rule that wants it', filters: ['name', 'fqdn'],
    show: (config, filters) => {
      const tables = [...config.routes, ...inlineTables(config)].filter((table) => holds(filters.name, shortRoute(String(table['name']))));
      const rows = tables.flatMap((table) => ((table['virtual_hosts'] ?? []) as Json[]).filter((host) => filters.fqdn === undefined || [String(host['name']), ...(host['domains'] as string[])].some((name) => name.includes(filters.fqdn!))).flatMap((host) => ((host['routes'] ?? []) as Json[]).map((route) => [shortRoute(String(table['name'])), String(host['name']), matchText((route['match'] ?? {}) as Json), targetText(route), ruleText(route)])));
      return Promise.resolve({ value: tables, header: ['TABLE', 'HOST', 'MATCH', 'TO', 'RULE'], rows });
    },
  },
  {
    name: 'clusters', aliases: ['cluster', 'c'], summary: 'which services it can reach, and by which rules', filters: ['fqdn', 'port', 'direction', 'name'],
    show: (config, filters) => {
      const wanted = config.clusters.filter((cluster) => {
        const { host, port, direction: to } = readClusterName(String(cluster['name']));
        return holds(filters.fqdn, host) && asked(filters.port, port) && asked<string>(filters.direction, to) && holds(filters.name, String(cluster['name']));
      });
      const rows = wanted.map((cluster) => {
        const { host, port, subset, direction: to, account } = readClusterName(String(cluster['name']));
        return [host, port === undefined ? '-' : String(port), subset || '-', to || '-', String(cluster['type'] ?? cluster['cluster_type']?.name ?? 'STATIC'), account ?? '-', ruleText(cluster)];
      });
      return Promise.resolve({ value: wanted, header: ['SERVICE FQDN', 'PORT', 'SUBSET', 'DIRECTION', 'TYPE', 'ACCOUNT', 'RULE'], rows });
    },
  },
  {
    name: 'endpoints', aliases: ['endpoint', 'ep'], summary: 'their endpoints, with health, weight and locality as Envoy has them now', filters: ['fqdn', 'port', 'address', 'name'],
    show: async (config, filters, hosts) => {
      const clusters = new Set(config.clusters.map(({ name }) => String(name)));
      const wanted = (await hosts()).filter(({ cluster, address }) => {
        const { host, port } = readClusterName(cluster);
        return clusters.has(cluster) && holds(filters.fqdn, host) && asked(filters.port, port) && asked(filters.address, address) && holds(filters.name, cluster);
      });
      const rows = wanted.map(({ cluster, address, port, health, weight, priority, locality, stats }) => {
        const { host, port: of, subset } = readClusterName(cluster);
        return [`${address.includes(':') ? `[${address}]` : address}${port === 0 ? '' : `:${port}`}`, health === 'healthy' ? health : paint('bad', health), String(weight), String(priority), locality || '-', String(stats['cx_active'] ?? 0), `${host}${of === undefined ? '' : `:${of}`}${subset === '' ? '' : ` ${subset}`}`];
      });
      return { value: wanted, header: ['ENDPOINT', 'HEALTH', 'WEIGHT', 'PRIORITY', 'LOCALITY', 'CONNECTIONS', 'CLUSTER'], rows };
    },
  },
  {
    name: 'secrets', aliases: ['secret', 's'], summary: 'certificates and roots that it uses; never keys', filters: ['name'],
    show: (config, filters) => {
      const wanted = config.secrets.filter((secret) => holds(filters.name, String(secret['name'])));
      return Promise.resolve({ value: wanted, header: ['NAME', 'TYPE', 'UPDATED'], rows: wanted.map((each) => [String(each['name']), each['secret']?.tls_certificate ? 'certificate' : each['secret']?.validation_context ? 'roots' : 'other', String(each['last_updated'] ?? '')]) });
    },
  },
];

export function configure(command: Command): void {
  command.addHelpText('after', '\nA node has one Envoy for all its pods of mode node. Shown are the listeners in the pod\'s own network namespace and\nwhat they lead to. Pods of mode sidecar have a proxy of their own, and none of this.\nExamples:\n  underpass pc routes shop/client\n  underpass pc endpoints shop/client --fqdn nginx --port 80\n  underpass pc log shop/client --level rbac:debug,http:info');
  for (const section of SECTIONS) {
    const sub = addReachOptions(command.command(section.name).aliases([...section.aliases]).description(section.summary))
      .argument('<pod>', 'POD, NAMESPACE/POD, POD.NAMESPACE, or a workload\'s name')
      .option('-n, --namespace <name>', 'the pod\'s namespace (default: all)');
    for (const filter of section.filters) {
      const { flags, text, parse } = FILTERS[filter];
      if (parse) sub.option(flags, text, parse as (text: string) => string);
      else sub.option(flags, text);
    }
    sub.addOption(outputOption()).action((word: string, options: Options) => show(section, word, options));
  }
  addReachOptions(command.command('log').description('Envoy\'s log levels, and their change; of all pods of the node, as it is one Envoy'))
    .argument('<pod>', 'one of the node\'s pods')
    .option('-n, --namespace <name>', 'the pod\'s namespace (default: all)')
    .option('--level <levels>', 'a level for all loggers, or LOGGER:LEVEL,… (trace, debug, info, warning, error, critical, off)')
    .addOption(outputOption())
    .action(log);
}

async function withPod(word: string, options: Options, work: (found: FoundPod) => Promise<void>): Promise<void> {
  const reach = await reachAgents(options);
  try {
    await work(findPod(await statuses(reach), word, options.namespace));
  } finally {
    reach.close();
  }
}

function show(section: Section, word: string, options: Options): Promise<void> {
  return withPod(word, options, async ({ agent, pod }) => {
    const config = podConfig(await readConfig(agent), pod.uid);
    if (!config) throw new UnderpassError('UNDERPASS_NO_PROXY_CONFIG', `pod ${pod.namespace}/${pod.name}: the node's Envoy has no listener for it: ${pod.mode === 'sidecar' ? 'it has a sidecar of its own' : pod.reason ?? `its mode is ${pod.mode}, its state ${pod.state}`}`);
    const { value, header, rows } = await section.show(config, options, () => readHosts(agent));
    // Hosts of a namespace change when its pods do, tables are for people.
    print(options.output, value, () => (rows.length === 0 ? `(none${section.filters.some((filter) => options[filter] !== undefined) ? ' that the filters let pass' : ''})\n` : tableText(header, unique(rows))));
  });
}

const unique = (rows: string[][]): string[][] => [...new Map(rows.map((row) => [row.join('\0'), row])).values()];

const LEVELS = ['trace', 'debug', 'info', 'warning', 'error', 'critical', 'off'];

function log(word: string, options: Options & { level?: string }): Promise<void> {
  return withPod(word, options, async ({ agent }) => {
    const query = options.level === undefined ? '' : `?${levelsQuery(options.level)}`;
    const text = await askEnvoy(agent, `/logging${query}`, 'POST');
    const levels = Object.fromEntries([...text.matchAll(/^\s+([\w.-]+): (\w+)$/gm)].map(([, name, level]) => [name!, level!]));
    print(options.output, levels, () => tableText(['LOGGER', 'LEVEL'], Object.entries(levels)));
  });
}

/** @throws UnderpassError `UNDERPASS_BAD_OPTION` */
export function levelsQuery(text: string): string {
  const wrong = (found: string): UnderpassError => new UnderpassError('UNDERPASS_BAD_OPTION', `--level: found ${JSON.stringify(found)}, expected a level or LOGGER:LEVEL, levels ${LEVELS.join(', ')}`);
  if (!text.includes(':')) {
    if (!LEVELS.includes(text)) throw wrong(text);
    return `level=${text}`;
  }
  const parts = text.split(',').map((part) => part.split(':'));
  for (const [name = '', level = '', ...more] of parts) if (!/^[\w.-]+$/.test(name) || !LEVELS.includes(level) || more.length > 0) throw wrong([name, level, ...more].join(':'));
  return `paths=${parts.map((part) => part.join(':')).join(',')}`;
}

/** Without the pod's UID, which stands in every name. */
const shortName = ({ name }: Json): string => String(name).replace(/^pod\/[0-9a-f-]{36}\//, '');
const shortRoute = (name: string): string => name.replace(/^pod\/[0-9a-f-]{36}\//, '').replace(/~.*$/, '');

function directionOf({ name }: Json): 'inbound' | 'outbound' {
  return /\/(?:inbound|hbone)/.test(String(name)) ? 'inbound' : 'outbound';
}

function addressesOf({ address, additional_addresses: more = [], internal_listener: internal }: Json): { address: string; port: number }[] {
  if (internal || !address) return [{ address: 'inside of Envoy', port: 0 }];
  return [address, ...(more as Json[]).map((each) => each['address'] as Json)].flatMap(({ socket_address: socket }) => (socket ? [{ address: String(socket.address), port: Number(socket.port_value) }] : []));
}

function chainsOf(listener: Json): { port: number | undefined; match: string; leadsTo: string }[] {
  return ((listener['filter_chains'] ?? []) as Json[]).map((chain) => {
    const match = (chain['filter_chain_match'] ?? {}) as Json;
    const ranges = ((match['prefix_ranges'] ?? []) as Json[]).map((range) => `${range['address_prefix']}/${range['prefix_len']}`);
    const parts = [match['destination_port'] === undefined ? '' : `port ${match['destination_port']}`, ranges.length > 3 ? `${ranges.slice(0, 3).join(' ')} and ${ranges.length - 3} more` : ranges.join(' '), match['server_names'] ? `SNI ${(match['server_names'] as string[]).join(' ')}` : '', match['application_protocols'] ? (match['application_protocols'] as string[]).join(' ') : '', match['transport_protocol'] === 'tls' ? 'TLS' : ''];
    return { port: match['destination_port'] as number | undefined, match: parts.filter((part) => part !== '').join(', ') || 'all', leadsTo: leadsTo(chain) };
  });
}

function leadsTo(chain: Json): string {
  for (const { typed_config: config = {} } of (chain['filters'] ?? []) as Json[]) {
    const type = String(config['@type']);
    if (type.endsWith('.HttpConnectionManager')) return `routes ${config.rds ? shortRoute(String(config.rds.route_config_name)) : `(inline) ${shortRoute(String(config.route_config?.name ?? ''))}`}`;
    if (type.endsWith('.TcpProxy')) return config.cluster ? `cluster ${nice(String(config.cluster))}` : `clusters ${((config.weighted_clusters?.clusters ?? []) as Json[]).map((each) => nice(String(each['name']))).join(', ')}`;
  }
  return '-';
}

function nice(cluster: string): string {
  const { host, port, subset } = readClusterName(cluster);
  return port === undefined ? shortRoute(cluster) : `${host}:${port}${subset === '' ? '' : ` ${subset}`}`;
}

function inlineTables({ listeners }: PodConfig): Json[] {
  return listeners.flatMap((listener) => ((listener['filter_chains'] ?? []) as Json[]).flatMap((chain) => ((chain['filters'] ?? []) as Json[]).flatMap(({ typed_config: config }) => (config?.route_config ? [config.route_config as Json] : []))));
}

function matchText(match: Json): string {
  const path = match['prefix'] !== undefined ? `${match['prefix']}*` : match['path'] ?? (match['path_separated_prefix'] !== undefined ? `${match['path_separated_prefix']}[/*]` : match['safe_regex'] ? `~${match['safe_regex'].regex}` : match['connect_matcher'] ? 'CONNECT' : '');
  const headers = ((match['headers'] ?? []) as Json[]).map((header) => {
    const [kind, value] = Object.entries((header['string_match'] ?? {}) as Json).find(([key]) => key !== 'ignore_case') ?? ['present', ''];
    return `${header['invert_match'] ? 'not ' : ''}${header['name']} ${kind}${typeof value === 'string' && value !== '' ? ` ${value}` : typeof value === 'object' ? ` ${(value as Json)['regex']}` : ''}`;
  });
  const query = ((match['query_parameters'] ?? []) as Json[]).map(({ name }) => `?${name}`);
  return [String(path), ...headers, ...query].filter((part) => part !== '').join(', ');
}

function targetText({ route, redirect, direct_response: direct }: Json): string {
  if (redirect) return 'redirect';
  if (direct) return `answers ${direct.status}`;
  if (route?.weighted_clusters) return ((route.weighted_clusters.clusters ?? []) as Json[]).map(({ name, weight = 0 }) => `${weight}: ${nice(String(name))}`).join(', ');
  return route?.cluster === undefined ? '-' : nice(String(route.cluster));
}

/** `VirtualService nginx.shop "canary"`: name.namespace, as istioctl has it. */
function ruleText({ metadata, name }: Json): string {
  const [, namespace, kind, of] = /\/namespaces\/([^/]+)\/([^/]+)\/([^/]+)$/.exec(String(metadata?.filter_metadata?.istio?.config ?? '')) ?? [];
  if (namespace === undefined) return '-';
  const isRoute = kind !== 'destination-rule';
  return `${kind} ${namespace}/${of}${isRoute && name ? ` "${name}"` : ''}`;
}
