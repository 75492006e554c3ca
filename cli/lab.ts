import type { Command } from 'commander';
import { spawn } from 'node:child_process';
import { closeSync, existsSync, fstatSync, mkdirSync, openSync, readFileSync, readSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { DEFAULT_LAB_NAME, LabClient, labDir, labSocket, type PodRecord } from '../common/lab-api.js';
import { defaultRunDir } from '../common/paths.js';
import { waitFor } from '../common/retry.js';
import { cleanLabs, knownLabs } from '../lab/clean.js';
import { heldMessage, liveHolder } from '../lab/lock.js';
import { DEFAULT_DISCOVERY, LabNames } from '../lab/names.js';
import { followSignals } from './signals.js';
import { printTable } from './table.js';

interface Common {
  name: string;
  runDir: string;
}

const START_TIMEOUT_MS = 60_000;
const DOWN_TIMEOUT_MS = 30_000;

function common(command: Command): Command {
  return command
    .option('--name <lab>', 'which lab', DEFAULT_LAB_NAME)
    .option('--run-dir <dir>', 'where run-time state is kept', defaultRunDir);
}

export function configure(command: Command): void {
  command.addHelpText(
    'after',
    '\nExample:\n  underpass lab up -f examples/canary --detach\n  underpass lab exec client -n shop -- curl -s nginx\n  underpass lab down',
  );
  common(command.command('up').description('starts nodes and pods from Kubernetes YAML'))
    .requiredOption('-f, --filename <path...>', 'directories or files with Kubernetes YAML')
    .option('--nodes <n>', 'at least this many nodes', positive, 1)
    .option('--detach', 'return when the lab is up')
    .option('--discovery <address>', 'where sidecars find the control plane: host:port or unix:PATH', DEFAULT_DISCOVERY)
    .option('--sidecar-concurrency <n>', "worker threads of each sidecar's Envoy", positive, 2)
    .action(up);
  common(command.command('exec').description('runs a program in a pod, with its exit code'))
    .argument('<pod>', 'a pod, or the first one of a workload by its name')
    .argument('<command...>', 'what to run, after --')
    .option('-n, --namespace <namespace>', 'namespace of the pod', 'default')
    .option('-c, --container <container>', 'container, if not the first')
    .action(exec);
  common(command.command('ps').description('the pods and how they are'))
    .option('-o, --output <format>', 'table or json', 'table')
    .action(ps);
  common(command.command('logs').description('what a pod wrote last'))
    .argument('<pod>')
    .option('-n, --namespace <namespace>', 'namespace of the pod', 'default')
    .option('-c, --container <container>', 'container, if not the first')
    .action(logs);
  common(command.command('down').description('ends the lab and removes all that it made')).action(down);
  command
    .command('clean')
    .description('removes what labs that are gone left behind')
    .option('--name <lab>', 'only this lab')
    .option('--run-dir <dir>', 'where run-time state is kept', defaultRunDir)
    .action(clean);
}

function positive(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1)
    throw new UnderpassError('UNDERPASS_ARGUMENT', `reading ${JSON.stringify(text)}: expected a number of 1 or more`);
  return value;
}

interface UpOptions extends Common {
  filename: string[];
  nodes: number;
  detach?: boolean;
  discovery: string;
  sidecarConcurrency: number;
}

async function up(options: UpOptions): Promise<void> {
  const sources = options.filename.map((path) => resolve(path));
  if (options.detach) return upDetached(options, sources);
  const { Lab } = await import('../lab/lab.js'); // gRPC and certificates: only this command needs them
  const signals = followSignals();
  process.stdout.on('error', () => undefined); // a reader that went away, as of `| head`, is no reason to leave pods behind
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  const ended = new AbortController();
  const lab = await Lab.up({
    name: options.name,
    runDir: options.runDir,
    sources,
    nodes: options.nodes,
    discovery: options.discovery,
    sidecarConcurrency: options.sidecarConcurrency,
    onProgress: say,
    onProblem: (error) => {
      process.stderr.write(`${errorMessage(error)}\n`);
      if (error instanceof UnderpassError && error.hint) process.stderr.write(`  ${error.hint}\n`);
    },
    onDownRequest: () => ended.abort(),
  });
  const end = AbortSignal.any([signals.signal, ended.signal]);
  try {
    try {
      await lab.whenReady({ signal: end });
    } catch (error) {
      // Pods that do not become ready are the user's to look at, with the lab up.
      if (!end.aborted) process.stderr.write(`${errorMessage(error)}\n`);
    }
    if (!end.aborted) {
      const waiting = lab.problems();
      for (const problem of waiting) say(`waiting: ${problem}`);
      say(
        `lab ${options.name} is ready; objects in ${lab.objectsDir}; end it with Ctrl-C or \`underpass lab down${options.name === DEFAULT_LAB_NAME ? '' : ` --name ${options.name}`}\``,
      );
      await new Promise<void>((done) => (end.aborted ? done() : end.addEventListener('abort', () => done(), { once: true })));
    }
  } finally {
    say(`ending lab ${options.name}`);
    await lab.down();
    signals.close();
  }
}

