/** Telemetry of connections and requests that no proxy sees, and of those that Envoy counts, put together: series for scrapes, and the log if it is asked for. */
import { join } from 'node:path';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import type { FlowRecord, Flows } from '../dataplane/kernel-flows.js';
import type { KernelWatch } from '../dataplane/kernel-watch.js';
import type { HttpRequests } from '../dataplane/kernel-http-totals.js';
import type { EnvoyFlowLogs } from '../proxy/envoy-flow-logs.js';
import type { RequestView } from '../proxy/request-view.js';
import { FlowDirectory, type FlowPod, type KnownWorkloads } from './flow-labels.js';
import type { HttpTotals } from '../dataplane/kernel-http-totals.js';
import { EnvoyConnections } from './envoy-connections.js';
import type { ConnectionTotals } from './envoy-connection-stats.js';
import { EnvoyMessages, type MessageTotals } from './envoy-messages.js';
import { EnvoyRequests } from './envoy-requests.js';
import type { EnvoyReport, EnvoySums } from './envoy-sums.js';
import { DEFAULT_FLOW_LINES_PER_SECOND, FlowLog, type NamedPod } from './flow-log.js';
import { FastRequests } from './fast-requests.js';
import type { FlowNames } from './flow-record.js';
import { FlowSeriesSource, type FlowReport } from './flow-series.js';
import { FlowStream } from './flow-stream.js';
import { workloadOverrides, type WorkloadOverrides } from './metric-overrides.js';
import { HttpSeriesSource, type HttpReport } from './http-series.js';
import { inTurns } from './turns.js';

const SWEEP_EVERY_MS = 5_000;
/** How long a scrape waits for Envoy. */
const REFRESH_MS = 2_000;

export interface RequestReport {
  /** Undefined: there is none, or the kernel's tables could not be read. */
  kernel: HttpReport | undefined;
  envoy: EnvoyReport<HttpTotals> | undefined;
  /** Of gRPC, which is Envoy's alone. */
  messages: EnvoyReport<MessageTotals> | undefined;
}

/** As `RequestReport`, of connections. */
export interface ConnectionReport {
  kernel: FlowReport | undefined;
  envoy: EnvoyReport<ConnectionTotals> | undefined;
}

/** By which a report is read. */
export interface Reading {
  /** No scrape: what is told for the last time stays until one has it. Default false. */
  isPeek?: boolean;
}

export interface FlowKernel {
  readonly flows: Flows & { onRecord(callback: (record: FlowRecord) => void): void };
  pods(): readonly FlowPod[];
  setFlowLog(on: boolean): void;
  readonly watch?: Pick<KernelWatch, 'start' | 'stop'>;
}

export interface FlowTelemetryOptions {
  /** Absent: Envoy sees all that there is to tell. */
  kernel?: FlowKernel;
  workloads: KnownWorkloads;
  /** Absent: there is no HTTP fast path. */
  requests?: HttpRequests;
  /** Absent: Envoy counts nothing. @param folder where sums are kept */
  envoy?: { view: RequestView; folder: string };
  podOf: (netnsCookie: bigint) => NamedPod | undefined;
  names: FlowNames;
  /** Absent: Envoy tells nothing of single requests. */
  flowLogs?: Pick<EnvoyFlowLogs, 'listen'>;
  /** Absent: connections are not logged. */
  log?: Logger;
  trustDomain?: string;
  logger: Logger;
}

export class FlowTelemetry implements Closable {
  readonly #options: FlowTelemetryOptions;
  readonly #series: FlowSeriesSource | undefined;
  readonly #httpSeries: HttpSeriesSource | undefined;
  readonly #envoy: { requests: EnvoyRequests; connections: EnvoyConnections; messages: EnvoyMessages } | undefined;
  readonly #log: FlowLog | undefined;
  readonly #overridesDirectory: FlowDirectory;
  /** Of single flows, for who listens. */
  readonly stream: FlowStream;
  readonly #timer: NodeJS.Timeout;
  #problem: string | undefined;
  #last: Promise<void> = Promise.resolve();

  constructor(options: FlowTelemetryOptions) {
    const { kernel, workloads, requests, envoy, log, podOf, logger } = options;
    const trustDomain = options.trustDomain === undefined ? {} : { trustDomain: options.trustDomain };
    this.#options = options;
    this.#overridesDirectory = new FlowDirectory(workloads, options.trustDomain);
    const counted = envoy && { view: envoy.view, workloads, logger, ...trustDomain };
    this.#envoy = counted && { requests: new EnvoyRequests({ ...counted, path: join(envoy.folder, 'request-sums.jsonl') }), connections: new EnvoyConnections({ ...counted, path: join(envoy.folder, 'connection-sums.jsonl') }), messages: new EnvoyMessages({ ...counted, path: join(envoy.folder, 'message-sums.jsonl') }) };
    this.#series = kernel && new FlowSeriesSource({ flows: kernel.flows, pods: () => kernel.pods(), workloads, others: (hash) => this.#envoy?.connections.labelsOf(hash), ...trustDomain });
    this.#httpSeries = requests && kernel && this.#series && new HttpSeriesSource({ requests, pods: () => kernel.pods(), directory: this.#series.directory, others: (hash) => this.#envoy?.requests.labelsOf(hash) });
    this.#log = log && kernel && new FlowLog({ logger: log, podOf, linesPerSecond: DEFAULT_FLOW_LINES_PER_SECOND });
    const flowLog = this.#log;
    const stream = new FlowStream({
      names: options.names,
      onListening: (on) => {
        this.#try(() => kernel?.setFlowLog(on || flowLog !== undefined));
        if (on) kernel?.watch?.start('requests', {}, (event) => fast.take(event));
        else kernel?.watch?.stop('requests');
        options.flowLogs?.listen(on ? (flow) => stream.fromEnvoy(flow) : undefined);
      },
    });
    this.stream = stream;
    const fast = new FastRequests({ names: options.names, serviceOf: (key) => requests?.serviceOf?.(key), onFlow: (flow) => stream.tell(flow) });
    kernel?.flows.onRecord((record) => {
      flowLog?.write(record);
      stream.fromKernel(record);
    });
    // An agent before this one may have asked for it.
    this.#try(() => kernel?.setFlowLog(flowLog !== undefined));
    this.#timer = setInterval(() => void this.#alone(() => this.#sweep()), SWEEP_EVERY_MS);
  }

