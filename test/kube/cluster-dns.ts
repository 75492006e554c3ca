/** The DNS of a real node's cluster: names of Services, headless ones by their EndpointSlices, as the API has them. */
import { reflect } from '../../common/kube/reflector.js';
import { resourceOf } from '../../common/kube/client.js';
import type { EndpointSlice, KubeObject, Service } from '../../common/kube/types.js';
import type { Closable } from '../../common/lifecycle.js';
import { logger } from '../../common/log.js';
import { CLUSTER_DOMAIN, DnsServer, type ZoneEntry } from '../../lab/dns.js';
import type { KubeCluster } from './cluster.js';

export class ClusterDns implements Closable {
  readonly #services = new Map<string, Service>();
  readonly #slices = new Map<string, EndpointSlice>();
  readonly #abort = new AbortController();
  #following: Promise<void> | undefined;

  private constructor(readonly server: DnsServer) {}

  static async start(cluster: KubeCluster, netns: string, address: string): Promise<ClusterDns> {
    const dns = new ClusterDns(await DnsServer.listen(netns, [address]));
    dns.#following = dns.#follow(cluster);
    return dns;
  }

  async #follow(cluster: KubeCluster): Promise<void> {
    const { signal } = this.#abort;
    const follow = <T extends KubeObject>(apiVersion: string, kind: string, table: Map<string, T>): Promise<void> => {
      const key = ({ metadata }: KubeObject): string => `${metadata.namespace}/${metadata.name}`;
      const write = (): void => this.#write();
      return reflect({
        client: cluster.client, resources: [resourceOf(apiVersion, kind)], logger: logger('test.dns').child({}, { level: 'silent' }), signal,
        following: {
          begin: () => {
            const found = new Map<string, T>();
            return { listed: (object) => void found.set(key(object), object as T), complete: () => (table.clear(), found.forEach((object, name) => table.set(name, object)), write()) };
          },
          changed: (object) => (table.set(key(object), object as T), write()),
          deleted: (object) => (table.delete(key(object)), write()),
          failed: () => undefined,
        },
      });
    };
    await Promise.all([follow('v1', 'Service', this.#services), follow('discovery.k8s.io/v1', 'EndpointSlice', this.#slices)]);
  }

  #write(): void {
    const zone = new Map<string, ZoneEntry>();
    for (const { metadata, spec } of this.#services.values()) {
      const name = `${metadata.name}.${metadata.namespace}.svc.${CLUSTER_DOMAIN}`;
      if (spec.type === 'ExternalName') zone.set(name, { ips: [], alias: spec.externalName ?? '' });
      else zone.set(name, { ips: spec.clusterIP === 'None' ? this.#endpoints(metadata.namespace ?? '', metadata.name) : (spec.clusterIPs ?? []) });
    }
    this.server.setZone(zone);
  }

  #endpoints(namespace: string, service: string): string[] {
    const own = [...this.#slices.values()].filter(({ metadata }) => metadata.namespace === namespace && metadata.labels?.['kubernetes.io/service-name'] === service);
    return own.flatMap(({ endpoints }) => (endpoints ?? []).flatMap(({ addresses, conditions }) => (conditions?.ready === false ? [] : addresses)));
  }

  async close(): Promise<void> {
    this.#abort.abort();
    await this.#following?.catch(() => undefined);
    this.server.close();
  }
}
