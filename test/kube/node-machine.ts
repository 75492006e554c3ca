/**
 * A machine in this one, for the programs of a real node: mounts, network, processes and cgroups in namespaces of its own, which
 * end with the process that made them. Nothing leads out of its network, and what its programs write to the machine's own
 * folders and settings is seen in there alone.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { cgroup2Root, cgroupProcesses, removeCgroup } from '../../common/cgroup.js';
import type { Closable } from '../../common/lifecycle.js';
import { run, type RunOptions, type RunResult } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { openSocket } from '../../native/index.js';
import type { ClusterMachine } from './cluster.js';

/** Kubelet sets them for the whole machine; in there it writes to files. */
const SETTINGS = ['kernel/panic', 'kernel/panic_on_oops', 'kernel/keys/root_maxkeys', 'kernel/keys/root_maxbytes', 'vm/overcommit_memory', 'vm/panic_on_oom'];
/** What programs write in there goes into layers of their own. */
const LAYERED = ['/etc', '/opt', '/var'];
const ENDS_MS = 20_000;
const NAME = 'up-kube-node';

export interface MachineOptions {
  /** What services' addresses are: they are not to be sent anywhere else. */
  serviceRange: string;
}

/** A cgroup hierarchy: where it is mounted, and the directory that is its root in the machine. */
interface Hierarchy {
  mount: string;
  root: string;
  /** Where the machine's own programs run. */
  programs: string;
}

export class NodeMachine implements ClusterMachine, Closable {
  readonly address = '172.18.0.2';
  readonly folder: string;
  readonly #hierarchies: readonly Hierarchy[];
  readonly #children: ChildProcess[] = [];
  #holder: ChildProcess | undefined;
  #pid = 0;

  private constructor(readonly name: string) {
    this.folder = mkdtempSync(join(tmpdir(), `${name}-`));
    this.#hierarchies = hierarchies(name);
  }

  static async start({ serviceRange }: MachineOptions): Promise<NodeMachine> {
    await sweep();
    const machine = new NodeMachine(`${NAME}-${process.pid}`);
    try {
      await machine.#start();
      await machine.#setUp(serviceRange);
      return machine;
    } catch (error) {
      await machine.close();
      throw new Error(`making a machine for a node: ${(error as Error).message}`, { cause: error });
    }
  }

  /** Its first process, in this machine's numbers. */
  get pid(): number {
    return this.#pid;
  }

  get netns(): string {
    return `/proc/${this.#pid}/ns/net`;
  }

  /** A path of the machine as this process sees it. */
  path(...parts: string[]): string {
    return join(`/proc/${this.#pid}/root`, ...parts);
  }

  /** The cgroup v2 directory that is the root in there. */
  get cgroup(): string {
    return join(cgroup2Root(), this.name);
  }

