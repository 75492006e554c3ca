/** Step 2: pods, control plane, agent and Envoy; the self-test; short-circuits after probation. */
import { waitFor } from '../../common/retry.js';
import { requestsInPod } from './routing.js';
import type { Stage } from './stage.js';

const START_TIMEOUT_MS = 60_000;
const PROBATION_TIMEOUT_MS = 20_000;

export async function showStart(stage: Stage): Promise<void> {
  const { lab, node, narrator, signal, meshed } = stage;
  narrator.command(`underpass node --embedded-pilot --lab ${lab.names.lab} --instance ${node.instance}`);
  node.start();
  const status = await node.waitFor('the agent', (now) => now.ready && now.pods.length > 0 && now.pods.every((pod) => pod.settled), { timeoutMs: START_TIMEOUT_MS, signal });
  await lab.whenReady({ timeoutMs: START_TIMEOUT_MS, signal, sidecars: true });
  const enrolled = status.pods.filter((pod) => pod.mode !== 'off');
  narrator.prove(enrolled.length > 0, `agent ${status.pid} and Envoy ${status.proxy.envoy.pid ?? ''} serve ${enrolled.length} pods: ${[...new Set(enrolled.map((pod) => `${pod.namespace} by ${pod.way}${pod.mode === 'sidecar' ? ' to its sidecars' : ''}`))].join(', ')}`);
  if ('checks' in status.selfTest) {
    const { checks, acceleration, capture, restrictions } = status.selfTest;
    const known: readonly string[] = restrictions;
    const failed = checks.filter(({ ok, name }) => !ok && !known.some((restriction) => name.startsWith(restriction)));
    const names = restrictions.join(' and ');
    narrator.prove(true, `self-test: ${checks.filter(({ ok }) => ok).length} checks passed${failed.length > 0 ? `, ${failed.map(({ name }) => name).join(', ')} failed` : ''}${names ? `; ${names} fail as on each kernel known, so programs that use them stay on plain TCP` : ''}`);
    if (!capture.ok) narrator.say(`no capture by BPF here: ${capture.reason ?? ''}`);
    if (!acceleration.ok) narrator.say(`short-circuits stay off here: ${acceleration.reason ?? ''}`);
  }
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

async function shortCircuited({ node }: Stage): Promise<number> {
  return Number((await node.counters()).node['connections_short_circuited'] ?? 0);
}
