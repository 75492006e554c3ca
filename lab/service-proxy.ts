/**
 * kube-proxy's part, for pods without a mesh: cluster IPs become endpoints by nftables in each pod's own namespace. The nat
 * chain stands at priority -90, after iptables' (-100): the first that translates a connection wins, so Istio's REDIRECT
 * takes what it wants and only the rest, e.g. a sidecar's own pass-through to a cluster IP, comes here.
 */
import { run } from '../common/process.js';
import { coalesce } from './coalesce.js';
import { execHelper } from './names.js';

/** A pod with this annotation set to `none` gets no rule at all: the bare path, for a benchmark's baseline. */
export const SERVICE_PROXY_ANNOTATION = 'lab.underpass.io/service-proxy';
export const NFT_TABLE = 'underpass_lab';

export interface VirtualAddress {
  /** For the comment, e.g. `shop/nginx:http`. */
  service: string;
  ip: string;
  port: number;
  protocol: 'tcp' | 'udp';
  endpoints: { ip: string; port: number }[];
  /** A load balancer's: reached from outside of the cluster too, by way of a node. */
  external?: boolean;
}

/** A pod's complete ruleset: applied in one transaction, it replaces the rules of the one before. */
export function serviceRules(addresses: readonly VirtualAddress[]): string {
  const { nat, filter } = rules(addresses);
  return ruleset([
    ['services', 'type nat hook output priority -90;', nat],
    ['refused', 'type filter hook output priority 0;', filter],
  ]);
}

/** A node's, for connections from other clusters to load balancers: the pod sees the node as their source, as is usual. */
export function nodeRules(addresses: readonly VirtualAddress[]): string {
  const { nat, filter } = rules(addresses.filter(({ external }) => external));
  return ruleset([
    ['balancers', 'type nat hook prerouting priority -90;', nat],
    ['sources', 'type nat hook postrouting priority 110;', ['ct status dnat masquerade']],
    ['unserved', 'type filter hook forward priority 0;', filter],
  ]);
}

function rules(addresses: readonly VirtualAddress[]): { nat: string[]; filter: string[] } {
  const nat: string[] = [];
  const filter: string[] = [];
  for (const { service, ip, port, protocol, endpoints } of addresses) {
    const v6 = ip.includes(':');
    const match = `${v6 ? 'ip6' : 'ip'} daddr ${ip} ${protocol} dport ${port}`;
    const comment = `comment "${service}"`;
    if (endpoints.length === 0) {
      // Refused at once, as kube-proxy does, rather than a time-out.
      filter.push(`${match} reject ${comment}`);
    } else if (endpoints.length === 1 && endpoints[0]) {
      nat.push(`${match} dnat ${v6 ? 'ip6' : 'ip'} to ${target(endpoints[0])} ${comment}`);
    } else {
      const choices = endpoints.map((endpoint, index) => `${index} : ${endpoint.ip} . ${endpoint.port}`).join(', ');
      nat.push(
        `${match} dnat ${v6 ? 'ip6' : 'ip'} addr . port to numgen random mod ${endpoints.length} map { ${choices} } ${comment}`,
      );
    }
  }
  return { nat, filter };
}

type Chain = [name: string, hook: string, rules: readonly string[]];

function ruleset(chains: readonly Chain[]): string {
  return [
    // Chains are emptied, not deleted: with no nat chain the kernel would drop its translation hooks for a moment.
    `add table inet ${NFT_TABLE}`,
    ...chains.map(([name, hook]) => `add chain inet ${NFT_TABLE} ${name} { ${hook} }`),
    ...chains.map(([name]) => `flush chain inet ${NFT_TABLE} ${name}`),
    `table inet ${NFT_TABLE} {`,
    ...chains.flatMap(([name, hook, content]) => [`  chain ${name} {`, `    ${hook}`, ...content.map((rule) => `    ${rule}`), '  }']),
    '}',
    '',
  ].join('\n');
}

function target({ ip, port }: { ip: string; port: number }): string {
  return ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`;
}

/** The rules of one pod's namespace; writes only what changed, one write at a time, the newest wins. */
export class ServiceProxy {
  #applied = '';
  #wanted = '';
  readonly #apply: () => Promise<void>;
  #running: Promise<void> | undefined;

  constructor(
    readonly netns: string,
    readonly onError: (error: unknown) => void,
  ) {
    this.#apply = coalesce(() => this.#write());
  }

  /** Resolves when these rules, or newer ones, are in force, or could not be written. */
  async set(rules: string): Promise<void> {
    this.#wanted = rules;
    await (this.#running = this.#apply());
  }

  /** Resolves when no write is under way. */
  async settled(): Promise<void> {
    await this.#running;
  }

  async #write(): Promise<void> {
    const rules = this.#wanted;
    if (rules === this.#applied) return;
    try {
      await run(execHelper, ['--netns', this.netns, '--', 'nft', '-f', '-'], { input: rules, timeoutMs: 10_000 });
      this.#applied = rules;
    } catch (error) {
      this.onError(error);
    }
  }
}
