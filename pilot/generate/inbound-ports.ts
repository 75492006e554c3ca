/** Which of a workload's ports the mesh knows: the target ports of the services that select its pod. */
import { isIPv4, isIPv6 } from 'node:net';
import { podIps, targetPortOf, type MeshPort, type MeshService, type Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import type { Pod } from '../../common/kube/types.js';

export interface InboundPort {
  service: MeshService;
  port: MeshPort;
  targetPort: number;
}

export function podOf(model: Model, proxy: Proxy): Pod | undefined {
  return model.pods.get(`${proxy.namespace}/${proxy.name}`) ?? model.podByIp(proxy.ip);
}

/** One entry a target port, in the order of port numbers; of several services on a port the first by name. */
export function inboundPorts(model: Model, proxy: Proxy): InboundPort[] {
  const pod = podOf(model, proxy);
  const labels = pod?.metadata.labels ?? proxy.labels;
  const found = new Map<number, InboundPort>();
  for (const service of model.servicesSelecting(proxy.namespace, labels)) {
    for (const port of service.ports) {
      const targetPort = targetPortOf(port, pod);
      if (targetPort !== undefined && !found.has(targetPort)) found.set(targetPort, { service, port, targetPort });
    }
  }
  return [...found.values()].sort((a, b) => a.targetPort - b.targetPort);
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
