/** Telemetry resources that concern a proxy, and the providers that they name. */
import type { Telemetry, WorkloadMode } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { policiesFor, policyTarget, targetRefsOf } from '../generate/security/targets.js';
import type { ExtensionProvider } from '../model/mesh.js';
import type { Model } from '../model/model.js';
import { selectorLabels } from '../model/peer-authentication.js';
import type { Proxy } from '../model/proxy.js';

/** Of a proxy: towards its workload, or from it, as which a gateway counts. */
export type Side = 'CLIENT' | 'SERVER';

export const meant = (mode: WorkloadMode | undefined, side: Side): boolean => mode === undefined || mode === 'UNDEFINED' || mode === 'CLIENT_AND_SERVER' || mode === side;

/** From the least specific to the most. Of several of one level the oldest counts. */
export function telemetries(model: Model, proxy: Proxy): Telemetry[] {
  const { rootNamespace } = model.mesh;
  const all = policiesFor<Telemetry>(model, 'Telemetry', policyTarget(model, proxy));
  const wide = ({ object }: LoadedObject<Telemetry>): boolean => targetRefsOf(object).length === 0 && Object.keys(selectorLabels(object.spec?.selector) ?? {}).length === 0;
  const inRoot = ({ object }: LoadedObject<Telemetry>): boolean => object.metadata.namespace === rootNamespace;
  const levels = [all.find((one) => inRoot(one) && wide(one)), all.find((one) => !inRoot(one) && wide(one)), all.find((one) => !wide(one))];
  return levels.flatMap((one) => one?.object ?? []);
}

/** Istio finds them without regard to case. */
export function providerOf(model: Model, name: string): ExtensionProvider | undefined {
  return model.mesh.extensionProviders.find((candidate) => candidate.name.toLowerCase() === name.toLowerCase());
}
