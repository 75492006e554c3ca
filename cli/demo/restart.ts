/** Step 5: the agent dies under load and comes back; kernel and Envoy have gone on. */
import { processStartTime } from '../../common/process-id.js';
import { sleep } from '../../common/retry.js';
import { KEPT, PodLoad } from './load.js';
import type { Stage } from './stage.js';

const START_TIMEOUT_MS = 180_000;
/** How long the node is without an agent. */
const WITHOUT_AGENT_MS = 2_000;
const AFTERWARDS_MS = 1_000;

export async function showRestart(stage: Stage): Promise<void> {
  const { lab, node, narrator, signal, meshed } = stage;
  const client = lab.pod(meshed, 'client');
  const before = await node.status();
  const envoy = before.proxy.envoy.pid ?? 0;
  const envoyStart = processStartTime(envoy);
  const load = new PodLoad(lab, client);
  let ended = false;
  try {
    narrator.say(`load in pod ${meshed}/${client.name}: ${KEPT} kept connections, and 2 clients that open one a request`);
    await sleep(AFTERWARDS_MS, signal);
    narrator.command(`kill -KILL ${node.pid ?? ''}`);
    const countBefore = load.requests;
    await node.kill();
    await sleep(WITHOUT_AGENT_MS, signal);
    narrator.prove(load.failed === 0 && load.requests > countBefore, `${load.requests - countBefore} requests in ${WITHOUT_AGENT_MS / 1000} s without an agent, ${load.failed} failed${load.failed > 0 ? `: ${load.firstFailure}` : ''}`);
    narrator.command(`underpass node --embedded-pilot --lab ${lab.names.lab} --instance ${node.instance}`);
    node.start();
    const after = await node.waitFor('the new agent', (status) => status.ready && status.pods.length > 0 && status.pods.every((pod) => pod.settled), { timeoutMs: START_TIMEOUT_MS, signal });
    await sleep(AFTERWARDS_MS, signal);
    const same = after.proxy.envoy.pid === envoy && processStartTime(envoy) === envoyStart;
    narrator.prove(same && after.proxy.envoy.adopted === true, `agent ${before.pid} is gone, agent ${after.pid} has taken over Envoy ${after.proxy.envoy.pid ?? '(none)'}${same ? ', the same process' : `, not ${envoy}`}`);
    const report = await load.stop();
    ended = true;
    narrator.prove(report.failed === 0, `${report.requests} requests in all, ${report.failed} failed${report.failed > 0 ? `: ${report.firstFailure}` : ''}`);
    narrator.prove(report.keptOpened === report.kept, `the ${report.kept} kept connections lived through it${report.keptOpened === report.kept ? '' : ` (${report.keptOpened - report.kept} were opened anew)`}`);
  } finally {
    if (!ended) await load.stop().catch(() => undefined);
  }
}
