// The whole product by its CLI, twice in a row and after `lab clean`: what it can leave on a machine is listed before and
// after, all of it, not only what bears its name.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { instancePaths, type AgentStatus, askAgent } from '../agent/index.js';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { machineState, type MachineState } from './machine-state.js';

const underpass = join(projectRoot, 'bin', 'underpass');
const name = `up-left-${process.pid}`;
const paths = instancePaths({ instance: name });
const cli = (...args: string[]) => run(underpass, args, { timeoutMs: 60_000 });

let state: MachineState;
let agent: ChildProcess | undefined;
before(async () => {
  // Folders, not their content, are made once and kept: /run/underpass and the mount point of the bpffs.
  await useItAll();
  state = await machineState();
});
after(async () => {
  agent?.kill('SIGKILL');
  await run(underpass, ['lab', 'clean', '--name', name], { okCodes: [0, 1], timeoutMs: 60_000 });
  await run(underpass, ['agent', '--cleanup', '--instance', name], { okCodes: [0, 1], timeoutMs: 60_000 });
});

async function start(): Promise<void> {
  await cli('lab', 'up', '-f', join(projectRoot, 'examples', 'canary'), '--name', name, '--detach', '--discovery', `unix:${join(paths.folder, 'pilot.sock')}`);
  agent = spawn(underpass, ['node', '--embedded-pilot', '--lab', name, '--instance', name], { stdio: 'ignore' });
  await waitFor('the agent to enrol the pods of shop and legacy', async () => {
    const status = await agentStatus().catch(() => undefined);
    return status !== undefined && status.pods.filter((pod) => pod.state === 'enrolled' && pod.settled).length === 6;
  }, { timeoutMs: 180_000, everyMs: 200 });
}

async function agentStatus(): Promise<AgentStatus> {
  return JSON.parse(await askAgent(paths.adminSocket, '/v1/status')) as AgentStatus;
}

async function answers(): Promise<void> {
  await waitFor('an answer through the mesh', async () => {
    const { stdout } = await run(underpass, ['lab', 'exec', 'client', '-n', 'shop', '--name', name, '--', 'curl', '-s', '-m', '3', 'nginx'], { okCodes: [0, 6, 7, 22, 28, 52, 56], timeoutMs: 60_000 });
    return stdout.includes('"version"');
  }, { timeoutMs: 120_000, everyMs: 500 });
}

async function useItAll(): Promise<void> {
  await start();
  await answers();
  await cli('label', 'namespace', 'shop', 'underpass.io/redirection=iptables', '--name', name);
  await waitFor('iptables', async () => {
    const status = await agentStatus();
    return status.pods.filter((pod) => pod.namespace === 'shop').every((pod) => pod.way === 'iptables' && pod.settled);
  }, { timeoutMs: 120_000, everyMs: 200 });
  await answers();
  const exit = once(agent as ChildProcess, 'close');
  agent?.kill('SIGTERM');
  await exit;
  await cli('agent', '--cleanup', '--instance', name);
  await cli('lab', 'down', '--name', name);
}

test('lab, agent, Envoy and pilot used and ended twice in a row leave the machine as it was', async () => {
  for (let turn = 0; turn < 2; turn++) {
    await useItAll();
    assert.deepEqual(await machineState(), state);
  }
});

test('after a lab and an agent that were killed, `lab clean` alone brings the machine back, and a new one starts', async () => {
  await start();
  await answers();
  const lab = (await run(underpass, ['lab', 'ps', '--name', name])).stdout;
  assert.match(lab, /shop/);
  const info = JSON.parse(await labInfo()) as { pid: number };
  const exit = once(agent as ChildProcess, 'close');
  agent?.kill('SIGKILL');
  process.kill(info.pid, 'SIGKILL');
  await exit;
  await cli('lab', 'clean', '--name', name);
  await waitFor('the processes to be gone', async () => JSON.stringify((await machineState()).processes) === JSON.stringify(state.processes), { timeoutMs: 60_000, everyMs: 250 });
  assert.deepEqual(await machineState(), state);
  await useItAll();
  assert.deepEqual(await machineState(), state);
});

test('a second set-up finds everything in place: nothing is downloaded or built again', async () => {
  const made = ['build/underpass.node', 'build/underpass-exec', 'build/socket-probe', 'build/tcp-bench', 'proto/generated/.stamp', 'node_modules/.package-lock.json'].map((file) => join(projectRoot, file)).filter((file) => existsSync(file));
  assert.ok(made.length >= 5, made.join());
  const stamps = async () => (await run('stat', ['-c', '%n %Y %i', ...made])).stdout;
  const before_ = await stamps();
  const { stdout } = await run('make', ['build'], { cwd: projectRoot, timeoutMs: 120_000 });
  assert.equal(await stamps(), before_);
  assert.doesNotMatch(stdout, /\b(APT|NPM|ENVOY|PROTO|BPF|CXX|CC|LINK|GEN-SKEL)\b/);
});

async function labInfo(): Promise<string> {
  return (await run('curl', ['-s', '--unix-socket', `/run/underpass/lab/${name}/lab.sock`, 'http://lab/v1/info'])).stdout;
}
