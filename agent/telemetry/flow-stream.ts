/**
 * Flows as they end, for who listens. Kernel and Envoy tell of them only while somebody does, since each record costs; the last
 * ones are kept for who comes later.
 */
import { Readable } from 'node:stream';
import type { Closable } from '../../common/lifecycle.js';
import { LineStream } from '../admin/line-stream.js';
import type { FlowRecord } from '../dataplane/kernel-flows.js';
import type { EnvoyFlow } from '../proxy/envoy-flow-logs.js';
import { envoyFlow, FLOW_VERDICTS, FLOW_WAYS, kernelFlow, passes, type Flow, type FlowFilter, type FlowNames } from './flow-record.js';

export const FLOWS_KEPT = 4_096;
export const MAX_FLOW_LISTENERS = 16;
export interface FlowStreamOptions {
  names: FlowNames;
  /** Switches the witnesses on and off. */
  onListening: (on: boolean) => void;
  /** Milliseconds since 1970. */
  now?: () => number;
}

export interface FlowQuery extends FlowFilter {
  follow: boolean;
  last: number;
}

export class FlowStream implements Closable {
  readonly #options: FlowStreamOptions;
  readonly #kept: Flow[] = [];
  readonly #listeners = new Map<LineStream, FlowFilter>();

  constructor(options: FlowStreamOptions) {
    this.#options = options;
  }

  get isListening(): boolean {
    return this.#listeners.size > 0;
  }

  fromKernel(record: FlowRecord): void {
    // Envoy tells of what it took, and knows more of it.
    if (record.way !== 'proxy') this.tell(kernelFlow(record, this.#options.names, (this.#options.now ?? Date.now)()));
  }

  fromEnvoy(told: EnvoyFlow): void {
    const flow = envoyFlow(told, this.#options.names);
    if (flow) this.tell(flow);
  }

  /** @returns undefined when there are as many listeners as there may be */
  open({ follow, last, ...filter }: FlowQuery): Readable | undefined {
    const kept = last === 0 ? [] : this.#kept.filter((flow) => passes(flow, filter)).slice(-last);
    if (!follow) return Readable.from(kept.map((flow) => `${JSON.stringify(flow)}\n`));
    if (this.#listeners.size >= MAX_FLOW_LISTENERS) return undefined;
    const listener = new LineStream((gone) => {
      if (this.#listeners.delete(gone) && this.#listeners.size === 0) this.#options.onListening(false);
    });
    this.#listeners.set(listener, filter);
    if (this.#listeners.size === 1) this.#options.onListening(true);
    listener.begin(kept);
    return listener;
  }

  close(): void {
    for (const listener of [...this.#listeners.keys()]) listener.destroy();
  }

  tell(flow: Flow): void {
    this.#kept.push(flow);
    // By halves, so that a flow costs no move of all others.
    if (this.#kept.length >= 2 * FLOWS_KEPT) this.#kept.splice(0, this.#kept.length - FLOWS_KEPT);
    for (const [listener, filter] of this.#listeners) if (passes(flow, filter)) listener.tell(flow);
  }
}

/** @returns what is wrong, as text */
export function readFlowQuery(query: URLSearchParams): FlowQuery | string {
  const [verdict, way] = [query.get('verdict') ?? undefined, query.get('way') ?? undefined];
  if (verdict !== undefined && !FLOW_VERDICTS.some((known) => known === verdict)) return `verdict=${verdict}: expected one of ${FLOW_VERDICTS.join(', ')}`;
  if (way !== undefined && !FLOW_WAYS.some((known) => known === way)) return `way=${way}: expected one of ${FLOW_WAYS.join(', ')}`;
  const follow = query.get('follow') === 'true';
  const last = Number(query.get('last') ?? (follow ? 0 : FLOWS_KEPT));
  if (!Number.isInteger(last) || last < 0) return `last=${query.get('last') ?? ''}: expected a number of flows`;
  const [from, to] = [query.get('from') ?? undefined, query.get('to') ?? undefined];
  return { follow, last: Math.min(last, FLOWS_KEPT), ...(from === undefined ? {} : { from }), ...(to === undefined ? {} : { to }), ...(verdict === undefined ? {} : { verdict: verdict as (typeof FLOW_VERDICTS)[number] }), ...(way === undefined ? {} : { way: way as (typeof FLOW_WAYS)[number] }) };
}
