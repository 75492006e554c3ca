import type { BenchPod } from './world.js';
export interface ProxyMemory {
    /** How many Envoys. */
    proxies: number;
    /** Resident pages, the binary's shared ones counted in each. */
    rssBytes: number;
    /** The same with each shared page divided by those that share it. */
    pssBytes: number;
}
/** `smaps_rollup` of one process; undefined when it ended or may not be read. */
export declare function readMemory(pid: number): {
    rssBytes: number;
    pssBytes: number;
} | undefined;
export declare function parseSmaps(text: string): {
    rssBytes: number;
    pssBytes: number;
};
export declare function proxyMemory(pods: readonly BenchPod[], proxyCgroups: readonly string[]): ProxyMemory;
