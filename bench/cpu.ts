/** CPU time of a mode by who used it, from `cpu.stat` of the cgroups that take part. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { BenchPod } from './world.js';

export type CpuUser = 'client' | 'server' | 'sidecars' | 'shared proxy';

/** Leaf cgroups of a mode, each with whose work it holds. tcp-bench reads them at the ends of its measured time. */
export function cgroupsOf(client: BenchPod, servers: readonly BenchPod[], proxyCgroups: readonly string[]): Map<string, CpuUser> {
  const found = new Map<string, CpuUser>();
  const add = (path: string, user: CpuUser): void => {
    if (existsSync(join(path, 'cpu.stat'))) found.set(path, user);
  };
  add(join(client.cgroup, 'app'), 'client');
  for (const server of servers) add(join(server.cgroup, 'app'), 'server');
  for (const pod of [client, ...servers]) if (pod.hasSidecar) add(join(pod.cgroup, 'istio-proxy'), 'sidecars');
  for (const path of proxyCgroups) add(path, 'shared proxy');
  return found;
}

/** µs per request by user, from what tcp-bench read. */
export function cpuPerRequest(cgroups: ReadonlyMap<string, CpuUser>, usage: Readonly<Record<string, number>>, requests: number): Partial<Record<CpuUser, number>> {
  const perUser: Partial<Record<CpuUser, number>> = {};
  for (const [path, user] of cgroups) perUser[user] = (perUser[user] ?? 0) + (usage[path] ?? 0) / Math.max(1, requests);
  return perUser;
}

export function total(perUser: Partial<Record<CpuUser, number>>): number {
  return Object.values(perUser).reduce((sum, value) => sum + value, 0);
}
