/** The VirtualService `tcp` routes of a plain TCP port: the first that fits the client and the port wins. */
import type { L4MatchAttributes } from '../../common/kube/types.js';
import type { Filter } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { MeshPort, MeshService } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import type { Scope } from '../model/scope.js';
import { tcpProxy, weightedTcpProxy } from './http-filters.js';
import { clusterName } from './names.js';
import { appliesToMesh, destinationCluster, sourceMatches } from './route-match.js';

export function tcpRouteFilter(scope: Scope, proxy: Proxy, service: MeshService, port: MeshPort): Filter {
  const plain = clusterName(port.port, '', service.host);
  for (const { object } of scope.virtualServicesFor(service.host)) {
    if (!appliesToMesh(object.spec.gateways)) continue;
    for (const route of object.spec.tcp ?? []) {
      const fits = (match: L4MatchAttributes): boolean =>
        sourceMatches(match, proxy) && (match.port === undefined || match.port === port.port) && !match.destinationSubnets?.length;
      if (route.match?.length && !route.match.some(fits)) continue;
      const clusters = route.route.map(({ destination, weight }) => ({ name: destinationCluster(scope, object, destination, port.port), weight: weight ?? 0 }));
      if (clusters.length === 1) return tcpProxy(clusters[0]!.name);
      return weightedTcpProxy(plain, clusters.filter(({ weight }) => weight > 0));
    }
    if (object.spec.tcp?.length) break;
  }
  return tcpProxy(plain);
}
