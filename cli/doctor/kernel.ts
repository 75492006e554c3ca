/** Rows about the kernel's BPF side and what this process may do with it. */
import { existsSync, readFileSync, statfsSync } from 'node:fs';
import { release } from 'node:os';
import { fileURLToPath } from 'node:url';
import { cgroup1Roots, cgroup2Root } from '../../common/cgroup.js';
import { errorMessage } from '../../common/errors.js';
import { run } from '../../common/process.js';
import type { LibbpfAnswer } from './libbpf.js';
import type { Row, State } from './report.js';

const GROUP = 'Kernel';
/** Oldest kernel whose sockops and sk_msg programs may ask for the network namespace's cookie. */
const OLDEST_KERNEL = [5, 15] as const;
/** Since then maps are charged to the memory cgroup, not to RLIMIT_MEMLOCK. */
const MEMCG_KERNEL = [5, 11] as const;
const BPF_FS_MAGIC = 0xcafe4a11;

/** Bits of CapEff in /proc/PID/status (capabilities(7)). */
const CAPABILITIES = {
  CAP_NET_ADMIN: { bit: 12, why: 'attaching programs, iptables rules, pod networks' },
  CAP_SYS_PTRACE: { bit: 19, why: 'opening the network namespaces of others\' processes' },
  CAP_SYS_ADMIN: { bit: 21, why: 'entering and pinning network namespaces' },
  CAP_SYS_RESOURCE: { bit: 24, why: 'locked memory for maps before Linux 5.11' },
  CAP_PERFMON: { bit: 38, why: 'BPF that follows kernel pointers' },
  CAP_BPF: { bit: 39, why: 'loading BPF' },
} as const;

export interface Capabilities {
  missing: string[];
  canLoadBpf: boolean;
  canEnterNetns: boolean;
}

