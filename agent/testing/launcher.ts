/** An `underpass-launcher` as it runs in the DaemonSet's container, for tests. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { buildDir, envoyBinary } from '../../common/paths.js';
import { processStartTime } from '../../common/process-id.js';
import { waitFor } from '../../common/retry.js';

export class TestLauncher {
  output = '';

  private constructor(readonly socketPath: string, readonly process: ChildProcess) {
    for (const stream of [process.stdout, process.stderr]) stream?.on('data', (data: Buffer) => (this.output += data.toString()));
  }

  /** @param way what runs it, e.g. `underpass-exec --netns PATH` */
  static async start(socketPath: string, { envoyPath = envoyBinary(), way = [] as string[], options = [] as string[] } = {}): Promise<TestLauncher> {
    const [program = '', ...args] = [...way, join(buildDir, 'underpass-launcher'), '--socket', socketPath, '--envoy', envoyPath, ...options];
    const launcher = new TestLauncher(socketPath, spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] }));
    await waitFor('the launcher', () => launcher.process.exitCode !== null || launcher.output.includes('waiting for the agent'), { everyMs: 10 });
    return launcher;
  }

  get isRunning(): boolean {
    return processStartTime(this.process.pid as number) !== undefined;
  }

  async ended(): Promise<number | null> {
    if (this.process.exitCode === null && this.process.signalCode === null) await once(this.process, 'exit');
    return this.process.exitCode;
  }

  async kill(): Promise<void> {
    this.process.kill('SIGKILL');
    await this.ended();
  }
}
