/**
 * `make bench-services`, second part: what a connection to a service costs with few and with many services in the tables, beside
 * one to the pod's own address. Short connections one after the other, with one exchange of 64 bytes each, in interleaved rounds.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildDir } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { sleep } from '../../common/retry.js';
import { KernelWorld } from '../dataplane/kernel-testing.js';

const [connections, rounds] = [1_200, 7];
const VIP = '198.51.100.10';
const PORT = 9_000;
const tcpBench = join(buildDir, 'tcp-bench');

const w = await KernelWorld.create('connects');
const [client, server] = [w.world.pod(0), w.world.pod(1)];
w.put({ capture: true, acceleration: 'off' });
// A direct pod address is left alone.
w.kernel.setListenerPorts([]);
const [command = '', ...args] = w.world.inPod(server, [tcpBench, 'server', '--port', String(PORT)]);
const listening = spawn(command, args, { stdio: 'ignore' });
await sleep(500);

// Each connection leaves its port waiting for a minute.
const [shell = '', ...widen] = w.world.inPod(client, ['sh', '-c', 'echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range']);
await run(shell, widen);

const endpoint = { address: server.ipv4, port: PORT, weight: 1 };
const address = (index: number): string => `203.${index >> 16}.${(index >> 8) & 255}.${index & 255}`;

/** What the client's cgroup has used: unlike a clock it does not count what others do meanwhile. */
const cpuUsec = (): number => Number(/^usage_usec (\d+)/.exec(readFileSync(join(client.cgroup, 'cpu.stat'), 'utf8'))?.[1]);

/** The client's CPU time, in microseconds a connection. */
async function measure(host: string): Promise<number> {
  const [client_ = '', ...more] = w.world.inPod(client, [tcpBench, 'ping-pong', '--connect', `${host}:${PORT}`, '--size', '64', '--connections', '1', '--warm-connections', String(connections), '--count', '1', '--cpu', '0']);
  const before = cpuUsec();
  await run(client_, more, { timeoutMs: 120_000 });
  return (cpuUsec() - before) / connections;
}

function load(count: number, before: number): void {
  const entry = { kind: 'tcp' as const, endpoints: Array.from({ length: 10 }, () => endpoint) };
  w.kernel.services.apply(Array.from({ length: Math.max(count, before) }, (_, index) => ({ address: index === 0 ? VIP : address(index), port: PORT, entry: index < count ? entry : undefined })));
}

const results: Record<string, number[]> = { 'pod address': [], 'service, 10 in the tables': [], 'service, 10,000 in the tables': [] };
for (let round = 0; round < rounds; round++) {
  results['pod address']!.push(await measure(server.ipv4));
  load(10, round === 0 ? 0 : 10_000);
  results['service, 10 in the tables']!.push(await measure(VIP));
  await sleep(1_100);
  load(10_000, 10);
  results['service, 10,000 in the tables']!.push(await measure(VIP));
  await sleep(1_100);
}
const median = (values: number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;
for (const [name, values] of Object.entries(results)) process.stdout.write(`${name}: ${median(values).toFixed(1)} us of the client's CPU a connection (${values.map((value) => value.toFixed(1)).join(', ')})\n`);
const resolved = w.kernel.counters()['connections_resolved'] ?? 0n;
process.stdout.write(`decided at connect(): ${resolved} of ${2 * rounds * (connections + 1)}\n`);
listening.kill('SIGKILL');
await once(listening, 'exit');
await w.close();
