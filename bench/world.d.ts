/** What a comparison runs in: pods that somebody made and programs that run in them. Who composes it is not bench's business. */
import type { Mode } from './modes.js';
export interface BenchPod {
    uid: string;
    namespace: string;
    name: string;
    /** IPv4. */
    ip: string;
    /** Absolute cgroup v2 directory; its leaves are `app` and, with a sidecar, `istio-proxy`. */
    cgroup: string;
    hasSidecar: boolean;
}
export interface ByteCounters {
    shortCircuited: number;
    tcp: number;
}
export interface Counters {
    /** Since the agent started, by pod uid; a pod that no program is attached to is absent. */
    bytes: ReadonlyMap<string, ByteCounters>;
    /** Those of the HTTP fast path, by the kernel's names, of all nodes. */
    http: Readonly<Record<string, number>>;
}
export interface CommandResult {
    code: number;
    stdout: string;
    stderr: string;
}
export interface World {
    /** The pod, or the first one of the workload of this name. */
    pod(namespace: string, name: string): BenchPod;
    /** Runs a program in a pod's first container, in its namespaces and its cgroup. Its input ends when `onOutput`, called at its first output, has. */
    run(pod: BenchPod, argv: readonly string[], options: {
        timeoutMs: number;
        onOutput?: () => Promise<void>;
        signal?: AbortSignal;
    }): Promise<CommandResult>;
    /** Makes an HTTP server end its idle connections, so that proxies open new ones to it. */
    renewConnections(server: BenchPod): Promise<void>;
    /** cgroups of the shared Envoys that take part in a mode, one a node. */
    proxyCgroups(mode: Mode): readonly string[];
    /** Tunnels that shared Envoys have ended so far, of all pods. */
    tunnels(): Promise<number>;
    /** What BPF has counted. */
    counters(): Promise<Counters>;
    /** Traces that have come to the collector; undefined where there is none. */
    traces(): Promise<number | undefined>;
    /** For the report's head. */
    facts(): Promise<Record<string, string>>;
}
