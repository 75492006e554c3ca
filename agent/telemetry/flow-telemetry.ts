/** Telemetry of connections and requests that no proxy sees, put together: series for scrapes, and the log if it is asked for. */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import type { FlowRecord, Flows } from '../dataplane/kernel-flows.js';
import type { HttpRequests } from '../dataplane/kernel-http-totals.js';
import type { FlowPod, KnownWorkloads } from './flow-labels.js';
import { DEFAULT_FLOW_LINES_PER_SECOND, FlowLog, type NamedPod } from './flow-log.js';
import { FlowSeriesSource, type FlowReport } from './flow-series.js';
import { HttpSeriesSource, type HttpReport } from './http-series.js';

const SWEEP_EVERY_MS = 5_000;

export interface FlowKernel {
  readonly flows: Flows & { onRecord(callback: (record: FlowRecord) => void): void };
  pods(): readonly FlowPod[];
  setFlowLog(on: boolean): void;
}

export interface FlowTelemetryOptions {
  kernel: FlowKernel;
  workloads: KnownWorkloads;
  /** Absent: there is no HTTP fast path. */
  requests?: HttpRequests;
  podOf: (netnsCookie: bigint) => NamedPod | undefined;
  /** Absent: connections are not logged. */
  log?: Logger;
  trustDomain?: string;
  logger: Logger;
}

export class FlowTelemetry implements Closable {
  readonly #options: FlowTelemetryOptions;
  readonly #series: FlowSeriesSource;
  readonly #httpSeries: HttpSeriesSource | undefined;
  readonly #log: FlowLog | undefined;
  readonly #timer: NodeJS.Timeout;
  #problem: string | undefined;

  constructor(options: FlowTelemetryOptions) {
    const { kernel, workloads, requests, log, podOf, trustDomain } = options;
    this.#options = options;
    this.#series = new FlowSeriesSource({ flows: kernel.flows, pods: () => kernel.pods(), workloads, ...(trustDomain === undefined ? {} : { trustDomain }) });
    this.#httpSeries = requests && new HttpSeriesSource({ requests, pods: () => kernel.pods(), directory: this.#series.directory });
    this.#log = log && new FlowLog({ logger: log, podOf, linesPerSecond: DEFAULT_FLOW_LINES_PER_SECOND });
    const flowLog = this.#log;
    if (flowLog) kernel.flows.onRecord((record) => flowLog.write(record));
    // An agent before this one may have asked for it.
    this.#try(() => kernel.setFlowLog(flowLog !== undefined));
    this.#timer = setInterval(() => this.#try(() => this.#sweep()), SWEEP_EVERY_MS);
  }

  /** For a scrape; undefined when the kernel's tables could not be read. */
  report(): FlowReport | undefined {
    return this.#try(() => this.#series.report());
  }

  /** As `report`, of requests. */
  httpReport(): HttpReport | undefined {
    return this.#try(() => this.#httpSeries?.report());
  }

  /** Records of the log for which there was no line; undefined without a log. */
  get logLost(): bigint | undefined {
    return this.#log?.lost;
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #sweep(): void {
    this.#series.sweep();
    this.#httpSeries?.sweep();
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
