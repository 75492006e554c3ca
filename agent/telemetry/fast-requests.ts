/** Requests of the HTTP fast path, one by one: the kernel tells of a request as it goes and of its answer as it has come. */
import type { Watched, WatchedRequest, WatchEvent } from '../dataplane/kernel-watch.js';
import type { HttpService } from '../http/table.js';
import { JSON_FORMAT } from '../../common/telemetry/access-log-format.js';
import type { Flow, FlowEnd, FlowNames } from './flow-record.js';

/** Requests whose answers are to come. */
const MAX_PENDING = 16_384;

export interface FastRequestsOptions {
  names: FlowNames;
  serviceOf: (key: number) => HttpService | undefined;
  onFlow: (flow: Flow) => void;
  /** Nanoseconds since 1970 that CLOCK_MONOTONIC's zero was at. */
  epochNs?: bigint;
}

export class FastRequests {
  readonly #options: FastRequestsOptions;
  readonly #epochNs: bigint;
  readonly #pending = new Map<string, WatchedRequest>();

  constructor(options: FastRequestsOptions) {
    this.#options = options;
    this.#epochNs = options.epochNs ?? BigInt(Date.now()) * 1_000_000n - process.hrtime.bigint();
  }

  take(event: Watched): void {
    if (event.what === 'request') {
      // What was never answered, or whose answer found no room.
      if (this.#pending.size >= MAX_PENDING) this.#pending.delete(this.#pending.keys().next().value!);
      this.#pending.set(`${event.cookie} ${event.atNs}`, event);
      return;
    }
    if (event.what !== 'answer') return;
    const key = `${event.cookie} ${event.startedNs}`;
    const request = this.#pending.get(key);
    // Of one that was sent before the answer to the one before it, nobody told.
    if (!request) return;
    this.#pending.delete(key);
    this.#options.onFlow(this.#flow(request, event));
  }

  #flow({ head, netnsCookie, serverNetns, sizeBytes, service, atNs }: WatchedRequest, answer: WatchEvent): Flow {
    const { names, serviceOf } = this.#options;
    const [line = '', ...lines] = head.split('\r\n');
    const [method = null, path = null, protocol = null] = line.split(' ');
    const header = (name: string): string | null => {
      const found = lines.find((each) => each.toLowerCase().startsWith(`${name}:`));
      return found === undefined ? null : found.slice(name.length + 1).trim();
    };
    const end = (cookie: bigint): FlowEnd => {
      const pod = names.ofNetns(cookie);
      return { namespace: pod?.namespace ?? null, pod: pod?.name ?? null, workload: null, address: null, port: null };
    };
    const hostname = serviceOf(service)?.hostname;
    const nothing = Object.fromEntries(Object.keys(JSON_FORMAT).map((key) => [key, null])) as Record<keyof typeof JSON_FORMAT, null>;
    return {
      ...nothing,
      start_time: new Date(Number((atNs + this.#epochNs) / 1_000_000n)).toISOString(), method, path, protocol, response_code: Number(answer.reason),
      bytes_received: sizeBytes, bytes_sent: answer.bytes, duration: Number((answer.atNs - atNs) / 1_000n) / 1_000,
      user_agent: header('user-agent'), request_id: header('x-request-id'), x_forwarded_for: header('x-forwarded-for'), authority: header('host'),
      kind: 'request', reporter: 'source', verdict: 'allowed', way: 'fast-path', reason: null,
      source: end(netnsCookie), destination: { ...end(serverNetns), workload: hostname?.split('.')[0] ?? null }, bytes_moved: sizeBytes + answer.bytes,
    };
  }
}
