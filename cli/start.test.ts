import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';

const SAYS = 'data:text/javascript,console.log(JSON.stringify([process.execArgv,process.env.MALLOC_ARENA_MAX]))';

async function started(command: string, env: Record<string, string> = {}): Promise<[flags: string[], arenas: string | null]> {
  const { stdout } = await run('env', ['-u', 'MALLOC_ARENA_MAX', ...Object.entries({ NODE_OPTIONS: `--import=${SAYS}`, ...env }).map(([name, value]) => `${name}=${value}`), join(projectRoot, 'bin', 'underpass'), command, '--help'], { timeoutMs: 60_000 });
  return JSON.parse(stdout.split('\n')[0]!) as [string[], string | null];
}

test('an agent is started with a small heap for new objects and few arenas of malloc, unless somebody says otherwise; other commands as they are', async () => {
  const [flags, arenas] = await started('agent');
  assert.deepEqual([flags, arenas], [['--enable-source-maps', '--max-semi-space-size=2'], '2']);
  assert.equal((await started('agent', { MALLOC_ARENA_MAX: '8' }))[1], '8');
  assert.deepEqual(await started('pilot'), [['--enable-source-maps'], null]);
});
