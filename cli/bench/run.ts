/** One comparison from start to report; `underpass bench` and the demo's last step. */
import { buildReport, crossCheck, measure, MODES, modeById, workloadsOf, type BenchReport, type Mode, type Workload } from '../../bench/index.js';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import { LabWorld } from './world.js';

export interface BenchSettings {
  quick: boolean;
  rounds: number;
  durationS: number;
  connections: number;
  /** Worker threads of every Envoy, the shared one and the sidecars alike. */
  proxyWorkers: number;
  modes: readonly Mode[];
  workloads: readonly Workload[];
  /** Run wrk, too. */
  crossCheck?: boolean;
}

export const QUICK_DURATION_S = 0.3;
export const DEFAULT_DURATION_S = 2;
export const DEFAULT_ROUNDS = 7;
export const DEFAULT_CONNECTIONS = 32;
/** More workers than CPUs only cost: on one CPU sidecars gave 2.0 to 2.7 k requests/s with two and 2.4 to 3.8 k with one. */
export const DEFAULT_PROXY_WORKERS = 1;

export function parseModes(text: string | undefined): readonly Mode[] {
  if (text === undefined) return MODES;
  return text.split(',').map((id) => {
    const mode = modeById(id.trim());
    if (!mode) throw new UnderpassError('UNDERPASS_BAD_OPTION', `--modes ${text}: there is no mode ${JSON.stringify(id)}`, { hint: `there are ${MODES.map((known) => known.id).join(', ')}` });
    return mode;
  });
}

export async function runBench(settings: BenchSettings, options: { signal: AbortSignal; onProgress: (text: string, done: number, of: number) => void }): Promise<BenchReport> {
  if (process.getuid?.() !== 0) {
    throw new UnderpassError('UNDERPASS_NOT_ROOT', 'starting the comparison: it needs root for pods\' namespaces and BPF', { hint: 'run it with sudo; `underpass doctor` works for any user' });
  }
  const { workloads } = settings;
  const modes = settings.modes.filter((mode) => workloadsOf(mode, workloads).length > 0);
  if (modes.length === 0) throw new UnderpassError('UNDERPASS_BAD_OPTION', `--modes ${settings.modes.map(({ id }) => id).join(',')}: none of them has a load ${workloads.map(({ id }) => id).join(', ')}`);
  const startedAt = new Date();
  const problems: string[] = [];
  const world = await LabWorld.start(modes, workloads, {
    proxyWorkers: settings.proxyWorkers,
    signal: options.signal,
    onProgress: (text) => options.onProgress(text, 0, 1),
    onProblem: (error) => problems.push(errorMessage(error)),
  });
  let report: BenchReport;
  try {
    const benchOptions = { modes, workloads, rounds: settings.rounds, durationS: settings.durationS, connections: settings.connections, signal: options.signal, onProgress: options.onProgress };
    const facts = { ...(await world.facts()), 'workers of each Envoy': String(settings.proxyWorkers) };
    const measured = await measure(world, benchOptions);
    report = buildReport(measured, benchOptions, { quick: settings.quick, startedAt, facts });
    if (settings.crossCheck) report.crossCheck = await crossCheck(world, benchOptions);
  } catch (error) {
    const left = await removeWorld(world, options.onProgress);
    if (left !== undefined) throw leftBehind(left, error);
    if (problems.length > 0 && !options.signal.aborted) throw new UnderpassError('UNDERPASS_BENCH_FAILED', `${errorMessage(error)}; the lab said: ${problems.slice(0, 3).join('; ')}`, { cause: error });
    throw error;
  }
  const left = await removeWorld(world, options.onProgress);
  if (left !== undefined) report.leftBehind = left; // what was measured is not lost for it
  return report;
}

/** @returns why something is left, if it is */
async function removeWorld(world: LabWorld, onProgress: (text: string, done: number, of: number) => void): Promise<string | undefined> {
  onProgress('removing pods, agent and Envoy', 1, 1);
  try {
    await world.close();
    return undefined;
  } catch (error) {
    return errorMessage(error);
  }
}

export function leftBehind(problem: string, cause?: unknown): UnderpassError {
  return new UnderpassError('UNDERPASS_LEFT_BEHIND', `removing pods, agent and Envoy: ${problem}`, { cause, hint: '`underpass lab clean` removes what is left' });
}

/** Whether an error says that something is left on the machine: it counts even when everything else was interrupted. */
export function isLeftBehind(error: unknown): boolean {
  return error instanceof UnderpassError && error.code === 'UNDERPASS_LEFT_BEHIND';
}
