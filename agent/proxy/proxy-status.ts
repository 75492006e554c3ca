import type { CertificatesStatus } from '../identity/certificates.js';
import type { EnvoyStatus } from './envoy.js';

export interface NodeProxyStatus {
  envoy: EnvoyStatus & { connected: boolean };
  controlPlane: { address: string; connected: boolean; streams: number; lastError: string | undefined };
  classes: { key: string; node: string; pods: string[]; synced: boolean; stale: boolean; since?: string; clusters: number; listeners: number; routes: number; rejected: string[] }[];
  workloads: { addresses: number; authorizations: number; synced: boolean };
  /** Absent without a CA. */
  certificates?: CertificatesStatus;
  /** Configurations that were to go to Envoy, and resources of them that it refused, since the agent started. */
  pushes?: { snapshots: number; refusals: number };
  /** What Envoy refused, or what could not be folded for it; the last good version is in force. */
  nacks: { type: string; name: string; message: string; objects?: readonly string[] }[];
  /** Everything that was heard from the control plane has been folded, sent to Envoy and answered by it. */
  settled: boolean;
}
