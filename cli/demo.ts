/** `underpass demo`: the whole way once on this machine, each promise with its proof. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { Option, type Command } from 'commander';
import { parseWorkloads, renderHtml, renderTable, MODES } from '../bench/index.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { ClosableStore } from '../common/lifecycle.js';
import { buildDir, projectRoot } from '../common/paths.js';
import { Lab } from '../lab/index.js';
import { DEFAULT_CONNECTIONS, DEFAULT_PROXY_WORKERS, DEFAULT_ROUNDS, isLeftBehind, leftBehind, QUICK_DURATION_S, runBench } from './bench/run.js';
import { showRestart } from './demo/restart.js';
import { showRouting } from './demo/routing.js';
import { findNamespaces, Narrator, podsProof, type Stage } from './demo/stage.js';
import { showStart } from './demo/start.js';
import { showToggles } from './demo/toggles.js';
import { diagnose } from './doctor/diagnose.js';
import { renderTable as renderDiagnosis } from './doctor/report.js';
import { NodeProcess } from './node-process.js';
import { followSignals } from './signals.js';

interface Options {
  directory: string;
  bench: boolean;
  html: string;
  name: string;
}

export function configure(command: Command): void {
  command
    .addOption(new Option('--directory <dir>', 'Kubernetes and Istio YAML to show it with').default(join(projectRoot, 'examples', 'canary'), 'examples/canary of the project'))
    .option('--no-bench', 'leave out the comparison with sidecars')
    .addOption(new Option('--html <file>', 'where the comparison\'s report goes').default(join(buildDir, 'demo-report.html'), 'build/demo-report.html of the project'))
    .option('--name <lab>', 'name of the lab and of the agent\'s instance', 'demo')
    .addHelpText('after', '\nNeeds root. Removes all that it made, on failure and Ctrl-C too.\nExit codes: 0 every promise held, 1 one did not or the demo could not run, 130 interrupted.')
    .action(demo);
}

async function demo(options: Options): Promise<void> {
  if (process.getuid?.() !== 0) {
    throw new UnderpassError('UNDERPASS_NOT_ROOT', 'starting the demo: it needs root for pods\' namespaces and BPF', { hint: 'run it with sudo; `underpass doctor` works for any user' });
  }
  const directory = resolve(options.directory);
  if (!existsSync(directory)) throw new UnderpassError('UNDERPASS_DEMO_YAML', `starting the demo: ${directory} does not exist`);
  const signals = followSignals();
  const narrator = new Narrator();
  try {
    await showWorld(options, directory, narrator, signals.signal);
    if (options.bench) await showBench(options, narrator, signals.signal);
    narrator.text(narrator.broken === 0 ? '\nEvery promise held; nothing of the demo is left on this machine.\n' : `\n${narrator.broken} ${narrator.broken === 1 ? 'promise' : 'promises'} did not hold, see BROKEN above; nothing of the demo is left on this machine.\n`);
    if (narrator.broken > 0) process.exitCode = 1;
  } catch (error) {
    if (!signals.signal.aborted || isLeftBehind(error)) throw error;
    narrator.text('\ninterrupted; nothing of the demo is left on this machine\n');
    process.exitCode = 130;
  } finally {
    signals.close();
  }
}

/** Steps 1 to 5. All that they need is gone when this returns or throws. */
async function showWorld(options: Options, directory: string, narrator: Narrator, signal: AbortSignal): Promise<void> {
  const store = new ClosableStore();
  try {
    const logs = mkdtempSync(join(tmpdir(), `underpass-${options.name}-`));
    store.defer(() => rmSync(logs, { recursive: true, force: true }));
    const node = new NodeProcess(options.name, options.name, join(logs, 'node.log'));
    // First of all, so that a second demo is told who holds the lab before it has done anything.
    const lab = await Lab.up({
      name: options.name,
      sources: [directory],
      discovery: node.discovery,
      purpose: 'demo',
      onProgress: (line) => narrator.progress(line),
      onProblem: (error) => narrator.say(`lab: ${errorMessage(error)}`),
    });
    store.defer(() => lab.down());
    store.add(node);

    narrator.step(1, 'What this machine can do');
    narrator.command('underpass doctor');
    const diagnosis = await diagnose();
    narrator.text(renderDiagnosis(diagnosis, { colour: process.stdout.isTTY === true && !process.env['NO_COLOR'], width: process.stdout.columns ?? 120 }));
    if (diagnosis.verdict.code === 4) throw new UnderpassError('UNDERPASS_DEMO_MACHINE', 'starting the demo: this machine lacks what even the fallback needs, see the table above');
    signal.throwIfAborted();

    narrator.step(2, 'Pods, control plane, agent and Envoy');
    await lab.whenReady({ timeoutMs: 60_000, signal });
    const stage: Stage = { lab, node, narrator, signal, ...findNamespaces(lab.pods()) };
    const running = podsProof(options.name, directory, lab.pods());
    narrator.prove(running.holds, running.text);
    await showStart(stage);

    await attempt(narrator, signal, 3, `Routing in namespace ${stage.meshed}, by the VirtualService in ${directory}`, () => showRouting(stage, directory));
    await attempt(narrator, signal, 4, `Live toggles in namespace ${stage.plain}, under load`, () => showToggles(stage, directory));
    await attempt(narrator, signal, 5, 'The agent is killed under load', () => showRestart(stage));
  } finally {
    narrator.progress('removing pods, agent and Envoy');
    await store.close().catch((error: unknown) => {
      throw leftBehind(errorMessage(error), error);
    });
  }
}

