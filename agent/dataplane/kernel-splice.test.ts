/** DESIGN section 5, rule 11: programs that splice(2) stay plain TCP by themselves, by label, and while nobody is there to look. */
import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { socketProbe, type ProbeResult } from '../../native/testing.js';
import { judgeExecutable } from './kernel-executable.js';
import { Executable } from './kernel-processes.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';

const folder = mkdtempSync(join(tmpdir(), 'up-splice-'));
const haproxy = join(folder, 'haproxy');
const go = join(folder, 'written-in-go');
/** More than probation asks for, each alive for long enough to be looked at, then the one that splices. */
const SPLICE = ['--warm', '20', '--warm-delay', '20', '--bytes', '3000000'];

let w: KernelWorld;
before(async () => {
  copyFileSync(socketProbe, haproxy);
  writeFileSync(join(folder, 'empty'), 'Go');
  await run('objcopy', ['--add-section', `.go.buildinfo=${join(folder, 'empty')}`, socketProbe, go]);
});
beforeEach(async () => {
  await w?.close();
  w = await KernelWorld.create('splice', { pinned: true });
  w.put({ acceleration: 'l4' });
});
after(async () => {
  await w.close();
  rmSync(folder, { recursive: true });
});

function splice(program: string): Promise<{ result: ProbeResult; counters: Record<string, number> }> {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  return w.counted(() => w.world.probe('splice', { pod: b, address: b.ipv4 }, { pod: a }, SPLICE, program));
}

function verdicts(): Record<string, string> {
  return Object.fromEntries(w.kernel.probation().map(({ kind, verdict }) => [kind, verdict]));
}

test('splice: a program that nothing is known about is accelerated after its probation (and would lose bytes)', async () => {
  const { counters } = await splice(socketProbe);
  assert.deepEqual(verdicts(), { client: 'event-driven', listener: 'event-driven' });
  assert.ok((counters['connections_short_circuited'] ?? 0) > 0, JSON.stringify(counters));
});

for (const program of [haproxy, go]) {
  test(`splice: ${program === go ? 'a Go program' : 'haproxy'} is found by itself, and loses no byte`, async () => {
    const { result, counters } = await splice(program);
    assert.equal(result.ok, true, JSON.stringify(result));
    assert.equal(counters['connections_short_circuited'], undefined);
    assert.ok((counters['connection_client_spliced'] ?? 0) > 0, JSON.stringify(counters));
    assert.deepEqual(verdicts(), { client: 'spliced', listener: 'spliced' });
  });
}

test('splice: the label "true" keeps a pod out, whoever opens the connection, also with `force`', async () => {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  for (const spliced of [a, b]) {
    w.put({ acceleration: 'force' });
    w.put({ acceleration: 'force', splices: true }, [spliced]);
    assert.equal(w.kernel.pods().find((pod) => pod.netnsCookie === spliced.netnsCookie)?.splices, true);
    const { result, counters } = await splice(socketProbe);
    assert.equal(result.ok, true, JSON.stringify(result));
    assert.equal(counters['connections_short_circuited'], undefined);
    assert.equal(counters['connection_pod_spliced'], 21);
  }
});

test('splice: the label "true" leaves connections of the proxy in the pod\'s namespace alone', async () => {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  w.put({ acceleration: 'force' });
  w.put({ acceleration: 'force', splices: true }, [a]);
  const { counters } = await w.counted(() => w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a, cgroup: w.world.proxyCgroup }, ['--count', '5']));
  assert.equal(counters['connections_short_circuited'], 5, JSON.stringify(counters));
});

