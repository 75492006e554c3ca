/** What the agent and its Envoy cost, and how long the agent was held up. */
import { readFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { Closable } from '../../common/lifecycle.js';
import type { PrometheusText } from './prometheus.js';

const RESOLUTION_MS = 50;
const WINDOW_MS = 60_000;
/** Linux has told times in hundredths of a second to user space on every architecture since 2.4. */
const TICKS_PER_SECOND = 100;

/** The longest that the event loop was held up, over one to two windows: whoever asks at least once in one sees each hold-up. */
export class EventLoopWatch implements Closable {
  readonly #delays = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  readonly #timer: NodeJS.Timeout;
  #before = 0;

  constructor(windowMs = WINDOW_MS) {
    this.#delays.enable();
    this.#timer = setInterval(() => {
      this.#before = this.#now();
      this.#delays.reset();
    }, windowMs).unref();
  }

  get longestSeconds(): number {
    return Math.max(this.#before, this.#now());
  }

  /** What is observed is the time between two timers, so that it has their interval in it. */
  #now(): number {
    return Math.max(0, this.#delays.max / 1e9 - RESOLUTION_MS / 1e3);
  }

  close(): void {
    clearInterval(this.#timer);
    this.#delays.disable();
  }
}

/** @param envoy its process id */
export function addProcessMetrics(text: PrometheusText, loop: EventLoopWatch, envoy: number | undefined): void {
  const { user, system } = process.cpuUsage();
  text.add('underpass_agent_resident_memory_bytes', 'gauge', "The agent's memory, without Envoy's.", process.memoryUsage.rss());
  text.add('underpass_agent_cpu_seconds_total', 'counter', 'CPU time of the agent, of user and kernel.', (user + system) / 1e6);
  text.add('underpass_agent_event_loop_delay_max_seconds', 'gauge', 'The longest that the agent was held up in the last one to two minutes.', loop.longestSeconds);
  const usage = envoy === undefined ? undefined : usageOf(envoy);
  if (!usage) return;
  text.add('underpass_envoy_resident_memory_bytes', 'gauge', 'Memory of the shared Envoy.', usage.residentBytes);
  text.add('underpass_envoy_cpu_seconds_total', 'counter', 'CPU time of the shared Envoy that runs now, of user and kernel.', usage.cpuSeconds);
}

/** Undefined: it has ended. */
function usageOf(pid: number): { residentBytes: number; cpuSeconds: number } | undefined {
  try {
    const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The command's name, in parentheses, may hold spaces itself.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const [user, system] = [Number(fields[11]), Number(fields[12])];
    return kib === undefined ? undefined : { residentBytes: Number(kib) * 1_024, cpuSeconds: (user + system) / TICKS_PER_SECOND };
  } catch {
    return undefined;
  }
}
