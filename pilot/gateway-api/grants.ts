/** ReferenceGrants: a reference into another namespace needs that namespace's consent. */
import type { ReferenceGrant } from '../../common/kube/types.js';
import type { Configs } from '../model/configs.js';

export interface Referrer {
  group: string;
  kind: string;
  namespace: string;
}

export interface Referent extends Referrer {
  name: string;
}

/** Whether `from` may refer to `to`, which within one namespace needs no grant. */
export function isGranted(configs: Configs, from: Referrer, to: Referent): boolean {
  return (
    from.namespace === to.namespace ||
    configs.inNamespace<ReferenceGrant>('ReferenceGrant', to.namespace).some(
      ({ object: { spec } }) =>
        spec.from.some((source) => source.group === from.group && source.kind === from.kind && source.namespace === from.namespace) &&
        spec.to.some((target) => target.group === to.group && target.kind === to.kind && (target.name === undefined || target.name === to.name)),
    )
  );
}
