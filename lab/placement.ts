/** Which node a pod runs on: what the scheduler decides when a pod is made. */
import { UnderpassError } from '../common/errors.js';
import type { Cluster } from './cluster.js';
import { keyOf, type DesiredPod } from './kube.js';

/** A pod that has its place already. */
export interface PlacedPod {
  nodeName: string;
  desired: { owner: string };
}

/**
 * The named node, else of those that fit the nodeSelector the one with the fewest pods of the same workload, then the
 * fewest at all.
 */
export function placePod(pod: DesiredPod, nodes: readonly string[], placed: readonly PlacedPod[], cluster: Cluster): string {
  const name = pod.spec.nodeName ?? pod.spec.nodeSelector?.['kubernetes.io/hostname'];
  if (name) {
    if (nodes.includes(name)) return name;
    throw new UnderpassError('UNDERPASS_LAB_NODE', `placing pod ${keyOf(pod)}: there is no node ${name}`);
  }
  const selector = Object.entries(pod.spec.nodeSelector ?? {});
  const fitting = nodes.filter((node) => selector.every(([key, value]) => cluster.nodeLabels(node)[key] === value));
  const loads = fitting.map((node) => {
    const here = placed.filter(({ nodeName }) => nodeName === node);
    return { node, same: here.filter(({ desired }) => desired.owner === pod.owner).length, all: here.length };
  });
  const best = loads.sort((a, b) => a.same - b.same || a.all - b.all)[0];
  if (best) return best.node;
  throw new UnderpassError('UNDERPASS_LAB_NODE', `placing pod ${keyOf(pod)}: no node has the labels of its nodeSelector`);
}
