import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { cgroup2Root } from '../../common/cgroup.js';
import { run } from '../../common/process.js';
import { capabilitiesOf, kernelAtLeast, kernelRows, libbpfRows } from './kernel.js';
import { networkRows } from './network.js';
import { envoyVersion, programRows } from './programs.js';
import { renderTable, verdictOf, type Diagnosis, type Row } from './report.js';

const main = fileURLToPath(new URL('../main.js', import.meta.url));

function row(id: string, state: Row['state'], need: Row['need']): Row {
  return { id, group: 'Group', name: id, state, need, detail: 'seen', ...(state === 'yes' ? {} : { cost: 'something' }) };
}

test('verdictOf: what fails decides what is left', () => {
  const all = (bpf: Row['state'], iptables: Row['state'], base: Row['state'], acceleration: Row['state'] = 'yes') =>
    verdictOf([row('a', bpf, 'bpf'), row('b', iptables, 'iptables'), row('c', base, 'base'), row('d', 'no', 'extra'), row('self-test.acceleration', acceleration, 'extra')]);
  assert.equal(all('yes', 'yes', 'yes').code, 0);
  assert.equal(all('yes', 'no', 'yes').code, 0, 'the fallback is not needed where BPF works');
  assert.deepEqual(all('no', 'yes', 'yes'), { capture: 'no', shortCircuit: 'no', iptables: 'yes', code: 3, summary: 'pods are reached by iptables redirection; nothing is short-circuited' });
  assert.equal(all('no', 'no', 'yes').code, 4);
  assert.equal(all('yes', 'yes', 'no').code, 4);
  assert.equal(all('partly', 'yes', 'yes').code, 3);
  assert.deepEqual([all('yes', 'yes', 'yes', 'no').shortCircuit, all('yes', 'yes', 'yes', 'no').code], ['no', 3]);
});

test('capabilitiesOf: root has all, others are told what for; what the kernel no longer asks for is not missed', () => {
  assert.deepEqual(capabilitiesOf('CapEff:\t000001ffffffffff\n', '6.1.0').missing, []);
  const none = capabilitiesOf('CapEff:\t0000000000000000\n', '5.4.0');
  assert.equal(none.canLoadBpf || none.canEnterNetns, false);
  assert.ok(none.missing.includes('CAP_BPF') && none.missing.includes('CAP_SYS_RESOURCE'));
  assert.ok(!capabilitiesOf('CapEff:\t0000000000000000\n', '6.1.0').missing.includes('CAP_SYS_RESOURCE'));
  const bpfOnly = capabilitiesOf(`CapEff:\t${((1n << 39n) | (1n << 38n) | (1n << 12n)).toString(16)}\n`, '6.1.0');
  assert.deepEqual([bpfOnly.canLoadBpf, bpfOnly.canEnterNetns], [true, false]);
});

test('kernelAtLeast, envoyVersion: read what is really printed', () => {
  assert.ok(kernelAtLeast('6.1.0-13-amd64', [5, 15]) && kernelAtLeast('5.15.0', [5, 15]) && !kernelAtLeast('5.4.300', [5, 15]));
  assert.equal(envoyVersion('/x/envoy  version: 1d5ca4e2a6b9d8b7a5aa3e4a9c9d8b7a5aa3e4a9/1.40.0/Clean/RELEASE/BoringSSL'), '1.40.0');
  assert.equal(envoyVersion('something else'), undefined);
});

test('renderTable: every row with its state and, unless yes, its cost; colours only when asked', () => {
  const rows = [row('first', 'yes', 'base'), row('second', 'no', 'bpf'), row('third', 'partly', 'extra')];
  const diagnosis: Diagnosis = { machine: { os: 'Debian', kernel: '6.1', cpu: 'CPU', memory: '1 GiB', virtualization: '' }, rows, verdict: verdictOf(rows) };
  const text = renderTable(diagnosis, { colour: false, width: 60 });
  assert.match(text, /first +yes +seen/);
  assert.match(text, /second +no +seen\n +costs: something/);
  assert.ok(!text.includes('\u001b'));
  assert.ok(renderTable(diagnosis, { colour: true }).includes('\u001b[31mno'));
});

test('probes: ask this machine; each row is yes, or says what it costs', async () => {
  const { rows, capabilities } = kernelRows();
  const all = [...rows, ...(await libbpfRows(capabilities)), ...(await networkRows(capabilities)), ...(await programRows())];
  for (const { id, state, cost, detail } of all) {
    assert.ok(detail !== '', id);
    assert.equal(cost === undefined, state === 'yes', `${id}: ${state} ${cost}`);
  }
  const state = (id: string) => all.find((candidate) => candidate.id === id)?.state;
  // This test runs as root on a kernel that the addon's own tests load programs on.
  assert.equal(state('kernel.capabilities'), 'yes');
  assert.equal(state('libbpf.programs'), 'yes', JSON.stringify(all.filter(({ id }) => id.startsWith('libbpf'))));
  assert.equal(state('libbpf.maps'), 'yes');
  assert.equal(state('libbpf.helpers'), 'yes');
  assert.equal(state('network.iptables'), 'yes');
  assert.equal(state('programs.envoy'), 'yes');
});

test('libbpf.js: without ffi-napi it says so in a line, and nothing else is lost', async () => {
  const alone = mkdtempSync(join(tmpdir(), 'up-doctor-'));
  try {
    copyFileSync(fileURLToPath(new URL('./libbpf.js', import.meta.url)), join(alone, 'libbpf.mjs'));
    const { code, stderr, stdout } = await run(process.execPath, [join(alone, 'libbpf.mjs')], { okCodes: [1] });
    assert.equal(code, 1);
    assert.match(stderr, /^Cannot find module 'ffi-napi'$/);
    assert.equal(stdout, '');
  } finally {
    rmSync(alone, { recursive: true });
  }
});

test('underpass doctor -o json as root: this kernel, the self-test run, nothing left behind', async () => {
  const child = spawn(process.execPath, [main, 'doctor', '-o', 'json'], { stdio: ['ignore', 'pipe', 'inherit'] });
  let stdout = '';
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
  const [code] = (await once(child, 'close')) as [number];
  assert.ok(code === 0 || code === 3, `exit ${code}`);
  const diagnosis = JSON.parse(stdout) as Diagnosis;
  assert.equal(diagnosis.verdict.code, code);
  assert.equal(diagnosis.machine.kernel, release());
  assert.ok(diagnosis.rows.some(({ id }) => id === 'self-test.acceleration'));
  assert.ok(diagnosis.rows.filter(({ id }) => id.startsWith('self-test.')).length > 5);
  assert.deepEqual(readdirSync(cgroup2Root()).filter((name) => name.includes(`self-test-${child.pid}-`)), []);
});

test('underpass doctor as nobody: honest answers, exit 4, no stack trace, no colours', async () => {
  const { stdout, stderr, code } = await run('setpriv', ['--reuid', '65534', '--regid', '65534', '--clear-groups', process.execPath, main, 'doctor'], { okCodes: [4], cwd: '/' });
  assert.equal(code, 4);
  assert.match(stdout, /capabilities +no +missing: CAP_NET_ADMIN/);
  assert.match(stdout, /not tried: this process may not load BPF/);
  assert.ok(!/\n\s+at .*\.js:\d+/.test(stdout + stderr), 'no stack trace');
  assert.ok(!stdout.includes('\u001b'));
  const wrong = await run(process.execPath, [main, 'doctor', '-o', 'xml'], { okCodes: [2] });
  assert.match(wrong.stderr, /table, json/);
});