async function upDetached(options: UpOptions, sources: readonly string[]): Promise<void> {
  const names = new LabNames(options.name, options.runDir);
  const holder = liveHolder(names.dir);
  if (holder)
    throw new UnderpassError('UNDERPASS_LAB_HELD', `starting lab ${options.name}: ${heldMessage(holder)}`, {
      hint: 'end it with `underpass lab down`, or take another --name',
    });
  mkdirSync(dirname(names.log), { recursive: true });
  const log = openSync(names.log, 'w+', 0o640);
  const args = [
    'lab',
    'up',
    '--name',
    options.name,
    '--run-dir',
    options.runDir,
    '--nodes',
    String(options.nodes),
    '--discovery',
    options.discovery,
  ];
  args.push('--sidecar-concurrency', String(options.sidecarConcurrency), ...sources.flatMap((source) => ['-f', source]));
  const child = spawn(process.execPath, [fileURLToPath(new URL('main.js', import.meta.url)), ...args], {
    detached: true,
    stdio: ['ignore', log, log],
  });
  let exited = false;
  child.once('exit', () => (exited = true));
  // By descriptor: a lab that fails to start removes its log like everything else.
  const text = (): string => {
    const buffer = Buffer.alloc(fstatSync(log).size);
    return buffer.toString('utf8', 0, readSync(log, buffer, 0, buffer.length, 0));
  };
  await waitFor('the lab', () => exited || / is ready; /.test(text()), { timeoutMs: START_TIMEOUT_MS }).catch(
    (cause: unknown) => {
      throw new UnderpassError(
        'UNDERPASS_LAB_NOT_READY',
        `starting lab ${options.name}: not ready after ${START_TIMEOUT_MS / 1000} s, it goes on trying as process ${child.pid}`,
        { cause, hint: `see ${names.log}` },
      );
    },
  );
  // Who started it has no terminal of its own.
  process.stdout.write(text().replace('end it with Ctrl-C or ', 'end it with '));
  closeSync(log);
  child.unref();
  if (exited) process.exitCode = 1;
}

interface ExecOptions extends Common {
  namespace: string;
  container?: string;
}

async function exec(pod: string, argv: string[], options: ExecOptions): Promise<void> {
  const plan = await new LabClient(labSocket(options.name, options.runDir)).execPlan(options.namespace, pod, options.container);
  const child = spawn(plan.file, [...plan.args, ...argv], {
    env: { ...plan.env, ...(process.env['TERM'] ? { TERM: process.env['TERM'] } : {}) },
    stdio: 'inherit',
  });
  // Ctrl-C reaches the program by the terminal; we only must not end before it.
  const ignore = (): void => undefined;
  process.on('SIGINT', ignore);
  const forward = (signal: NodeJS.Signals): void => void child.kill(signal);
  process.on('SIGTERM', forward);
  try {
    process.exitCode = await new Promise<number>((done, fail) => {
      child.once('error', fail);
      child.once('exit', (code, signal) => done(code ?? 128 + (signal === 'SIGKILL' ? 9 : signal === 'SIGINT' ? 2 : 15)));
    });
  } finally {
    process.off('SIGINT', ignore);
    process.off('SIGTERM', forward);
  }
}

