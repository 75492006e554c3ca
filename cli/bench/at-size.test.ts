import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';

const bench = (args: readonly string[], okCodes: readonly number[] = [0]) => run(process.execPath, [join(projectRoot, 'dist', 'cli', 'bench', 'at-size.js'), ...args], { timeoutMs: 240_000, okCodes });

test('bench-dataplane measures a node with few pods and services: each figure is there, and the node has what it was to have', async () => {
  const { stdout } = await bench(['--services', '400', '--endpoints', '400', '--routes', '8', '--pods', '5', '--classes', '2', '--changes', '2', '--requests', '40', '--rounds', '1']);
  const rows = new Map(stdout.trim().split('\n').map((line) => [line.slice(0, line.lastIndexOf(': ')), line.slice(line.lastIndexOf(': ') + 2).split(' | ')] as const));
  const of = (start: string): string[] => [...rows].find(([what]) => what.startsWith(start))?.[1] ?? assert.fail(`no row ${start} in\n${stdout}`);
  const numbers = (start: string, column = 1): number[] => of(start)[column]!.match(/\d+(\.\d+)?/g)!.map(Number);
  assert.deepEqual(of('mesh'), ['10 services, 20 endpoints elsewhere, 5 routes', '400 services, 400 endpoints elsewhere, 8 routes']);
  // The client's, each server's, and those of two more.
  assert.deepEqual(of('node'), ['5 pods of 5 kinds', '5 pods of 5 kinds']);
  assert.deepEqual(of('addresses and ports in the kernel'), ['1', '40'], 'a tenth of the services leads to pods of the node');
  const [[few = 0] = [], [many = 0] = []] = [numbers('a kind of pods is sent', 0), numbers('a kind of pods is sent')];
  assert.ok(many >= few + 390, `${few} clusters with 10 services, ${many} with 400`);
  for (const [what, [small, large]] of rows) for (const value of [small, large]) assert.ok(!/NaN|Infinity|undefined/.test(value!), `${what}: ${value}`);
  for (const start of ['agent: RSS', 'Envoy: RSS', 'from nothing', 'one route changes: file to the first', 'request through Envoy, kept', 'request through Envoy, new', '64 bytes there and back by TCP']) assert.ok(numbers(start).every((value) => value > 0), `${start}: ${of(start)[1]}`);
  assert.ok(numbers('one route changes: file to the last')[1]! >= numbers('one route changes: file to the first')[1]!, 'what is old is answered no longer once what is new is, and not before');
});

test('bench-dataplane: a wrong option is said by name, and nothing is started', async () => {
  for (const [args, expected] of [[['--pods', '2'], /--pods <n>' argument '2' is invalid\. expected a whole number from 3 to 240/], [['--nope'], /unknown option '--nope'/]] as const) {
    const { stdout, stderr } = await bench(args, [1]);
    assert.equal(stdout, '');
    assert.match(stderr, expected);
  }
});
