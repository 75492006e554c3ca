/** A Kubernetes Service as the mesh sees it. */
import type { Service, ServicePort } from '../../common/kube/types.js';
import { parseExportTo } from './export-to.js';
import type { MeshConfig } from './mesh.js';
import { selectProtocol } from './protocol.js';
import type { MeshPort, MeshService } from './types.js';

const EXPORT_TO_ANNOTATION = 'networking.istio.io/exportTo';
const TRAFFIC_DISTRIBUTION_ANNOTATION = 'networking.istio.io/traffic-distribution';

/**
 * A Service of the same name in several clusters is one: what can only be decided once the first one does, ports are united,
 * clients get the addresses of their own cluster.
 * @param versions by cluster, the config cluster's first
 */
export function uniteServices(versions: readonly { cluster: string; service: MeshService }[]): MeshService | undefined {
  const [first, ...others] = versions;
  if (!first || others.length === 0) return first?.service;
  const united = (mine: readonly MeshPort[], theirs: readonly MeshPort[]): MeshPort[] => [...mine, ...theirs.filter(({ port }) => !mine.some((known) => known.port === port))];
  const clusterAddresses = Object.fromEntries(versions.map(({ cluster, service }) => [cluster, service.addresses]));
  return others.reduce((all, { service }) => ({ ...all, ports: united(all.ports, service.ports), udpPorts: united(all.udpPorts, service.udpPorts) }), { ...first.service, clusterAddresses });
}

export function buildService(host: string, name: string, namespace: string, object: Service, mesh: MeshConfig): MeshService | undefined {
  // An ExternalName is an alias of another host: nothing of its own to route to.
  if (object.spec.type === 'ExternalName') return undefined;
  const given = object.spec.clusterIPs ?? (object.spec.clusterIP ? [object.spec.clusterIP] : []);
  const ports = (object.spec.ports ?? []).map((port: ServicePort): MeshPort => ({ name: port.name ?? '', port: port.port, targetPort: port.targetPort ?? port.port, protocol: selectProtocol(port) }));
  // A Service that has no address yet is not headless: it has endpoints to balance between.
  const headless = object.spec.clusterIP === 'None' || given.includes('None');
  const exported = object.metadata.annotations?.[EXPORT_TO_ANNOTATION]?.split(',').map((item) => item.trim());
  return {
    key: `${namespace}/${host}`,
    host,
    name,
    namespace,
    addresses: given.filter((ip) => ip !== 'None' && ip !== ''),
    cidrs: [],
    autoAddresses: [],
    headless,
    resolution: headless ? 'ORIGINAL_DST' : 'EDS',
    external: false,
    ports: ports.filter(({ protocol }) => protocol !== 'UDP'),
    udpPorts: ports.filter(({ protocol }) => protocol === 'UDP'),
    selector: object.spec.selector ?? {},
    subjectAltNames: [],
    trafficDistribution: object.spec.trafficDistribution ?? object.metadata.annotations?.[TRAFFIC_DISTRIBUTION_ANNOTATION] ?? '',
    exportTo: parseExportTo(exported, namespace, mesh.defaultServiceExportTo),
    createdAt: object.metadata.creationTimestamp ?? '',
    object,
  };
}
