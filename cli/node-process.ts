/** A node's agent as a process of its own, with or without the control plane: what the demo kills and starts again, and bench stands on. */
import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, openSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { askAgent, instanceCgroup, instancePaths, type AgentStatus } from '../agent/index.js';
import { UnderpassError } from '../common/errors.js';
import type { Closable } from '../common/lifecycle.js';
import { run } from '../common/process.js';
import { sleep } from '../common/retry.js';

const mainScript = fileURLToPath(new URL('./main.js', import.meta.url));
const STOP_TIMEOUT_MS = 30_000;

/** Runs a command of this CLI to its end, as a user would in another terminal. */
export async function runUnderpass(args: readonly string[], signal?: AbortSignal): Promise<string> {
  const { stdout } = await run(process.execPath, [mainScript, ...args], { timeoutMs: 60_000, ...(signal ? { signal } : {}) });
  return stdout;
}

export class NodeProcess implements Closable {
  readonly paths: ReturnType<typeof instancePaths>;
  readonly proxyCgroup: string;
  readonly #command: readonly string[];
  #child: ChildProcess | undefined;
  #exit: Promise<void> = Promise.resolve();

  /** @param logPath gets what the process prints, of all its starts */
  constructor(
    readonly instance: string,
    readonly lab: string,
    readonly logPath: string,
    readonly args: readonly string[] = [],
    /** The control plane of another such process, instead of one of its own. */
    discovery?: string,
  ) {
    this.paths = instancePaths({ instance });
    this.proxyCgroup = join(instanceCgroup(instance), 'proxy');
    this.#command = discovery === undefined ? ['node', '--embedded-pilot'] : ['agent', '--discovery', discovery];
  }

  /** Where sidecars find this process's control plane. */
  get discovery(): string {
    return `unix:${join(this.paths.folder, 'pilot.sock')}`;
  }

  get pid(): number | undefined {
    return this.#child?.exitCode === null && this.#child.signalCode === null ? this.#child.pid : undefined;
  }

  start(): void {
    const log = openSync(this.logPath, 'a', 0o640);
    // A session of its own: Ctrl-C in the terminal is for us, and we end it in our order.
    const child = spawn(process.execPath, ['--enable-source-maps', mainScript, ...this.#command, '--lab', this.lab, '--instance', this.instance, ...this.args], {
      detached: true,
      stdio: ['ignore', log, log],
    });
    closeSync(log);
    this.#child = child;
    this.#exit = new Promise((resolve) => {
      child.once('exit', () => resolve());
      child.once('error', () => resolve());
    });
  }

  async status(): Promise<AgentStatus> {
    return JSON.parse(await askAgent(this.paths.adminSocket, '/v1/status', { timeoutMs: 5_000 })) as AgentStatus;
  }

  async counters(): Promise<{ node: Record<string, number>; pods: ({ uid: string; pod: string; namespace: string } & Record<string, number | string>)[] }> {
    return JSON.parse(await askAgent(this.paths.adminSocket, '/v1/counters', { timeoutMs: 5_000 })) as Awaited<ReturnType<NodeProcess['counters']>>;
  }

  /**
   * Waits until the status is as wanted.
   * @throws UnderpassError `UNDERPASS_NODE_ENDED` with the last lines of its log, `UNDERPASS_NODE_NOT_READY` with what is missing
   */
  async waitFor(what: string, wanted: (status: AgentStatus) => boolean, options: { timeoutMs: number; signal?: AbortSignal }): Promise<AgentStatus> {
    const deadline = performance.now() + options.timeoutMs;
    let last: AgentStatus | undefined;
    for (;;) {
      if (this.pid === undefined) throw new UnderpassError('UNDERPASS_NODE_ENDED', `waiting for ${what}: the node agent has ended; the last it wrote:\n${this.logTail()}`);
      last = await this.status().catch(() => undefined);
      if (last && wanted(last)) return last;
      if (performance.now() > deadline) {
        throw new UnderpassError('UNDERPASS_NODE_NOT_READY', `waiting for ${what}: not so after ${options.timeoutMs / 1000} s: ${last ? explain(last) : 'the agent does not answer'}`, { hint: `the agent's log ends with:\n${this.logTail()}` });
      }
      await sleep(50, options.signal);
    }
  }

  logTail(lines = 8): string {
    try {
      return readFileSync(this.logPath, 'utf8').trim().split('\n').slice(-lines).join('\n');
    } catch {
      return '(no log)';
    }
  }

  /** SIGKILL, as the kernel would when memory is short. Envoy and the kernel's programs stay. */
  async kill(): Promise<void> {
    this.#child?.kill('SIGKILL');
    await this.#exit;
  }

  /** Ends the agent and removes all that this instance ever made. */
  async close(): Promise<void> {
    if (this.pid !== undefined) {
      this.#child?.kill('SIGTERM');
      const timer = setTimeout(() => this.#child?.kill('SIGKILL'), STOP_TIMEOUT_MS);
      await this.#exit;
      clearTimeout(timer);
    }
    await runUnderpass(['agent', '--cleanup', '--instance', this.instance]);
    rmSync(this.paths.folder, { recursive: true, force: true });
  }
}

function explain(status: AgentStatus): string {
  const unsettled = status.pods.filter((pod) => !pod.settled).map((pod) => `${pod.namespace}/${pod.name} ${pod.state}${pod.error === undefined ? '' : ` (${pod.error})`}`);
  return [...status.notReady, ...(unsettled.length > 0 ? [`pods that change: ${unsettled.join(', ')}`] : [])].join('; ') || 'ready, but not as wanted';
}
