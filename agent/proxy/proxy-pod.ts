/** A pod of the node as its proxy is told of it. */
import type { TaughtPod } from '../http/taught-listeners.js';

export interface ProxyPod {
  uid: string;
  name: string;
  namespace: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  serviceAccount: string;
  ips: string[];
  /** Pinned path of the pod's network namespace; it must exist until `whenRemoved`. */
  netnsPath: string;
  /** Its connections are redirected by rules rather than by BPF; the listener is the same either way. */
  iptables: boolean;
  /** What arrives for it is redirected to its inbound listener, which has to stay for as long. */
  redirected?: boolean;
  /** No program of the pod's listens where HBONE is to end, and where callers are redirected to; after a restart undefined and false until that is known. */
  hbonePortFree?: boolean; inboundPortFree?: boolean;
  /** The kernel is to learn from its requests; not for pods whose connections are redirected by rules, which know Envoy's by another mark. */
  taught?: TaughtPod;
}
