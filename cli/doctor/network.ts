/** Rows about namespaces, packet filters and what else the network side offers. */
import { readFileSync } from 'node:fs';
import { errorCode, errorMessage } from '../../common/errors.js';
import { istioRestoreInput } from '../../common/istio-iptables.js';
import { run } from '../../common/process.js';
import type { Capabilities } from './kernel.js';
import type { Row, State } from './report.js';

const GROUP = 'Network';
const TIMEOUT_MS = 10_000;

/** The first line that a program prints, or undefined when there is no such program. */
export async function firstLine(command: string, args: readonly string[]): Promise<string | undefined> {
  try {
    const { stdout, stderr } = await run(command, args, { timeoutMs: TIMEOUT_MS, okCodes: [0, 1] });
    return (stdout || stderr).trim().split('\n')[0] ?? '';
  } catch (error) {
    if (errorCode((error as { cause?: unknown }).cause) === 'ENOENT') return undefined;
    return errorMessage(error).split('\n')[0];
  }
}

/** Puts the fallback's rules into a namespace that ends with the command: nothing of the machine's own tables is touched. */
async function rulesWork(restore: string, family: 'ipv4' | 'ipv6'): Promise<string | undefined> {
  try {
    const input = istioRestoreInput({ family, proxy: { mark: 0x539 }, inbound: true });
    await run('unshare', ['--net', restore, '--noflush'], { input, timeoutMs: TIMEOUT_MS });
    return undefined;
  } catch (error) {
    return errorMessage(error).replace(/^.*?exit \d+: /s, '').split('\n').slice(-1)[0] ?? 'failed';
  }
}

export async function networkRows(capabilities: Capabilities): Promise<Row[]> {
  const rows: Row[] = [];
  const row = (id: string, name: string, need: Row['need'], state: State, detail: string, cost: string): void => {
    rows.push({ id, group: GROUP, name, need, state, detail, ...(state === 'yes' ? {} : { cost }) });
  };

  let netns: string | undefined;
  if (!capabilities.canEnterNetns) netns = 'this process may not make one (CAP_SYS_ADMIN)';
  else {
    try {
      await run('unshare', ['--net', 'true'], { timeoutMs: TIMEOUT_MS });
    } catch (error) {
      netns = errorMessage(error);
    }
  }
  row('network.namespaces', 'network namespaces', 'base', netns === undefined ? 'yes' : 'no', netns ?? 'made and entered one', 'neither pods\' namespaces nor the lab\'s can be used');

  for (const [command, family, need] of [['iptables', 'ipv4', 'iptables'], ['ip6tables', 'ipv6', 'extra']] as const) {
    const version = await firstLine(command, ['--version']);
    const name = family === 'ipv4' ? 'iptables redirection' : 'the same for IPv6';
    const cost = family === 'ipv4' ? 'no fallback where BPF can\'t be used' : 'the fallback captures IPv4 only';
    if (version === undefined) row(`network.${command}`, name, need, 'no', `there is no ${command}`, `${cost}: install iptables`);
    else if (netns !== undefined) row(`network.${command}`, name, need, 'no', `${version}; not tried, since no namespace can be made`, cost);
    else {
      const problem = await rulesWork(`${command}-restore`, family);
      row(`network.${command}`, name, need, problem === undefined ? 'yes' : 'no', `${version}; ${problem === undefined ? 'the rules went into a namespace of their own' : `the rules were refused: ${problem}`}`, cost);
    }
  }
  const nft = await firstLine('nft', ['--version']);
  row('network.nft', 'nft', 'extra', nft === undefined ? 'no' : 'yes', nft ?? 'there is no nft', 'an emptied nat table of iptables-nft is left in the pod when it leaves the fallback');

  let protocols = '';
  try {
    protocols = readFileSync('/proc/sys/net/ipv4/tcp_available_ulp', 'utf8').trim();
  } catch {
    // an old kernel: none
  }
  const ktls = protocols.split(' ').includes('tls');
  row('network.ktls', 'kernel TLS', 'extra', ktls ? 'yes' : 'no', `tcp_available_ulp: ${protocols || 'none'}`, 'TLS between nodes is encrypted in Envoy rather than in the kernel (modprobe tls); same-node traffic is not concerned');

  let ipv6 = false;
  try {
    ipv6 = readFileSync('/proc/net/if_inet6', 'utf8') !== '';
  } catch {
    // switched off
  }
  row('network.ipv6', 'IPv6', 'extra', ipv6 ? 'yes' : 'no', ipv6 ? 'switched on' : 'no interface has an IPv6 address', 'pods get IPv4 addresses only');
  return rows;
}
