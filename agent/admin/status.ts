/** What `/v1/status` answers; `underpass ps` and scripts read it. */
import type { AgentConsistency } from '../consistency/agent-auditor.js';
import type { PodStatus } from '../dataplane/dataplane.js';
import type { PolicyStatus } from '../dataplane/policy-enforcer.js';
import type { PodProbation } from '../dataplane/probation.js';
import type { AgentFastPathStatus } from '../http/agent-fast-path.js';
import type { ProxyStatus, SelfTestVerdict } from '../parts.js';
import type { MetricsStatus } from './metrics-listener.js';
import type { ResolverStatus } from '../resolve/service-resolver.js';

export interface AgentStatus {
  /** Of the agent, and of the kernel under it, as `uname -r` says. */
  version: string;
  kernel: string;
  instance: string;
  node: string;
  pid: number;
  since: string;
  /** Agents of the same instance that wait until this one has ended. */
  waiting: { pid: number; since: string }[];
  ready: boolean;
  /** What is missing for readiness. */
  notReady: string[];
  workloads: { source: string; pods: number; problem?: string };
  redirection: { default: string; bpfProblem?: string };
  acceleration: { default: string; on: boolean; reason?: string };
  selfTest: SelfTestVerdict | { pending: true };
  proxy: ProxyStatus & { problem?: string };
  pods: PodStatus[];
  /** Listeners and client programs that the kernel has seen, and what it makes of them. */
  probation: PodProbation[];
  /** Policies in the kernel; absent without one. */
  policies?: PolicyStatus;
  /** What the connect hook decides by itself. */
  services?: ResolverStatus;
  /** Absent without the kernel side. */
  httpFastPath?: AgentFastPathStatus;
  /** The endpoint for Prometheus; absent: there is none but the admin socket's. */
  metrics?: MetricsStatus;
  /** What is in force beside what is wanted, by what is compared. */
  consistency?: AgentConsistency;
  controlPlane?: unknown;
}
