/**
 * Speed and size of the control plane on a generated mesh: `make bench-pilot`. Pilot and its clients are processes of their own,
 * on loopback.
 */
import { Command } from 'commander';
import { fork, spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, setPriority, tmpdir, release } from 'node:os';
import { join } from 'node:path';
import { wholeNumber } from '../../common/arguments.js';
import { projectRoot } from '../../common/paths.js';
import { sleep, waitFor } from '../../common/retry.js';
import { DEFAULT_DEBOUNCE } from '../push/debounce.js';
import { clusterOf, serviceFile, serviceYaml, writeMesh, type MeshSize } from './mesh.js';

interface Options {
  services: number;
  endpoints: number;
  virtualServices: number;
  proxies: number;
  processes: number;
  changes: number;
  out?: string;
  pilotFlags: string;
  clientNice: number;
}

const options = new Command('bench-pilot')
  .description('measures the control plane on a generated mesh, with delta ADS clients in processes of their own')
  .option('--services <n>', 'Services', wholeNumber(1, 1_000_000), 10_000)
  .option('--endpoints <n>', 'endpoints of all Services together', wholeNumber(1, 10_000_000), 100_000)
  .option('--virtual-services <n>', 'VirtualServices', wholeNumber(0, 1_000_000), 1_000)
  .option('--proxies <n>', 'clients', wholeNumber(1, 100_000), 1_000)
  .option('--processes <n>', 'processes that the clients are spread over', wholeNumber(1, 256), 2)
  .option('--changes <n>', 'endpoint changes to measure', wholeNumber(1, 100_000), 30)
  .option('--out <file>', 'also write the results as Markdown')
  .option('--pilot-flags <flags>', "Node's flags for pilot, such as --cpu-prof", '')
  .option('--client-nice <n>', "the clients' niceness: in a cluster they are on other machines, and take no CPU from pilot", wholeNumber(0, 19), 10)
  .addHelpText('after', "\nExit codes: 0 measured, 1 could not be measured or a wrong option.")
  .parse()
  .opts<Options>();
const { changes, processes } = options;
const size: MeshSize = { ...options, namespaces: 100 };

interface ClientMessage {
  synced?: number;
  bytes?: number;
  ms?: number;
  watching?: string;
  seen?: number;
  at?: number[];
  names?: number;
  responses?: number;
  error?: string;
}

const folder = mkdtempSync(join(tmpdir(), 'up-bench-pilot-'));
const children: ChildProcess[] = [];

function next(child: ChildProcess, wanted: (message: ClientMessage) => boolean): Promise<ClientMessage> {
  return new Promise((resolve, reject) => {
    const listen = (message: ClientMessage): void => {
      if (message.error) reject(new Error(`a client: ${message.error}`));
      if (!wanted(message)) return;
      child.off('message', listen).off('exit', ended);
      resolve(message);
    };
    child.on('message', listen);
    const ended = (code: number | null): void => reject(new Error(`a process of clients ended with ${code}`));
    child.once('exit', ended);
  });
}

const percentile = (sorted: readonly number[], share: number): number => sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;

interface PilotUsage {
  rssMiB: number;
  peakMiB: number;
  cpuSeconds: number;
  /** That the event loop's thread was ready to run and another was on its CPU. */
  waitedSeconds: number;
}

function usage(pid: number): PilotUsage {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const kib = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1] ?? 0);
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\) /, '').split(' ');
  const [, waited] = readFileSync(`/proc/${pid}/task/${pid}/schedstat`, 'utf8').split(' ').map(Number);
  return { waitedSeconds: waited! / 1e9, rssMiB: Math.round(kib('VmRSS') / 1024), peakMiB: Math.round(kib('VmHWM') / 1024), cpuSeconds: (Number(fields[11]) + Number(fields[12])) / 100 };
}

async function metric(monitoring: string, name: string): Promise<number> {
  const text = await (await fetch(`http://${monitoring}/metrics`)).text();
  return Number(new RegExp(`^${name} ([\\d.e+-]+)$`, 'm').exec(text)?.[1] ?? Number.NaN);
}

