/** What a client has been told of the mesh, as it stands now. */
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { TYPE } from '../../pilot/generate/resource.js';
import { TestClient } from '../../pilot/testing/client.js';

export const WEB = 'outbound|80||web.shop.svc.cluster.local';

export class MeshView {
  readonly client: TestClient;

  constructor(address: string, { node = 'sidecar~10.9.0.9~client.shop~shop.svc.cluster.local', metadata = {} }: { node?: string; metadata?: Record<string, unknown> } = {}) {
    this.client = new TestClient(address, node, metadata);
    this.client.subscribe(TYPE.cluster, ['*']);
    this.client.subscribe(TYPE.endpoint, [WEB]);
    this.client.subscribe(TYPE.route, ['80']);
  }

  /** Names that are there. */
  clusters(): string[] {
    return [...this.#standing(TYPE.cluster).keys()].sort();
  }

  /** Addresses of a cluster, `DOWN` behind those that are not ready. */
  endpoints(cluster = WEB): string[] {
    const found = this.#standing(TYPE.endpoint).get(cluster);
    return found ? ClusterLoadAssignment.decode(found).endpoints.flatMap(({ lb_endpoints }) => lb_endpoints.map(({ host_identifier }) => (host_identifier?.$case === 'endpoint' && host_identifier.value.address?.address?.$case === 'socket_address' ? host_identifier.value.address.address.value.address : '?'))).sort() : [];
  }

  /** `region/zone` of a cluster's endpoints. */
  localities(cluster = WEB): string[] {
    const found = this.#standing(TYPE.endpoint).get(cluster);
    return found ? ClusterLoadAssignment.decode(found).endpoints.map(({ locality }) => `${locality?.region}/${locality?.zone}`).sort() : [];
  }

  /** The route configuration of port 80 as JSON. */
  routes(): string {
    const found = this.#standing(TYPE.route).get('80');
    return found ? JSON.stringify(RouteConfiguration.toJSON(RouteConfiguration.decode(found))) : '';
  }

  #standing(typeUrl: string): Map<string, Uint8Array> {
    const standing = new Map<string, Uint8Array>();
    for (const { resources, removed_resources } of this.client.of(typeUrl)) {
      for (const name of removed_resources) standing.delete(name);
      for (const { name, resource } of resources) standing.set(name, resource!.value);
    }
    return standing;
  }

  close(): void {
    this.client.close();
  }
}
