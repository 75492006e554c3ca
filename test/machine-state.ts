/** All that the product could leave on a machine, as lists that can be compared before and after. */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { cgroup2Root } from '../common/cgroup.js';
import { defaultBpffsDir, defaultRunDir } from '../common/paths.js';
import { run } from '../common/process.js';

export interface MachineState {
  namespaces: string[];
  cgroups: string[];
  pins: string[];
  mounts: string[];
  links: string[];
  runDir: string[];
  processes: string[];
  rules: Record<string, string>;
}

export async function machineState(): Promise<MachineState> {
  return {
    namespaces: list('/run/netns'),
    cgroups: tree(cgroup2Root()).filter((path) => path.includes('underpass')),
    pins: tree(defaultBpffsDir),
    mounts: readFileSync('/proc/self/mounts', 'utf8').split('\n').filter((line) => / (\/run\/netns|\/run\/underpass|\/sys\/fs\/bpf\/underpass)/.test(line)),
    links: (await run('ip', ['-o', 'link'])).stdout.split('\n').map((line) => line.split(':')[1]?.trim() ?? '').filter(Boolean),
    runDir: tree(defaultRunDir),
    processes: processes(),
    rules: Object.fromEntries(await Promise.all([['iptables-save'], ['ip6tables-save'], ['nft', 'list', 'ruleset']].map(async ([command, ...args]) => [command, await rules(command as string, args)]))),
  };
}

/** Of this project's own programs: Envoy, the CLI, and what runs in the lab's pods. */
function processes(): string[] {
  const found: string[] = [];
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim();
      if (Number(pid) !== process.pid && /envoy|cli\/main\.js|nginx|underpass-exec|socket-probe|socket-ends|tcp-bench/.test(command)) found.push(`${pid} ${command}`);
    } catch {
      // ended meanwhile
    }
  }
  return found.sort();
}

/** Counters and times are not rules. */
async function rules(command: string, args: string[]): Promise<string> {
  const { stdout } = await run(command, args, { okCodes: [0, 1, 3, 127] });
  return stdout.split('\n').filter((line) => !line.startsWith('#')).join('\n').replace(/\[\d+:\d+\]/g, '[0:0]').trim();
}

function list(path: string): string[] {
  return existsSync(path) ? readdirSync(path).sort() : [];
}

function tree(path: string): string[] {
  if (!existsSync(path)) return [];
  const found: string[] = [];
  for (const entry of readdirSync(path, { withFileTypes: true })) {
    const child = join(path, entry.name);
    found.push(child);
    if (entry.isDirectory()) found.push(...tree(child));
  }
  return found.sort();
}
