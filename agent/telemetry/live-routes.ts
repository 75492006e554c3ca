/** What the agent tells live, to who may open its socket: flows, traces, captures. */
import { refusal, type AdminAnswer, type AdminRoutes } from '../admin/server.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { UnderpassError } from '../../common/errors.js';
import { nearest } from '../../common/nearest.js';
import { encodeAddress } from '../dataplane/kernel-codec.js';
import type { KernelWatch } from '../dataplane/kernel-watch.js';
import { CaptureStream, DEFAULT_CAPTURE, MAX_CAPTURE, type CaptureCounts, type CapturedPod } from './capture-stream.js';
import { splitAddress } from './flow-record.js';
import { MAX_FLOW_LISTENERS, readFlowQuery, type FlowStream } from './flow-stream.js';
import type { PodNames } from './pod-names.js';
import { TraceStream } from './trace-stream.js';

export interface LiveRoutesOptions {
  flows: () => FlowStream | undefined;
  names: PodNames;
  /** Undefined: there is no BPF. */
  watch: () => KernelWatch | undefined;
  logger: Logger;
}

const refused = (status: number, message: string): AdminAnswer => ({ status, body: { message } });

export class LiveRoutes implements Closable {
  readonly #options: LiveRoutesOptions;
  #trace: TraceStream | undefined;
  #capture: CaptureStream | undefined;

  constructor(options: LiveRoutesOptions) {
    this.#options = options;
  }

  get captures(): CaptureCounts | undefined {
    return this.#capture?.counts;
  }

  readonly routes: AdminRoutes = {
    '/v1/flows': (query) => this.#answer(() => this.#listen(query)),
    '/v1/trace': (query) => this.#answer(() => this.#follow(query)),
    '/v1/capture': (query) => this.#answer(() => this.#record(query)),
  };

  close(): void {
    this.#trace?.close();
    this.#capture?.close();
  }

  #answer(answer: () => AdminAnswer): AdminAnswer {
    try {
      return answer();
    } catch (error) {
      if (!(error instanceof UnderpassError)) throw error;
      return refusal(error.code === 'UNDERPASS_UNKNOWN_POD' ? 404 : 400, error);
    }
  }

  #listen(query: URLSearchParams): AdminAnswer {
    const wanted = readFlowQuery(query), flows = this.#options.flows();
    if (typeof wanted === 'string') return refused(400, wanted);
    if (!flows) return refused(503, 'the agent is starting');
    const pieces = flows.open(wanted);
    return pieces ? { contentType: 'application/x-ndjson', pieces } : refused(429, `${MAX_FLOW_LISTENERS} listen already`);
  }

  #follow(query: URLSearchParams): AdminAnswer {
    const { names } = this.#options, watch = this.#options.watch();
    if (!watch) return refused(404, 'there are no hooks to trace: this agent has no BPF');
    const pod = query.get('pod') ?? '', to = query.get('to') ?? '';
    const target = /^\d+$/.test(to) ? { address: null, port: Number(to) } : to.includes(':') && splitAddress(to).address !== null ? splitAddress(to) : { address: to || null, port: null };
    if (target.address !== null) encodeAddress(target.address);
    if (target.port !== null && (target.port < 1 || target.port > 65_535)) return refused(400, `to=${to}: expected a port from 1 to 65535`);
    this.#trace ??= new TraceStream({ watch, names });
    const pieces = this.#trace.open({
      ...(pod === '' ? {} : { netnsCookie: this.#pod(pod).netnsCookie }), ...(target.address === null ? {} : { address: target.address }), ...(target.port === null ? {} : { port: target.port }),
    });
    return pieces ? { contentType: 'application/x-ndjson', pieces } : refused(409, 'another trace is running on this node: there is one at a time');
  }

  #record(query: URLSearchParams): AdminAnswer {
    const watch = this.#options.watch();
    if (!watch) return refused(404, 'nothing is short-circuited here: this agent has no BPF');
    const number = (name: string, key: keyof typeof DEFAULT_CAPTURE): number => {
      const value = Number(query.get(name) ?? DEFAULT_CAPTURE[key]);
      if (!Number.isInteger(value) || value < 1 || value > MAX_CAPTURE[key]) throw new UnderpassError('UNDERPASS_BAD_OPTION', `${name}=${query.get(name) ?? ''}: expected a whole number from 1 to ${MAX_CAPTURE[key]}`);
      return value;
    };
    const wanted = { pod: this.#pod(query.get('pod') ?? ''), seconds: number('seconds', 'seconds'), bytes: number('bytes', 'bytes'), bytesPerSecond: number('rate', 'bytesPerSecond'), by: (query.get('by') ?? 'unknown').slice(0, 128) };
    this.#capture ??= new CaptureStream({ watch, logger: this.#options.logger });
    const pieces = this.#capture.open(wanted);
    return pieces ? { contentType: 'application/x-pcapng', pieces } : refused(409, 'another capture is running on this node: there is one at a time');
  }

  #pod(wanted: string): CapturedPod {
    const pods = this.#options.names.enrolled();
    const found = pods.filter(({ name, namespace }) => `${namespace}/${name}` === wanted || name === wanted);
    if (found.length === 1) return found[0]!;
    const fullNames = (some: readonly CapturedPod[]): string[] => some.map(({ name, namespace }) => `${namespace}/${name}`).sort();
    if (found.length > 1) throw new UnderpassError('UNDERPASS_AMBIGUOUS_POD', `pod ${wanted}: there is more than one: ${fullNames(found).slice(0, 10).join(', ')}`, { hint: 'name one as NAMESPACE/POD' });
    const near = wanted.includes('/') ? nearest(wanted, fullNames(pods)) : fullNames(pods.filter(({ name }) => nearest(wanted, [name]).length > 0)).slice(0, 3);
    throw new UnderpassError('UNDERPASS_UNKNOWN_POD', `pod ${wanted}: not enrolled on this node`, { hint: near.length > 0 ? `did you mean ${near.join(', ')}?` : `\`underpass ps\` lists the ${pods.length} pods that are` });
  }
}
