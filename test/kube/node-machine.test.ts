// The machine of a real node ends with the process that made it, and what that leaves is taken away by the next.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { NodeMachine } from './node-machine.js';
import { nodeProblem } from './real-node.js';

const SERVICES = { serviceRange: '10.96.0.0/16' };
const WAIT = { everyMs: 50 };
const skip = (await nodeProblem()) ?? false;

/** Those in the machine's cgroups. */
function processesOf(name: string): string[] {
  return readdirSync('/proc').filter((pid) => /^\d+$/.test(pid)).filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/cgroup`, 'utf8').includes(name);
    } catch {
      return false;
    }
  });
}

test('NodeMachine: what runs in it has processes, files, settings and a network of its own, and close() leaves nothing', { skip }, async () => {
  const machine = await NodeMachine.start(SERVICES);
  try {
    const before = readFileSync('/proc/sys/kernel/panic', 'utf8');
    await machine.run('sh', ['-c', 'echo 10 >/proc/sys/kernel/panic; echo x >/etc/up-kube-node-file; mkdir /run/up-kube-node-folder']);
    assert.equal((await machine.run('cat', ['/proc/sys/kernel/panic', '/etc/up-kube-node-file'])).stdout, '10\nx\n');
    assert.deepEqual([readFileSync('/proc/sys/kernel/panic', 'utf8'), existsSync('/etc/up-kube-node-file'), existsSync('/run/up-kube-node-folder')], [before, false, false]);
    assert.match((await machine.run('sh', ['-c', 'ip route get 192.0.2.1 2>&1 || true'])).stdout, /unreachable/i);
    assert.doesNotMatch((await machine.run('ip', ['-o', 'link'])).stdout, /eth0/);
    machine.start('sleeper', 'sleep', ['1000']);
    await waitFor('its program', async () => (await machine.run('ps', ['-e', '-o', 'comm='])).stdout.includes('sleep'), WAIT);
  } finally {
    await machine.close();
  }
  assert.deepEqual(machine.remains(), []);
});

test('NodeMachine: all ends with the process that made it, also when that is killed, and the next one takes its folders away', { skip }, async () => {
  const script = `import { NodeMachine } from ${JSON.stringify(new URL('./node-machine.js', import.meta.url).href)};
    const machine = await NodeMachine.start(${JSON.stringify(SERVICES)});
    machine.start('sleeper', 'sh', ['-c', 'sleep 1000 & setsid sleep 1001 & wait']);
    await machine.run('true', []);
    console.log(machine.name);
    setInterval(() => undefined, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  let name = '';
  child.stdout.on('data', (chunk: Buffer) => (name += chunk.toString()));
  await waitFor('the machine', () => name.includes('\n'), WAIT);
  name = name.trim();
  await waitFor('its programs', () => processesOf(name).length >= 4, WAIT);
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
  await waitFor('its programs to end', () => processesOf(name).length === 0, WAIT);
  const folders = (): string => readdirSync('/tmp').filter((entry) => entry.startsWith(`${name}-`)).join();
  assert.notEqual(folders(), '');
  await (await NodeMachine.start(SERVICES)).close();
  const { stdout } = await run('find', ['/sys/fs/cgroup', '-maxdepth', '5', '-name', name]);
  assert.deepEqual([folders(), stdout], ['', '']);
});
