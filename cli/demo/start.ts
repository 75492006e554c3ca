/** Step 2: pods, control plane, agent and Envoy; the self-test; short-circuits after probation. */
import type { AgentStatus } from '../../agent/index.js';
import { waitFor } from '../../common/retry.js';
import { requestsInPod } from './routing.js';
import type { Proof, Stage } from './stage.js';

const START_TIMEOUT_MS = 180_000;
const PROBATION_TIMEOUT_MS = 20_000;

export async function showStart(stage: Stage): Promise<void> {
  const { lab, node, narrator, signal, meshed } = stage;
  narrator.command(`underpass node --embedded-pilot --lab ${lab.names.lab} --instance ${node.instance}`);
  node.start();
  const status = await node.waitFor('the agent', (now) => now.ready && now.pods.length > 0 && now.pods.every((pod) => pod.settled), { timeoutMs: START_TIMEOUT_MS, signal });
  await lab.whenReady({ timeoutMs: START_TIMEOUT_MS, signal, sidecars: true });
  const enrolled = status.pods.filter((pod) => pod.mode !== 'off');
  narrator.prove(enrolled.length > 0, `agent ${status.pid} and Envoy ${status.proxy.envoy.pid ?? ''} serve ${enrolled.length} pods: ${[...new Set(enrolled.map((pod) => `${pod.namespace} by ${pod.way}${pod.mode === 'sidecar' ? ' to its sidecars' : ''}`))].join(', ')}`);
  const selfTest = selfTestProof(status);
  narrator.prove(selfTest.holds, selfTest.text);
  for (const line of selfTest.notes) narrator.say(line);
  if (!status.acceleration.on) return;

  const first = await shortCircuited(stage);
  let requests = 0;
  let seen = first;
  await waitFor(
    'short-circuits after probation',
    async () => {
      const result = await requestsInPod(stage, meshed, ['--count', '16', '--connections', '2', '--new-connection-each']);
      requests += result.requests;
      seen = await shortCircuited(stage);
      narrator.progress(`${requests} requests on a connection each, ${seen - first} connections short-circuited`);
      return seen > first;
    },
    { timeoutMs: PROBATION_TIMEOUT_MS, signal },
  ).catch((error: unknown) => {
    if (signal.aborted) throw error;
  });
  const { probation } = await node.status();
  const eventDriven = (kind: 'listener' | 'client'): number => probation.filter((entry) => entry.kind === kind && entry.verdict === 'event-driven').length;
  narrator.prove(seen > first, `acceleration is on after probation: within ${requests} requests on a connection each, ${eventDriven('client')} client programs and ${eventDriven('listener')} listeners were seen to be event-driven`);
}

/**
 * The self-test ran, and the node does what its verdict allows and no more: nothing is short-circuited or captured by BPF
 * where a check failed, and where none did, both are in use.
 */
export function selfTestProof({ selfTest, acceleration, redirection, pods }: Pick<AgentStatus, 'selfTest' | 'acceleration' | 'redirection' | 'pods'>): Proof & { notes: string[] } {
  if (!('checks' in selfTest)) {
    const outcome = redirection.bpfProblem ?? 'it has no result';
    const withoutBpf = redirection.bpfProblem !== undefined && !acceleration.on && pods.every(({ way }) => way !== 'bpf');
    return { holds: withoutBpf, text: `no self-test, and no BPF in use: ${outcome}`, notes: [] };
  }
  const { checks, restrictions } = selfTest;
  const known: readonly string[] = restrictions;
  const passed = checks.filter(({ ok }) => ok);
  const failed = checks.filter(({ ok, name }) => !ok && !known.some((restriction) => name.startsWith(restriction)));
  const obeyed =
    acceleration.on === selfTest.acceleration.ok && (redirection.bpfProblem === undefined) === selfTest.capture.ok &&
    pods.every(({ way }) => way !== 'bpf' || selfTest.capture.ok);
  const explained = failed.length === 0 ? selfTest.acceleration.ok && selfTest.capture.ok : !selfTest.acceleration.ok || !selfTest.capture.ok;
  const names = restrictions.join(' and ');
  const notes = [
    ...(selfTest.capture.ok ? [] : [`no capture by BPF here: ${selfTest.capture.reason}`]),
    ...(selfTest.acceleration.ok ? [] : [`short-circuits stay off here: ${selfTest.acceleration.reason}`]),
  ];
  return {
    holds: passed.length > 0 && obeyed && explained,
    text: `self-test: ${passed.length} checks passed${failed.length > 0 ? `, ${failed.map(({ name }) => name).join(', ')} failed` : ''}${names ? `; ${names} fail as on each kernel known, so programs that use them stay on plain TCP` : ''}${obeyed ? '' : '; the node does not do what the verdict says'}`,
    notes,
  };
}

async function shortCircuited({ node }: Stage): Promise<number> {
  return Number((await node.counters()).node['connections_short_circuited'] ?? 0);
}
