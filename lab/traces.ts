/** What of a lab, or of any lab, can be seen on this machine: for tests that nothing stays, and that others' things do. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { cgroup2Root } from '../common/cgroup.js';
import { processStartTime } from '../common/process-id.js';
import { run } from '../common/process.js';
import { namespacesOf } from './clean.js';
import { LabNames, netnsPath } from './names.js';

export interface Traces {
  namespaces: string[];
  cgroups: string[];
  mounts: string[];
  /** Command lines of processes that name the lab or live in its cgroup. */
  processes: string[];
  files: string[];
}

/** Everything that bears the lab's name. */
export function labTraces(name: string, runDir?: string): Traces {
  const names = new LabNames(name, runDir);
  const processes: string[] = [];
  for (const pid of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid)) {
    if (processStartTime(Number(pid)) === undefined) continue; // gone, or a zombie whose new parent will reap it
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
      const cgroup = readFileSync(`/proc/${pid}/cgroup`, 'utf8');
      if (command.includes(`${names.dir}/`) || cgroup.includes(`/underpass-lab-${name}/`)) processes.push(`${pid} ${command}`);
    } catch {
      // ended meanwhile
    }
  }
  const namespaces = namespacesOf(names);
  return {
    namespaces,
    cgroups: readdirSync(cgroup2Root()).filter((entry) => entry === `underpass-lab-${name}`),
    mounts: readFileSync('/proc/self/mounts', 'utf8')
      .split('\n')
      .filter((line) => namespaces.some((netns) => line.includes(` ${netnsPath(netns)} `)) || line.includes(`${names.dir}/`)),
    processes,
    files: [names.dir, names.log].filter((path) => existsSync(path)),
  };
}

export const NO_TRACES: Traces = { namespaces: [], cgroups: [], mounts: [], processes: [], files: [] };

/** The machine's own network: links, addresses, routes and packet rules of the namespace that this process is in. */
export async function ownNetwork(): Promise<string> {
  const commands = [
    ['ip', '-o', 'link'],
    ['ip', '-o', 'addr'],
    ['ip', 'route', 'show', 'table', 'all'],
    ['ip', '-6', 'route', 'show', 'table', 'all'],
    ['nft', '-s', 'list', 'ruleset'],
    ['iptables-save'],
    ['ip6tables-save'],
  ];
  const parts: string[] = [];
  for (const [command = '', ...args] of commands) {
    const { stdout } = await run(command, args);
    // Dates, packet counters and remaining lifetimes change by themselves.
    parts.push(
      stdout
        .replace(/^#.*$/gm, '')
        .replace(/\[\d+:\d+\]/g, '')
        .replace(/valid_lft \S+ preferred_lft \S+|expires \S+/g, ''),
    );
  }
  return parts.join('\n');
}