test('splice: the label "false" lets Go programs in, and is undone with what was learnt by it', async () => {
  await splice(go);
  assert.deepEqual(verdicts(), { client: 'spliced', listener: 'spliced' });
  const churn = (hold: string): Promise<{ counters: Record<string, number> }> => {
    const [a, b] = [w.world.pod(0), w.world.pod(1)];
    return w.counted(() => w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '10', '--hold', hold], go));
  };
  /** User space is asked about a program while it runs; on a slow machine it may be gone before it was looked at, so again. */
  const judged = async (verdict: string): Promise<void> => {
    for (let run = 0; run < 10 && Object.values(verdicts()).some((found) => found !== verdict); run++) await churn('300');
    assert.deepEqual(verdicts(), { client: verdict, listener: verdict });
  };
  w.put({ acceleration: 'l4', splices: false });
  await judged('event-driven');
  assert.equal((await churn('0')).counters['connections_short_circuited'], 10);
  w.put({ acceleration: 'l4' });
  await judged('spliced');
  assert.equal((await churn('0')).counters['connections_short_circuited'], undefined);
});

test('splice: with no agent nothing new is accelerated; the next one is asked', async () => {
  await w.kernel.close();
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const churn = (): Promise<ProbeResult> => w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '30', '--hold', '300']);
  assert.equal((await churn()).ok, true);
  w.kernel = await w.open(TEST_BPFFS);
  for (const pod of w.kernel.pods()) w.kernel.putPod(pod);
  assert.deepEqual(verdicts(), { client: 'probation', listener: 'probation' });
  assert.equal(w.kernel.counters()['connections_short_circuited'], 0n);
  await churn();
  await waitFor('both to be event-driven', () => Object.values(verdicts()).every((verdict) => verdict === 'event-driven'), { timeoutMs: 2_000 });
});

test('splice: what was seen is told with its program and reason, also by the agent after this one', async () => {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const told = (): string[] => w.kernel.probation().map(({ kind, verdict, reason, program }) => `${kind} ${verdict} ${program ?? ''} ${reason}`).sort();
  // Alive beside the next agent: a name is found by a process.
  const waiting = w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '20', '--hold', '3000'], haproxy);
  const expected = ['client', 'listener'].map((kind) => `${kind} spliced ${haproxy} haproxy is known to splice`);
  await waitFor('both to be told', () => JSON.stringify(told()) === JSON.stringify(expected), { timeoutMs: 2_000 });
  await w.kernel.close();
  w.kernel = await w.open(TEST_BPFFS);
  await waitFor('both to be told again', () => JSON.stringify(told()) === JSON.stringify(expected), { timeoutMs: 2_000 });
  await waiting;
  const blocking = () => w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '2', '--hold', '300', '--blocking-client']);
  await blocking();
  assert.ok(told().includes(`client blocking ${socketProbe} it sent data on a blocking socket`), told().join('\n'));
});

test('judgeExecutable: real executables, and files that are none', async () => {
  const judge = async (path: string, as = path): Promise<boolean> => {
    const { readFileSync } = await import('node:fs');
    const content = readFileSync(path);
    return (await judgeExecutable((position, length) => Promise.resolve(content.subarray(position, position + length)), as)).splices;
  };
  assert.equal(await judge(socketProbe), false);
  assert.equal(await judge(process.execPath), false);
  assert.equal(await judge(go), true);
  assert.equal(await judge(socketProbe, '/usr/sbin/haproxy (deleted)'), true);
  assert.equal(await judge(join(folder, 'empty')), true, 'what can\'t be read may be anything');
  await run('objcopy', ['--strip-all', go, join(folder, 'stripped')]);
  assert.equal(await judge(join(folder, 'stripped')), true);
  // Numbers that point nowhere, and tables larger than any.
  const broken = Buffer.alloc(64);
  Buffer.from('7f454c460201', 'hex').copy(broken);
  broken.writeBigUInt64LE(2n ** 63n, 0x28);
  broken.writeUInt16LE(0xffff, 0x3a);
  broken.writeUInt16LE(0xffff, 0x3c);
  assert.equal((await judgeExecutable((position, length) => Promise.resolve(broken.subarray(position, position + length)), 'x')).splices, true);
  assert.equal(Executable.of(2 ** 22 + 1), undefined);
});
