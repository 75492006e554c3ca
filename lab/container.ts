/** One container: a program kept running inside its pod's namespaces and cgroup. */
import { spawn, type ChildProcess } from 'node:child_process';
import { errorMessage } from '../common/errors.js';
import type { ExecPlan } from '../common/lab-api.js';
import type { Closable } from '../common/lifecycle.js';
import { Backoff } from '../common/retry.js';
import { LogFile } from './log-file.js';

export type RestartPolicy = 'Always' | 'OnFailure' | 'Never';

export interface ContainerProcessOptions {
  name: string;
  plan: ExecPlan;
  argv: readonly string[];
  logPath: string;
  restartPolicy: RestartPolicy;
  stopSignal?: NodeJS.Signals;
  /** Told whenever `pid`, `restarts` or `ended` changed. */
  onChange: () => void;
}

/** As a kubelet's, but quicker: a lab's user waits for it. */
const RESTART_BACKOFF = { initialMs: 250, maxMs: 10_000, factor: 2, jitter: 0.1 };
/** One that ran for this long starts its back-off anew. */
const STABLE_AFTER_MS = 10_000;

export class ContainerProcess implements Closable {
  readonly #options: ContainerProcessOptions;
  readonly #log: LogFile;
  readonly #backoff = new Backoff(RESTART_BACKOFF);
  #child: ChildProcess | undefined;
  #timer: NodeJS.Timeout | undefined;
  #startedAt = 0;
  #closed = false;
  #restarts = 0;
  #ended: { code: number } | undefined;
  #lastExit = '';

  constructor(options: ContainerProcessOptions) {
    this.#options = options;
    this.#log = new LogFile(options.logPath);
    this.#start();
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  get restarts(): number {
    return this.#restarts;
  }

  /** Set once it is not to be started again. */
  get ended(): { code: number } | undefined {
    return this.#ended;
  }

  /** How it ended last, for `lab ps`. */
  get lastExit(): string {
    return this.#lastExit;
  }

  #start(): void {
    const { plan, argv } = this.#options;
    this.#startedAt = performance.now();
    const child = spawn(plan.file, [...plan.args, ...argv], {
      env: plan.env,
      stdio: ['ignore', 'pipe', 'pipe'],
      ...(plan.cwd ? { cwd: plan.cwd } : {}),
    });
    this.#child = child;
    const write = (chunk: Buffer): void => this.#log.write(chunk);
    child.stdout?.on('data', write);
    child.stderr?.on('data', write);
    let finished = false;
    const finish = (code: number, how: string): void => {
      if (finished) return;
      finished = true;
      this.#exited(code, how);
    };
    child.once('error', (error) => finish(127, errorMessage(error)));
    child.once('exit', (code, signal) => finish(code ?? 128, signal ? `killed by ${signal}` : `exit ${code}`));
    this.#options.onChange();
  }

  #exited(code: number, how: string): void {
    this.#child = undefined;
    this.#lastExit = how;
    if (this.#closed) return;
    this.#log.write(`[lab] ${this.#options.name}: ${how}\n`);
    const { restartPolicy } = this.#options;
    if (restartPolicy === 'Never' || (restartPolicy === 'OnFailure' && code === 0)) {
      this.#ended = { code };
    } else {
      if (performance.now() - this.#startedAt > STABLE_AFTER_MS) this.#backoff.reset();
      this.#timer = setTimeout(() => {
        this.#restarts++;
        this.#start();
      }, this.#backoff.next());
    }
    this.#options.onChange();
  }

  /** Asks it to end and waits; the pod's cgroup is killed afterwards, so nothing that ignores this stays. */
  async stop(graceMs: number): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    const child = this.#child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill(this.#options.stopSignal ?? 'SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), graceMs);
    await gone;
    clearTimeout(timer);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#child?.kill('SIGKILL');
    this.#log.close();
  }
}
