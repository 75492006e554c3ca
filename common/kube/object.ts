/** What every Kubernetes object has. */

export interface ObjectMeta {
  /** Which cluster of the mesh it is of; set by the control plane, absent in the one that has the configuration. */
  clusterName?: string;
  name: string;
  namespace?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  uid?: string;
  generateName?: string;
  creationTimestamp?: string;
  /** Its end has been asked for. */
  deletionTimestamp?: string;
  resourceVersion?: string;
  /** Counts the changes of `spec`. */
  generation?: number;
  ownerReferences?: { apiVersion?: string; kind: string; name: string; uid?: string; controller?: boolean }[];
}

export interface KubeObject {
  apiVersion: string;
  kind: string;
  metadata: ObjectMeta;
}

/** A condition of an object's status. */
export interface Condition {
  type: string;
  status: string;
  reason?: string;
  message?: string;
  observedGeneration?: number;
  lastTransitionTime?: string;
}
