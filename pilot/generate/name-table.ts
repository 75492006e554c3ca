/**
 * NDS: the table of host names and addresses that Istio's agent answers a pod's DNS by. There is one for each client; the
 * addresses that ServiceEntries were given are in it for clients whose DNS is captured.
 */
import { isIP } from 'node:net';
import { NameTable, NameTable_NameInfo } from '../../proto/generated/istio/networking/nds/nds.js';
import type { ChangeSet } from '../model/changes.js';
import type { Endpoint, MeshService, Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { inboundChanged } from './affected.js';
import type { Generator } from './generator.js';
import { whereabouts } from './locality.js';
import { inNetwork } from './networks.js';
import { makeResource, TYPE, type Resource } from './resource.js';

/** The table has no name. */
const NAME = '';

export class NameTableGenerator implements Generator {
  readonly typeUrl = TYPE.nameTable;
  readonly wildcard = true;
  /** By from where it is seen, and by what is seen, which clients of a namespace share. */
  readonly #made = new Map<string, Map<readonly MeshService[], Resource>>();
  constructor(readonly model: Model) {}

  all(proxy: Proxy): Resource[] {
    return [this.one(proxy, NAME)];
  }

  one(proxy: Proxy, _name: string): Resource {
    const { services } = this.model.scopeOf(proxy);
    const { network, cluster } = whereabouts(this.model, proxy);
    const key = `${network} ${cluster}`;
    let tables = this.#made.get(key);
    if (!tables) this.#made.set(key, (tables = new Map()));
    let table = tables.get(services);
    if (table) return table;
    const isNear = (endpoint: Endpoint): boolean => endpoint.cluster === cluster && inNetwork(endpoint.network, network);
    table = makeResource(NAME, NameTable, NameTable.fromPartial({ table: nameTable(this.model, services, isNear) }));
    tables.set(services, table);
    return table;
  }

  affected(proxy: Proxy, change: ChangeSet): 'all' | Iterable<string> {
    const isTouched = change.services.size + change.identities.size > 0 || change.touches('Sidecar') || inboundChanged(this.model, proxy, change);
    return isTouched ? 'all' : [];
  }

  invalidate(change: ChangeSet): void {
    // Endpoints stand in it of headless services alone. Of views that are no more nothing is to be kept.
    if (change.full || change.services.size + change.identities.size > 0 || change.touches('Sidecar', 'VirtualService', 'DestinationRule')) this.#made.clear();
  }
}

/** @param isNear which endpoints a headless service's name stands for */
function nameTable(model: Model, services: readonly MeshService[], isNear: (endpoint: Endpoint) => boolean): Record<string, NameTable_NameInfo> {
  const table: Record<string, NameTable_NameInfo> = {};
  for (const service of services) {
    const { host, name, namespace, headless } = service;
    const isKubernetes = service.object.kind === 'Service';
    const add = (of: string, shortname: string, ips: readonly string[]): void => {
      if (ips.length > 0) table[of] = NameTable_NameInfo.fromPartial({ ips: [...ips], ...(isKubernetes ? { registry: 'Kubernetes', shortname, namespace } : { registry: 'External' }) });
    };
    if (!isKubernetes || !headless) {
      add(host, name, service.addresses.filter((address) => isIP(address) !== 0));
      continue;
    }
    if (service.ports.length === 0) continue;
    const endpoints = model.endpoints(service).filter((endpoint) => endpoint.ready !== false && isIP(endpoint.address) !== 0 && isNear(endpoint));
    const byPod = new Map<string, string[]>();
    for (const { pod, address } of endpoints) {
      // Kubernetes gives a name to a pod that says of which service's domain it is.
      if (!pod?.spec.subdomain) continue;
      const own = `${pod.spec.hostname ?? pod.metadata.name}.${pod.spec.subdomain}`;
      byPod.set(own, [...(byPod.get(own) ?? []), address]);
    }
    for (const [own, ips] of byPod) add(`${own}${host.slice(host.indexOf('.'))}`, own, ips);
    add(host, name, endpoints.map(({ address }) => address));
  }
  return table;
}