async function main(): Promise<void> {
  const rows: [string, string][] = [];
  const note = (what: string, value: string): void => {
    rows.push([what, value]);
    process.stdout.write(`${what}: ${value}\n`);
  };
  const source = join(folder, 'mesh');
  const proxies = writeMesh(source, size);
  const began = performance.now();
  const flags = options.pilotFlags.split(' ').filter((flag) => flag !== '');
  const pilot = spawn(process.execPath, ['--enable-source-maps', ...flags, join(projectRoot, 'dist', 'cli', 'main.js'), 'pilot', '--source', source, '--listen', '127.0.0.1:0', '--monitoring-listen', '127.0.0.1:0', '--max-streams', String(size.proxies + 1)], { stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(pilot);
  let log = '';
  let kept = true;
  pilot.stdout.on('data', (chunk: Buffer) => {
    if (kept) log += chunk.toString();
  });
  const ready = await waitFor('pilot to be ready', () => /\{[^\n]*"pilot is ready"\}/.exec(log)?.[0] ?? (pilot.exitCode !== null ? 'ended' : undefined), { timeoutMs: 600_000, everyMs: 20 });
  kept = false;
  if (ready === 'ended') throw new Error('pilot ended');
  const { addresses, monitoring } = JSON.parse(ready) as { addresses: string[]; monitoring: string };
  const loaded = usage(pilot.pid!);
  note('mesh', `${size.services} services, ${size.endpoints} endpoints, ${size.virtualServices} VirtualServices, ${size.proxies} proxies in ${size.namespaces} namespaces`);
  note('reading the sources', `${((performance.now() - began) / 1000).toFixed(1)} s, ${loaded.rssMiB} MiB`);

  const groups = Array.from({ length: processes }, (_, i) => proxies.filter((_proxy, index) => index % processes === i));
  const workers = groups.map(() => {
    const worker = fork(join(projectRoot, 'dist', 'pilot', 'bench', 'clients.js'), { execArgv: ['--max-old-space-size=4096'] });
    children.push(worker);
    setPriority(worker.pid!, options.clientNice);
    return worker;
  });
  await metric(monitoring, 'nodejs_eventloop_lag_max_seconds');
  const connecting = performance.now();
  const synced = workers.map((worker) => next(worker, ({ synced: count }) => count !== undefined));
  workers.forEach((worker, i) => worker.send({ address: addresses[0], proxies: groups[i] }));
  const results = await Promise.all(synced);
  const bytes = results.reduce((sum, result) => sum + result.bytes!, 0);
  const afterFirst = usage(pilot.pid!);
  note('first full push to all', `${((performance.now() - connecting) / 1000).toFixed(1)} s, ${(bytes / 1e6).toFixed(0)} MB, pilot's CPU ${(afterFirst.cpuSeconds - loaded.cpuSeconds).toFixed(1)} s; its event loop waited ${(afterFirst.waitedSeconds - loaded.waitedSeconds).toFixed(1)} s for a CPU`);
  note('event loop blocked at most, first push', `${(1000 * (await metric(monitoring, 'nodejs_eventloop_lag_max_seconds'))).toFixed(0)} ms`);
  await sleep(2_000);
  await metric(monitoring, 'nodejs_eventloop_lag_max_seconds');

  const times: number[] = [];
  const last: number[] = [];
  let changeBytes = 0;
  let names = 0;
  const before = usage(pilot.pid!);
  for (let i = 0; i < changes; i++) {
    const index = (i * 97) % size.services;
    const watched = workers.map((worker) => next(worker, ({ watching }) => watching !== undefined));
    for (const worker of workers) worker.send({ watch: clusterOf(index, size) });
    await Promise.all(watched);
    const seen = workers.map((worker) => next(worker, ({ seen: count }) => count !== undefined));
    const at = Date.now();
    writeFileSync(serviceFile(source, index), serviceYaml(index, size, false));
    const answers = await Promise.all(seen);
    const all = answers.flatMap((answer) => answer.at!).map((time) => time - at - DEFAULT_DEBOUNCE.quietMs);
    times.push(...all);
    last.push(Math.max(...all));
    changeBytes += answers.reduce((sum, answer) => sum + answer.bytes!, 0);
    names += answers.reduce((sum, answer) => sum + answer.names!, 0);
  }
  const after = usage(pilot.pid!);
  times.sort((a, b) => a - b);
  last.sort((a, b) => a - b);
  note('one endpoint change, file to client, beyond the debounce of 100 ms', `p50 ${percentile(times, 0.5)} ms, p99 ${percentile(times, 0.99)} ms, to the last of all p50 ${percentile(last, 0.5)} ms, max ${last.at(-1)} ms (${changes} changes)`);
  note('one endpoint change, sent', `${(changeBytes / changes / size.proxies).toFixed(0)} bytes and ${(names / changes / size.proxies).toFixed(2)} resources a proxy, pilot's CPU ${((1000 * (after.cpuSeconds - before.cpuSeconds)) / changes).toFixed(0)} ms a change`);
  note('event loop blocked at most, changes', `${(1000 * (await metric(monitoring, 'nodejs_eventloop_lag_max_seconds'))).toFixed(0)} ms`);
  note("pilot's memory", `${after.rssMiB} MiB, peak ${after.peakMiB} MiB`);
  if (options.out) {
    const table = rows.map(([what, value]) => `| ${what} | ${value} |`).join('\n');
    writeFileSync(options.out, `# The control plane at size\nMade by \`make bench-pilot\` on ${new Date().toISOString().slice(0, 10)}: ${cpus().length} CPUs (${cpus()[0]?.model.trim()}), Linux ${release().split('-')[0]}, Node ${process.version}. Pilot and ${processes} processes of delta ADS clients (niceness ${options.clientNice}) share these CPUs.\n\n| what | measured |\n|---|---|\n${table}\n`);
  }
}

main()
  .catch((error: unknown) => {
    console.error(error);
    process.exitCode = 1;
  })
  .finally(async () => {
    // Pilot first and gently: a profile is written when it ends.
    const [pilot] = children;
    if (pilot?.exitCode === null && pilot.signalCode === null) {
      pilot.kill('SIGTERM');
      await Promise.race([new Promise((resolve) => pilot.once('exit', resolve)), sleep(20_000)]);
    }
    for (const child of children) child.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  });
