/** Client, Envoy and server of one exchange as three processes that do what a test says, on real sockets under the real programs. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { projectRoot } from '../../common/paths.js';
import type { TestPod, TestWorld } from '../../native/testing.js';

export interface Answer {
  data?: string;
  end?: true;
  timeout?: true;
  error?: string | number;
  port?: number;
  peer?: string;
  failure?: string;
}

/** A process in a pod's namespace that holds sockets by name. */
export class Ends {
  readonly #child: ChildProcess;
  readonly #lines: Interface;
  readonly #waiting: ((answer: Answer) => void)[] = [];

  constructor(world: TestWorld, pod: TestPod, cgroup = pod.cgroup) {
    const [program, ...args] = world.inPod({ ...pod, cgroup }, ['python3', '-u', join(projectRoot, 'test/http/sockets.py')]) as [string, ...string[]];
    this.#child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#lines = createInterface({ input: this.#child.stdout! });
    this.#lines.on('line', (line) => this.#waiting.shift()!(JSON.parse(line) as Answer));
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** @throws AssertionError when the command itself is wrong; what the socket says is in the answer */
  async do(command: string, ...args: unknown[]): Promise<Answer> {
    const answer = await new Promise<Answer>((resolve) => {
      this.#waiting.push(resolve);
      this.#child.stdin!.write(`${JSON.stringify([command, ...args])}\n`);
    });
    assert.equal(answer.failure, undefined, `${command} ${args.join(' ')}`);
    return answer;
  }

  async close(): Promise<void> {
    const ended = new Promise((resolve) => this.#child.once('exit', resolve));
    this.#child.stdin!.end();
    await ended;
  }
}
