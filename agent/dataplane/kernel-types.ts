/** What the kernel side is given and tells, in the words of user space. */
import type { Logger } from '../../common/log.js';

/** `l4`: after probation; `l7`: the HTTP fast path too; `force`: `l4` without probation. */
export type Acceleration = 'off' | 'l4' | 'l7' | 'force';

export interface KernelPod {
  uid: string;
  netnsCookie: bigint;
  /** cgroup v2 folder that holds all of the pod's processes, its own sidecar's too. The root of the hierarchy: it has none of its own. */
  cgroupPath: string;
  /** IPv4 and IPv6, the first of each family is what getsockname answers. */
  addresses: string[];
  mode: 'node' | 'sidecar';
  /** connect() is rewritten to 127.0.0.1:15001 (node: the shared Envoy's listener, sidecar: the pod's own). */
  capture: boolean;
  acceleration: Acceleration;
  /** iptables redirect this pod's connections, so what its programs open never mirrors at the other end. */
  redirected?: boolean;
  /** Its HTTP that asks for nothing at L7 is treated as TCP. */
  l7Auto?: boolean;
  /** What its label says: true: none of its programs is short-circuited, false: none splices. undefined: each is looked at. */
  splices?: boolean;
}

/** A pod as the kernel's maps have it. */
export interface KernelPodState extends KernelPod {
  cgroupId: bigint;
  /** Its hooks are on the root of the hierarchy. */
  isRooted: boolean;
  redirected: boolean;
}

export interface PodCounters {
  connections_captured: bigint;
  captured_closed: bigint;
  connections_short_circuited: bigint;
  connections_plain: bigint;
  messages_short_circuited: bigint;
  bytes_short_circuited: bigint;
  bytes_tcp: bigint;
}

export interface KernelOptions {
  /** null: nothing is pinned, and all ends with this process (self-test). */
  bpffsDir: string | null;
  instance: string;
  logger: Logger;
  /** Sizes by map name, for maps that are created. */
  maxEntries?: Record<string, number>;
  /** Parameters of the programs, by their names in bpf/underpass.bpf.c. */
  rodata?: Record<string, number | bigint>;
  /** False: without the programs of the HTTP fast path, which take the kernel as long to judge as half of the others. */
  httpFastPath?: false;
  /** How long exchanges that a former agent with maps of another layout had begun may take. */
  formerDrainMs?: number;
}
