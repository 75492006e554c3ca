/** Step 4: labels change while requests run; the namespace joins, changes its way and leaves, and nobody notices. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { PodStatus } from '../../agent/index.js';
import { sleep } from '../../common/retry.js';
import { runUnderpass } from '../node-process.js';
import { KEPT, PodLoad } from './load.js';
import { readExpectations, requestsInPod, type Expectation } from './routing.js';
import type { Stage } from './stage.js';

const SETTLE_TIMEOUT_MS = 30_000;
/** How long each state is held under load. */
const HOLD_MS = 1_500;
/** Connections that were being opened while a label changed have ended by then. */
const IN_FLIGHT_MS = 200;
const CHECK_REQUESTS = 40;
/** Where the proxy listens in a pod that is in the mesh. */
const OUTBOUND_PORT = 15001;

interface Seen {
  requests: number;
  captured: number;
  shortCircuited: number;
}

interface Toggle {
  label: string;
  /** What `underpass ps` has to say of each pod that is enrolled. */
  settled: (pod: PodStatus) => boolean;
  /** Whether the mesh's routes count for new connections. */
  inMesh: boolean;
  what: string;
  check: (seen: Seen) => { holds: boolean; text: string };
}

const joined = (pod: PodStatus): boolean => pod.state === 'enrolled' && pod.settled;

function togglesOf(options: { bpf: boolean; acceleration: boolean }): Toggle[] {
  const first = options.bpf ? 'bpf' : 'iptables';
  const captured = ({ captured: count, requests }: Seen): { holds: boolean; text: string } => ({ holds: count > 0, text: `${count} new connections were captured by BPF, ${requests} requests` });
  const notCaptured = ({ captured: count, requests }: Seen): { holds: boolean; text: string } => ({ holds: count === 0, text: `${count} new connections were captured by BPF, ${requests} requests` });
  const toggles: Toggle[] = [
    { label: 'underpass.io/mode=node', settled: (pod) => joined(pod) && pod.way === first, inMesh: true, what: 'joins the mesh', check: options.bpf ? captured : notCaptured },
  ];
  if (options.acceleration) {
    toggles.push(
      { label: 'underpass.io/acceleration=off', settled: (pod) => joined(pod) && pod.acceleration === 'off', inMesh: true, what: 'without short-circuits', check: ({ shortCircuited, requests }) => ({ holds: shortCircuited === 0, text: `${shortCircuited} new connections were short-circuited, ${requests} requests` }) },
      { label: 'underpass.io/acceleration=l4', settled: (pod) => joined(pod) && pod.acceleration === 'l4', inMesh: true, what: 'with short-circuits', check: ({ shortCircuited, requests }) => ({ holds: shortCircuited > 0, text: `${shortCircuited} new connections were short-circuited, ${requests} requests` }) },
    );
  }
  if (options.bpf) {
    toggles.push(
      { label: 'underpass.io/redirection=iptables', settled: (pod) => joined(pod) && pod.way === 'iptables', inMesh: true, what: 'reaches the proxy by iptables', check: notCaptured },
      { label: 'underpass.io/redirection=bpf', settled: (pod) => joined(pod) && pod.way === 'bpf', inMesh: true, what: 'reaches it by BPF again', check: captured },
    );
  }
  toggles.push({ label: 'underpass.io/mode=off', settled: (pod) => pod.way === 'plain' && (pod.state === 'off' || (pod.state === 'draining' && pod.drainingConnections !== undefined)), inMesh: false, what: 'leaves the mesh', check: notCaptured });
  return toggles;
}

/** A route that shows whether the mesh decides: by header, to one version only. */
function tellingRoute(expectations: readonly Expectation[]): { header: string; version: string } | undefined {
  for (const { headers, versions } of expectations) {
    const [header] = Object.entries(headers);
    const [version] = Object.entries(versions).filter(([, share]) => share === 1);
    if (header && version) return { header: `${header[0]}: ${header[1]}`, version: version[0] };
  }
  return undefined;
}

