/**
 * Network namespaces of nodes and pods. A node's namespace holds a bridge with its pods; the nodes' namespaces meet on a
 * bridge in a namespace of its own. The machine's own namespace gets no link, address or rule.
 */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { createHash } from 'node:crypto';
import { errorCode } from '../common/errors.js';
import { run } from '../common/process.js';
import type { DualAddress, NodeAddresses } from './addresses.js';
import { NETNS_DIR, netnsPath, type LabNames } from './names.js';

const BRIDGE = 'cni0';

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

/** Unmounts and removes a named namespace with all that is in it; fine when it is not there. */
export async function removeNetns(name: string): Promise<void> {
  const path = netnsPath(name);
  // umount(8) says 32 for what is not mounted. The name has to go even then.
  await run('umount', ['--lazy', path], { okCodes: [0, 1, 32] });
  try {
    rmSync(path); // detaches what other mount namespaces still hold of it
  } catch (error) {
    if (errorCode(error) !== 'ENOENT') throw error;
  }
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

export class LabNetwork {
  readonly #nodes = new Map<string, NodeAddresses>();

  /**
   * @param ipv6 whether nodes and pods have IPv6 addresses too
   * @param recordNetns told each name before the namespace is made, so that a crash leaves none that nobody knows
   */
  constructor(
    readonly names: LabNames,
    readonly ipv6: boolean,
    readonly recordNetns: (name: string) => void,
  ) {}

  async #make(netns: string, sysctls: string): Promise<void> {
    this.recordNetns(netns);
    await makeNetns(netns, this.ipv6 ? IPV6_SYSCTLS + sysctls : sysctls);
  }

  async #ip(netns: string, lines: readonly string[]): Promise<void> {
    const wanted = lines.filter((line) => this.ipv6 || !line.includes('::'));
    await run('ip', ['-n', netns, '-batch', '-'], { input: wanted.join('\n') + '\n' });
  }

  async start(): Promise<void> {
    const fabric = this.names.fabricNetns();
    await this.#make(fabric, NODE_SYSCTLS);
    await this.#ip(fabric, ['link set lo up', 'link add br0 type bridge', 'link set br0 up']);
  }

  async addNode(name: string, addresses: NodeAddresses): Promise<void> {
    const netns = this.names.nodeNetns(name);
    const fabric = this.names.fabricNetns();
    await this.#make(netns, NODE_SYSCTLS);
    const uplink = linkName('node', name);
    await this.#ip(fabric, [
      `link add ${uplink} type veth peer name eth0 address ${macAddress(addresses.node.ipv4)} netns ${netns}`,
      `link set ${uplink} master br0 up`,
    ]);
    await this.#ip(netns, [
      'link set lo up',
      `link add ${BRIDGE} address ${macAddress(addresses.bridge.ipv4)} type bridge`,
      `addr add ${addresses.bridge.ipv4}/24 dev ${BRIDGE}`,
      `addr add ${addresses.bridge.ipv6}/64 dev ${BRIDGE} nodad`,
      `link set ${BRIDGE} up`,
      `addr add ${addresses.node.ipv4}/24 dev eth0`,
      `addr add ${addresses.node.ipv6}/64 dev eth0 nodad`,
      'link set eth0 up',
      ...[...this.#nodes.values()].flatMap((other) => routesTo(other)),
    ]);
    for (const other of this.#nodes.keys()) await this.#ip(this.names.nodeNetns(other), routesTo(addresses));
    this.#nodes.set(name, addresses);
  }

  /** @returns the name of the pod's namespace */
  async addPod(node: string, namespace: string, pod: string, address: DualAddress): Promise<string> {
    const netns = this.names.podNetns(namespace, pod);
    const gateway = this.#nodes.get(node)?.bridge;
    if (!gateway) throw new Error(`adding pod ${namespace}/${pod}: there is no node ${node}`);
    await this.#make(netns, POD_SYSCTLS);
    const host = linkName('veth', netns);
    await this.#ip(this.names.nodeNetns(node), [
      `link add ${host} type veth peer name eth0 address ${macAddress(address.ipv4)} netns ${netns}`,
      `link set ${host} master ${BRIDGE} up`,
    ]);
    await this.#ip(netns, [
      'link set lo up',
      `addr add ${address.ipv4}/24 dev eth0`,
      `addr add ${address.ipv6}/64 dev eth0 nodad`,
      'link set eth0 up',
      `route add default via ${gateway.ipv4}`,
      `route add default via ${gateway.ipv6}`,
    ]);
    return netns;
  }

  /** The pod's link goes first: its namespace may live on for as long as somebody has it open. */
  async removePod(node: string, netns: string): Promise<void> {
    await run('ip', ['-n', this.names.nodeNetns(node), 'link', 'del', linkName('veth', netns)], { okCodes: [0, 1] });
    await removeNetns(netns);
  }
}

function routesTo(node: NodeAddresses): string[] {
  return [`route add ${node.podCidrs.ipv4} via ${node.node.ipv4}`, `route add ${node.podCidrs.ipv6} via ${node.node.ipv6}`];
}
