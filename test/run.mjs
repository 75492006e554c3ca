// Runs the compiled tests with node's own runner. File names are expanded here, since a quoted glob or a folder can find
// nothing on Node 20 and still exit 0; a run in which no test was executed fails.
//   node test/run.mjs [substring …]   only the files whose path holds one of the substrings
// What needs more than `make test` brings runs when it is asked for by name: `make test-kube`, `make test-programs` and `make test-ztunnel`.
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { getPriority, setPriority } from 'node:os';
import { join, relative } from 'node:path';
import { lanesOf, Report } from './lanes.mjs';

const root = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..');
const wanted = process.argv.slice(2);
const ON_REQUEST = ['test/kube/', 'test/programs/go', 'test/ztunnel/'];
const UNIT_NICENESS = 5; // above this process's own
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

/** @returns the exit code */
const runLane = (lane, niceness, report) =>
  new Promise((resolve) => {
    const child = spawn(process.execPath, ['--enable-source-maps', '--test', '--test-concurrency=1', '--test-reporter=spec', ...lane], { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
    if (niceness > 0) setPriority(child.pid, Math.min(getPriority() + niceness, 19));
    child.stdout.setEncoding('utf8').on('data', (chunk) => report.add(chunk));
    child.on('close', (code) => resolve(code ?? 1));
  });

// The tests that use the machine share its two cores, its cgroup tree and its bpffs, so they run one file at a time. Most of
// their time is waiting: those that can't touch it run beside them, and are told when they are done.
const lanes = Object.values(lanesOf(root, files)).filter((lane) => lane.length > 0);
const later = [];
const reports = lanes.map((_, index) => new Report((lines) => (index === 0 ? process.stdout.write(lines) : later.push(lines))));
const codes = await Promise.all(lanes.map((lane, index) => runLane(lane, index === 0 ? 0 : UNIT_NICENESS, reports[index])));
process.stdout.write(later.join('') + Report.sum(reports, performance.now()));
process.exitCode = Math.max(...codes);
lanes.forEach((lane, index) => {
  if (reports[index].tests > 0) return;
  console.error(`no test was executed in ${lane.length} files (${relative(process.cwd(), root) || '.'})`);
  process.exitCode ||= 1;
});
