/**
 * What an agent's configuration takes in memory: streams to a control plane as an agent of some classes of pods has them, all of it
 * folded once. Prints what is alive after a collection at each step.
 *   node --expose-gc dist/agent/bench/held.js --discovery unix:/run/pilot.sock --classes 10
 */
import { Command } from 'commander';
import { wholeNumber } from '../../common/arguments.js';
import { keepHeapSmall } from '../../common/heap.js';
import { logger } from '../../common/log.js';
import { sleep, waitFor } from '../../common/retry.js';
import { SpareMemory } from '../dataplane/spare-memory.js';
import { Folder, type FoldClass, type FoldPod } from '../proxy/fold.js';
import { PlainPorts } from '../proxy/plain-ports.js';
import { CDS } from '../proxy/snapshot.js';
import { WaypointIndex } from '../proxy/waypoint-table.js';
import { ServiceResolver } from '../resolve/service-resolver.js';
import { stockExtensions } from '../testing/stock-envoy.js';
import { AdsChannel } from '../xds/channel.js';
import { classKey, sidecarNode } from '../xds/config-class.js';
import { SidecarStream } from '../xds/sidecar-stream.js';
import { WorkloadStream } from '../xds/workload-stream.js';

const { discovery, classes: count, pods: podCount } = new Command('held')
  .requiredOption('--discovery <address>', 'the control plane')
  .option('--classes <n>', 'classes of pods', wholeNumber(1, 200), 10)
  .option('--pods <n>', 'pods of all classes together', wholeNumber(1, 240), 100)
  .parse()
  .opts<{ discovery: string; classes: number; pods: number }>();

const NODE = 'node-1';
const IDLE_MS = 1_000;
new SpareMemory({ everyMs: IDLE_MS / 4 });
const mebibytes = (bytes: number): string => (bytes / (1 << 20)).toFixed(0);
/** An agent's memory is read when it has nothing to do. */
async function tell(step: string): Promise<void> {
  const { user, system } = process.cpuUsage();
  globalThis.gc?.();
  await sleep(IDLE_MS);
  const { heapUsed, heapTotal, external, rss } = process.memoryUsage();
  process.stdout.write(`${step}: live ${mebibytes(heapUsed)} MiB in a heap of ${mebibytes(heapTotal)}, outside of it ${mebibytes(external)}, RSS ${mebibytes(rss)}; CPU ${((user + system) / 1e6).toFixed(1)} s\n`);
}

keepHeapSmall();
const log = logger('held');
log.level = 'warn';
const channel = new AdsChannel(discovery);
const patience = { timeoutMs: 600_000, everyMs: 20 };
const table = { apply: () => 0, retryRefused: () => 0, ports: () => [], setForeign: () => undefined, isForeign: () => false, live: () => undefined, status: { services: 0, endpoints: 0, maxServices: 0, maxEndpoints: 0, refused: 0 } };
const resolver = new ServiceResolver({ nodeName: NODE, table, pods: () => [], logger: log });
const waypoints = new WaypointIndex(NODE);
await tell('programs loaded');
const workloads = new WorkloadStream({
  channel, nodeName: NODE, nodeAddress: '127.0.0.1', logger: log,
  onChange: (change) => {
    waypoints.update(workloads.addresses, [...change.updated, ...change.removed]);
    resolver.workloadsChanged(workloads.addresses, change, workloads.synced);
  },
});
workloads.start();
await waitFor('workloads', () => workloads.synced, patience);
await tell(`${workloads.addresses.size} workloads and services`);
const folded: FoldClass[] = [];
const pods: FoldPod[] = [];
for (let index = 0; index < count; index++) {
  const name = `app-${index}`;
  const pod = { name, namespace: `ns-${index}`, serviceAccount: name, labels: { app: name }, ips: [`10.244.0.${index + 1}`] };
  const stream = new SidecarStream({ channel, node: sidecarNode(pod, { nodeName: NODE }), logger: log, onUpdate: () => undefined });
  stream.start();
  await waitFor('a class', () => stream.synced, patience);
  const [key, identity] = [classKey(pod), `spiffe://cluster.local/ns/${pod.namespace}/sa/${name}`];
  folded.push({ key, state: stream.state, identity, certified: true });
  for (let at = index; at < podCount; at += count) pods.push({ uid: `u${at}`, netnsPath: `/run/netns/u${at}`, ipv6: false, addresses: [`10.244.1.${at + 1}`], identity, classKey: key, canRedirect: true });
}
await tell(`${count} classes, unfolded`);
const folder = new Folder(stockExtensions());
const { snapshot } = folder.fold(folded, pods);
resolver.portsChanged(new PlainPorts(folded), new Set());
await tell(`folded for ${pods.length} pods`);
process.stdout.write(`${folder.remembered} resources folded; ${snapshot.entries(CDS).size} clusters for Envoy\n`);
process.exit(0);
