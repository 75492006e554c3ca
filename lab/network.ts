/**
 * Network namespaces of nodes and pods. A node's namespace holds a bridge with its pods; the nodes' namespaces meet on a
 * bridge in a namespace of its own. The machine's own namespace gets no link, address or rule.
 */
import { existsSync, mkdirSync, readdirSync, readlinkSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createHash } from 'node:crypto';
import { errorCode, UnderpassError } from '../common/errors.js';
import { run } from '../common/process.js';
import { loadBalancerCidrs, MAX_CLUSTERS, NODES_PER_CLUSTER, nodeAddresses, type DualAddress, type NodeAddresses } from './addresses.js';
import { BOTH_FAMILIES, type Family } from './families.js';
import { NETNS_DIR, netnsPath, type LabNames } from './names.js';

const BRIDGE = 'cni0';

/** On each node's bridge, and on its uplink: what leads to a pod whose family the node itself does not have. */
const LINK_LOCAL_GATEWAY = 'fe80::1';
const linkLocal = ({ index }: NodeAddresses): string => `fe80::${(index + 2).toString(16)}`;
/** The same for IPv4: what the node's own programs, which probe, call IPv4 pods from, and nobody's beyond the node. */
const LINK_LOCAL_GATEWAY4 = '169.254.1.1';

// The lab gives out each address once: no second's wait for duplicate address detection.
const IPV6_SYSCTLS = `
echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6
echo 0 >/proc/sys/net/ipv6/conf/default/disable_ipv6
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
`;

// A node forwards; frames between its pods do not pass the node's iptables on their way over the bridge.
const NODE_SYSCTLS = `
echo 1 >/proc/sys/net/ipv4/ip_forward
[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 >$f; done
`;

const NO_IPV6_SYSCTLS = `
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
`;

// As container runtimes do: a pod may bind low ports without being root.
const POD_SYSCTLS = `
echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start
`;

/**
 * Makes a named network namespace. Not by `ip netns add`, which turns /run/netns into a shared mount that stays.
 */
async function makeNetns(name: string, sysctls: string): Promise<void> {
  mkdirSync(NETNS_DIR, { recursive: true });
  writeFileSync(netnsPath(name), '', { flag: 'wx', mode: 0o444 });
  await run('unshare', [`--net=${netnsPath(name)}`, 'sh', '-ec', sysctls]);
}

/**
 * Ends every process in these network namespaces. A pod without a cgroup of its own has nothing else by which those are found that its
 * first program started; they would live on with its standard output in their hands, for which the lab's process waits.
 */
export function endProcessesIn(names: readonly string[]): void {
  const namespaces = new Set(names.map(netnsPath).filter(existsSync).map((path) => `net:[${statSync(path).ino}]`));
  const members = (): number[] => readdirSync('/proc').filter((entry) => /^\d+$/.test(entry)).map(Number).filter((pid) => namespaces.has(namespaceOf(pid)));
  const ended = new Set<number>();
  // Again, since one may have started another meanwhile.
  for (let pids = members(); pids.length > 0; pids = members().filter((pid) => !ended.has(pid))) {
    for (const pid of pids) {
      ended.add(pid);
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // ended by itself
      }
    }
  }
}

