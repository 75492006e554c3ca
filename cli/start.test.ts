import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';

const MALLOC = ['MALLOC_ARENA_MAX', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_'];
const SAYS = `data:text/javascript,console.log(JSON.stringify([process.execArgv,[${MALLOC.map((name) => `process.env.${name}`).join()}]]))`;

async function started(command: string, env: Record<string, string> = {}): Promise<[flags: string[], malloc: (string | null)[]]> {
  const { stdout } = await run('env', [...MALLOC.flatMap((name) => ['-u', name]), ...Object.entries({ NODE_OPTIONS: `--import=${SAYS}`, ...env }).map(([name, value]) => `${name}=${value}`), join(projectRoot, 'bin', 'underpass'), command, '--help'], { timeoutMs: 60_000 });
  return JSON.parse(stdout.split('\n')[0]!) as [string[], (string | null)[]];
}

test('an agent is started with a small heap for new objects, without source maps, and with a malloc that keeps little, unless somebody says otherwise; other commands as they are', async () => {
  assert.deepEqual(await started('agent'), [['--max-semi-space-size=2'], ['2', '131072', '131072']]);
  assert.deepEqual((await started('agent', { UNDERPASS_DEBUG: '1' }))[0], ['--enable-source-maps', '--max-semi-space-size=2']);
  assert.deepEqual((await started('agent', { MALLOC_ARENA_MAX: '8', MALLOC_MMAP_THRESHOLD_: '65536', MALLOC_TRIM_THRESHOLD_: '4096' }))[1], ['8', '65536', '4096']);
  assert.deepEqual(await started('pilot'), [['--enable-source-maps'], [null, null, null]]);
});
