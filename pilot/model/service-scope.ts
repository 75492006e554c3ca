/** Whether a Service is global: reached from other networks by HBONE through their gateways, by MeshConfig's serviceScopeConfigs. */
import { selectorMatches } from '../mesh-config/discovery.js';
import type { Model } from './model.js';
import type { MeshService } from './types.js';

/** Of ServiceEntries none is, as in Istio. Of a Service in several clusters the config cluster's labels count. */
export function isGlobal({ mesh, namespaces }: Model, { object, namespace }: MeshService): boolean {
  if (object.kind !== 'Service') return false;
  const labels = { 'kubernetes.io/metadata.name': namespace, ...namespaces.get(namespace)?.metadata.labels };
  return mesh.serviceScopes.some(({ scope, namespaceSelector = {}, servicesSelector = {} }) => scope === 'GLOBAL' && selectorMatches(namespaceSelector, labels) && selectorMatches(servicesSelector, object.metadata.labels ?? {}));
}
