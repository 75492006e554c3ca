/** Debian's Prometheus, as scripts/setup-dashboards.sh unpacks it: a server of its own with a folder of its own, and promtool. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { buildDir } from '../../common/paths.js';
import { run, type RunResult } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';

const PROGRAMS = join(buildDir, 'prometheus', 'usr', 'bin');

export interface Target {
  job: string;
  /** `host:port`, by which its series have the label `instance`. */
  address: string;
}

export interface PrometheusOptions {
  targets: readonly Target[];
  /** Files with rules. */
  rules?: readonly string[];
  intervalMs: number;
}

export interface Sample {
  metric: Record<string, string>;
  value: [atSeconds: number, text: string];
}

export interface ScrapedTarget {
  health: 'up' | 'down' | 'unknown';
  lastError: string;
  lastScrapeDuration: number;
  labels: Record<string, string>;
}

export const promtool = (...args: string[]): Promise<RunResult> => run(join(PROGRAMS, 'promtool'), args, { okCodes: [0, 1, 2, 3], timeoutMs: 60_000 });

export class Prometheus {
  /** `http://host:port` */
  url = '';
  log = '';
  readonly #child: ChildProcess;

  private constructor(readonly folder: string, child: ChildProcess) {
    this.#child = child;
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', (chunk: Buffer) => (this.log += chunk.toString()));
  }

  static async start({ targets, rules = [], intervalMs }: PrometheusOptions): Promise<Prometheus> {
    const folder = mkdtempSync(join(tmpdir(), 'up-prometheus-'));
    const interval = `${intervalMs}ms`;
    const jobs = [...new Set(targets.map(({ job }) => job))];
    writeFileSync(join(folder, 'prometheus.yml'), stringify({
      global: { scrape_interval: interval, scrape_timeout: interval, evaluation_interval: interval },
      rule_files: rules,
      scrape_configs: jobs.map((job) => ({ job_name: job, static_configs: [{ targets: targets.filter((target) => target.job === job).map(({ address }) => address) }] })),
    }));
    const child = spawn(join(PROGRAMS, 'prometheus'), [`--config.file=${join(folder, 'prometheus.yml')}`, `--storage.tsdb.path=${join(folder, 'data')}`, '--web.listen-address=127.0.0.1:0'], { stdio: ['ignore', 'pipe', 'pipe'] });
    const server = new Prometheus(folder, child);
    try {
      const address = await waitFor('the address of Prometheus', () => {
        assert.equal(child.exitCode, null, server.log);
        return /Listening on" address=(127\.0\.0\.1:\d+)/.exec(server.log)?.[1];
      }, { timeoutMs: 60_000, everyMs: 50 });
      server.url = `http://${address}`;
      await waitFor('Prometheus to be ready', async () => (await fetch(`${server.url}/-/ready`)).status === 200, { timeoutMs: 60_000, everyMs: 50 });
    } catch (error) {
      await server.stop();
      throw error;
    }
    return server;
  }

  /** @throws AssertionError with what Prometheus has against it */
  async #ask<T>(path: string, query: Record<string, string> = {}): Promise<T> {
    const answer = (await (await fetch(`${this.url}/api/v1/${path}?${new URLSearchParams(query)}`)).json()) as { status: string; data: T; error?: string };
    assert.equal(answer.status, 'success', `${path} ${JSON.stringify(query)}: ${answer.error}`);
    return answer.data;
  }

  /** An instant query. */
  async query(expr: string): Promise<Sample[]> {
    const { resultType, result } = await this.#ask<{ resultType: string; result: Sample[] | Sample['value'] }>('query', { query: expr });
    return resultType === 'scalar' ? [{ metric: {}, value: result as Sample['value'] }] : (result as Sample[]);
  }

  /** As Grafana's `label_values(series, label)`. */
  labelValues(series: string, label: string): Promise<string[]> {
    return this.#ask('label/' + label + '/values', { 'match[]': series });
  }

  async targets(): Promise<ScrapedTarget[]> {
    return (await this.#ask<{ activeTargets: ScrapedTarget[] }>('targets')).activeTargets;
  }

  /** Groups with their rules, each with its health. */
  async rules(): Promise<{ name: string; rules: { name: string; health: string; lastError?: string; type: string }[] }[]> {
    return (await this.#ask<{ groups: Awaited<ReturnType<Prometheus['rules']>> }>('rules')).groups;
  }

  async alerts(): Promise<{ labels: Record<string, string>; annotations: Record<string, string>; state: string }[]> {
    return (await this.#ask<{ alerts: Awaited<ReturnType<Prometheus['alerts']>> }>('alerts')).alerts;
  }

  /** Once each target has been scraped without an error. */
  async scraped(): Promise<void> {
    const up = new Set<string>();
    let last: readonly ScrapedTarget[] = [];
    await waitFor('all targets to be scraped', async () => {
      last = await this.targets();
      for (const { health, labels } of last) if (health === 'up') up.add(`${labels['job']} ${labels['instance']}`);
      return last.length > 0 && up.size === last.length;
    }, { timeoutMs: 120_000, everyMs: 100 }).catch((error: unknown) => {
      throw new Error(`${String(error)}: ${JSON.stringify(last)}`);
    });
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill('SIGTERM');
      await once(this.#child, 'exit');
    }
    rmSync(this.folder, { recursive: true, force: true });
  }
}
