/**
 * Capture by NAT rules in a pod's own network namespace, for nodes or pods where the BPF hooks can't do it. The rules say
 * what Istio's output chain says (https://istio.io/latest/docs/ops/deployment/application-requirements/), with three
 * differences that a pod which is not restarted needs:
 *
 * - Only SYNs are redirected. Connection tracking starts in a namespace with its first NAT rule, and it takes up
 *   connections in mid-stream (net.netfilter.nf_conntrack_tcp_loose): their next packet passes the chain as a new
 *   connection's, and redirecting it would reset a connection that existed before the pod was enrolled.
 * - Leaving has two steps. `stop` only unhooks the chain, so that new connections go their plain way. The chain stays:
 *   its REDIRECT rule, reachable or not, is what keeps connection tracking on in the namespace (the target takes a
 *   reference, the nat table does not), and without it every established redirected connection is reset. `remove` takes
 *   the chain away, and the table if it was made here.
 * - The proxy is known by its sockets' mark instead of a user id, since it does not run in the pod.
 *
 * That the table was made here is written down in the table itself, as an empty chain: it outlives the agent and goes
 * away with the namespace.
 */
import { access, constants } from 'node:fs/promises';
import { join } from 'node:path';
import { HBONE_PORT } from '../../common/istio-iptables.js';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import { buildDir } from '../../common/paths.js';
import { run, type RunResult } from '../../common/process.js';

export const OUTBOUND_PORT = 15001;
/** SO_MARK of the proxy's upstream sockets. */
export const PROXY_MARK = 0x539;

export const INBOUND_PORT = 15006;

const TABLE_MARKER = 'UNDERPASS_TABLE';

/** `outbound`: what the pod's programs open; `inbound`: what comes for them over the network. */
export type Direction = 'outbound' | 'inbound';
const CHAINS: Record<Direction, { chain: string; jump: string; port: number; passes: readonly string[]; passes6?: readonly string[] }> = {
  outbound: {
    chain: 'UNDERPASS_OUTPUT', jump: 'OUTPUT -p tcp -j UNDERPASS_OUTPUT', port: OUTBOUND_PORT,
    // Loopback and the pod's own addresses: never the mesh's business.
    passes: [`-m mark --mark 0x${PROXY_MARK.toString(16)} -j RETURN`, '-o lo -j RETURN'],
    // Means something together with an interface alone, which the proxy is not told.
    passes6: ['-d fe80::/10 -j RETURN'],
  },
  inbound: { chain: 'UNDERPASS_INBOUND', jump: 'PREROUTING -p tcp -j UNDERPASS_INBOUND', port: INBOUND_PORT, passes: ['-i lo -j RETURN', `-p tcp -m tcp --dport ${HBONE_PORT} -j RETURN`] },
};

export type IptablesBackend = 'nft' | 'legacy';
type Family = 'ip' | 'ip6';
const FAMILIES: readonly Family[] = ['ip', 'ip6'];

export interface CaptureState {
  /** New connections are redirected (in every family that can). */
  active: boolean;
  /** Something of ours is there: rules, or the table that we made. */
  present: boolean;
  /** The rules are others than `start` makes: an agent of another version's. */
  outdated?: true;
}

export interface IptablesNotes {
  backend: IptablesBackend;
  /** What could not be done and does not matter to IPv4, e.g. a kernel without IPv6 NAT. */
  notes: string[];
}

interface Rules {
  tableExists: boolean;
  /** Lines `-A …` of the nat table. */
  rules: string[];
  chains: string[];
}

/** NAT capture in one namespace. Every method is idempotent; calls for one namespace must not overlap. */
export class IptablesCapture {
  readonly #exec: string;
  readonly #way: (typeof CHAINS)[Direction];