  /** Goes on with what an agent before this one had. */
  async open(): Promise<this> {
    await this.#each((envoy) => envoy.open());
    return this;
  }

  /** What a scrape waits for: Envoy's answer, if it comes soon. */
  async refresh(): Promise<void> {
    const stop = new AbortController();
    await Promise.race([this.#each((envoy) => envoy.refresh()), sleep(REFRESH_MS, stop.signal).catch(() => undefined)]);
    stop.abort();
  }

  /** What Telemetry says of this node's metrics. */
  get overrides(): WorkloadOverrides {
    const { envoy } = this.#options;
    return envoy ? workloadOverrides(envoy.view, this.#overridesDirectory) : new Map();
  }

  get workloads(): KnownWorkloads {
    return this.#options.workloads;
  }

  /** For a scrape: the kernel's part of the connections, undefined when its tables could not be read, and Envoy's as it was when it last answered. */
  report({ isPeek = false }: Reading = {}): Promise<ConnectionReport> {
    return this.#alone(async () => {
      const kernel = await this.#trySteps(this.#series?.reporting());
      const envoy = this.#envoy?.connections.report((hash) => (this.#series && !kernel) || this.#series?.isLive(hash) === true, isPeek);
      if (kernel && !isPeek) this.#try(() => this.#series?.forgetTold());
      return { kernel, envoy };
    });
  }

  /** As `report`, of requests. */
  httpReport({ isPeek = false }: Reading = {}): Promise<RequestReport> {
    return this.#alone(async () => {
      const kernel = await this.#trySteps(this.#httpSeries?.reporting());
      // Without the kernel's part nobody knows which series it has a part of.
      const envoy = this.#envoy?.requests.report((hash) => (this.#httpSeries && !kernel) || kernel?.live.has(hash) === true, isPeek);
      if (kernel && !isPeek) this.#try(() => this.#httpSeries?.forgetTold());
      // As long as the series of the requests themselves.
      const messages = this.#envoy?.messages.report((hash) => this.#envoy?.requests.labelsOf(hash) !== undefined, isPeek);
      return { kernel, envoy, messages };
    });
  }

  /** Records of the log for which there was no line; undefined without a log. */
  get logLost(): bigint | undefined {
    return this.#log?.lost;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.stream.close();
    await this.#last;
    await this.#each((envoy) => envoy.close());
  }

  async #sweep(): Promise<void> {
    const isRead = (await this.#trySteps(this.#series?.sweeping() ?? nothing())) === true;
    const live = await this.#trySteps(this.#httpSeries?.sweeping());
    void this.#envoy?.connections.sweep((hash) => (this.#series && !isRead) || this.#series?.isLive(hash) === true);
    void this.#envoy?.messages.sweep((hash) => this.#envoy?.requests.labelsOf(hash) !== undefined);
    void this.#envoy?.requests.sweep((hash) => (this.#httpSeries && !live) || live?.has(hash) === true);
  }

  async #each(action: (envoy: Pick<EnvoySums<unknown>, 'open' | 'refresh' | 'close'>) => Promise<void>): Promise<void> {
    await Promise.all(Object.values(this.#envoy ?? {}).map(action));
  }

  /** One after the other: each takes several turns, in which nobody else may move what is in the kernel's tables. */
  #alone<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#last.then(work);
    this.#last = done.then(() => undefined, () => undefined);
    return done;
  }

  #try<T>(action: () => T): T | undefined {
    try {
      const result = action();
      this.#problem = undefined;
      return result;
    } catch (error) {
      this.#failed(error);
      return undefined;
    }
  }

  async #trySteps<T>(steps: Generator<void, T> | undefined): Promise<T | undefined> {
    try {
      const result = steps && (await inTurns(steps));
      this.#problem = undefined;
      return result;
    } catch (error) {
      this.#failed(error);
      return undefined;
    }
  }

  #failed(error: unknown): void {
    const problem = errorMessage(error);
    if (problem !== this.#problem) this.#options.logger.warn({ reason: problem }, 'telemetry of connections without a proxy could not be read');
    this.#problem = problem;
  }
}

/** What there is to sweep without a kernel side. */
function* nothing(): Generator<void, true> {
  return true;
}
