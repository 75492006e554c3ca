import type { Mode } from './modes.js';
export type WorkloadId = 'http' | 'http-differing-heads' | 'http-post' | 'http-16k' | 'http-256k' | 'http-256-connections' | 'http-256-new-connections' | 'http-mix' | 'http-tracing' | 'tcp-64' | 'tcp-16k' | 'tcp-bulk' | 'tcp-connect';
/** A namespace of its own beside the mode's: with a route that is Envoy's alone, or with Istio's tracing. */
export type Variant = 'mixed' | 'traced';
export interface Workload {
    id: WorkloadId;
    title: string;
    /** In a row of ratios. */
    short: string;
    protocol: 'http' | 'tcp';
    /** Arguments of tcp-bench before the target. */
    args: readonly string[];
    /** Only where `--loads` names it. */
    extra?: true;
    bulk?: true;
    /** In place of the run's own number; latency with one connection is then another load's. */
    connections?: number;
    variant?: Variant;
}
/** What a request of ten asks for in `mixed`: its route rewrites the path. */
export declare const REWRITTEN_PATH = "/rewritten/";
export declare const WORKLOADS: readonly Workload[];
export declare const workloadById: (id: WorkloadId) => Workload;
/** @throws UnderpassError `UNDERPASS_BAD_OPTION` for a load that there is not */
export declare function parseWorkloads(text: string | undefined): readonly Workload[];
/**
 * Those of the chosen ones that say something of a mode. Between nodes, two sizes of message say what the third would;
 * connections are pooled there, or none is like another; and there is no fast path.
 */
export declare function workloadsOf({ protocol, betweenNodes }: Mode, chosen: readonly Workload[]): Workload[];
/** Where a mode's load runs: a mode that has no routes has no variants. */
export declare function namespaceOf(mode: Mode, variant: Variant | undefined): string;
