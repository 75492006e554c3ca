import type { CertificateAuthority } from '../common/identity/ca.js';
import type { Lab } from './lab.js';

/** What a lab is told at its start, and by whom it is used in the same process. */
export interface LabOptions {
  name?: string;
  /** Directories or files with Kubernetes YAML. */
  sources: readonly string[];
  /** At least this many nodes, `node-1` and so on, beside those that the YAML names. */
  nodes?: number;
  runDir?: string;
  /** Where sidecars and gateways find the control plane: `host:port` or `unix:PATH`. It may come later. */
  discovery?: string;
  /** Worker threads of each pod's Envoy. */
  sidecarConcurrency?: number;
  /** What proxies name as the cluster that they are in; default `Kubernetes`. */
  clusterId?: string;
  /**
   * Labs of this process that are up: with them this one is a cluster of one mesh. Nodes meet on the first one's fabric, which
   * has to be ended last; load balancers are reached from every cluster.
   */
  peers?: readonly Lab[];
  /** A network of its own, beside its peers': pods are reached through load balancers alone. */
  isolated?: boolean;
  /** Signs the certificates of sidecars and gateways; default: the first peer's, else a new one. */
  ca?: CertificateAuthority;
  envoy?: string;
  /** IPv6 beside IPv4; default: as the kernel can. */
  ipv6?: boolean;
  /** What the lock says to others, e.g. `demo`. */
  purpose?: string;
  /** Follow changes of the sources; default true. */
  watch?: boolean;
  /** One line a step. */
  onProgress?: (line: string) => void;
  /** Problems that do not end the lab: bad YAML after a change, an image without a program. */
  onProblem?: (error: unknown) => void;
  /** Somebody asked over the socket for the lab's end; default: `down()`. */
  onDownRequest?: () => void;
}

export interface ExecOptions {
  container?: string;
  input?: string | Uint8Array;
  timeoutMs?: number;
  signal?: AbortSignal;
  cpu?: number;
  /** As in `common/process.ts`. */
  onOutput?: () => Promise<void>;
}

/** A pod by `name` in `default`, by `namespace/name`, or by its record. */
export type PodReference = string | { namespace: string; name: string };