  constructor(readonly netnsPath: string, readonly options: { execPath?: string; port?: number; signal?: AbortSignal; direction?: Direction; hostMatch?: string } = {}) {
    this.#exec = options.execPath ?? join(buildDir, 'underpass-exec');
    this.#way = CHAINS[options.direction ?? 'outbound'];
  }

  /**
   * Redirects the pod's new TCP connections to the proxy.
   * @param isAnew whatever stands in the chain is written once more, at one moment
   */
  async start(isAnew = false): Promise<IptablesNotes> {
    const backend = await this.backend();
    const notes: string[] = [];
    await this.#startKnowingHost('ip', backend, notes, isAnew);
    try {
      await this.#startKnowingHost('ip6', backend, notes, isAnew);
    } catch (error) {
      notes.push(`IPv6 is not captured: ${errorMessage(error)}`);
    }
    return { backend, notes };
  }

  /** Where the kernel or iptables have no match by BPF program, the node's own connections are redirected like all others. */
  async #startKnowingHost(family: Family, backend: IptablesBackend, notes: string[], isAnew: boolean): Promise<void> {
    const { hostMatch } = this.options;
    try {
      return await this.#startFamily(family, backend, isAnew, hostMatch);
    } catch (error) {
      if (hostMatch === undefined) throw error;
      await this.#startFamily(family, backend, isAnew);
      notes.push(`${family === 'ip' ? 'IPv4' : 'IPv6'}: what the node itself opens to the pod, kubelet probes too, is redirected: ${errorMessage(error)}`);
    }
  }

  /** New connections go their plain way; established redirected ones live on. */
  async stop(): Promise<void> {
    await this.#eachPresent(async (family, backend, { rules }) => {
      const jumps = rules.filter((rule) => rule === `-A ${this.#way.jump}`).map(() => `-D ${this.#way.jump}`);
      if (jumps.length > 0) await this.#commit(family, backend, jumps);
    });
  }

  /** Takes everything away that `start` made. Established redirected connections end. */
  async remove(): Promise<void> {
    await this.#eachPresent(async (family, backend, { rules, chains }) => {
      const ours = (rule: string): boolean => rule === `-A ${this.#way.jump}` || rule.startsWith(`-A ${this.#way.chain} `);
      const lines = rules.filter((rule) => rule === `-A ${this.#way.jump}`).map(() => `-D ${this.#way.jump}`);
      if (chains.includes(this.#way.chain)) lines.push(`-F ${this.#way.chain}`, `-X ${this.#way.chain}`);
      // The table is also the other direction's, if that has rules.
      const shared = Object.values(CHAINS).some(({ chain }) => chain !== this.#way.chain && chains.includes(chain));
      const madeHere = chains.includes(TABLE_MARKER) && !shared;
      if (madeHere) lines.push(`-X ${TABLE_MARKER}`);
      if (lines.length > 0) await this.#commit(family, backend, lines);
      // When somebody else began to use the table in the meantime, it is theirs.
      const others = rules.some((rule) => !ours(rule)) || chains.some((chain) => chain !== this.#way.chain && chain !== TABLE_MARKER);
      if (madeHere && !others) await this.#deleteTable(family);
    });
  }

  async state(): Promise<CaptureState> {
    return (await this.read()).state;
  }

  /** @returns `text`: the chain's rules and what leads to it, in their order */
  async read(): Promise<{ state: CaptureState; text: string }> {
    const state: CaptureState = { active: false, present: false };
    let text = '';
    const active = new Set<Family>();
    await this.#eachPresent((family, backend, { rules, chains }) => {
      state.present ||= chains.includes(this.#way.chain) || (this.#way === CHAINS.outbound && chains.includes(TABLE_MARKER));
      if (rules.includes(`-A ${this.#way.jump}`)) active.add(family);
      if (chains.includes(this.#way.chain) && !this.#isComplete(family, rules)) state.outdated = true;
      const ours = rules.filter((rule) => rule === `-A ${this.#way.jump}` || rule.startsWith(`-A ${this.#way.chain} `));
      text += ours.map((rule) => `${program(family, backend, '')} ${rule}\n`).join('');
      return Promise.resolve();
    });
    state.active = active.size > 0;
    // Whoever started or stopped them ended between the two families, where both can be had.
    for (const family of FAMILIES) if (state.active && !active.has(family) && (await this.#read(family, 'nft'))) state.outdated = true;
    return { state, text };
  }

  /**
   * The backend whose NAT rules the pod already uses, so that the order of rules stays in one table; else nft, whose tables
   * can be deleted again, and legacy only where this kernel or machine has no nft.
   */
  async backend(): Promise<IptablesBackend> {
    if ((await this.#legacyTables()).has('ip')) {
      const legacy = await this.#read('ip', 'legacy');
      if (legacy && (legacy.rules.length > 0 || legacy.chains.length > 0)) return 'legacy';
    }
    if (await this.#read('ip', 'nft')) return 'nft';
    const version = await this.#run('iptables-legacy', ['--version']);
    if (version?.code === 0) return 'legacy';
    throw new UnderpassError('UNDERPASS_IPTABLES_MISSING', 'redirecting by iptables: neither iptables-nft nor iptables-legacy works here', {
      hint: 'install iptables, or a kernel with nf_tables or ip_tables NAT',
    });
  }

  async #startFamily(family: Family, backend: IptablesBackend, isAnew: boolean, hostMatch?: string): Promise<void> {
    const before = await this.#read(family, backend);
    const rules = before?.rules ?? [];
    const lines: string[] = [];
    if (backend === 'nft' && before?.tableExists === false) lines.push(`:${TABLE_MARKER} - [0:0]`);
    const wanted = redirection(this.#way, family, this.options.port ?? this.#way.port, hostMatch);
    const complete = !isAnew && before?.chains.includes(this.#way.chain) === true && this.#isComplete(family, rules, hostMatch);
    // Declaring a chain empties it: also what a start that was cut short needs.
    if (!complete) lines.push(`:${this.#way.chain} - [0:0]`, ...wanted.map((rule) => `-A ${this.#way.chain} ${rule}`));
    if (!rules.includes(`-A ${this.#way.jump}`)) lines.push(`-A ${this.#way.jump}`);
    if (lines.length > 0) await this.#commit(family, backend, lines);
  }

  #isComplete(family: Family, rules: readonly string[], hostMatch = this.options.hostMatch): boolean {
    const ours = rules.filter((rule) => rule.startsWith(`-A ${this.#way.chain} `));
    return ours.length === redirection(this.#way, family, 0, hostMatch).length && (hostMatch === undefined || ours.includes(`-A ${this.#way.chain} ${passesHost(hostMatch)}`));
  }

  async #deleteTable(family: Family): Promise<void> {
    const deleted = await this.#run('nft', ['delete', 'table', family, 'nat']);
    if (deleted?.code === 0) return;
    // Without nft(8) an empty nat table stays; it changes nothing for the pod.
    await this.#run(program(family, 'nft', ''), ['-t', 'nat', '-X']);
  }

  async #eachPresent(visit: (family: Family, backend: IptablesBackend, rules: Rules) => Promise<void>): Promise<void> {
    const legacy = await this.#legacyTables();
    for (const family of FAMILIES) {
      for (const backend of ['nft', 'legacy'] as const) {
        // Reading a legacy table makes it: only look where there is one.
        if (backend === 'legacy' && !legacy.has(family)) continue;
        const rules = await this.#read(family, backend);
        if (rules?.tableExists) await visit(family, backend, rules);
      }
    }
  }

  /** The families that have a nat table of the legacy backend; a kernel without it has no such files. */
  async #legacyTables(): Promise<ReadonlySet<Family>> {
    const result = await this.#run('grep', ['-sx', 'nat', ...FAMILIES.map((family) => `/proc/self/net/${family}_tables_names`)]);
    return new Set(FAMILIES.filter((family) => result?.stdout.includes(`/${family}_tables_names:`)));
  }

  /** The nat table's content, or undefined where this backend does not work. */
  async #read(family: Family, backend: IptablesBackend): Promise<Rules | undefined> {
    // `-t nat` would make the table in a namespace that has none; without it only existing tables are printed.
    const result = await this.#run(program(family, backend, '-save'), []);
    if (result === undefined || result.code !== 0) return undefined;
    return parseSave(result.stdout);
  }

  async #commit(family: Family, backend: IptablesBackend, lines: readonly string[]): Promise<void> {
    const command = program(family, backend, '-restore');
    const args = backend === 'legacy' ? ['--noflush', '--wait', '5'] : ['--noflush'];
    const result = await this.#run(command, args, `*nat\n${lines.join('\n')}\nCOMMIT\n`);
    if (result === undefined) {
      throw new UnderpassError('UNDERPASS_IPTABLES_MISSING', `redirecting by iptables: ${command} is not installed`, { hint: 'install iptables' });
    }
    if (result.code !== 0) {
      throw new UnderpassError(
        'UNDERPASS_IPTABLES_FAILED',
        `changing the ${family === 'ip' ? 'IPv4' : 'IPv6'} nat table of ${this.netnsPath} by ${command}: ${result.stderr.trim() || `exit ${result.code}`}`,
      );
    }
  }

  /** Runs a program in the namespace; undefined when it is not installed. */
  async #run(command: string, args: readonly string[], input?: string): Promise<RunResult | undefined> {
    const any = Array.from({ length: 256 }, (_, code) => code);
    const result = await run(this.#exec, ['--netns', this.netnsPath, '--', command, ...args], {
      okCodes: any,
      timeoutMs: 20_000,
      ...(input === undefined ? {} : { input }),
      ...(this.options.signal ? { signal: this.options.signal } : {}),
    });
    if (result.code === 127) return undefined;
    if (result.code === 125) {
      throw new UnderpassError('UNDERPASS_NETNS_ENTER', `entering the network namespace ${this.netnsPath}: ${result.stderr.trim()}`);
    }
    return result;
  }
}

