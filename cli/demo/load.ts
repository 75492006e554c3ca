/** Requests from a pod that go on while something is changed: kept connections, and one connection a request. */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { parseLoadResult, tcpBench, type LoadResult } from '../../bench/index.js';
import { UnderpassError } from '../../common/errors.js';
import type { Lab } from '../../lab/index.js';

interface Progress {
  requests: number;
  failed: number;
  first_failure: string;
}

export const KEPT = 4;
const TARGET = ['--connect', 'nginx:80', '--timeout', '5'];
const STOP_TIMEOUT_MS = 20_000;

class Stream {
  readonly #child: ChildProcess;
  readonly #exit: Promise<unknown>;
  #out = '';
  #error = '';
  #result: LoadResult | undefined;
  latest: Progress = { requests: 0, failed: 0, first_failure: '' };

  constructor(lab: Lab, pod: { namespace: string; name: string }, args: readonly string[]) {
    this.#child = lab.spawnIn(pod, [tcpBench, 'http', '--progress', '0.1', ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#exit = Promise.race([once(this.#child, 'close'), once(this.#child, 'error')]);
    this.#child.stdout?.setEncoding('utf8').on('data', (chunk: string) => {
      const lines = (this.#out + chunk).split('\n');
      this.#out = lines.pop() ?? '';
      for (const line of lines) this.#line(line);
    });
    this.#child.stderr?.setEncoding('utf8').on('data', (chunk: string) => (this.#error = (this.#error + chunk).slice(-2000)));
  }

  #line(line: string): void {
    const value = JSON.parse(line) as Progress & { final: boolean };
    this.latest = value;
    if (value.final) this.#result = parseLoadResult(line);
  }

  async stop(): Promise<LoadResult> {
    this.#child.kill('SIGTERM');
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    await this.#exit;
    clearTimeout(timer);
    if (!this.#result) throw new UnderpassError('UNDERPASS_DEMO_LOAD', `ending the load: it gave no result: ${this.#error.trim()}`);
    return this.#result;
  }
}

export interface LoadReport {
  requests: number;
  failed: number;
  firstFailure: string;
  /** Connections that were to be kept, and how many were opened for it: the same number if all of them lived. */
  kept: number;
  keptOpened: number;
}

export class PodLoad {
  readonly #lab: Lab;
  readonly #pod: { namespace: string; name: string };
  readonly #fresh: Stream;
  readonly #kept: Stream[] = [];

  constructor(lab: Lab, pod: { namespace: string; name: string }) {
    this.#lab = lab;
    this.#pod = pod;
    this.#fresh = new Stream(lab, pod, [...TARGET, '--connections', '2', '--pause', '0.01', '--new-connection-each']);
    this.keepMore();
  }

  /** Opens further connections that are kept: they take the way that is in force now. */
  keepMore(): void {
    this.#kept.push(new Stream(this.#lab, this.#pod, [...TARGET, '--connections', String(KEPT), '--pause', '0.005']));
  }

  get #streams(): Stream[] {
    return [this.#fresh, ...this.#kept];
  }

  get requests(): number {
    return this.#streams.reduce((sum, { latest }) => sum + latest.requests, 0);
  }

  get failed(): number {
    return this.#streams.reduce((sum, { latest }) => sum + latest.failed, 0);
  }

  get firstFailure(): string {
    return this.#streams.find(({ latest }) => latest.first_failure !== '')?.latest.first_failure ?? '';
  }

  async stop(): Promise<LoadReport> {
    const [fresh, ...kept] = await Promise.all(this.#streams.map((stream) => stream.stop()));
    const all = [fresh as LoadResult, ...kept];
    return {
      requests: all.reduce((sum, { requests }) => sum + requests, 0),
      failed: all.reduce((sum, { failed }) => sum + failed, 0),
      firstFailure: all.find(({ first_failure }) => first_failure !== '')?.first_failure ?? '',
      keptOpened: kept.reduce((sum, { connections_opened }) => sum + connections_opened, 0),
      kept: kept.length * KEPT,
    };
  }
}
