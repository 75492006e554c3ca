// Runs the compiled tests with node's own runner. File names are expanded here, since a quoted glob or a folder can find
// nothing on Node 20 and still exit 0; a run in which no test was executed fails.
//   node test/run.mjs [substring …]   only the files whose path holds one of the substrings
// What needs more than `make test` brings runs when it is asked for by name: `make test-kube`, `make test-programs` and `make test-ztunnel`.
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join, relative } from 'node:path';

const root = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..');
const wanted = process.argv.slice(2);
const ON_REQUEST = ['test/kube/', 'test/programs/go', 'test/ztunnel/'];
const asked = (name, part) => name.includes(part) && ON_REQUEST.every((own) => !name.includes(own) || part.includes(own));
const files = readdirSync(join(root, 'dist'), { recursive: true })
  .map((name) => join('dist', String(name)))
  .filter((name) => name.endsWith('.test.js'))
  .filter((name) => (wanted.length > 0 ? wanted : ['']).some((part) => asked(name, part)))
  .sort();
if (files.length === 0) {
  console.error(`no test file matches ${wanted.join(', ') || 'dist/**/*.test.js'}`);
  process.exit(1);
}
// One file at a time: the tests share this machine's two cores, its cgroup tree and its bpffs.
const child = spawn(process.execPath, ['--enable-source-maps', '--test', '--test-concurrency=1', '--test-reporter=spec', ...files], {
  cwd: root,
  stdio: ['ignore', 'pipe', 'inherit'],
});
let tail = '';
child.stdout.on('data', (chunk) => {
  process.stdout.write(chunk);
  tail = (tail + chunk).slice(-4096);
});
child.on('close', (code) => {
  const tests = Number(/ℹ tests (\d+)/.exec(tail)?.[1] ?? 0);
  if (code === 0 && tests === 0) {
    console.error(`no test was executed in ${files.length} files (${relative(process.cwd(), root) || '.'})`);
    process.exit(1);
  }
  process.exit(code ?? 1);
});