/** As /proc calls it; '' of a process that has ended. */
function namespaceOf(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/ns/net`);
  } catch {
    return '';
  }
}

/** Unmounts and removes a named namespace with all that is in it; fine when it is not there. */
export async function removeNetns(name: string): Promise<void> {
  const path = netnsPath(name);
  // umount(8) says 32 for what is not mounted. The name has to go even then.
  await run('umount', ['--lazy', path], { okCodes: [0, 1, 32] });
  try {
    rmSync(path); // detaches what other mount namespaces still hold of it
  } catch (error) {
    if (errorCode(error) === 'EBUSY') await removeCovered(path);
    else if (errorCode(error) !== 'ENOENT') throw error;
  }
}

/**
 * The first `ip netns add` on a machine, and the first pod of a container runtime, mount /run/netns over itself with copies of what is
 * mounted in there, so that a namespace made before is mounted once more below, where no path leads. To remove its name is refused
 * wherever that mount is visible, and takes it along everywhere else: so in a mount namespace of its own, which is without both.
 */
async function removeCovered(path: string): Promise<void> {
  const script = 'while umount --lazy "$1" 2>/dev/null || umount --lazy "$2" 2>/dev/null; do :; done; rm -f -- "$1"';
  await run('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', script, 'sh', path, NETNS_DIR]);
}

/** A link's name from what it belongs to, within the 15 characters that the kernel allows. */
function linkName(prefix: string, owner: string): string {
  return (
    prefix +
    createHash('sha256')
      .update(owner)
      .digest('hex')
      .slice(0, 15 - prefix.length)
  );
}

/**
 * As CNI's bridge plug-in had it: the hardware address follows from the IP, so that nobody's neighbour table is ever wrong.
 * A bridge without one of its own takes the lowest of its ports' and changes it as pods come and go.
 */
function macAddress(ipv4: string): string {
  return ['0a', '58', ...ipv4.split('.').map((byte) => Number(byte).toString(16).padStart(2, '0'))].join(':');
}

/** What pods send to other clusters' load balancers leaves the node under its own address: there is no way back to the pods' from there. */
async function masqueradeUplink(netns: string): Promise<void> {
  const [first, last] = [loadBalancerCidrs(MAX_CLUSTERS - 1), loadBalancerCidrs(0)].map(({ ipv4, ipv6 }) => ({ ipv4: ipv4.replace('/24', ''), ipv6: ipv6.replace('::/64', '') })) as [DualAddress, DualAddress];
  const rules = [
    'table inet underpass_lab_uplink {',
    '  chain sources {',
    '    type nat hook postrouting priority 110;',
    `    ip daddr ${first.ipv4}-${last.ipv4.replace(/0$/, '255')} masquerade`,
    `    ip6 daddr ${first.ipv6}::-${last.ipv6}:ffff:ffff:ffff:ffff masquerade`,
    '  }',
    '}',
    '',
  ].join('\n');
  await run('nsenter', [`--net=${netnsPath(netns)}`, 'nft', '-f', '-'], { input: `add table inet underpass_lab_uplink\ndelete table inet underpass_lab_uplink\n${rules}` });
}

export interface JoinedNetworks {
  /** Networks of labs that are up and whose nodes meet on one fabric, the one that made it first. */
  peers: readonly LabNetwork[];
  /** A network of its own: other clusters reach its load balancers, not its pods, nor does it reach theirs. */
  isolated: boolean;
}

export class LabNetwork {
  readonly #nodes = new Map<string, NodeAddresses>();
  /** Of nodes that have one only. */
  readonly #families = new Map<string, readonly Family[]>();
  /** Position among the clusters of a mesh: each has addresses of its own. */
  readonly index: number;

  /**
   * @param ipv6 whether nodes and pods have IPv6 addresses too
   * @param recordNetns told each name before the namespace is made, so that a crash leaves none that nobody knows
   */
  constructor(
    readonly names: LabNames,
    readonly ipv6: boolean,
    readonly recordNetns: (name: string) => void,
    readonly joined: JoinedNetworks = { peers: [], isolated: false },
  ) {
    this.index = Math.max(-1, ...joined.peers.map(({ index }) => index)) + 1;
    if (this.index >= MAX_CLUSTERS) throw new UnderpassError('UNDERPASS_LAB_ADDRESSES', `joining lab ${names.lab} to others: a mesh has ${MAX_CLUSTERS} of them at most`);
  }

  /** The namespace in which nodes meet: the first lab's of a mesh. */
  get #fabric(): string {
    return this.joined.peers[0]?.fabricNetns ?? this.names.fabricNetns();
  }

  get fabricNetns(): string {
    return this.#fabric;
  }

  nodeAddresses(): NodeAddresses {
    if (this.#nodes.size >= NODES_PER_CLUSTER && this.joined.peers.length > 0) throw new UnderpassError('UNDERPASS_LAB_ADDRESSES', `numbering a node of lab ${this.names.lab}: one of several clusters has ${NODES_PER_CLUSTER} at most`);
    return nodeAddresses(this.index * NODES_PER_CLUSTER + this.#nodes.size);
  }

  async #make(netns: string, sysctls: string): Promise<void> {
    this.recordNetns(netns);
    await makeNetns(netns, this.ipv6 ? IPV6_SYSCTLS + sysctls : sysctls);
  }

  async #ip(netns: string, lines: readonly string[]): Promise<void> {
    const wanted = lines.filter((line) => this.ipv6 || !line.includes('::'));
    await run('ip', ['-n', netns, '-batch', '-'], { input: wanted.join('\n') + '\n' });
  }

  async start(): Promise<void> {
    if (this.joined.peers.length > 0) return;
    const fabric = this.names.fabricNetns();
    await this.#make(fabric, NODE_SYSCTLS);
    await this.#ip(fabric, ['link set lo up', 'link add br0 type bridge', 'link set br0 up']);
  }

  /** @param families of the node's own addresses; its pods' are theirs, whatever the node has */
  async addNode(name: string, addresses: NodeAddresses, families: readonly Family[] = BOTH_FAMILIES): Promise<void> {
    const netns = this.names.nodeNetns(name);
    const fabric = this.#fabric;
    await this.#make(netns, NODE_SYSCTLS);
    const uplink = linkName('node', netns);
    await this.#ip(fabric, [
      `link add ${uplink} type veth peer name eth0 address ${macAddress(addresses.node.ipv4)} netns ${netns}`,
      `link set ${uplink} master br0 up`,
    ]);
    await this.#ip(netns, [
      'link set lo up',
      `link add ${BRIDGE} address ${macAddress(addresses.bridge.ipv4)} type bridge`,
      ...(families.includes('IPv4') ? [`addr add ${addresses.bridge.ipv4}/24 dev ${BRIDGE}`, `addr add ${addresses.node.ipv4}/24 dev eth0`] : []),
      ...(families.includes('IPv6') ? [`addr add ${addresses.bridge.ipv6}/64 dev ${BRIDGE} nodad`, `addr add ${addresses.node.ipv6}/64 dev eth0 nodad`] : []),
      `addr add ${LINK_LOCAL_GATEWAY}/64 dev ${BRIDGE} nodad`,
      `addr add ${linkLocal(addresses)}/64 dev eth0 nodad`,
      `link set ${BRIDGE} up`,
      'link set eth0 up',
      ...(families.includes('IPv4') ? [] : [`addr add ${LINK_LOCAL_GATEWAY4}/32 dev ${BRIDGE}`, `route add ${addresses.podCidrs.ipv4} dev ${BRIDGE} src ${LINK_LOCAL_GATEWAY4}`]),
      ...(families.includes('IPv6') ? [] : [`route add ${addresses.podCidrs.ipv6} dev ${BRIDGE}`]),
      ...[...this.#nodes].flatMap(([other, its]) => routesTo(its, this.#common(other, families))),
    ]);
    for (const other of this.#nodes.keys()) await this.#ip(this.names.nodeNetns(other), routesTo(addresses, this.#common(other, families)));
    if (families.length < 2) this.#families.set(name, families);
    if (this.joined.peers.length > 0) await masqueradeUplink(netns);
    for (const peer of this.joined.peers) await this.#link(peer, netns, addresses);
    this.#nodes.set(name, addresses);
  }

  #common(node: string, families: readonly Family[]): readonly Family[] {
    return families.filter((family) => (this.#families.get(node) ?? BOTH_FAMILIES).includes(family));
  }

  /** Routes between a new node and another cluster's: to its load balancers always, to its pods when there is one network. */
  async #link(peer: LabNetwork, netns: string, addresses: NodeAddresses): Promise<void> {
    const [door] = peer.#nodes.values();
    if (door) await this.#ip(netns, routesVia(loadBalancerCidrs(peer.index), door));
    const first = this.#nodes.size === 0;
    const flat = !this.joined.isolated && !peer.joined.isolated;
    for (const [name, other] of peer.#nodes) {
      if (flat) await this.#ip(netns, routesTo(other));
      if (first) await masqueradeUplink(peer.names.nodeNetns(name));
      await this.#ip(peer.names.nodeNetns(name), [...(flat ? routesTo(addresses) : []), ...(first ? routesVia(loadBalancerCidrs(this.index), addresses) : [])]);
    }
  }

  /** @returns the name of the pod's namespace */
  async addPod(node: string, namespace: string, pod: string, address: DualAddress, families: readonly Family[] = BOTH_FAMILIES): Promise<string> {
    const netns = this.names.podNetns(namespace, pod);
    const gateway = this.#nodes.get(node)?.bridge;
    const nodes = this.#families.get(node) ?? BOTH_FAMILIES;
    if (!gateway) throw new Error(`adding pod ${namespace}/${pod}: there is no node ${node}`);
    await this.#make(netns, families.includes('IPv6') ? POD_SYSCTLS : POD_SYSCTLS + (this.ipv6 ? NO_IPV6_SYSCTLS : ''));
    const host = linkName('veth', netns);
    await this.#ip(this.names.nodeNetns(node), [
      `link add ${host} type veth peer name eth0 address ${macAddress(address.ipv4)} netns ${netns}`,
      `link set ${host} master ${BRIDGE} up`,
    ]);
    await this.#ip(netns, [
      'link set lo up',
      ...(families.includes('IPv4') ? [`addr add ${address.ipv4}/24 dev eth0`] : []),
      ...(families.includes('IPv6') ? [`addr add ${address.ipv6}/64 dev eth0 nodad`] : []),
      'link set eth0 up',
      ...(families.includes('IPv4') ? defaultRoute4(nodes.includes('IPv4'), gateway) : []),
      ...(families.includes('IPv6') ? [nodes.includes('IPv6') ? `route add default via ${gateway.ipv6}` : `route add default via ${LINK_LOCAL_GATEWAY} dev eth0`] : []),
    ]);
    return netns;
  }

  /** The pod's link goes first: its namespace may live on for as long as somebody has it open. */
  async removePod(node: string, netns: string): Promise<void> {
    await run('ip', ['-n', this.names.nodeNetns(node), 'link', 'del', linkName('veth', netns)], { okCodes: [0, 1] });
    await removeNetns(netns);
  }
}

function defaultRoute4(nodeHasIt: boolean, { ipv4 }: DualAddress): string[] {
  if (nodeHasIt) return [`route add default via ${ipv4}`];
  return [`route add ${LINK_LOCAL_GATEWAY4} dev eth0`, `route add default via ${LINK_LOCAL_GATEWAY4} dev eth0`];
}

/** @param families that both nodes have */
function routesTo(node: NodeAddresses, families: readonly Family[] = BOTH_FAMILIES): string[] {
  const [ipv4, ipv6] = routesVia(node.podCidrs, node) as [string, string];
  return [
    families.includes('IPv4') ? ipv4 : `route replace ${node.podCidrs.ipv4} via inet6 ${linkLocal(node)} dev eth0`,
    families.includes('IPv6') ? ipv6 : `route replace ${node.podCidrs.ipv6} via ${linkLocal(node)} dev eth0`,
  ];
}

/** `replace`: a lab of the same place may have come and gone. */
function routesVia(cidrs: DualAddress, { node }: NodeAddresses): string[] {
  return [`route replace ${cidrs.ipv4} via ${node.ipv4}`, `route replace ${cidrs.ipv6} via ${node.ipv6}`];
}
