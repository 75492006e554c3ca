/** MeshConfig's discoverySelectors: objects of namespaces that none of them selects do not exist for this control plane. */
import type { LoadedObject } from '../../common/kube/yaml.js';
import { isNamespaced } from '../../common/kube/types.js';
import { clusterOf, inCluster } from '../model/clusters.js';
import type { LabelSelectorSetting, MeshConfig } from '../model/mesh.js';

export function selectorMatches({ matchLabels = {}, matchExpressions = [] }: LabelSelectorSetting, labels: Readonly<Record<string, string>>): boolean {
  if (!Object.entries(matchLabels).every(([key, value]) => labels[key] === value)) return false;
  return matchExpressions.every(({ key, operator, values = [] }) => {
    const value = labels[key];
    switch (operator) {
      case 'In':
        return value !== undefined && values.includes(value);
      case 'NotIn':
        return value === undefined || !values.includes(value);
      case 'Exists':
        return value !== undefined;
      default:
        return value === undefined;
    }
  });
}

/** The part of `objects` that takes part in the mesh. The root namespace always does. */
export function discoverable(objects: ReadonlyMap<string, LoadedObject>, { discoverySelectors, rootNamespace }: MeshConfig): ReadonlyMap<string, LoadedObject> {
  if (discoverySelectors.length === 0) return objects;
  const known = new Map<string, boolean>([[rootNamespace, true]]);
  const selected = (namespace: string, cluster: string): boolean => {
    const key = inCluster(cluster, namespace);
    let answer = known.get(key);
    if (answer === undefined) {
      const labels = { 'kubernetes.io/metadata.name': namespace, ...objects.get(inCluster(cluster, `/Namespace//${namespace}`))?.object.metadata.labels };
      known.set(key, (answer = discoverySelectors.some((selector) => selectorMatches(selector, labels))));
    }
    return answer;
  };
  return new Map([...objects].filter(([, { object }]) => !isNamespaced(object.kind) || object.metadata.namespace === rootNamespace || selected(object.metadata.namespace ?? 'default', clusterOf(object))));
}