/** A step that fails is a broken promise; the others are shown all the same. */
async function attempt(narrator: Narrator, signal: AbortSignal, number: number, title: string, show: () => Promise<void>): Promise<void> {
  narrator.step(number, title);
  try {
    await show();
  } catch (error) {
    if (signal.aborted) throw error;
    narrator.fail(error);
  }
}

async function showBench(options: Options, narrator: Narrator, signal: AbortSignal): Promise<void> {
  await attempt(narrator, signal, 6, 'Compared with sidecars', async () => {
    narrator.command(`underpass bench --quick --html ${options.html}`);
    const report = await runBench(
      { quick: true, modes: MODES.filter(({ betweenNodes }) => !betweenNodes), workloads: parseWorkloads(undefined), rounds: DEFAULT_ROUNDS, durationS: QUICK_DURATION_S, connections: DEFAULT_CONNECTIONS, proxyWorkers: DEFAULT_PROXY_WORKERS },
      { signal, onProgress: (text, done, of) => narrator.progress(of > 1 ? `[${Math.floor((100 * done) / of)} %] ${text}` : text) },
    );
    narrator.text(renderTable(report, { colour: process.stdout.isTTY === true && !process.env['NO_COLOR'] }));
    if (report.leftBehind !== undefined) narrator.prove(false, `removing what the comparison made: ${report.leftBehind}`);
    const failed = report.rows.reduce((sum, row) => sum + row.failed, 0);
    const requests = report.rows.reduce((sum, row) => sum + row.requests, 0);
    narrator.prove(requests > 0 && failed === 0, `${requests} requests measured, ${failed} failed`);
    for (const ratio of report.ratios.filter(({ reached }) => reached === false)) {
      narrator.say(`not reached in this quick run: ${ratio.title} (${ratio.workload}) ${ratio.requestsPerSecond.median.toFixed(2)} × requests/s, ${ratio.cpu.median.toFixed(2)} × less CPU, expected ${ratio.target}`);
    }
    mkdirSync(dirname(resolve(options.html)), { recursive: true });
    writeFileSync(options.html, renderHtml(report));
    const written = readFileSync(options.html, 'utf8');
    const plots = written.match(/<svg\b/g)?.length ?? 0;
    narrator.prove(plots > 0 && written.trimEnd().endsWith('</html>'), `report with ${plots} plots: ${options.html}`);
  });
}
