import { type Variant, type Workload } from './workloads.js';
export type ModeId = 'no-mesh' | 'sidecars' | 'sidecars-short-circuited' | 'shared-iptables' | 'shared-bpf' | 'fast-path' | 'tcp-no-mesh' | 'tcp-short-circuited' | 'tcp-service' | 'tcp-policy' | NodesModeId;
/** Client on one node, servers on another. */
export type NodesModeId = 'nodes-http' | 'nodes-http-sidecars' | 'nodes-http-hbone' | 'nodes-tcp' | 'nodes-tcp-sidecars' | 'nodes-tcp-hbone';
export interface Mode {
    id: ModeId;
    title: string;
    protocol: 'http' | 'tcp';
    namespace: string;
    /** Whom the client asks: the Service by name, or one server pod by its address. */
    target: 'service' | 'pod';
    /** Whether the shared Envoy of each node takes part. */
    sharedProxy: boolean;
    /** The servers are on another node than the client. */
    betweenNodes?: true;
    /** What is measured has to go through tunnels. */
    hbone?: true;
    /** An AuthorizationPolicy lets the client's service account in, and nobody else. */
    allowed?: true;
    namespaceLabels: Record<string, string>;
    /** One sentence for the report. */
    description: string;
}
export declare const HTTP_PORT = 80;
export declare const TCP_PORT = 9000;
/** Not the servers' own: a port that a Service has is one for which Envoy is asked, whichever address is dialled. */
export declare const TCP_SERVICE_PORT = 9100;
export declare const CLIENT = "client";
export declare const SERVERS: readonly ['nginx-v1', 'nginx-v2'];
export declare const TCP_SERVER = "tcp-server";
export declare const tcpBench: string;
export declare const MODES: readonly Mode[];
export declare function modeById(id: string): Mode | undefined;
type KubernetesObject = Record<string, unknown>;
export declare const NODES: readonly ['node-1', 'node-2'];
/** One namespace of a mode: a client, its servers, and the canary's routes where the mode asks a Service. */
export declare function modeObjects(mode: Mode, variant?: Variant): KubernetesObject[];
/** What the loads of these modes need. JSON is YAML: one document an object. */
export declare function worldYaml(modes: readonly Mode[], workloads: readonly Workload[]): string;
export {};
