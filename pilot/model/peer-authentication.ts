/** Which mutual TLS a workload's ports take: the oldest PeerAuthentication of each scope, the narrower scope over the wider. */
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { MutualTlsMode, PeerAuthentication } from '../../common/kube/types.js';
import { selects } from './configs.js';
import type { Model } from './model.js';

export type MtlsMode = Exclude<MutualTlsMode, 'UNSET'>;

export interface EffectivePeerAuthentication {
  mode: MtlsMode;
  /** By the workload's own port, whatever services call it. */
  ports: ReadonlyMap<number, MtlsMode>;
}

const PERMISSIVE: EffectivePeerAuthentication = { mode: 'PERMISSIVE', ports: new Map() };

type Loaded = LoadedObject<PeerAuthentication>;

/** A selector with no labels selects everything, as none does. */
export function selectorLabels(selector: { matchLabels?: Record<string, string> } | undefined): Readonly<Record<string, string>> | undefined {
  return Object.keys(selector?.matchLabels ?? {}).length > 0 ? selector!.matchLabels : undefined;
}

export interface PeerAuthentications {
  mesh: PeerAuthentication | undefined;
  namespace: PeerAuthentication | undefined;
  workload: PeerAuthentication | undefined;
}

/** The oldest of each scope. A selector in the root namespace has no effect. */
export function peerAuthentications(model: Model, namespace: string, labels: Readonly<Record<string, string>>): PeerAuthentications {
  const { rootNamespace } = model.mesh;
  const general = ({ object }: Loaded): boolean => !selectorLabels(object.spec?.selector);
  const own = namespace === rootNamespace ? [] : model.configs.inNamespace<PeerAuthentication>('PeerAuthentication', namespace);
  return {
    mesh: model.configs.inNamespace<PeerAuthentication>('PeerAuthentication', rootNamespace).find(general)?.object,
    namespace: own.find(general)?.object,
    workload: own.find((loaded) => !general(loaded) && selects(selectorLabels(loaded.object.spec?.selector), labels))?.object,
  };
}

export function modeOf(mtls: { mode?: MutualTlsMode } | undefined): MtlsMode | undefined {
  return mtls?.mode === undefined || mtls.mode === 'UNSET' ? undefined : mtls.mode;
}

export function effectivePeerAuthentication(model: Model, namespace: string, labels: Readonly<Record<string, string>>): EffectivePeerAuthentication {
  if (model.configs.all('PeerAuthentication').length === 0) return PERMISSIVE;
  const found = peerAuthentications(model, namespace, labels);
  const mode = modeOf(found.workload?.spec?.mtls) ?? modeOf(found.namespace?.spec?.mtls) ?? modeOf(found.mesh?.spec?.mtls) ?? 'PERMISSIVE';
  const ports = Object.entries(found.workload?.spec?.portLevelMtls ?? {}).map(([port, mtls]) => [Number(port), modeOf(mtls) ?? mode] as const);
  return { mode, ports: new Map(ports.sort(([a], [b]) => a - b)) };
}

/** What the workload with these labels takes on a port of its own (a service's target port). */
export function effectiveMtls(model: Model, labels: Readonly<Record<string, string>>, namespace: string, port: number): MtlsMode {
  const { mode, ports } = effectivePeerAuthentication(model, namespace, labels);
  return ports.get(port) ?? mode;
}

/** Whether clients may use the mesh's mutual TLS towards this endpoint: it has a proxy, and that takes it on this port. */
export function takesMtls(model: Model, endpoint: { tlsMode: string | undefined; labels: Readonly<Record<string, string>>; namespace: string | undefined }, port: number): boolean {
  return endpoint.tlsMode === 'istio' && effectiveMtls(model, endpoint.labels, endpoint.namespace ?? '', port) !== 'DISABLE';
}
