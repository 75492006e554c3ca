/** Memory of the proxies that a mode needs. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { cgroupProcesses } from '../common/cgroup.js';
/** `smaps_rollup` of one process; undefined when it ended or may not be read. */
export function readMemory(pid) {
    try {
        return parseSmaps(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'));
    }
    catch {
        return undefined;
    }
}
/** `underpass-exec` stays as the parent of the Envoy that it started: a process of the proxy, but none. */
function isStarter(pid) {
    try {
        return readFileSync(`/proc/${pid}/comm`, 'utf8') === 'underpass-exec\n';
    }
    catch {
        return false;
    }
}
export function parseSmaps(text) {
    const kib = (name) => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1] ?? 0);
    return { rssBytes: kib('Rss') * 1024, pssBytes: kib('Pss') * 1024 };
}
export function proxyMemory(pods, proxyCgroups) {
    const cgroups = [...pods.filter((pod) => pod.hasSidecar).map((pod) => join(pod.cgroup, 'istio-proxy')), ...proxyCgroups];
    const sum = { proxies: 0, rssBytes: 0, pssBytes: 0 };
    for (const pid of cgroups.flatMap((path) => cgroupProcesses(path))) {
        const memory = readMemory(pid);
        if (!memory)
            continue;
        if (!isStarter(pid))
            sum.proxies++;
        sum.rssBytes += memory.rssBytes;
        sum.pssBytes += memory.pssBytes;
    }
    return sum;
}
//# sourceMappingURL=memory.js.map