/**
 * Locality load balancing as istiod computes it for each client: weights by where the client is (`distribute`), or
 * priorities by how near a locality is (`failover`), or by which labels client and endpoint share (`failoverPriority`).
 */
import type { LocalityLbEndpoints } from '../../proto/generated/envoy/config/endpoint/v3/endpoint_components.js';
import type { LoadBalancer, LocalityLbSetting } from '../../common/kube/types.js';
import type { MeshConfig } from '../model/mesh.js';
import { labelledLocality, parseLocality } from '../model/locality.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import type { Endpoint, Locality, MeshService } from '../model/types.js';
import { hasIpv4, hasIpv6, podOf, proxyIps } from './inbound-ports.js';

export const REGION_LABEL = 'topology.kubernetes.io/region';
export const ZONE_LABEL = 'topology.kubernetes.io/zone';
const SUBZONE_LABEL = 'topology.istio.io/subzone';
const NETWORK_LABEL = 'topology.istio.io/network';
const CLUSTER_LABEL = 'topology.istio.io/cluster';
/** `region.zone.subzone`, in place of what the node says. */
const HOSTNAME_LABEL = 'kubernetes.io/hostname';

/** What of a client locality load balancing looks at. */
export interface Whereabouts {
  locality: Locality;
  labels: Readonly<Record<string, string>>;
  /** Empty: it reaches all. */
  network: string;
  cluster: string;
  /** The one family of addresses that it has; undefined: both, or none that is known. */
  family?: 4 | 6;
}

export interface LocalitySetting extends LocalityLbSetting {
  /** Priorities stand without outlier detection: an endpoint that is not ready is enough to leave a priority. */
  forced?: boolean;
}

const TRAFFIC_DISTRIBUTION: Record<string, readonly string[]> = {
  PreferClose: [NETWORK_LABEL, REGION_LABEL, ZONE_LABEL],
  PreferSameZone: [NETWORK_LABEL, REGION_LABEL, ZONE_LABEL],
  PreferSameNode: [NETWORK_LABEL, REGION_LABEL, ZONE_LABEL, SUBZONE_LABEL, HOSTNAME_LABEL],
};

/** A client's own place: what it says itself, its labels say, its WorkloadEntry says, or its pod's node has. */
export function whereabouts(model: Model, proxy: Proxy): Whereabouts {
  const pod = podOf(model, proxy);
  const cluster = model.clusters.named(proxy.metadata['CLUSTER_ID']);
  const said = proxy.metadata['NETWORK'];
  const entry = pod ? undefined : model.serviceEntries.workload(proxy.namespace, proxy.name)?.spec;
  const network = (typeof said === 'string' && said) || (proxy.labels[NETWORK_LABEL] ?? pod?.metadata.labels?.[NETWORK_LABEL]) || (entry?.network ?? model.clusters.networkOf(cluster, proxy.ip));
  const written = labelledLocality({ ...pod?.metadata.labels, ...proxy.labels }) ?? entry?.locality;
  const nodeName = pod?.spec.nodeName ?? proxy.nodeName;
  const locality = proxy.locality ?? (written ? parseLocality(written) : model.localityOf(nodeName, undefined, cluster));
  const labels = { ...(nodeName ? { [HOSTNAME_LABEL]: nodeName } : {}), [NETWORK_LABEL]: network, [CLUSTER_LABEL]: model.clusters.idOf(cluster), ...(pod?.metadata.labels ?? {}), ...proxy.labels };
  const family = onlyFamily(model, proxy);
  return { locality, labels, network, cluster: model.clusters.idOf(cluster), ...(family === undefined ? {} : { family }) };
}

export function onlyFamily(model: Model, proxy: Proxy): Whereabouts['family'] {
  const ips = proxyIps(model, proxy);
  return hasIpv4({ ips }) === hasIpv6({ ips }) ? undefined : hasIpv4({ ips }) ? 4 : 6;
}

/** The DestinationRule's setting, else what the Service asks for, else the mesh's; undefined where it is switched off. */
export function localitySetting(mesh: MeshConfig, loadBalancer: LoadBalancer | undefined, service: MeshService): LocalitySetting | undefined {
  const own = loadBalancer?.localityLbSetting;
  if (own) return own.enabled === false ? undefined : own;
  const failoverPriority = TRAFFIC_DISTRIBUTION[service.trafficDistribution];
  if (failoverPriority) return { failoverPriority: [...failoverPriority], forced: true };
  return mesh.localityLbSetting.enabled === false ? undefined : mesh.localityLbSetting;
}

/** Priorities need something that finds endpoints bad: else Envoy would never leave the first. */
function failsOver(setting: LocalitySetting, hasOutlierDetection: boolean): boolean {
  return Boolean(setting.forced) || hasOutlierDetection;
}

/** Whether the endpoints depend on where the client is. */
export function dependsOnClient(setting: LocalitySetting | undefined, hasOutlierDetection: boolean): setting is LocalitySetting {
  return setting !== undefined && (Boolean(setting.distribute?.length) || failsOver(setting, hasOutlierDetection));
}

/** Whether Envoy is to choose the locality by weight before the endpoint; else the balancer's own choice would count for less. */
export function weighsLocalities(setting: LocalitySetting | undefined, hasOutlierDetection: boolean): boolean {
  if (!setting) return false;
  return Boolean(setting.distribute?.length) || (failsOver(setting, hasOutlierDetection) && Boolean(setting.failover?.length || setting.failoverPriority?.length));
}

