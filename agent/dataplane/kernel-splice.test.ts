/** DESIGN section 5, rule 11: programs that splice(2) stay plain TCP by themselves, by label, and while nobody is there to look. */
import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { socketProbe, type ProbeResult } from '../../native/testing.js';
import { judgeExecutable } from './kernel-executable.js';
import { Executable } from './kernel-processes.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';

const folder = mkdtempSync(join(tmpdir(), 'up-splice-'));
const haproxy = join(folder, 'haproxy');
const go = join(folder, 'written-in-go');
/** More than probation asks for, then the one that splices. */
const SPLICE = ['--warm', '20', '--bytes', '3000000'];

/** Connections of one exchange each are what these tests are made of. */
const RODATA = { brief_streak: 0 };
let w: KernelWorld;
before(async () => {
  w = await KernelWorld.create('splice', { pinned: true, rodata: RODATA });
  copyFileSync(socketProbe, haproxy);
  writeFileSync(join(folder, 'empty'), 'Go');
  await run('objcopy', ['--add-section', `.go.buildinfo=${join(folder, 'empty')}`, socketProbe, go]);
});
/** Pods of which nothing has been learnt. */
beforeEach(() => {
  w.forget();
  w.put({ acceleration: 'l4' });
});
after(async () => {
  await w.close();
  rmSync(folder, { recursive: true });
});

function splice(program: string, verdict?: string): Promise<{ result: ProbeResult; counters: Record<string, number> }> {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  return w.counted(async () => {
    if (verdict !== undefined) await judged(program, verdict);
    return w.world.probe('splice', { pod: b, address: b.ipv4 }, { pod: a }, SPLICE, program);
  });
}

/** Connections of a program that runs until both ends are judged. Who was asked a moment ago is not asked again at once. */
async function judged(program: string, expected: string): Promise<void> {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const isSo = (): boolean => isDeepStrictEqual(verdicts(), { client: expected, listener: expected });
  await waitFor(`both to be ${expected}`, async () => {
    await w.world.holding('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '10'], () => waitFor('it', isSo, { timeoutMs: 1_000 }).catch(() => undefined), program);
    return isSo();
  });
}

function verdicts(): Record<string, string> {
  return Object.fromEntries(w.kernel.probation().map(({ kind, verdict }) => [kind, verdict]));
}

test('splice: a program that nothing is known about is accelerated after its probation (and would lose bytes)', async () => {
  const { counters } = await splice(socketProbe, 'event-driven');
  assert.ok((counters['connections_short_circuited'] ?? 0) > 0, JSON.stringify(counters));
});

for (const program of [haproxy, go]) {
  test(`splice: ${program === go ? 'a Go program' : 'haproxy'} is found by itself, and loses no byte`, async () => {
    const { result, counters } = await splice(program, 'spliced');
    assert.equal(result.ok, true, JSON.stringify(result));
    assert.equal(counters['connections_short_circuited'], undefined);
    assert.ok((counters['connection_client_spliced'] ?? 0) > 0, JSON.stringify(counters));
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
  await judged(go, 'spliced');
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const shortCircuited = async (): Promise<number | undefined> => (await w.counted(() => w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '10'], go))).counters['connections_short_circuited'];
  w.put({ acceleration: 'l4', splices: false });
  await judged(go, 'event-driven');
  assert.equal(await shortCircuited(), 10);
  w.put({ acceleration: 'l4' });
  await judged(go, 'spliced');
  assert.equal(await shortCircuited(), undefined);
});

test('splice: with no agent nothing new is accelerated; the next one is asked', async () => {
  const start = w.kernel.counters()['connections_short_circuited'];
  await w.kernel.close();
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  assert.equal((await w.world.probe('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '30'])).ok, true);
  w.kernel = await w.open(TEST_BPFFS, undefined, RODATA);
  for (const pod of w.kernel.pods()) w.kernel.putPod(pod);
  assert.deepEqual(verdicts(), { client: 'probation', listener: 'probation' });
  assert.equal(w.kernel.counters()['connections_short_circuited'], start);
  await judged(socketProbe, 'event-driven');
});

test('splice: what was seen is told with its program and reason, also by the agent after this one', async () => {
  const [a, b] = [w.world.pod(0), w.world.pod(1)];
  const told = (): string[] => w.kernel.probation().map(({ kind, verdict, reason, program }) => `${kind} ${verdict} ${program ?? ''} ${reason}`).sort();
  const expected = ['client', 'listener'].map((kind) => `${kind} spliced ${haproxy} haproxy is known to splice`);
  const toldAll = (what: string): Promise<unknown> => waitFor(what, () => JSON.stringify(told()) === JSON.stringify(expected)).catch((error: unknown) => assert.fail(`${String(error)}: ${told().join('\n')}`));
  // Alive beside the next agent: a name is found by a process.
  await w.world.holding('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '20'], async () => {
    await toldAll('both to be told');
    await w.kernel.close();
    w.kernel = await w.open(TEST_BPFFS, undefined, RODATA);
    await toldAll('both to be told again');
  }, haproxy);
  const blocking = `client blocking ${socketProbe} it sent data on a blocking socket`;
  await w.world.holding('churn', { pod: b, address: b.ipv4 }, { pod: a }, ['--count', '2', '--blocking-client'], () => waitFor(blocking, () => told().includes(blocking)));
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
