/**
 * `make test-kernels`: boots Debian's kernels one after the other in qemu, in software (hardware virtualisation hangs on some
 * machines, so it is never used), with nothing but an initramfs, lets the checks of guest.ts run in each, and compares
 * what they answer with expected.json.
 */
import { Command } from 'commander';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, cpSync, copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { wholeNumber } from '../../common/arguments.js';
import { buildDir, projectRoot } from '../../common/paths.js';
import { groupOf, testFiles } from './files.js';
import { packInitramfs, packTree } from './initramfs.js';
import { deviations, readReport, renderMatrix, TESTS, type Column, type Expectation } from './report.js';

const MEMORY_MIB = 2048;
/** A kernel complains about itself. */
const SPLAT = /\b(?:BUG|WARNING|Oops|general protection fault|INFO: task .* blocked|INFO: rcu.* stall)\b.*/;

/** Tests of the kernel side, and of the HTTP fast path's exchanges. */
const ALL = ['dataplane/kernel-', 'test/http/'];

const program: Command = new Command('test-kernels')
  .description('the matrix of kernels: what each supports, compared with test/kernels/expected.json')
  .argument('[parts...]', "only tests whose file's path holds one of these, e.g. kernel-flow, http/exchange; `none` for no tests", ALL)
  .option('--series <list>', 'only these series of kernels, e.g. 6.1,6.12')
  .option('--no-host', 'without the column of the running kernel, which has no tests (`make test` runs them) and no expectation')
  .option('--timeout <seconds>', 'the longest that a kernel may take from its start to power-off', wholeNumber(10, 14_400), 5400)
  .addHelpText('after', '\nExit codes: 0 all as expected, 1 some kernel answers otherwise, or none was checked.')
  .parse();
const options = program.opts<{ series?: string; host: boolean; timeout: number }>();
const parts = program.args.length > 0 ? program.args : ALL;
const whole = parts === ALL;
const folder = join(buildDir, 'kernels');
const expected = JSON.parse(readFileSync(join(projectRoot, 'test/kernels/expected.json'), 'utf8')) as Record<string, Expectation>;

interface Booted extends Column {
  package: string;
  seconds: number;
}

async function boot(series: string, base: string): Promise<Booted> {
  const kernel = join(folder, `${series}.kernel`);
  const run = join(folder, `${series}.run`);
  rmSync(run, { recursive: true, force: true });
  mkdirSync(join(run, 'tree'), { recursive: true });
  const [initramfs, console_, report] = [join(run, 'initramfs.cpio'), join(run, 'console.log'), join(run, 'report.jsonl')];
  copyFileSync(base, initramfs);
  cpSync(join(kernel, 'modules'), join(run, 'tree', 'modules'), { recursive: true });
  const modules = join(run, 'modules.cpio');
  await packTree(join(run, 'tree'), modules);
  appendFileSync(initramfs, readFileSync(modules));
  writeFileSync(report, '');
  const started = performance.now();
  const qemu = spawn('qemu-system-x86_64', [
    '-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '2', '-m', String(MEMORY_MIB), '-nographic', '-nodefaults', '-no-reboot',
    '-kernel', join(kernel, 'vmlinuz'), '-initrd', initramfs, '-append', 'console=ttyS0 loglevel=5 panic=-1',
    '-serial', `file:${console_}`, '-serial', `file:${report}`,
  ], { stdio: ['ignore', 'inherit', 'inherit'] });
  const timer = setTimeout(() => qemu.kill('SIGKILL'), options.timeout * 1000);
  const interrupted = (): void => {
    qemu.kill('SIGKILL');
    process.exit(1);
  };
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  const [code, signal] = (await once(qemu, 'exit')) as [number | null, NodeJS.Signals | null];
  clearTimeout(timer);
  process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
  for (const path of [initramfs, modules, join(run, 'tree')]) rmSync(path, { recursive: true });
  const column = readReport(series, readFileSync(report, 'utf8'));
  const text = existsSync(console_) ? readFileSync(console_, 'utf8') : '';
  const splat = SPLAT.exec(text)?.[0];
  column.rows.push({ group: 'kernel', name: 'no complaint in its log', state: splat === undefined ? 'ok' : 'wrong answer', detail: splat ?? '' });
  if (signal === 'SIGKILL') column.failure = `not finished after ${options.timeout} s; ${column.failure ?? ''}`;
  else if (code !== 0) column.failure = `qemu ended with ${code}; ${column.failure ?? ''}`;
  if (column.failure !== undefined) column.failure += `; its console ends with:\n${text.trim().split(/\r?\n/).slice(-15).join('\n')}`;
  return { ...column, package: readFileSync(join(kernel, 'version'), 'utf8').trim(), seconds: (performance.now() - started) / 1000 };
}

async function host(): Promise<Column> {
  const report = join(folder, 'host.jsonl');
  const guest = spawn(process.execPath, [join(projectRoot, 'dist/test/kernels/guest.js'), report], { stdio: ['ignore', 'inherit', 'inherit'] });
  await once(guest, 'exit');
  return readReport('host', readFileSync(report, 'utf8'));
}

function entries(): string[] {
  const wanted = testFiles(parts);
  if (wanted.length === 0 && !parts.includes('none')) program.error(`no test file matches ${parts.join(', ')}`);
  return ['dist/test/kernels/guest.js', 'dist/cli/doctor/libbpf.js', ...wanted];
}

const problems: string[] = [];
const columns: Column[] = [];
const base = await packInitramfs(folder, entries(), parts);
const wanted = options.series?.split(',') ?? Object.keys(expected);
for (const series of wanted) {
  const want = expected[series];
  if (!want) program.error(`--series ${series}: expected.json has ${Object.keys(expected).join(', ')}`);
  const missing = join(folder, `${series}.kernel`, 'missing');
  if (existsSync(missing)) {
    console.log(`${series}: skipped: ${readFileSync(missing, 'utf8').trim()}`);
    continue;
  }
  if (!existsSync(join(folder, `${series}.kernel`, 'vmlinuz'))) program.error(`${series}: no kernel in ${folder}: run scripts/setup-kernels.sh`);
  const column = await boot(series, base);
  columns.push(column);
  console.log(`${series}: Debian's ${column.package} (expectations are of ${want.seen}): ${column.rows.length} checks in ${column.seconds.toFixed(0)} s`);
  // With fewer tests than all, what the others would say is not missed.
  const judged = whole ? want : { ...want, atLeast: ofParts(want.atLeast), exceptions: withRows(want, column) };
  problems.push(...deviations(column, judged).map((problem) => `${series}: ${problem}`));
}
rmSync(base, { force: true });
if (options.host) columns.push(await host());
console.log(renderMatrix(columns));
if (!columns.some((column) => column.series !== 'host' && column.rows.length > 1)) problems.push('no kernel was checked');
if (problems.length > 0) console.error(['Not as expected', ...problems].join('\n  '));
process.exit(problems.length > 0 ? 1 : 0);

function ofParts(atLeast: Expectation['atLeast']): Expectation['atLeast'] {
  const groups = new Set(testFiles(parts).map(groupOf));
  return Object.fromEntries(Object.entries(atLeast).filter(([group]) => !group.endsWith(TESTS) || groups.has(group)));
}

function withRows(want: Expectation, column: Column): Expectation['exceptions'] {
  const there = new Set(column.rows.map(({ group, name }) => `${group}: ${name}`));
  return Object.fromEntries(Object.entries(want.exceptions).filter(([key]) => there.has(key)));
}
