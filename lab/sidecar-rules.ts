/** Writes Istio's iptables rules into a pod's network namespace, as its init container does. */
import { INBOUND_PASSTHROUGH_SOURCE, istioRestoreInput, type CaptureSettings } from '../common/istio-iptables.js';
import { run } from '../common/process.js';
import { execHelper } from './names.js';

export async function writeSidecarRules(netns: string, ipv6: boolean, capture: CaptureSettings): Promise<void> {
  const inPod = (command: readonly string[], input?: string): Promise<unknown> =>
    run(execHelper, ['--netns', netns, '--', ...command], { ...(input === undefined ? {} : { input }), timeoutMs: 10_000 });
  await inPod(['iptables-restore', '--noflush'], istioRestoreInput({ family: 'ipv4', capture }));
  if (!ipv6) return;
  await inPod(['ip6tables-restore', '--noflush'], istioRestoreInput({ family: 'ipv6', capture }));
  // 127.0.0.6 belongs to every lo; its IPv6 counterpart has to be added, as istio-iptables does.
  await inPod(['ip', '-6', 'addr', 'add', INBOUND_PASSTHROUGH_SOURCE.ipv6, 'dev', 'lo', 'nodad']);
}