function program(family: Family, backend: IptablesBackend, verb: '' | '-save' | '-restore'): string {
  return `${family === 'ip' ? 'iptables' : 'ip6tables'}-${backend}${verb}`;
}

const passesHost = (program: string): string => `-m bpf --object-pinned ${program} -j RETURN`;

function redirection({ passes, passes6 = [] }: { passes: readonly string[]; passes6?: readonly string[] }, family: Family, port: number, hostMatch?: string): string[] {
  return [...passes, ...(family === 'ip6' ? passes6 : []), ...(hostMatch === undefined ? [] : [passesHost(hostMatch)]), `-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j REDIRECT --to-ports ${port}`];
}

/** The nat table out of `iptables-save`'s output. */
export function parseSave(text: string): Rules {
  const found: Rules = { tableExists: false, rules: [], chains: [] };
  let table = '';
  for (const line of text.split('\n')) {
    if (line.startsWith('*')) table = line.slice(1);
    if (table !== 'nat') continue;
    found.tableExists = true;
    if (line.startsWith('-A ')) found.rules.push(line);
    // Chains that users made have no policy: `:NAME - [0:0]`.
    const chain = /^:(\S+) - /.exec(line);
    if (chain?.[1] !== undefined) found.chains.push(chain[1]);
  }
  return found;
}

/** Whether iptables can be used at all on this machine; the reason if not. */
export async function iptablesProblem(execPath = join(buildDir, 'underpass-exec')): Promise<string | undefined> {
  try {
    await access(execPath, constants.X_OK);
    await new IptablesCapture('/proc/self/ns/net', { execPath }).backend();
    return undefined;
  } catch (error) {
    return errorMessage(error);
  }
}
