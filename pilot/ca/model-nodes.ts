/** Where pods run, as the model knows it. */
import type { Model } from '../model/model.js';
import { isAlive } from '../model/pods.js';
import type { NodeDirectory } from './certificate-service.js';

export class ModelNodes implements NodeDirectory {
  constructor(readonly model: Model) {}

  nodeOfPod({ namespace, name, uid, serviceAccount }: Parameters<NodeDirectory['nodeOfPod']>[0]): string | undefined {
    const pod = this.model.pods.get(`${namespace}/${name}`);
    if (!pod || !isAlive(pod) || (pod.spec.serviceAccountName || 'default') !== serviceAccount) return undefined;
    if (uid !== undefined && pod.metadata.uid !== undefined && pod.metadata.uid !== uid) return undefined;
    return pod.spec.nodeName;
  }

  runsOnNode(nodeName: string, { namespace, serviceAccount }: Parameters<NodeDirectory['runsOnNode']>[1]): boolean {
    for (const pod of this.model.pods.values()) {
      if (pod.spec.nodeName === nodeName && (pod.metadata.namespace ?? 'default') === namespace && (pod.spec.serviceAccountName || 'default') === serviceAccount && isAlive(pod)) return true;
    }
    return false;
  }
}
