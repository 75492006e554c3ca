/** Where pods run, as the model knows it. */
import type { Model } from '../model/model.js';
import { accountOf, isAlive } from '../model/pods.js';
import type { NodeDirectory } from './node-proxies.js';

export class ModelNodes implements NodeDirectory {
  constructor(readonly model: Model) {}

  nodeOfPod({ namespace, name, uid, serviceAccount }: Parameters<NodeDirectory['nodeOfPod']>[0]): string | undefined {
    const pod = this.model.pods.get(`${namespace}/${name}`);
    if (!pod || !isAlive(pod) || accountOf(pod) !== serviceAccount) return undefined;
    if (uid !== undefined && pod.metadata.uid !== undefined && pod.metadata.uid !== uid) return undefined;
    return pod.spec.nodeName;
  }

  runsOnNode(nodeName: string, { namespace, serviceAccount }: Parameters<NodeDirectory['runsOnNode']>[1]): boolean {
    for (const pod of this.model.podsByNode.on(nodeName, namespace, serviceAccount)) if (isAlive(pod)) return true;
    return false;
  }
}
