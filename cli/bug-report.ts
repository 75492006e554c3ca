/** `underpass bug-report`: what somebody needs who is to find out what is wrong, in one archive, without secrets. */
import { mkdirSync, mkdtempSync, openSync, closeSync, fstatSync, readSync, rmSync, writeFileSync, existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { release, tmpdir, totalmem, freemem, cpus, version as kernelVersion } from 'node:os';
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { instancePaths } from '../agent/client.js';
import { UnderpassError, errorCode, errorMessage } from '../common/errors.js';
import { run } from '../common/process.js';
import { VERSION } from '../common/version.js';
import { addReachOptions, reachAgents, type AgentHandle, type ReachOptions } from './agents.js';
import { gatherLogs } from './bug-report-logs.js';
import { redact, redactText } from './envoy/config.js';
import { ProgressLine } from './progress.js';

interface Options extends ReachOptions {
  file?: string;
}

/** Of a log its end. */
const LOG_BYTES = 4 * 1024 * 1024;

const QUESTIONS: readonly [file: string, path: string][] = [
  ['status.json', '/v1/status'],
  ['counters.json', '/v1/counters'],
  ['metrics.txt', '/metrics'],
  ['agent.log', '/v1/log'],
  ['envoy-config.json', `/v1/envoy?${new URLSearchParams({ path: '/config_dump?include_eds' })}`],
  ['envoy-clusters.json', `/v1/envoy?${new URLSearchParams({ path: '/clusters?format=json' })}`],
  ['envoy-listeners.json', `/v1/envoy?${new URLSearchParams({ path: '/listeners?format=json' })}`],
  ['envoy-server.json', `/v1/envoy?${new URLSearchParams({ path: '/server_info' })}`],
  ['envoy-certificates.json', `/v1/envoy?${new URLSearchParams({ path: '/certs' })}`],
  ['envoy-memory.json', `/v1/envoy?${new URLSearchParams({ path: '/memory' })}`],
];

export function configure(command: Command): void {
  addReachOptions(command)
    .option('--file <path>', 'the archive to write, mode 0600 (default: underpass-bug-report-TIME.tar.gz in this folder)')
    .addHelpText('after', '\nIn it, of each node: the agent\'s status, counters, metrics and the end of its log, Envoy\'s configuration, clusters and certificates\' dates; of this\nmachine alone: Envoy\'s log, the kernel\'s facts and the sizes of its maps; of a cluster: the ends of the logs of the agents\' containers, Envoy\'s\namong them, and of the control plane\'s, which needs list of pods and get of pods/log in underpass-system and istio-system. Private\nkeys, tokens, passwords, cookies and authorization headers are taken out. Names of pods, services and hosts, and addresses, stay: look into it before you send it on.')
    .action(bugReport);
}

async function bugReport(options: Options): Promise<void> {
  const at = new Date().toISOString().replace(/[:.]/g, '-');
  const file = resolve(options.file ?? `underpass-bug-report-${at}.tar.gz`);
  if (existsSync(file)) throw new UnderpassError('UNDERPASS_BAD_OPTION', `--file ${file}: it is there already`);
  const reach = await reachAgents(options);
  const folder = mkdtempSync(join(tmpdir(), 'underpass-bug-report-'));
  // A signal must not leave it there.
  const remove = (): void => rmSync(folder, { recursive: true, force: true });
  const onSignal = (signal: NodeJS.Signals): void => {
    remove();
    rmSync(file, { force: true });
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, onSignal);
  const line = new ProgressLine();
  try {
    const root = join(folder, 'underpass-bug-report');
    mkdirSync(root);
    const problems: string[] = [];
    for (const [index, agent] of reach.agents.entries()) {
      if (process.stderr.isTTY) line.show(`node ${index + 1} of ${reach.agents.length}`);
      problems.push(...(await gather(agent, join(root, `node-${(agent.node ?? 'local').replace(/[^\w.-]/g, '_')}`))));
    }
    if (reach.client) problems.push(...(await gatherLogs(reach.client, root, options.node)));
    else await gatherMachine(options, join(root, 'machine'));
    writeFileSync(join(root, 'about.json'), `${JSON.stringify({ at: new Date().toISOString(), client: VERSION, node: process.versions.node, nodes: reach.agents.map(({ node, place }) => ({ node, place })), problems }, null, 2)}\n`);
    // Made here, since tar would let others read it until it is done.
    closeSync(openSync(file, 'wx', 0o600));
    await run('tar', ['--create', '--gzip', '--file', file, '--directory', folder, '--owner=0', '--group=0', '--numeric-owner', 'underpass-bug-report']).catch((error: unknown) => {
      rmSync(file, { force: true });
      throw error;
    });
    line.clear();
    for (const problem of problems) process.stderr.write(`${problem}\n`);
    process.stdout.write(`${file}\n`);
  } finally {
    line.clear();
    remove();
    reach.close();
  }
}

/** @returns what could not be had; the rest is there */
async function gather(agent: AgentHandle, folder: string): Promise<string[]> {
  mkdirSync(folder);
  const problems: string[] = [];
  for (const [name, path] of QUESTIONS) {
    try {
      writeFileSync(join(folder, name), cleaned(name, await agent.ask(path, { timeoutMs: 60_000 })));
    } catch (error) {
      if (errorCode(error) === 'UNDERPASS_NO_PERMISSION') throw error;
      problems.push(`${agent.node ?? agent.place}: ${name}: ${errorMessage(error)}`);
    }
  }
  if (problems.length === QUESTIONS.length) throw new UnderpassError('UNDERPASS_AGENT_NOT_RUNNING', `asking the agent (${agent.place}): nothing was answered: ${problems[0]}`);
  return problems;
}

function cleaned(name: string, text: string): string {
  if (!name.endsWith('.json')) return redactText(text);
  try {
    return `${JSON.stringify(redact(JSON.parse(text)), null, 1)}\n`;
  } catch {
    return redactText(text);
  }
}

async function gatherMachine(options: Options, folder: string): Promise<void> {
  mkdirSync(folder);
  const { folder: state } = instancePaths(options);
  const log = join(state, 'envoy.log');
  if (existsSync(log)) writeFileSync(join(folder, 'envoy.log'), redactText(endOf(log)));
  const read = (path: string): Promise<string | undefined> => readFile(path, 'utf8').then((text) => text.trim(), () => undefined);
  const facts = {
    kernel: { release: release(), version: kernelVersion(), btf: existsSync('/sys/kernel/btf/vmlinux'), unprivilegedBpf: await read('/proc/sys/kernel/unprivileged_bpf_disabled'), jit: await read('/proc/sys/net/core/bpf_jit_enable') },
    machine: { cpus: cpus().length, model: cpus()[0]?.model, memoryBytes: totalmem(), freeBytes: freemem() },
    cgroups: { controllers: await read('/sys/fs/cgroup/cgroup.controllers') },
  };
  writeFileSync(join(folder, 'facts.json'), `${JSON.stringify(facts, null, 2)}\n`);
  // Types and sizes of the kernel's maps, not what is in them.
  const maps = await run('bpftool', ['--json', 'map', 'list'], { timeoutMs: 20_000 }).then(({ stdout }) => stdout, (error: unknown) => JSON.stringify({ problem: errorMessage(error) }));
  writeFileSync(join(folder, 'maps.json'), cleaned('maps.json', maps));
}

function endOf(path: string): string {
  const handle = openSync(path, 'r');
  try {
    const { size } = fstatSync(handle);
    const buffer = Buffer.alloc(Math.min(size, LOG_BYTES));
    readSync(handle, buffer, 0, buffer.length, size - buffer.length);
    return buffer.toString('utf8');
  } finally {
    closeSync(handle);
  }
}