export function capabilitiesOf(status: string, kernel: string): Capabilities {
  const effective = BigInt('0x' + (/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'));
  const has = (name: keyof typeof CAPABILITIES): boolean => (effective & (1n << BigInt(CAPABILITIES[name].bit))) !== 0n;
  const admin = has('CAP_SYS_ADMIN');
  // CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON (linux/capability.h).
  const needless = (name: string): boolean => (admin && (name === 'CAP_BPF' || name === 'CAP_PERFMON')) || (name === 'CAP_SYS_RESOURCE' && kernelAtLeast(kernel, MEMCG_KERNEL));
  const missing = (Object.keys(CAPABILITIES) as (keyof typeof CAPABILITIES)[]).filter((name) => !has(name) && !needless(name));
  return { missing, canLoadBpf: (admin || (has('CAP_BPF') && has('CAP_PERFMON'))) && has('CAP_NET_ADMIN'), canEnterNetns: admin };
}

export function kernelAtLeast(version: string, wanted: readonly [number, number]): boolean {
  const [major = 0, minor = 0] = version.split('.').map((part) => parseInt(part, 10));
  return major > wanted[0] || (major === wanted[0] && minor >= wanted[1]);
}

function readTrimmed(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined;
  }
}

export function kernelRows(): { rows: Row[]; capabilities: Capabilities } {
  const rows: Row[] = [];
  const version = release();
  const row = (id: string, name: string, need: Row['need'], state: State, detail: string, cost: string): void => {
    rows.push({ id, group: GROUP, name, need, state, detail, ...(state === 'yes' ? {} : { cost }) });
  };

  const recent = kernelAtLeast(version, OLDEST_KERNEL);
  row('kernel.version', 'version', 'bpf', recent ? 'yes' : 'no', `${version}; 5.15 or newer is needed`, 'the network namespace\'s cookie is missing in sockops and sk_msg: pods are captured by iptables, nothing is short-circuited');

  const capabilities = capabilitiesOf(readTrimmed('/proc/self/status') ?? '', version);
  const reasons = capabilities.missing.map((name) => `${name} (${CAPABILITIES[name as keyof typeof CAPABILITIES].why})`).join(', ');
  const state: State = capabilities.missing.length === 0 ? 'yes' : capabilities.canLoadBpf && capabilities.canEnterNetns ? 'partly' : 'no';
  row('kernel.capabilities', 'capabilities', 'base', state, capabilities.missing.length === 0 ? 'this process has all that is used' : `missing: ${reasons}`, 'run as root, or give the agent these; without, neither BPF nor iptables can be set up');

  const btf = existsSync('/sys/kernel/btf/vmlinux');
  row('kernel.btf', 'type information (BTF)', 'bpf', btf ? 'yes' : 'no', btf ? '/sys/kernel/btf/vmlinux' : 'no /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)', 'BPF programs can\'t be fitted to this kernel: iptables only, no short-circuits');

  try {
    const root = cgroup2Root();
    const own = readTrimmed('/proc/self/cgroup')?.split('\n').find((line) => line.startsWith('0::'));
    row('kernel.cgroup2', 'cgroup v2', 'bpf', own ? 'yes' : 'partly', `mounted at ${root}${cgroup1Roots().length === 0 ? '' : '; v1 is there, too: pods whose runtime gives them no v2 directory have their hooks at the root'}`, 'this process is in no cgroup of it');
  } catch (error) {
    row('kernel.cgroup2', 'cgroup v2', 'bpf', 'no', errorMessage(error), 'programs can\'t be attached to pods: iptables only, no short-circuits');
  }

  let bpffs = false;
  try {
    bpffs = statfsSync('/sys/fs/bpf').type === BPF_FS_MAGIC;
  } catch {
    // reported below
  }
  const bpffsPossible = existsSync('/sys/fs/bpf') && /\bbpf$/m.test(readTrimmed('/proc/filesystems') ?? '');
  const mountable = !bpffs && bpffsPossible && capabilities.canEnterNetns;
  row('kernel.bpffs', 'bpf file system', 'bpf', bpffs || mountable ? 'yes' : 'no', bpffs ? 'mounted at /sys/fs/bpf' : mountable ? 'not mounted; the agent mounts it at /sys/fs/bpf' : 'not mounted at /sys/fs/bpf, and this process can\'t mount it', 'links and maps would not outlive the agent: mount -t bpf bpf /sys/fs/bpf');

  const jit = readTrimmed('/proc/sys/net/core/bpf_jit_enable');
  const unknownJit = jit === undefined;
  row('kernel.jit', 'BPF compiler (JIT)', 'extra', unknownJit ? 'partly' : jit === '0' ? 'no' : 'yes', unknownJit ? 'net.core.bpf_jit_enable can\'t be read' : `net.core.bpf_jit_enable = ${jit}`, unknownJit ? 'not known' : 'programs are interpreted, several times slower: sysctl net.core.bpf_jit_enable=1');

  const unprivileged = readTrimmed('/proc/sys/kernel/unprivileged_bpf_disabled');
  const closed = unprivileged !== undefined && unprivileged !== '0';
  row('kernel.unprivileged-bpf', 'BPF closed to others', 'extra', closed ? 'yes' : unprivileged === undefined ? 'partly' : 'no', `kernel.unprivileged_bpf_disabled = ${unprivileged ?? 'not readable'}`, 'nothing for Underpass; any user may load BPF: sysctl kernel.unprivileged_bpf_disabled=2');
  return { rows, capabilities };
}

/** What libbpf says, or why it could not be asked. Never throws. */
export async function libbpfRows(capabilities: Capabilities): Promise<Row[]> {
  const group = 'BPF features (asked through libbpf)';
  if (!capabilities.canLoadBpf) {
    return [{ id: 'libbpf', group, name: 'program, map and helper types', state: 'no', need: 'extra', detail: 'not asked: libbpf finds out by loading small programs, which this process may not', cost: 'only this answer; run as root' }];
  }
  let answer: LibbpfAnswer;
  try {
    const script = fileURLToPath(new URL('./libbpf.js', import.meta.url));
    const { stdout } = await run(process.execPath, [script], { timeoutMs: 20_000 });
    answer = JSON.parse(stdout) as LibbpfAnswer;
  } catch (error) {
    const reason = errorMessage(error).replace(/^.*?exit \d+: /s, '');
    return [{ id: 'libbpf', group, name: 'program, map and helper types', state: 'partly', need: 'extra', detail: `libbpf could not be asked: ${reason}`, cost: 'only this answer; the self-test below shows what works' }];
  }
  const rows: Row[] = [{ id: 'libbpf', group, name: 'libbpf', state: 'yes', need: 'extra', detail: answer.version }];
  const add = (id: string, name: string, need: Row['need'], known: Record<string, boolean | null>, cost: string): void => {
    const missing = Object.keys(known).filter((key) => known[key] === false);
    const unknown = Object.keys(known).filter((key) => known[key] === null);
    const state: State = missing.length > 0 ? 'no' : unknown.length > 0 ? 'partly' : 'yes';
    const detail = [missing.length > 0 ? `missing: ${missing.join(', ')}` : '', unknown.length > 0 ? `not known: ${unknown.join(', ')}` : '', state === 'yes' ? [...new Set(Object.keys(known).map((key) => key.split('@')[0]))].join(', ') : ''].filter(Boolean).join('; ');
    rows.push({ id, group, name, state, need, detail, ...(state === 'yes' ? {} : { cost }) });
  };
  const pick = (from: Record<string, boolean | null>, wanted: (key: string) => boolean): Record<string, boolean | null> => Object.fromEntries(Object.entries(from).filter(([key]) => wanted(key)));
  const later = ['sk_lookup', 'tracing'];
  const laterHelper = (key: string): boolean => key.startsWith('loop@') || key.startsWith('msg_pop_data@');
  add('libbpf.programs', 'program types', 'bpf', pick(answer.programs, (key) => !later.includes(key)), 'iptables only, no short-circuits');
  add('libbpf.maps', 'map types', 'bpf', answer.maps, 'iptables only, no short-circuits');
  add('libbpf.helpers', 'helpers', 'bpf', pick(answer.helpers, (key) => !laterHelper(key)), 'iptables only, no short-circuits');
  add('libbpf.sk-lookup', 'inbound steering (sk_lookup)', 'extra', pick(answer.programs, (key) => key === 'sk_lookup'), 'inbound traffic is steered to the proxy by iptables');
  add('libbpf.fentry', 'probes on kernel functions (fentry)', 'extra', pick(answer.programs, (key) => key === 'tracing'), 'a program that calls splice(2) is not noticed by itself: name it with underpass.io/acceleration=off');
  add('libbpf.fast-path', 'helpers of the HTTP fast path', 'extra', pick(answer.helpers, laterHelper), 'HTTP requests are not routed in the kernel; short-circuits are not concerned');
  return rows;
}
