import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../../common/paths.js';

const bench = (...args: string[]) => spawnSync(process.execPath, [join(projectRoot, 'dist', 'pilot', 'bench', 'run.js'), ...args], { encoding: 'utf8', timeout: 60_000 });

test('bench-pilot --help names every option with its default, and measures nothing', () => {
  const { status, stdout } = bench('--help');
  assert.equal(status, 0);
  for (const option of ['--services <n>', '--endpoints <n>', '--virtual-services <n>', '--proxies <n>', '--processes <n>', '--changes <n>', '--out <file>', '--pilot-flags <flags>']) assert.ok(stdout.includes(option), option);
  assert.match(stdout, /default: 10000/);
});

test('bench-pilot: a wrong option is said by name, and nothing is started', () => {
  for (const [args, expected] of [[['--proxies', 'many'], /--proxies <n>' argument 'many' is invalid\. expected a whole number/], [['--changes', '0'], /--changes/], [['--nope'], /unknown option '--nope'/]] as const) {
    const { status, stdout, stderr } = bench(...args);
    assert.deepEqual([status, stdout], [1, '']);
    assert.match(stderr, expected);
  }
});
