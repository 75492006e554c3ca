/**
 * An east-west gateway's HBONE side. Callers of other networks wrap their HBONE to a workload into an HBONE to this gateway,
 * whose authority names the service, `host:port` (ztunnel's "double HBONE"). The outer one ends here; the bytes inside go to
 * port 15008 of an endpoint of this network that takes HBONE. Only global services are there: whatever else an authority
 * names has no route.
 */
import { Cluster } from '../../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { RouteConfiguration } from '../../../proto/generated/envoy/config/route/v3/route.js';
import type { Scope } from '../../model/scope.js';
import { isGlobal } from '../../model/service-scope.js';
import type { MeshService } from '../../model/types.js';
import { applyConnectionPool, applyLoadBalancer } from '../cluster-policy.js';
import { connectHost, connectTable } from '../hbone.js';
import { hboneClusterName } from '../names.js';
import { makeResource, type Resource } from '../resource.js';
import { passthroughCluster } from './passthrough-cluster.js';

function globalServices({ model, services }: Scope): MeshService[] {
  return services.filter((service) => service.resolution === 'EDS' && isGlobal(model, service));
}

/** DestinationRules are the client's and the workload's affair, as in Istio. */
export function hboneClusters(scope: Scope): Resource[] {
  return globalServices(scope).flatMap((service) =>
    service.ports.map(({ port }) => {
      const name = hboneClusterName(port, service.host);
      const cluster = passthroughCluster(name, service);
      applyConnectionPool(cluster, {}, scope.model.mesh);
      applyLoadBalancer(cluster, undefined);
      return makeResource(name, Cluster, cluster);
    }),
  );
}

export function hboneRoutes(scope: Scope, name: string): Resource {
  const hosts = globalServices(scope).flatMap(({ host, ports }) => ports.map(({ port }) => connectHost(`${host}:${port}`, [`${host}:${port}`], hboneClusterName(port, host))));
  return makeResource(name, RouteConfiguration, connectTable(name, hosts));
}
