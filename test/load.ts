/** A load that runs inside a pod while a test changes the mesh under it. */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { projectRoot } from '../common/paths.js';
import { PATIENCE_MS } from '../common/retry.js';
import type { Lab } from '../lab/index.js';
import type { LoadOptions, LoadReport } from './load-client.js';

export class Load {
  readonly #lines: AsyncIterator<string>;
  #stderr = '';

  private constructor(readonly child: ChildProcess) {
    if (!child.stdout) throw new Error('the load has no output');
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    child.stderr?.on('data', (chunk: Buffer) => (this.#stderr += chunk.toString()));
  }

  static start(lab: Lab, pod: string, options: LoadOptions): Load {
    const script = join(projectRoot, 'dist', 'test', 'load-client.js');
    return new Load(lab.spawnIn(pod, [process.execPath, script, JSON.stringify(options)]));
  }

  /** @param child load-client.js in a pod of another kind */
  static of(child: ChildProcess): Load {
    return new Load(child);
  }

  async report(): Promise<LoadReport> {
    this.child.stdin?.write('\n');
    const next = await this.#lines.next();
    if (next.done) throw new Error(`the load ended: ${this.#stderr}`);
    return JSON.parse(next.value) as LoadReport;
  }

  /** Lets at least `requests` more requests happen, and what `until` asks for. */
  async run(requests: number, until: (since: LoadReport) => boolean = () => true, timeoutMs = 2 * PATIENCE_MS): Promise<LoadReport> {
    const before = await this.report();
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      const now = await this.report();
      const since = difference(now, before);
      if (since.requests >= requests && until(since)) return since;
      if (performance.now() > deadline) throw new Error(`the load did not come to ${requests} requests of the kind in ${timeoutMs} ms: ${JSON.stringify(since)}`);
    }
  }

  async end(): Promise<LoadReport> {
    this.child.stdin?.end();
    let last = '';
    for (let next = await this.#lines.next(); !next.done; next = await this.#lines.next()) last = next.value;
    if (this.child.exitCode === null && this.child.signalCode === null) await once(this.child, 'exit');
    assert.equal(this.#stderr, '');
    return JSON.parse(last) as LoadReport;
  }
}

function difference(now: LoadReport, before: LoadReport): LoadReport {
  const table = (a: Record<string, number>, b: Record<string, number>): Record<string, number> =>
    Object.fromEntries(Object.entries(a).map(([key, value]) => [key, value - (b[key] ?? 0)]).filter(([, value]) => value !== 0)) as Record<string, number>;
  return {
    requests: now.requests - before.requests,
    failures: table(now.failures, before.failures),
    versions: table(now.versions, before.versions),
    connections: now.connections - before.connections,
    fresh: { direct: now.fresh.direct - before.fresh.direct, proxied: now.fresh.proxied - before.fresh.proxied },
    kept: { direct: now.kept.direct - before.kept.direct, proxied: now.kept.proxied - before.kept.proxied },
  };
}
