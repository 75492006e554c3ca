/** A real Envoy with a configuration of its own and no control plane, for tests that ask it over loopback. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Closable } from '../../common/lifecycle.js';
import { envoyBinary } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';

interface Listeners {
  listener_statuses?: { name: string; local_address: { socket_address: { port_value: number } } }[];
}

export class StaticEnvoy implements Closable {
  /** By the listener's name. */
  readonly ports = new Map<string, number>();
  readonly #process: ChildProcess;

  private constructor(process: ChildProcess) {
    this.#process = process;
  }

  /**
   * @param config a file in `folder`, with an admin address whose port is 0
   * @param listeners how many it has; resolves when all listen
   */
  static async start({ folder, config, listeners }: { folder: string; config: string; listeners: number }): Promise<StaticEnvoy> {
    const admin = join(folder, 'admin');
    const child = spawn(envoyBinary(), ['-c', join(folder, config), '--concurrency', '1', '--disable-hot-restart', '-l', 'error', '--admin-address-path', admin], { stdio: ['ignore', 'ignore', 'pipe'] });
    const said: string[] = [];
    child.stderr.on('data', (chunk: Buffer) => said.push(chunk.toString()));
    const envoy = new StaticEnvoy(child);
    try {
      await waitFor('Envoy to listen', async () => {
        if (child.exitCode !== null) throw new Error(`Envoy: ${said.join('').slice(0, 2_000)}`);
        try {
          const answered = await fetch(`http://${readFileSync(admin, 'utf8').trim()}/listeners?format=json`);
          const { listener_statuses: statuses = [] } = (await answered.json()) as Listeners;
          for (const { name, local_address } of statuses) envoy.ports.set(name, local_address.socket_address.port_value);
        } catch {
          return false;
        }
        return envoy.ports.size === listeners;
      }, { everyMs: 50 });
    } catch (error) {
      await envoy.close();
      throw error;
    }
    return envoy;
  }

  async close(): Promise<void> {
    const child = this.#process;
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGTERM');
    await ended;
  }
}
