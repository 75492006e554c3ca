/** wrk as a second opinion on the HTTP rows: a load generator that others wrote and know. */
import { UnderpassError } from '../common/errors.js';
import { siteOf, type Site } from './load.js';
import type { ModeId } from './modes.js';
import type { BenchOptions } from './runner.js';
import type { World } from './world.js';

export interface CrossCheck {
  mode: ModeId;
  title: string;
  requestsPerSecond: number;
  /** µs, all connections at once. */
  p50: number;
  p90: number;
  p99: number;
  failed: number;
}

const UNITS: Record<string, number> = { us: 1, ms: 1e3, s: 1e6, m: 60e6 };

/** What `wrk --latency` prints. */
export function parseWrk(text: string): Omit<CrossCheck, 'mode' | 'title'> {
  const rate = /^Requests\/sec:\s+([\d.]+)$/m.exec(text)?.[1];
  if (rate === undefined) throw new Error('wrk printed no Requests/sec');
  const at = (percentile: number): number => {
    const [, value, unit] = new RegExp(`^\\s+${percentile}%\\s+([\\d.]+)(us|ms|s|m)$`, 'm').exec(text) ?? [];
    return Number(value) * (UNITS[unit ?? ''] ?? Number.NaN);
  };
  const errors = /Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)/.exec(text)?.slice(1) ?? [];
  const statuses = /Non-2xx or 3xx responses: (\d+)/.exec(text)?.[1] ?? '0';
  return { requestsPerSecond: Number(rate), p50: at(50), p90: at(90), p99: at(99), failed: [...errors, statuses].reduce((sum, count) => sum + Number(count), 0) };
}

async function wrk(world: World, site: Site, options: BenchOptions, seconds: number): Promise<Omit<CrossCheck, 'mode' | 'title'>> {
  const argv = ['wrk', '--threads', '1', '--connections', String(options.connections), '--duration', `${Math.ceil(seconds)}s`, '--latency', `http://${site.target}/`];
  const { code, stdout, stderr } = await world.run(site.client, argv, { timeoutMs: (seconds + 30) * 1000, ...(options.signal ? { signal: options.signal } : {}) });
  if (code !== 0) throw new UnderpassError('UNDERPASS_BENCH_LOAD', `running wrk for mode ${site.mode.id}: exit ${code}: ${stderr.trim() || stdout.trim()}`);
  return parseWrk(stdout);
}

/** Each HTTP mode once, all CPUs free; wrk is a program of its own, so it passes probation first. */
export async function crossCheck(world: World, options: BenchOptions): Promise<CrossCheck[]> {
  const found: CrossCheck[] = [];
  for (const mode of options.modes.filter(({ protocol }) => protocol === 'http')) {
    const site = siteOf(world, mode);
    options.onProgress?.(`cross-check by wrk: ${mode.title}`, 1, 1);
    await wrk(world, site, options, 1);
    found.push({ mode: mode.id, title: mode.title, ...(await wrk(world, site, options, options.durationS)) });
  }
  return found;
}
