/**
 * `make bench-services`: the agent's way from WDS to the kernel's tables at size, with real gRPC and real maps; each endpoint
 * counts as a pod of this node, which is the most that the tables can be asked to hold.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { Kernel, type KernelPod } from '../dataplane/kernel.js';
import { ServiceResolver } from '../resolve/service-resolver.js';
import { AdsChannel } from '../xds/channel.js';
import { WorkloadStream } from '../xds/workload-stream.js';

const [services, endpoints, changes] = [Number(process.argv[2] ?? 10_000), Number(process.argv[3] ?? 100_000), Number(process.argv[4] ?? 100)];
const quiet = logger('bench');
quiet.level = 'error';

const folder = mkdtempSync(join(tmpdir(), 'up-services-'));
const socket = join(folder, 'xds.sock');
const server = spawn(process.execPath, ['--max-old-space-size=4096', fileURLToPath(new URL('./services-server.js', import.meta.url)), socket, String(services), String(endpoints)], { stdio: ['pipe', 'pipe', 'inherit'] });
const lines = createInterface({ input: server.stdout });
const nextLine = async (): Promise<string> => ((await once(lines, 'line')) as [string])[0];
await nextLine();

const megabytes = (): number => Math.round(process.memoryUsage().rss / 2 ** 20);
const kernel = await Kernel.open({ bpffsDir: null, instance: 'bench', logger: quiet });
const perPod = 100;
const pods = Array.from({ length: Math.ceil(endpoints / perPod) }, (_, index): KernelPod => ({
  uid: `p${index}`, netnsCookie: BigInt(index), cgroupPath: '', mode: 'node', capture: true, acceleration: 'l4',
  addresses: Array.from({ length: perPod }, (_unused, each) => [11, ((index * perPod + each) >> 16) & 255, ((index * perPod + each) >> 8) & 255, (index * perPod + each) & 255].join('.')),
}));
const resolver = new ServiceResolver({ nodeName: 'here', table: kernel.services, pods: () => pods, logger: quiet });
resolver.portsChanged({ judge: () => ({ kind: 'tcp', assignments: [] }) }, new Set());

let arrivedNs = 0n;
let appliedNs = 0n;
const channel = new AdsChannel(`unix:${socket}`);
const baseMb = megabytes();
const startedMs = performance.now();
const stream = new WorkloadStream({
  channel, nodeName: 'here', nodeAddress: '127.0.0.1', logger: quiet,
  onChange: (change) => {
    arrivedNs = process.hrtime.bigint();
    resolver.workloadsChanged(stream.addresses, change, stream.synced);
    appliedNs = process.hrtime.bigint();
  },
});
stream.start();
await waitFor('the first sync', () => resolver.status.firstSyncMs !== undefined, { timeoutMs: 300_000, everyMs: 20 });
const syncMs = performance.now() - startedMs;
const { firstSyncMs, services: held, endpoints: slots } = resolver.status;
const syncedMb = megabytes();

const fromSend: number[] = [];
const fromArrival: number[] = [];
for (let round = 0; round < changes; round++) {
  const before = appliedNs;
  server.stdin.write(`${(round * 7919) % endpoints}\n`);
  const sentNs = BigInt(await nextLine());
  await waitFor('the change', () => appliedNs !== before, { timeoutMs: 10_000, everyMs: 1 });
  fromSend.push(Number(appliedNs - sentNs) / 1e6);
  fromArrival.push(Number(appliedNs - arrivedNs) / 1e6);
}
const quantile = (values: number[], q: number): string => [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * q))]!.toFixed(2);

process.stdout.write([
  `services ${held}, endpoints ${slots} in the kernel's tables`,
  `first sync: ${Math.round(syncMs)} ms from opening the stream, ${Math.round(firstSyncMs ?? 0)} ms of it from the last message to the kernel`,
  `memory: ${baseMb} MB before, ${syncedMb} MB after the sync (RSS)`,
  `one endpoint's change, ${changes} times: from the control plane's write to the map p50 ${quantile(fromSend, 0.5)} ms, p99 ${quantile(fromSend, 0.99)} ms; from its arrival p50 ${quantile(fromArrival, 0.5)} ms, p99 ${quantile(fromArrival, 0.99)} ms`,
  '',
].join('\n'));

stream.close();
channel.close();
resolver.close();
await kernel.close();
server.stdin.end();
await once(server, 'exit');
rmSync(folder, { recursive: true, force: true });
