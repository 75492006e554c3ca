/** Which of a workload's ports the mesh knows: the target ports of the services that select its pod. */
import { isIPv4, isIPv6 } from 'node:net';
import { podIps, targetPortOf, type MeshPort, type MeshService, type Model } from '../model/model.js';
import { inCluster } from '../model/clusters.js';
import type { Proxy } from '../model/proxy.js';
import type { Pod, ServerTls, SidecarIngress } from '../../common/kube/types.js';
import { bracketed } from './envoy.js';
import { protocolOf } from '../model/protocol.js';

export interface InboundPort {
  service: MeshService;
  port: MeshPort;
  targetPort: number;
  /** Where it is delivered, if not to the port that it was meant for: `host:port`, or `unix:///path`. */
  deliverTo?: string;
  /** Of a Sidecar's ingress listener: terminated where the mesh's own TLS is switched off. */
  tls?: ServerTls;
}

export function podOf(model: Model, proxy: Proxy): Pod | undefined {
  const cluster = model.clusters.named(proxy.metadata['CLUSTER_ID']);
  return model.pods.get(inCluster(cluster, `${proxy.namespace}/${proxy.name}`)) ?? model.podByIp(proxy.ip, cluster);
}

/** One entry a target port, in the order of port numbers; of several services on a port the first by name. */
export function inboundPorts(model: Model, proxy: Proxy): InboundPort[] {
  const pod = podOf(model, proxy);
  const labels = pod?.metadata.labels ?? proxy.labels;
  const found = new Map<number, InboundPort>();
  const services = model.servicesSelecting(proxy.namespace, labels);
  const ingress = model.scopeOf(proxy).sidecar?.object.spec.ingress;
  if (ingress?.length) return ingress.flatMap((listener) => ingressPort(services, proxy, listener)).sort((a, b) => a.targetPort - b.targetPort);
  for (const service of services) {
    for (const port of service.ports) {
      const targetPort = targetPortOf(port, pod);
      if (targetPort !== undefined && !found.has(targetPort)) found.set(targetPort, { service, port, targetPort });
    }
  }
  return [...found.values()].sort((a, b) => a.targetPort - b.targetPort);
}

/** The hosts of all services that lead to this port of the proxy's workload. */
export function inboundHosts(model: Model, proxy: Proxy, targetPort: number): string[] {
  const pod = podOf(model, proxy);
  const services = model.servicesSelecting(proxy.namespace, pod?.metadata.labels ?? proxy.labels);
  return services.filter(({ ports }) => ports.some((port) => targetPortOf(port, pod) === targetPort)).map(({ host }) => host);
}

/** A Sidecar's ingress listeners stand in the place of what its services say; each is still the service's that has its port. */
function ingressPort(services: readonly MeshService[], proxy: Proxy, { port, defaultEndpoint = '', tls }: SidecarIngress): InboundPort {
  const service = services.find(({ ports }) => ports.some(({ targetPort }) => targetPort === port.number)) ?? services[0] ?? standIn(proxy);
  const own = service.ports.find(({ targetPort }) => targetPort === port.number);
  // Where its TLS ends here, HTTPS is HTTP from there on.
  const isEnded = tls !== undefined && tls.mode !== 'PASSTHROUGH' && port.protocol?.toUpperCase() === 'HTTPS';
  const protocol = isEnded ? 'HTTP' : (protocolOf(port.protocol) ?? own?.protocol ?? 'auto');
  const deliverTo = defaultEndpoint.replace(/^0\.0\.0\.0:|^\[::\]:/, `${bracketed(proxy.ip)}:`);
  return {
    service,
    port: { name: port.name ?? own?.name ?? '', port: own?.port ?? port.number, targetPort: port.number, protocol },
    targetPort: port.number,
    ...(deliverTo ? { deliverTo } : {}),
    ...(tls ? { tls } : {}),
  };
}

/** Of a workload that no service selects. */
function standIn({ namespace, name }: Proxy): MeshService {
  const host = `${name}.${namespace}`;
  return {
    key: `sidecar ${namespace}/${name}`, host, name, namespace, addresses: [], cidrs: [], autoAddresses: [], headless: false, resolution: 'EDS', external: false, ports: [], udpPorts: [],
    selector: {}, subjectAltNames: [], trafficDistribution: '', exportTo: 'all', createdAt: '', object: { apiVersion: 'v1', kind: 'Service', metadata: { name, namespace } },
  };
}

/** All addresses of the proxy's workload: what it says, and what its pod's status says. */
export function proxyIps(model: Model, proxy: Proxy): string[] {
  const pod = podOf(model, proxy);
  return [...new Set([...proxy.ips, ...(pod ? podIps(pod) : [])])];
}

export function hasIpv4({ ips }: { ips: readonly string[] }): boolean {
  return ips.some((ip) => isIPv4(ip));
}

export function hasIpv6({ ips }: { ips: readonly string[] }): boolean {
  return ips.some((ip) => isIPv6(ip));
}
