/** The names under which a pod appears in telemetry, by Istio's rules. */
import type { Pod } from '../../common/kube/types.js';

const CANONICAL_NAME = ['service.istio.io/canonical-name', 'app.kubernetes.io/name', 'app'];
const CANONICAL_REVISION = ['service.istio.io/canonical-revision', 'app.kubernetes.io/version', 'version'];

/** The Deployment, Job or other controller behind the pod; the pod itself when it has none. */
export function workloadName(pod: Pod): string {
  const owner = pod.metadata.ownerReferences?.find(({ controller }) => controller) ?? pod.metadata.ownerReferences?.[0];
  if (!owner) return pod.metadata.name;
  const hash = pod.metadata.labels?.['pod-template-hash'];
  // A ReplicaSet's name is its Deployment's and the template's hash.
  if (owner.kind === 'ReplicaSet' && hash && owner.name.endsWith(`-${hash}`)) return owner.name.slice(0, -hash.length - 1);
  return owner.name;
}

type Labels = Readonly<Record<string, string>>;

/** @param workload the name that counts where no label says another */
export function canonicalName(labels: Labels, workload: string): string {
  return firstLabel(labels, CANONICAL_NAME) ?? workload;
}

/** Undefined without a label; EDS then says nothing, WDS `latest`. */
export function canonicalRevision(labels: Labels): string | undefined {
  return firstLabel(labels, CANONICAL_REVISION);
}

function firstLabel(labels: Labels, names: readonly string[]): string | undefined {
  for (const name of names) if (labels[name]) return labels[name];
  return undefined;
}