/** The same for clients that get the same endpoints. */
export function whereaboutsKey({ locality: { region, zone, subzone }, labels }: Whereabouts, { failoverPriority }: LocalitySetting): string {
  return `${region}/${zone}/${subzone} ${(failoverPriority ?? []).map((label) => labels[label] ?? '').join(',')}`;
}

/** One locality's endpoints in Envoy's form with ours beside them, in the same order. */
export interface LocalityGroup {
  locality: Locality;
  group: LocalityLbEndpoints;
  endpoints: Endpoint[];
}

/** The groups that the client is to see, weighted or in order of priority. */
export function balanceLocalities(groups: readonly LocalityGroup[], client: Whereabouts, setting: LocalitySetting): LocalityGroup[] {
  if (setting.distribute?.length) return distribute(groups, client.locality, setting.distribute);
  let result = groups.map((item) => ({ ...item, rank: 0 }));
  if (setting.failoverPriority?.length) result = result.flatMap((item) => splitByLabels(item, client, setting.failoverPriority!));
  // After failoverPriority localities only break ties, and only where failover is written out.
  if (!setting.failoverPriority?.length || setting.failover?.length) result = result.map((item) => ({ ...item, rank: item.rank * 5 + nearness(client.locality, item.locality, setting.failover) }));
  const ranks = [...new Set(result.map(({ rank }) => rank))].sort((a, b) => a - b);
  return result.map(({ rank, ...item }) => ({ ...item, group: { ...item.group, priority: ranks.indexOf(rank) } }));
}

function nearness(mine: Locality, theirs: Locality, failover: LocalityLbSetting['failover']): number {
  if (mine.region !== theirs.region) {
    const rule = failover?.find(({ from }) => from === mine.region);
    return rule && theirs.region !== rule.to ? 4 : 3;
  }
  if (mine.zone !== theirs.zone) return 2;
  return mine.subzone === theirs.subzone ? 0 : 1;
}

/** `label`, or `label=value`, which stands for the client's own value. */
function splitByLabels(item: LocalityGroup, client: Whereabouts, priorities: readonly string[]): (LocalityGroup & { rank: number })[] {
  const mine = { ...topologyLabels(client.locality), ...client.labels };
  const byRank = new Map<number, LocalityGroup>();
  item.endpoints.forEach((endpoint, index) => {
    const theirs: Record<string, string> = { ...topologyLabels(endpoint.locality), [NETWORK_LABEL]: endpoint.network, [CLUSTER_LABEL]: endpoint.cluster, ...endpoint.labels, ...(endpoint.pod?.spec.nodeName ? { [HOSTNAME_LABEL]: endpoint.pod.spec.nodeName } : {}) };
    const missed = priorities.findIndex((written) => {
      const equals = written.indexOf('=');
      const [label, value] = equals < 0 ? [written, mine[written] ?? ''] : [written.slice(0, equals), written.slice(equals + 1)];
      return value !== (theirs[label] ?? '');
    });
    const rank = missed < 0 ? 0 : priorities.length - missed;
    let part = byRank.get(rank);
    if (!part) byRank.set(rank, (part = { locality: item.locality, group: { ...item.group, lb_endpoints: [], load_balancing_weight: 0 }, endpoints: [] }));
    part.endpoints.push(endpoint);
    part.group.lb_endpoints.push(item.group.lb_endpoints[index]!);
    part.group.load_balancing_weight! += endpoint.weight;
  });
  return [...byRank].sort(([a], [b]) => a - b).map(([rank, part]) => ({ ...part, rank }));
}

function topologyLabels({ region, zone, subzone }: Locality): Record<string, string> {
  return { ...(region ? { [REGION_LABEL]: region } : {}), ...(zone ? { [ZONE_LABEL]: zone } : {}), ...(subzone ? { [SUBZONE_LABEL]: subzone } : {}) };
}

/** `region/zone/subzone`, each of which may be `*` or left out. */
function covers(written: string, { region, zone, subzone }: Locality): boolean {
  const [r = '*', z = '*', s = '*'] = written.split('/');
  const fits = (pattern: string, value: string): boolean => pattern === '*' || pattern === '' || pattern === value;
  return fits(r, region) && fits(z, zone) && fits(s, subzone);
}

/** The first rule that covers the client counts; localities that it does not name get nothing. */
function distribute(groups: readonly LocalityGroup[], client: Locality, rules: NonNullable<LocalityLbSetting['distribute']>): LocalityGroup[] {
  const rule = rules.find(({ from }) => covers(from, client));
  if (!rule) return [...groups];
  const left = new Set(groups);
  const result: LocalityGroup[] = [];
  // The most specific first, so that a wildcard shares out what no other entry names.
  const targets = Object.entries(rule.to).sort(([a], [b]) => Number(a.includes('*')) - Number(b.includes('*')) || b.length - a.length);
  for (const [where, weight] of targets) {
    const found = [...left].filter(({ locality }) => covers(where, locality));
    const total = found.reduce((sum, { group }) => sum + (group.load_balancing_weight ?? 1), 0);
    for (const item of found) {
      left.delete(item);
      const share = Math.ceil(((item.group.load_balancing_weight ?? 1) * weight) / total);
      if (share > 0) result.push({ ...item, group: { ...item.group, load_balancing_weight: share } });
    }
  }
  return groups.flatMap((original) => result.find(({ endpoints }) => endpoints === original.endpoints) ?? []);
}
