/** What the pod controllers need of kernel, proxy and namespaces: the few calls whose order is their whole business. */
import type { InboundPods } from '../proxy/inbound-follower.js';
import type { ProxyPod } from '../proxy/node-proxy.js';
import type { Acceleration, KernelPod } from './kernel.js';

export interface PodKernel {
  putPod(pod: KernelPod): void;
  removePod(uid: string): void;
  /** Captured connections of this pod that still exist. */
  liveConnections(uid: string): number;
  /** The pods that are to stay in the mesh: what an agent of another version enforced for others ends. */
  keepFormer?(uids: ReadonlySet<string>): void;
}

/** A pod for which the shared Envoy has a listener in the pod's namespace. */
export type ListenerPod = ProxyPod;

export interface PodProxy {
  /** The whole desired set. */
  setPods(pods: readonly ListenerPod[]): void;
  /** Envoy acknowledged the pod's listener and listens with its routes. */
  whenReady(uid: string, signal: AbortSignal): Promise<void>;
  /** Envoy acknowledged that the listener is gone; its namespace may be unpinned. */
  whenRemoved(uid: string, signal?: AbortSignal): Promise<void>;
  activeConnections(uid: string): Promise<number>;
}

export interface CaptureRules {
  /** @param isAnew whatever is there is made once more */
  start(isAnew?: boolean): Promise<{ backend: string; notes: string[] }>;
  stop(): Promise<void>;
  remove(): Promise<void>;
  /** `outdated`: other rules than `start` would make, as an agent of another version did. */
  state(): Promise<{ active: boolean; present: boolean; outdated?: boolean }>;
  /** `text`: all of them, as they are. */
  read?(): Promise<{ state: { active: boolean; outdated?: boolean }; text: string }>;
}

/** Leads what comes to pods to their inbound listeners without NAT, where the kernel can. */
export interface InboundSteering {
  start(pod: { uid: string; netnsPath: string; netnsCookie: bigint; ipv6: boolean }, mayWait?: boolean): Promise<void>;
  /** Which path leads to the namespace of a pod that a former agent had steered. */
  place?(uid: string, netnsPath: string): void;
  stop(uid: string): void;
  /** No connection is left that was steered. */
  forget(uid: string): void;
  state(uid: string): 'none' | 'active' | 'stopped';
}

export interface CapturedSockets {
  /** Accepted at the proxy's ports in this namespace, whichever way they came. */
  total: number;
  /** Those that iptables redirected: their client has the pod's address, not a loopback one. */
  redirected: number;
}

export interface WantedPort {
  port: number;
  /** Taken only where one on a loopback address has no room; default: at whatever address. */
  where?: 'loopback';
}

export interface Namespaces {
  /** Bind-mounts the namespace so that it and its path outlive the pod's own reference; idempotent. */
  pin(uid: string, netns: string): string;
  unpin(uid: string): void;
  /** UIDs of all pins, those of a former agent too. */
  pinned(): string[];
  path(uid: string): string;
  cookie(netnsPath: string): Promise<bigint>;
  rules(netnsPath: string): CaptureRules;
  /** Those that send what comes for the pod to its inbound listener. */
  inboundRules(netnsPath: string): CaptureRules;
  /** Another one when any rule of the namespace has changed. */
  rulesMark?(netnsPath: string): Promise<string>;
  capturedSockets(netnsPath: string): Promise<CapturedSockets>;
  /** On which of the ports any program listens, by one look. */
  takenPorts(netnsPath: string, ports: readonly WantedPort[]): Promise<ReadonlySet<number>>;
  /** Resets every TCP connection there is, the shared proxy's too; how many. */
  closeConnections(netnsPath: string): Promise<number>;
}

export type { Acceleration, InboundPods, KernelPod };
