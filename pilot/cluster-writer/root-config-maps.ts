/** The mesh's roots in every namespace, as the ConfigMap that proxies mount to trust the control plane: Istio's name and shape. */
import { resourceOf, type KubeClient } from '../../common/kube/client.js';
import type { ConfigMap, KubeObject } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { clusterOf } from '../model/clusters.js';
import { writeEach } from './reconciler.js';

const CONFIG_MAPS = resourceOf('v1', 'ConfigMap');
const NAME = 'istio-ca-root-cert';
const KEY = 'root-cert.pem';
/** Kubernetes' own, where no workload of the mesh is; as istiod has it. */
const LEFT_ALONE: ReadonlySet<string> = new Set(['kube-system', 'kube-public', 'kube-node-lease']);

export function concernsRootConfigMaps(key: string): boolean {
  return key.startsWith('/Namespace/') || (key.startsWith('/ConfigMap/') && key.endsWith(`/${NAME}`));
}

/** Writes those that are missing or hold something else. */
export function writeRootConfigMaps(client: KubeClient, objects: ReadonlyMap<string, LoadedObject>, rootPem: string, signal: AbortSignal): Promise<void> {
  const wanted: ConfigMap[] = [];
  for (const { object } of objects.values()) {
    if (object.kind !== 'Namespace' || clusterOf(object) !== '' || LEFT_ALONE.has(object.metadata.name) || isEnding(object)) continue;
    const namespace = object.metadata.name;
    const present = objects.get(`/ConfigMap/${namespace}/${NAME}`)?.object as ConfigMap | undefined;
    if (present?.data?.[KEY] !== rootPem) wanted.push({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: NAME, namespace, labels: { 'istio.io/config': 'true' } }, data: { [KEY]: rootPem } });
  }
  return writeEach(wanted, signal, (configMap) => client.apply(CONFIG_MAPS, configMap, { signal }));
}

/** Nothing can be made in it any more. */
function isEnding(namespace: KubeObject & { status?: { phase?: string } }): boolean {
  return namespace.status?.phase === 'Terminating';
}
