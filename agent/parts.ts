/** The agent's big parts as the composition sees them, so that it can be read, and tried, without any of them. */
import type { Logger } from '../common/log.js';
import type { KernelPod, PodKernel, PodProxy } from './dataplane/collaborators.js';
import type { PodCounters, ProbationEntry } from './dataplane/kernel.js';

export interface AgentKernel extends PodKernel {
  pods(): KernelPod[];
  attachProxy(cgroupPath: string): void;
  counters(): Record<string, bigint>;
  podCounters(): Map<string, PodCounters>;
  probation(): ProbationEntry[];
  setGlobalAcceleration(on: boolean): void;
  close(): void;
}

export interface AgentProxy extends PodProxy {
  start(signal: AbortSignal): Promise<void>;
  status(): ProxyStatus;
  stop(options: { keepEnvoy: boolean }): Promise<void>;
}

export interface ProxyStatus {
  envoy: { pid?: number | undefined; version?: string | undefined; adopted?: boolean | undefined; running?: boolean | undefined };
  controlPlane: { connected: boolean; address?: string | undefined; error?: string | undefined };
  classes: readonly unknown[];
  nacks: readonly unknown[];
}

export interface SelfTestCheck {
  name: string;
  ok: boolean;
  detail: string;
}

export interface SelfTestVerdict {
  /** The connect hooks work: pods may be captured by BPF. */
  capture: { ok: boolean; reason?: string };
  /** Payload moved by sk_msg arrives whole and in order: sockets may be short-circuited. */
  acceleration: { ok: boolean; reason?: string };
  checks: readonly SelfTestCheck[];
}

export interface ProxyOptions {
  nodeName: string;
  runDir: string;
  discoveryAddress: string;
  cgroupPath: string;
  concurrency?: number;
  logger: Logger;
  localPods: () => ReadonlyMap<string, { enrolled: boolean }>;
}

export interface AgentParts {
  openKernel(options: { bpffsDir: string; instance: string; logger: Logger }): Promise<AgentKernel>;
  selfTest(options: { logger: Logger; signal: AbortSignal }): Promise<SelfTestVerdict>;
  createProxy(options: ProxyOptions): AgentProxy;
}