async function ps(options: Common & { output: string }): Promise<void> {
  const pods = await new LabClient(labSocket(options.name, options.runDir)).pods();
  if (options.output === 'json') {
    process.stdout.write(JSON.stringify(pods, null, 2) + '\n');
    return;
  }
  const restarts = (pod: PodRecord): number => pod.containers.reduce((sum, container) => sum + (container.restarts ?? 0), 0);
  const readyContainers = (pod: PodRecord): string =>
    `${pod.containers.filter((container) => container.ready).length}/${pod.containers.length}`;
  printTable(
    ['NAMESPACE', 'NAME', 'READY', 'STATUS', 'RESTARTS', 'IP', 'NODE', 'SIDECAR'],
    pods.map((pod) => [
      pod.namespace,
      pod.name,
      readyContainers(pod),
      pod.phase,
      String(restarts(pod)),
      pod.ips[0] ?? '',
      pod.nodeName,
      pod.hasSidecar ? 'yes' : pod.isGateway ? 'gateway' : '',
    ]),
  );
}

async function logs(name: string, options: ExecOptions): Promise<void> {
  const pods = await new LabClient(labSocket(options.name, options.runDir)).pods();
  const inNamespace = pods.filter((pod) => pod.namespace === options.namespace);
  const pod =
    inNamespace.find((candidate) => candidate.name === name) ??
    inNamespace.find((candidate) => candidate.name.startsWith(`${name}-`));
  if (!pod)
    throw new UnderpassError('UNDERPASS_LAB_NOT_FOUND', `reading logs of ${options.namespace}/${name}: no such pod`, {
      hint: `there are ${inNamespace.map((candidate) => candidate.name).join(', ') || 'none in this namespace'}`,
    });
  const container =
    options.container === undefined
      ? pod.containers[0]
      : pod.containers.find((candidate) => candidate.name === options.container);
  if (!container?.log)
    throw new UnderpassError('UNDERPASS_LAB_NOT_FOUND', `reading logs of ${pod.name}: no container ${options.container ?? ''}`, {
      hint: `it has ${pod.containers.map((candidate) => candidate.name).join(', ')}`,
    });
  for (const path of [`${container.log}.1`, container.log]) if (existsSync(path)) process.stdout.write(readFileSync(path));
}

async function down(options: Common): Promise<void> {
  await endLab(options);
  await removeOrphans(options.runDir);
}

/** An agent that was killed leaves its Envoy and its kernel programs at work for the next one; without a lab none comes. */
async function removeOrphans(runDir: string): Promise<void> {
  const { cleanOrphanedAgents } = await import('./orphans.js');
  for (const { instance, problem } of await cleanOrphanedAgents(runDir)) {
    if (problem === undefined) process.stdout.write(`agent ${instance}: removed what it had left at work\n`);
    else {
      process.stderr.write(`agent ${instance}: not all of what it had left at work could be removed: ${problem}\n`);
      process.exitCode = 1;
    }
  }
}

async function endLab(options: Common): Promise<void> {
  const holder = liveHolder(labDir(options.name, options.runDir));
  if (!holder) {
    const [report] = await cleanLabs(options);
    const found = report && report.cgroups + report.namespaces + report.directories > 0;
    process.stdout.write(
      found ? `lab ${options.name} was not running; removed what it had left behind\n` : `lab ${options.name} is not running\n`,
    );
    return;
  }
  try {
    await new LabClient(labSocket(options.name, options.runDir)).down();
  } catch {
    process.kill(holder.pid, 'SIGTERM'); // it is still starting, or already ending
  }
  const gone = (): boolean => !liveHolder(labDir(options.name, options.runDir));
  await waitFor('the end of the lab', gone, { timeoutMs: DOWN_TIMEOUT_MS }).catch((cause: unknown) => {
    throw new UnderpassError(
      'UNDERPASS_LAB_NOT_READY',
      `ending lab ${options.name}: process ${holder.pid} has not ended it after ${DOWN_TIMEOUT_MS / 1000} s`,
      { cause },
    );
  });
  process.stdout.write(`lab ${options.name} is down\n`);
}

async function clean(options: { name?: string; runDir: string }): Promise<void> {
  const reports = await cleanLabs(options);
  for (const { lab, heldBy, cgroups, namespaces, directories } of reports) {
    if (heldBy) process.stdout.write(`${heldMessage(heldBy)}: left alone, end it with \`underpass lab down --name ${lab}\`\n`);
    else if (cgroups + namespaces + directories > 0)
      process.stdout.write(
        `lab ${lab}: removed ${namespaces} network namespaces, ${cgroups ? 'its cgroup' : 'no cgroup'}, ${directories ? 'its files' : 'no files'}\n`,
      );
  }
  await removeOrphans(options.runDir);
  if (knownLabs(options.runDir).length === 0) process.stdout.write('nothing of any lab is left\n');
}