export async function showToggles(stage: Stage, directory: string): Promise<void> {
  const { lab, node, narrator, signal, plain } = stage;
  const client = lab.pod(plain, 'client');
  const status = await node.status();
  const options = { bpf: status.redirection.bpfProblem === undefined, acceleration: status.acceleration.on };
  if (!options.bpf) narrator.say(`no BPF here (${status.redirection.bpfProblem}): only what iptables can do is shown`);
  else if (!options.acceleration) narrator.say(`short-circuits are off here: ${status.acceleration.reason ?? ''}`);
  const route = tellingRoute(await readExpectations(directory, plain).catch(() => []));
  // A pod that no program is attached to has no counters: what it opens is not captured.
  const counters = async (): Promise<{ captured: number; shortCircuited: number } | undefined> => {
    const pod = (await node.counters()).pods.find(({ uid }) => uid === client.uid);
    return pod && { captured: Number(pod['connections_captured'] ?? 0), shortCircuited: Number(pod['connections_short_circuited'] ?? 0) };
  };
  let inMesh = false;
  const load = new PodLoad(lab, client);
  let ended = false;
  try {
    narrator.say(`load in pod ${plain}/${client.name}: ${KEPT} kept connections, and 2 clients that open one a request`);
    await sleep(HOLD_MS / 2, signal);
    for (const toggle of togglesOf(options)) {
      narrator.command(`underpass label namespace ${plain} ${toggle.label} --name ${lab.names.lab}`);
      const began = performance.now();
      await runUnderpass(['label', 'namespace', plain, toggle.label, '--name', lab.names.lab], signal);
      await node.waitFor(`namespace ${plain} with ${toggle.label}`, ({ pods }) => {
        const own = pods.filter(({ namespace }) => namespace === plain);
        return own.length > 0 && own.every(toggle.settled);
      }, { timeoutMs: SETTLE_TIMEOUT_MS, signal });
      const tookMs = Math.round(performance.now() - began);
      await sleep(IN_FLIGHT_MS, signal);
      const before = await counters();
      const requestsBefore = load.requests;
      await sleep(HOLD_MS, signal);
      const after = await counters();
      const since = (name: 'captured' | 'shortCircuited'): number => (after ? after[name] - (before?.[name] ?? 0) : 0);
      const seen = { requests: load.requests - requestsBefore, captured: since('captured'), shortCircuited: since('shortCircuited') };
      const { holds, text } = toggle.check(seen);
      narrator.prove(holds && load.failed === 0 && seen.requests > 0, `${plain} ${toggle.what} (in force after ${tookMs} ms): ${text}, ${load.failed} failed since the load began${load.failed > 0 ? `: ${load.firstFailure}` : ''}`);
      if (toggle.inMesh && !inMesh) {
        inMesh = true;
        load.keepMore();
        narrator.say(`${KEPT} more connections are kept from now on, which go through Envoy`);
      }
      if (route) {
        const result = await requestsInPod(stage, plain, ['--count', String(CHECK_REQUESTS), '--new-connection-each', '--header', route.header, '--tally', 'header:x-version']);
        const count = result.tally[route.version] ?? 0;
        const asExpected = toggle.inMesh ? count === CHECK_REQUESTS : count < CHECK_REQUESTS;
        narrator.prove(asExpected && result.failed === 0, `${route.header} went to ${route.version} ${count} times of ${CHECK_REQUESTS}${toggle.inMesh ? '' : ': the mesh decides no more'}`);
      }
    }
    const draining = (await node.status()).pods.filter(({ namespace }) => namespace === plain).reduce((sum, pod) => sum + (pod.drainingConnections ?? 0), 0);
    narrator.prove(draining >= KEPT, `connections keep the way they were opened on: ${draining} still go through Envoy`);
    const report = await load.stop();
    ended = true;
    narrator.prove(report.failed === 0, `${report.requests} requests in all, ${report.failed} failed${report.failed > 0 ? `: ${report.firstFailure}` : ''}`);
    narrator.prove(report.keptOpened === report.kept, `the ${report.kept} kept connections lived through all of it${report.keptOpened === report.kept ? '' : ` (${report.keptOpened - report.kept} were opened anew)`}`);
    await node.waitFor(`namespace ${plain} to be let go`, ({ pods }) => pods.filter(({ namespace }) => namespace === plain).every((pod) => pod.state === 'off' && pod.settled), { timeoutMs: SETTLE_TIMEOUT_MS, signal });
    const left = await leftAtPods(stage, plain);
    narrator.prove(left.length === 0, `with the last connection gone, ${left.length === 0 ? 'nothing' : left.join(', ')} is left at the pods of ${plain}`);
  } finally {
    if (!ended) await load.stop().catch(() => undefined);
  }
}

/** What a namespace that has left must not have any more: looked up where it would be, not asked of the agent. */
export async function leftAtPods({ lab, node }: Pick<Stage, 'lab' | 'node'>, namespace: string): Promise<string[]> {
  const { bpffsDir, instance, netnsFolder } = node.paths;
  const found: string[] = [];
  for (const { uid, name } of lab.pods().filter((pod) => pod.namespace === namespace)) {
    if (existsSync(join(netnsFolder, uid))) found.push(`the pinned namespace of ${name}`);
    if (existsSync(join(bpffsDir, instance, 'links', 'pods', uid))) found.push(`a hook on ${name}`);
    const rules = await lab.exec({ namespace, name }, ['sh', '-c', 'iptables-nft-save; ip6tables-nft-save; grep -sqx nat /proc/net/ip_tables_names && iptables-legacy-save; true'], { timeoutMs: 10_000 });
    if (rules.code !== 0 || rules.stdout.includes('UNDERPASS')) found.push(rules.code === 0 ? `an iptables rule in ${name}` : `what the rules of ${name} are can't be read, and perhaps one`);
    const listening = await lab.exec({ namespace, name }, ['sh', '-c', 'cat /proc/net/tcp /proc/net/tcp6 2>/dev/null; true'], { timeoutMs: 10_000 });
    if (hasListener(listening.stdout, OUTBOUND_PORT)) found.push(`the proxy's listener in ${name}`);
  }
  return found;
}

/** In the format of /proc/net/tcp: 0A is the state LISTEN. */
function hasListener(text: string, port: number): boolean {
  const local = `:${port.toString(16).toUpperCase().padStart(4, '0')}`;
  return text.split('\n').some((line) => {
    const [, here, , state] = line.trim().split(/\s+/);
    return here?.endsWith(local) === true && state === '0A';
  });
}
