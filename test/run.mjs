// Runs the compiled tests with node's own runner. File names are expanded here, since a quoted glob or a folder can find
// nothing on Node 20 and still exit 0; a run in which no test was executed fails.
//   node test/run.mjs [substring …]   only the files whose path holds one of the substrings
// What needs more than `make test` brings runs when it is asked for by name: `make test-image`, `make test-kube`, `make test-programs`, `make test-dashboards` and `make test-ztunnel`.
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { Report } from './report.mjs';

const root = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..');
const wanted = process.argv.slice(2);
const ON_REQUEST = ['test/dashboards/', 'test/image/build.', 'test/kube/', 'test/programs/go', 'test/ztunnel/'];
// Most of a file's time is waiting, and what it makes on the machine bears its process's name, so files run three at a time;
// but for those that look at what belongs to all (the first lists everything on the machine, the second adds up the kernel's memory
// for TCP), and the one that fills the machine: a whole node of Kubernetes.
const TOGETHER = 3;
const ALONE = ['test/leftovers', 'agent/dataplane/kernel-flow.', 'test/kube/real-node'];
// Those that take longest begin, so that none of them is left to run by itself at the end: by what was measured of one, else by
// its folder, whose files start agents and Envoys.
const LONGEST = ['test/http-fast-path.', 'test/http/upgrade.', 'test/agent-steps.', 'test/bench.', 'test/demo.', 'test/http-sums.', 'test/http/programs.', 'test/programs/', 'test/node-hbone', 'test/gateway', 'test/http', 'test/', 'agent/proxy/', 'lab/', 'agent/dataplane/', 'cli/'];
const rank = (name) => (LONGEST.findIndex((part) => name.startsWith(join('dist', part))) + LONGEST.length + 1) % (LONGEST.length + 1);
const asked = (name, part) => name.includes(part) && ON_REQUEST.every((own) => !name.includes(own) || part.includes(own));
const files = readdirSync(join(root, 'dist'), { recursive: true })
  .map((name) => join('dist', String(name)))
  .filter((name) => name.endsWith('.test.js'))
  .filter((name) => (wanted.length > 0 ? wanted : ['']).some((part) => asked(name, part)))
  .sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
if (files.length === 0) {
  console.error(`no test file matches ${wanted.join(', ') || 'dist/**/*.test.js'}`);
  process.exit(1);
}

/** @returns the exit code */
const run = (some, concurrency, report) =>
  new Promise((resolve) => {
    const child = spawn(process.execPath, ['--enable-source-maps', join(root, 'test', 'run-files.mjs'), String(concurrency), ...some], { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
    child.stdout.setEncoding('utf8').on('data', (chunk) => report.add(chunk));
    child.on('close', (code) => resolve(code ?? 1));
  });

const isAlone = (name) => ALONE.some((part) => name.includes(part));
const reports = [];
for (const [some, concurrency] of [[files.filter((name) => !isAlone(name)), TOGETHER], [files.filter(isAlone), 1]]) {
  if (some.length === 0) continue;
  const report = new Report((lines) => process.stdout.write(lines));
  reports.push(report);
  const code = await run(some, concurrency, report);
  if (code === 0 && report.tests === 0) console.error(`no test was executed in ${some.length} files (${relative(process.cwd(), root) || '.'})`);
  process.exitCode = Math.max(process.exitCode ?? 0, code, report.tests === 0 ? 1 : 0);
}
process.stdout.write(Report.sum(reports, performance.now()));
