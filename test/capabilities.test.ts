// The agent and its Envoy with the capabilities that docs/install.md lists and no other right of root's: everything works.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { TestLauncher } from '../agent/testing/launcher.js';
import { AGENT_CAPABILITIES, ENVOY_CAPABILITIES, type Capability } from '../cli/install/agent-objects.js';
import { run } from '../common/process.js';
import { CLI, NodeUnderTest, enrolled } from './agent-harness.js';

/** As a container runtime starts a program as root without its other capabilities. */
const withOnly = (capabilities: readonly Capability[]): string[] => ['setpriv', `--bounding-set=-all,${capabilities.map(({ name }) => `+${name.toLowerCase()}`).join()}`, '--'];

const node = new NodeUnderTest(`up-caps-${process.pid}`);
// With these rights alone.
node.ownSelfTest = true;
let folder: string;
let launcher: TestLauncher;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-caps-'));
  await node.up(['shop.yaml', 'plain.yaml']);
  launcher = await TestLauncher.start(join(folder, 'launcher.sock'), { way: withOnly(ENVOY_CAPABILITIES) });
  node.under = withOnly(AGENT_CAPABILITIES);
});
after(async () => {
  await node.down();
  await launcher?.kill();
  rmSync(folder, { recursive: true, force: true });
});

test('with the listed capabilities alone pods are captured by BPF and by iptables, sockets are short-circuited, and the HTTP fast path is on', async () => {
  node.startAgent('--acceleration', 'l7', '--envoy-launcher', launcher.socketPath);
  await node.podsAre('shop', 'shop to be enrolled', enrolled('bpf'));
  const { selfTest, acceleration, httpFastPath } = await node.status();
  assert.ok(selfTest && 'checks' in selfTest && selfTest.acceleration.ok && selfTest.fastPath.ok, JSON.stringify(selfTest));
  assert.deepEqual([acceleration.on, httpFastPath?.on], [true, true]);
  const captured = node.load('shop/client');
  const { requests, failures, fresh } = await captured.run(200);
  assert.deepEqual([requests >= 200, failures, fresh.direct], [true, {}, 0]);
  await captured.end();
  await node.label('plain', { mode: 'node', redirection: 'iptables' });
  await node.podsAre('plain', 'plain to be enrolled', enrolled('iptables'));
  const redirected = node.load('plain/client');
  assert.deepEqual((await redirected.run(100)).failures, {});
  await redirected.end();
});

test('with these it takes back all that it made', async () => {
  await node.endAgent('SIGTERM');
  const [program = '', ...rest] = [...withOnly(AGENT_CAPABILITIES), process.execPath, CLI, 'agent', '--cleanup', '--instance', node.instance, '--lab-socket', node.lab.socket];
  await run(program, rest, { timeoutMs: 60_000 });
  assert.ok(!existsSync(node.paths.folder));
});
