/** The egress listeners of a Sidecar resource: which services and VirtualServices each of them has. */
import type { SidecarEgress, SidecarPort } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { VirtualService } from '../../common/kube/types.js';
import type { MeshService } from './types.js';
import { importedBy, parseEgressHost, Visibility, type EgressHost } from './visibility.js';

export interface EgressListener {
  /** Absent: it takes every port that no other listener names. */
  port: SidecarPort | undefined;
  /** An address; empty: the default one. */
  bind: string;
  /** It has a socket of its own, which applications dial, and no traffic is redirected to it. */
  bindToPort: boolean;
  services: readonly MeshService[];
  virtualServices: readonly LoadedObject<VirtualService>[];
}

export interface EgressView {
  /** What all of its listeners have. */
  visibility: Visibility;
  listeners: readonly EgressListener[];
}

/** @param all what is exported to the Sidecar's clients */
export function egressView(all: Visibility, id: string, egress: readonly SidecarEgress[], namespace: string): EgressView {
  const views = egress.map((listener) => {
    const hosts: EgressHost[] = listener.hosts.flatMap((written) => parseEgressHost(written, namespace) ?? []);
    const seen = importedBy(all, id, hosts);
    const number = listener.port?.number;
    // A listener with a port has the services of that port alone, and of them nothing else.
    const services = number ? seen.services.flatMap((service) => onlyPort(service, number)) : seen.services;
    return { listener, services, virtualServices: seen.virtualServices };
  });
  const listeners = views.map(({ listener, services, virtualServices }) => ({
    port: listener.port?.number ? listener.port : undefined,
    bind: listener.bind ?? '',
    bindToPort: listener.captureMode === 'NONE',
    services,
    virtualServices,
  }));
  const services = new Map<string, MeshService>();
  for (const service of views.flatMap((view) => view.services)) services.set(service.host, united(services.get(service.host), service));
  const virtualServices = new Set(views.flatMap((view) => view.virtualServices));
  return { visibility: new Visibility(id, services.values(), all.virtualServices.filter((loaded) => virtualServices.has(loaded))), listeners };
}

/** The key says what was left: other clusters are made of it. */
function onlyPort(service: MeshService, number: number): MeshService[] {
  const ports = service.ports.filter(({ port }) => port === number);
  if (ports.length === 0) return [];
  return [ports.length === service.ports.length ? service : { ...service, key: `${service.key}#${number}`, ports }];
}

function united(known: MeshService | undefined, other: MeshService): MeshService {
  if (!known || known.key === other.key) return other;
  const [base, ...rest] = known.ports.length >= other.ports.length ? [known, other] : [other, known];
  const more = rest.flatMap(({ ports }) => ports.filter(({ port }) => !base!.ports.some((present) => present.port === port)));
  return more.length === 0 ? base! : { ...base!, key: `${known.key} ${other.key}`, ports: [...base!.ports, ...more] };
}