  async #start(): Promise<void> {
    for (const { mount, root, programs } of this.#hierarchies) {
      mkdirSync(root);
      // A cpuset without processors takes no process.
      for (const name of ['cpuset.cpus', 'cpuset.mems']) if (existsSync(join(root, name)) && existsSync(join(mount, 'cpuset.cpu_exclusive'))) writeFileSync(join(root, name), readFileSync(join(dirname(root), name)));
      if (programs === root) continue;
      mkdirSync(programs);
    }
    // The first process takes up whatever loses its parent, and all ends with it, and it with this process.
    const first = ['sh', '-c', 'trap : TERM INT HUP; while :; do sleep 3600; done'];
    const own = ['unshare', '--cgroup', '--mount', '--net', '--pid', '--fork', '--kill-child=KILL', '--mount-proc', '--propagation', 'private', '--', ...first];
    const [command = '', ...args] = inCgroups(this.#hierarchies.map(({ root }) => root), ['setpriv', '--pdeathsig', 'KILL', '--', ...own]);
    const log = openSync(join(this.folder, 'machine.log'), 'a', 0o640);
    this.#holder = spawn(command, args, { stdio: ['ignore', 'ignore', log] });
    closeSync(log);
    const holder = this.#holder.pid!;
    this.#pid = await waitFor('its first process', () => firstProcess(holder), { everyMs: 10 }).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${this.log('machine')}`, { cause: error });
    });
    for (const { root, programs } of this.#hierarchies) {
      if (programs === root) continue;
      for (const pid of cgroupProcesses(root)) writeFileSync(join(programs, 'cgroup.procs'), String(pid));
      const controllers = readFileSync(join(root, 'cgroup.controllers'), 'utf8').split(' ').map((name) => name.trim()).filter(Boolean);
      for (const name of controllers) writeFileSync(join(root, 'cgroup.subtree_control'), `+${name}`);
    }
  }

  async #setUp(serviceRange: string): Promise<void> {
    // Names of this machine's network namespaces would keep them; those that go meanwhile are gone here too.
    const lines = ['set -e', `awk '$2 ~ "^/run/" { print $2 }' /proc/self/mounts | tac | while read -r path; do umount -l "$path" 2>/dev/null || true; done`, 'mount --make-rshared /'];
    for (const { mount, root } of this.#hierarchies) lines.push(`mount --bind ${root} ${mount}`);
    for (const directory of LAYERED) {
      const [upper, work] = ['upper', 'work'].map((kind) => join(this.folder, 'layers', kind, directory));
      for (const path of [upper!, work!]) mkdirSync(path, { recursive: true });
      lines.push(`mount -t overlay -o lowerdir=${directory},upperdir=${upper},workdir=${work} node ${directory}`);
    }
    lines.push('mount -t tmpfs -o mode=755 node /run', 'mkdir -p /run/netns /run/lock', 'mount -t tmpfs node /dev/shm', 'mount -t bpf node /sys/fs/bpf');
    for (const setting of SETTINGS) {
      const [real, file] = [join('/proc/sys', setting), join(this.folder, 'settings', setting)];
      if (!existsSync(real)) continue;
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, readFileSync(real));
      lines.push(`mount --bind ${file} ${real}`);
    }
    // There is no way out: nothing but loopback, this bridge without ports, and the pods' links. What no rule leads to a pod ends in it.
    lines.push('ip link set lo up', 'ip link add node0 type bridge', `ip addr add ${this.address}/32 dev node0`, 'ip link set node0 up', `ip route add ${serviceRange} dev node0`, 'echo 1 >/proc/sys/net/ipv4/ip_forward');
    await this.run('sh', ['-c', lines.join('\n')]);
  }

  /** A program that is to see the machine's files and network; its process is this machine's too. */
  command(command: string, ...args: string[]): string[] {
    return ['nsenter', '--target', String(this.#pid), '--mount', '--net', '--', command, ...args];
  }

  /** A program of the machine's own. */
  inside(command: string, ...args: string[]): string[] {
    return inCgroups(this.#hierarchies.map(({ programs }) => programs), ['nsenter', '--target', String(this.#pid), '--mount', '--net', '--pid', '--cgroup', '--', command, ...args]);
  }

  run(command: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    const [enter = '', ...rest] = this.inside(command, ...args);
    return run(enter, rest, { timeoutMs: 60_000, ...options });
  }

  /** Runs until the machine ends; what it says is in `folder`/NAME.log. */
  start(name: string, command: string, args: readonly string[]): void {
    const log = openSync(join(this.folder, `${name}.log`), 'a', 0o640);
    const [enter = '', ...rest] = this.inside(command, ...args);
    this.#children.push(spawn(enter, rest, { stdio: ['ignore', log, log] }));
    closeSync(log);
  }

  async connect(port: number): Promise<Socket> {
    return new Socket({ fd: await openSocket({ netns: this.netns, family: 'ipv4', type: 'stream', connect: { address: this.address, port } }) });
  }

  log(name: string, lines = 15): string {
    try {
      return readFileSync(join(this.folder, `${name}.log`), 'utf8').trim().split('\n').slice(-lines).join('\n');
    } catch {
      return '';
    }
  }

  /** What is there of it after close(): processes in its cgroups or with its files, folders, mounts. */
  remains(): string[] {
    return [
      ...this.#processes().map((pid) => `process ${pid}`),
      ...[this.folder, ...this.#hierarchies.map(({ root }) => root)].filter((path) => existsSync(path)),
      ...readFileSync('/proc/self/mounts', 'utf8').split('\n').filter((line) => line.includes(this.name)),
    ];
  }

  #processes(): string[] {
    // Not by namespaces: their numbers are given anew at once.
    const isOwn = (pid: string): boolean => ['cmdline', 'cgroup'].some((file) => textOf(`/proc/${pid}/${file}`).includes(this.name));
    return readdirSync('/proc').filter((pid) => /^\d+$/.test(pid) && isOwn(pid));
  }

  /** All of it: processes, then what they had. */
  async close(): Promise<void> {
    const holder = this.#holder;
    this.#holder = undefined;
    if (holder && holder.exitCode === null && holder.signalCode === null) {
      const ended = once(holder, 'exit');
      // Its parent ends when this one has; before there is one, all that there is is the parent.
      if (this.#pid !== 0) process.kill(this.#pid, 'SIGKILL');
      else holder.kill('SIGKILL');
      await ended;
    }
    const inCgroup = (): number[] => this.#hierarchies.flatMap(({ root }) => cgroupProcesses(root));
    await waitFor('the node\'s processes to end', () => inCgroup().length === 0 && this.#children.every(({ exitCode, signalCode }) => exitCode !== null || signalCode !== null), { timeoutMs: ENDS_MS, everyMs: 20 });
    for (const { root } of this.#hierarchies) await removeCgroup(root);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** What machines of processes that were killed have left: folders alone, theirs and empty cgroups. */
async function sweep(): Promise<void> {
  const isLeft = (name: string): boolean => {
    const [, pid] = new RegExp(`^${NAME}-(\\d+)(?:-|$)`).exec(name) ?? [];
    return pid !== undefined && !existsSync(`/proc/${pid}`);
  };
  for (const { root } of hierarchies(NAME)) for (const name of readdirSync(dirname(root)).filter(isLeft)) await removeCgroup(join(dirname(root), name));
  for (const name of readdirSync(tmpdir()).filter(isLeft)) rmSync(join(tmpdir(), name), { recursive: true, force: true });
}

/** The pid of the only child; undefined while there is none. */
function firstProcess(parent: number): number | undefined {
  const found = readFileSync(`/proc/${parent}/task/${parent}/children`, 'utf8').trim();
  // Until it has its own root of /proc it is still being made.
  return found !== '' && readFileSync(`/proc/${found}/cmdline`, 'utf8').startsWith('sh') ? Number(found) : undefined;
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return ''; // ended meanwhile
  }
}

function inCgroups(directories: readonly string[], command: readonly string[]): string[] {
  return ['sh', '-c', `for directory in ${directories.join(' ')}; do echo $$ >$directory/cgroup.procs || exit 1; done; exec "$@"`, 'sh', ...command];
}

/** Of v1 below this process's own, of v2 (where processes and the controllers of their children exclude each other) below the root. */
function hierarchies(name: string): Hierarchy[] {
  const own = new Map(readFileSync('/proc/self/cgroup', 'utf8').trim().split('\n').map((line) => {
    const [, controllers = '', path = ''] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    return [controllers.split(',').sort().join(), path];
  }));
  return readFileSync('/proc/self/mounts', 'utf8').split('\n').flatMap((line) => {
    const [, mount = '', type, options = ''] = line.split(' ');
    if (type === 'cgroup2') return { mount, root: join(mount, name), programs: join(mount, name, 'programs') };
    if (type !== 'cgroup') return [];
    const path = [...own].find(([controllers]) => controllers !== '' && controllers.split(',').every((one) => options.split(',').includes(one)))?.[1];
    if (path === undefined) return [];
    const root = join(mount, path, name);
    return { mount, root, programs: root };
  });
}
