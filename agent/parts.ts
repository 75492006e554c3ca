/** The agent's big parts as the composition sees them, so that it can be read, and tried, without any of them. */
import type { Logger } from '../common/log.js';
import type { Check } from './consistency/drift.js';
import type { SourcedResource } from './consistency/object-status.js';
import type { InboundSteering, KernelPod, PodKernel, PodProxy } from './dataplane/collaborators.js';
import type { KernelPolicies } from './dataplane/kernel-policies.js';
import type { KernelWatch } from './dataplane/kernel-watch.js';
import type { PodCounters, ProbationEntry } from './dataplane/kernel.js';
import type { KnownWorkloads } from './telemetry/flow-labels.js';
import type { FlowKernel } from './telemetry/flow-telemetry.js';
import type { PolicyKernel } from './dataplane/policy-enforcer.js';
import type { SelfTestVerdict } from './dataplane/self-test.js';
import type { HttpKernel } from './http/agent-fast-path.js';
import type { NodeCaFactory } from './identity/certificates.js';
import type { EnvoyOptions } from './proxy/envoy.js';
import type { EnvoyFlowLogs } from './proxy/envoy-flow-logs.js';
import type { EnvoyReports } from './proxy/envoy-reports.js';
import type { InboundPods } from './proxy/inbound-follower.js';
import type { WorkloadView } from './policy/workload-policies.js';
import type { ListenerPorts, NodeProxyOptions, NodeProxyStatus } from './proxy/node-proxy.js';
import type { RequestView } from './proxy/request-view.js';
import type { WaypointTable } from './proxy/waypoint-table.js';
import type { ServiceSink } from './resolve/service-resolver.js';
import type { Change } from './xds/delta-stream.js';
import type { DiscoveryTls } from './xds/tls-channels.js';

export type { SelfTestVerdict };

export interface AgentKernel extends PodKernel, FlowKernel, PolicyKernel {
  pods(): KernelPod[];
  attachProxy(cgroupPath: string): void;
  readonly host?: NodeExemption;
  readonly steering?: InboundSteering;
  counters(): Record<string, bigint>;
  podCounters(): Map<string, PodCounters>;
  probation(): ProbationEntry[];
  setGlobalAcceleration(on: boolean): void;
  /** TCP straight to a local pod's own address and a port that is not among these needs no proxy. */
  setListenerPorts(ports: ListenerPorts, proxied: readonly string[]): void;
  netnsOf?(address: string): bigint | undefined;
  isPlain?(address: string, port: number): boolean;
  /** Judges a connection as the kernel would. */
  readonly policies?: Pick<KernelPolicies, 'judge'>;
  /** What the connect hook decides by itself; absent where it can't. */
  readonly services?: ServiceSink;
  /** Single connections and messages, for who asks. */
  readonly watch?: KernelWatch;
  /** The HTTP fast path; absent where there is none. */
  readonly http?: HttpKernel;
  readonly httpPrograms?: { readonly isLoading: boolean } | undefined;
  /** What compares it with what it was given. */
  checks?(): Check[];
  close(): void | Promise<void>;
}

/** Lets what the node itself opens to its pods past their policy. */
export interface NodeExemption extends NonNullable<PolicyKernel['host']> {
  /** @returns the pinned program by which iptables rules know it, where there is one */
  attach(netnsPath: string, proxyCgroupPath?: string): Promise<string | undefined>;
  detach(): void;
}

export interface AgentProxy extends PodProxy {
  /** The workloads and services of the mesh. */
  readonly workloads: KnownWorkloads;
  /** What Envoy counts of requests; absent: nothing. */
  readonly requests?: RequestView;
  /** What Envoy tells of requests while somebody listens; absent: nothing. */
  readonly flowLogs?: Pick<EnvoyFlowLogs, 'listen' | 'dropped'>;
  /** How Envoy's spans and lines of logs fare; absent: it does not say. */
  readonly reports?: Pick<EnvoyReports, 'counts' | 'refresh'>;
  /** Envoy has, and has answered, all that the control plane said. */
  readonly settled: boolean;
  /** Which destinations are reached through a waypoint. */
  readonly waypoints: WaypointTable;
  /** Local servers, as `10.0.0.1:80` or `[fd00::1]:80`, that are event-driven: pooled connections to a new one are renewed. */
  setEventDriven(endpoints: ReadonlySet<string>): void;
  /** What compares Envoy's configuration with what it was given. */
  checks?(): Check[];
  /** What Envoy is to have, with the objects that it comes from. */
  resources?(): Iterable<SourcedResource>;
  start(signal: AbortSignal): Promise<void>;
  status(): ProxyStatus;
  stop(options: { keepEnvoy: boolean }): Promise<void>;
}

export type ProxyStatus = NodeProxyStatus;

export interface ProxyOptions {
  nodeName: string;
  runDir: string;
  discoveryAddress: string;
  discoveryTls?: DiscoveryTls;
  /** Absent without cgroup v2. */
  cgroupPath?: string;
  /** Programs can be told whom Envoy calls for. */
  showsCallers: boolean;
  concurrency?: number;
  netnsPath?: string;
  /** Of `underpass-launcher`, where Envoy is to be started by that. */
  launcherSocket?: string;
  dnsServers?: readonly string[];
  accessLogRate?: number;
  clusterId?: string;
  ca?: NodeCaFactory;
  trustDomain?: string;
  handover?: EnvoyOptions['handover'];
  /** What the kernel repeats of HTTP; absent: nothing, and no pod is taught. */
  fastPath?: NonNullable<NodeProxyOptions['fastPath']>;
  logger: Logger;
  /** The ports of all listeners that the control plane sent to any class; called on every change. */
  isOpen: NonNullable<NodeProxyOptions['isOpen']>;
  onListenerPorts: NonNullable<NodeProxyOptions['onListenerPorts']>;
  /** The pods whose callers are to pass their inbound listeners; called on every change. */
  onInbound: (pods: InboundPods) => void;
  onNarrowing: NonNullable<NodeProxyOptions['onNarrowing']>;
  onNarrowed: NonNullable<NodeProxyOptions['onNarrowed']>;
  onInboundNeeds: NonNullable<NodeProxyOptions['onInboundNeeds']>;
  onPlainPorts: NonNullable<NodeProxyOptions['onPlainPorts']>;
  /** What the control plane says of workloads and their policies; called on every change. */
  onWorkloads: (view: WorkloadView, change: Change) => void;
}

export interface AgentParts {
  openKernel(options: { bpffsDir: string; instance: string; logger: Logger }): Promise<AgentKernel>;
  /** Detaches what former agents of this instance left attached; returns to how many pods and proxies it was. */
  detachKernel(options: { bpffsDir: string; instance: string }): Promise<number>;
  selfTest(logger: Logger): Promise<SelfTestVerdict>;
  createProxy(options: ProxyOptions): AgentProxy;
}
