/** What several of Istio's API groups share: which workloads, gateways or services an object is about. */

export interface WorkloadSelector {
  matchLabels?: Record<string, string>;
}

export interface PolicyTargetReference {
  /** Empty for the core group. */
  group?: string;
  kind: string;
  name: string;
  namespace?: string;
}

export type WorkloadMode = 'UNDEFINED' | 'CLIENT' | 'SERVER' | 'CLIENT_AND_SERVER';
