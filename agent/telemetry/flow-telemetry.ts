/** Telemetry of connections and requests that no proxy sees, and of those that Envoy counts, put together: series for scrapes, and the log if it is asked for. */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import type { FlowRecord, Flows } from '../dataplane/kernel-flows.js';
import type { HttpRequests } from '../dataplane/kernel-http-totals.js';
import type { RequestView } from '../proxy/request-view.js';
import type { FlowPod, KnownWorkloads } from './flow-labels.js';
import { EnvoyRequests, type EnvoyReport } from './envoy-requests.js';
import { DEFAULT_FLOW_LINES_PER_SECOND, FlowLog, type NamedPod } from './flow-log.js';
import { FlowSeriesSource, type FlowReport } from './flow-series.js';
import { HttpSeriesSource, type HttpReport } from './http-series.js';

const SWEEP_EVERY_MS = 5_000;
/** How long a scrape waits for Envoy. */
const REFRESH_MS = 2_000;

export interface RequestReport {
  /** Undefined: there is none, or the kernel's tables could not be read. */
  kernel: HttpReport | undefined;
  envoy: EnvoyReport | undefined;
}

export interface FlowKernel {
  readonly flows: Flows & { onRecord(callback: (record: FlowRecord) => void): void };
  pods(): readonly FlowPod[];
  setFlowLog(on: boolean): void;
}

export interface FlowTelemetryOptions {
  /** Absent: Envoy sees all that there is to tell. */
  kernel?: FlowKernel;
  workloads: KnownWorkloads;
  /** Absent: there is no HTTP fast path. */
  requests?: HttpRequests;
  /** Absent: Envoy counts nothing. @param path where sums are kept */
  envoy?: { view: RequestView; path: string };
  podOf: (netnsCookie: bigint) => NamedPod | undefined;
  /** Absent: connections are not logged. */
  log?: Logger;
  trustDomain?: string;
  logger: Logger;
}

export class FlowTelemetry implements Closable {
  readonly #options: FlowTelemetryOptions;
  readonly #series: FlowSeriesSource | undefined;
  readonly #httpSeries: HttpSeriesSource | undefined;
  readonly #envoy: EnvoyRequests | undefined;
  readonly #log: FlowLog | undefined;
  readonly #timer: NodeJS.Timeout;
  #problem: string | undefined;

  constructor(options: FlowTelemetryOptions) {
    const { kernel, workloads, requests, envoy, log, podOf, logger } = options;
    const trustDomain = options.trustDomain === undefined ? {} : { trustDomain: options.trustDomain };
    this.#options = options;
    this.#envoy = envoy && new EnvoyRequests({ ...envoy, workloads, logger, ...trustDomain });
    this.#series = kernel && new FlowSeriesSource({ flows: kernel.flows, pods: () => kernel.pods(), workloads, ...trustDomain });
    this.#httpSeries = requests && kernel && this.#series && new HttpSeriesSource({ requests, pods: () => kernel.pods(), directory: this.#series.directory, others: (hash) => this.#envoy?.labelsOf(hash) });
    this.#log = log && kernel && new FlowLog({ logger: log, podOf, linesPerSecond: DEFAULT_FLOW_LINES_PER_SECOND });
    const flowLog = this.#log;
    if (flowLog) kernel!.flows.onRecord((record) => flowLog.write(record));
    // An agent before this one may have asked for it.
    this.#try(() => kernel?.setFlowLog(flowLog !== undefined));
    this.#timer = setInterval(() => this.#sweep(), SWEEP_EVERY_MS);
  }

  /** Goes on with what an agent before this one had. */
  async open(): Promise<this> {
    await this.#envoy?.open();
    return this;
  }

  /** What a scrape waits for: Envoy's answer, if it comes soon. */
  async refresh(): Promise<void> {
    const stop = new AbortController();
    await Promise.race([this.#envoy?.refresh(), sleep(REFRESH_MS, stop.signal).catch(() => undefined)]);
    stop.abort();
  }

  /** For a scrape; undefined when the kernel's tables could not be read. */
  report(): FlowReport | undefined {
    return this.#try(() => this.#series?.report());
  }

  /** As `report`, of requests: the kernel's part, and Envoy's as it was when it last answered. */
  httpReport(): RequestReport {
    const kernel = this.#try(() => this.#httpSeries?.report());
    // Without the kernel's part nobody knows which series it has a part of.
    const envoy = this.#envoy?.report((hash) => (this.#httpSeries && !kernel) || kernel?.live.has(hash) === true);
    if (kernel) this.#try(() => this.#httpSeries?.forgetTold());
    return { kernel, envoy };
  }

  /** Records of the log for which there was no line; undefined without a log. */
  get logLost(): bigint | undefined {
    return this.#log?.lost;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#envoy?.close();
  }

  #sweep(): void {
    this.#try(() => this.#series?.sweep());
    const live = this.#try(() => this.#httpSeries?.sweep());
    void this.#envoy?.sweep((hash) => (this.#httpSeries && !live) || live?.has(hash) === true);
  }

  #try<T>(action: () => T): T | undefined {
    try {
      const result = action();
      this.#problem = undefined;
      return result;
    } catch (error) {
      const problem = errorMessage(error);
      if (problem !== this.#problem) this.#options.logger.warn({ reason: problem }, 'telemetry of connections without a proxy could not be read');
      this.#problem = problem;
      return undefined;
    }
  }
}
