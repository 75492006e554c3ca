/**
 * Asks libbpf what this kernel has, through ffi-napi. Runs as a program of its own and prints JSON: ffi-napi is not
 * maintained, and a binary of it that crashes under some future Node shall cost this probe only, not the diagnosis.
 */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

/** enum bpf_prog_type, enum bpf_map_type and enum bpf_func_id of linux/bpf.h, as far as the BPF object uses them. */
export const PROGRAM_TYPES = { cgroup_sock_addr: 18, sock_ops: 13, sk_msg: 16, cgroup_sockopt: 25, cgroup_skb: 8, sk_lookup: 30, tracing: 26 } as const;
export const MAP_TYPES = { hash: 1, array: 2, percpu_array: 6, sockhash: 18, sk_storage: 24, ringbuf: 27 } as const;
export const HELPERS = {
  get_netns_cookie: { id: 122, programs: ['cgroup_sock_addr', 'sock_ops', 'sk_msg', 'cgroup_sockopt'] },
  sk_storage_get: { id: 107, programs: ['cgroup_sock_addr', 'sock_ops', 'sk_msg', 'cgroup_sockopt', 'cgroup_skb'] },
  get_socket_cookie: { id: 46, programs: ['cgroup_sock_addr', 'sock_ops'] },
  sock_hash_update: { id: 70, programs: ['sock_ops'] },
  msg_redirect_hash: { id: 71, programs: ['sk_msg'] },
  skc_to_tcp_sock: { id: 137, programs: ['sock_ops', 'sk_msg'] },
  probe_read_kernel: { id: 113, programs: ['sock_ops', 'sk_msg', 'cgroup_skb'] },
  ringbuf_reserve: { id: 131, programs: ['sock_ops', 'sk_msg', 'cgroup_skb'] },
  loop: { id: 181, programs: ['sk_msg'] },
  msg_pop_data: { id: 91, programs: ['sk_msg'] },
} as const satisfies Record<string, { id: number; programs: readonly (keyof typeof PROGRAM_TYPES)[] }>;

export interface LibbpfAnswer {
  version: string;
  /** null: libbpf could not tell, or this process may not ask. */
  programs: Record<string, boolean | null>;
  maps: Record<string, boolean | null>;
  /** `helper@program` */
  helpers: Record<string, boolean | null>;
}

interface Libbpf {
  libbpf_probe_bpf_prog_type(type: number, options: null): number;
  libbpf_probe_bpf_map_type(type: number, options: null): number;
  libbpf_probe_bpf_helper(program: number, helper: number, options: null): number;
  libbpf_version_string(): string;
}

function probe(): LibbpfAnswer {
  const ffi = createRequire(import.meta.url)('ffi-napi') as { Library(name: string, functions: Record<string, [string, string[]]>): Libbpf };
  const library = ffi.Library('libbpf.so.1', {
    libbpf_probe_bpf_prog_type: ['int', ['int', 'pointer']],
    libbpf_probe_bpf_map_type: ['int', ['int', 'pointer']],
    libbpf_probe_bpf_helper: ['int', ['int', 'int', 'pointer']],
    libbpf_version_string: ['string', []],
  });
  const verdict = (value: number): boolean | null => (value < 0 ? null : value === 1);
  const programs = Object.fromEntries(Object.entries(PROGRAM_TYPES).map(([name, id]) => [name, verdict(library.libbpf_probe_bpf_prog_type(id, null))]));
  const maps = Object.fromEntries(Object.entries(MAP_TYPES).map(([name, id]) => [name, verdict(library.libbpf_probe_bpf_map_type(id, null))]));
  const helpers: Record<string, boolean | null> = {};
  for (const [name, helper] of Object.entries(HELPERS)) {
    for (const program of helper.programs) helpers[`${name}@${program}`] = verdict(library.libbpf_probe_bpf_helper(PROGRAM_TYPES[program], helper.id, null));
  }
  return { version: library.libbpf_version_string(), programs, maps, helpers };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    process.stdout.write(JSON.stringify(probe()));
  } catch (error) {
    process.stderr.write(error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error));
    process.exitCode = 1;
  }
}
