/** What an agent can't do without. */
import { readFileSync } from 'node:fs';
import { UnderpassError } from '../../common/errors.js';

/** linux/capability.h. BPF needs no more than these: CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON. */
const CAPABILITIES = [
  { name: 'CAP_SYS_ADMIN', bit: 21n, why: 'to enter and pin the network namespaces of pods, and for BPF' },
  { name: 'CAP_NET_ADMIN', bit: 12n, why: 'for iptables, and for Envoy\'s sockets in the namespaces of pods' },
];

/**
 * Without these neither BPF nor iptables nor another namespace can be reached, and nothing would be left to do.
 * @throws UnderpassError `UNDERPASS_MISSING_CAPABILITY`
 */
export function requirePrivileges(): void {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
  const missing = effective === undefined ? [] : CAPABILITIES.filter(({ bit }) => ((BigInt(`0x${effective}`) >> bit) & 1n) === 0n);
  if (missing.length === 0) return;
  throw new UnderpassError('UNDERPASS_MISSING_CAPABILITY', `starting the agent: it lacks ${missing.map(({ name, why }) => `${name} (${why})`).join(' and ')}`, {
    hint: process.getuid?.() === 0 ? 'run it as a privileged container, or give it these capabilities' : 'run it as root, e.g. by sudo',
  });
}
