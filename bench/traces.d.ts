/** Istio's tracing as one has it by naming a provider and nothing more, and somebody who takes the spans. */
export declare const COLLECTOR: {
    readonly namespace: 'bench-traces';
    readonly name: 'collector';
};
export declare const ASK_COLLECTOR: readonly string[];
type KubernetesObject = Record<string, unknown>;
export declare function collectorObjects(nodeName: string): KubernetesObject[];
/** Without a percentage: Istio's own is 1. */
export declare function tracing(namespace: string): KubernetesObject;
export {};
