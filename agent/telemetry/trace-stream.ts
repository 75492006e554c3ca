/** `underpass trace`: connections' lives through the kernel's hooks, as lines for one who listens; it ends with its listener. */
import type { Readable } from 'node:stream';
import type { Closable } from '../../common/lifecycle.js';
import { LineStream } from '../admin/line-stream.js';
import type { KernelWatch, Watched, WatchEvent, WatchFilter } from '../dataplane/kernel-watch.js';
import type { FlowNames } from './flow-record.js';
import { joinAddress } from './flow-record.js';

/** Connections that a trace remembers at a time. */
const MAX_TRACED = 65_536;

export interface TraceLine {
  /** Microseconds since the trace's first line. */
  at_us: number;
  /** The two ends of one connection have one number, from 1; null: there is none yet. */
  connection: number | null;
  /** Whose hook it is: `NAMESPACE/NAME`, `Envoy for NAMESPACE/NAME`, or null. */
  who: string | null;
  what: WatchEvent['what'];
  /** A counter's name, or a status. */
  reason: string | null;
  local: string | null;
  remote: string | null;
  asked: string | null;
  bytes: number;
  pid: number | null;
  text: string;
}

const LED: Record<string, string> = {
  no: 'left as it is', outbound: 'led to the proxy, on 127.0.0.1:15001', inbound: 'led to the other pod\'s sidecar, on 15006', resolved: 'led to an endpoint, without a proxy',
  refused: 'refused (ECONNREFUSED)', pod: 'led to the proxy, which judges the pod\'s policy',
};

const TEXTS: Record<WatchEvent['what'], (event: WatchEvent) => string> = {
  connect: ({ reason }) => `connect(): ${LED[reason ?? ''] ?? reason ?? ''}`,
  denied: ({ reason }) => `denied by policy (${reason ?? ''})`,
  opened: ({ reason }) => `established by the opener: ${reason === undefined ? 'to be paired' : `plain TCP (${reason})`}`,
  accepted: ({ reason, peerCookie }) => `accepted${peerCookie === 0n ? '' : reason === undefined ? ': to be paired with the opener' : ': plain TCP, as the opener said'}`,
  moved: ({ bytes }) => `${bytes} B moved into the partner's socket`,
  by_tcp: ({ bytes, reason }) => `${bytes} B by TCP (${reason ?? ''})`,
  fast: ({ bytes }) => `fast path: ${bytes} B of a request into the server's socket`,
  to_envoy: ({ bytes, reason }) => `request of ${bytes} B to Envoy (${reason ?? ''})`,
  answered: ({ bytes, reason }) => `fast path: ${bytes} B of an answer ${reason ?? ''} into the client's socket`,
  closed: ({ bytes }) => `closed; this end had moved ${bytes} B`,
  led: () => '', answer: () => '', cut: () => '',
};

export interface TraceStreamOptions {
  watch: Pick<KernelWatch, 'start' | 'stop'>;
  names: FlowNames;
}

export class TraceStream implements Closable {
  readonly #options: TraceStreamOptions;
  #open: LineStream | undefined;

  constructor(options: TraceStreamOptions) {
    this.#options = options;
  }

  /** @returns undefined while another one is traced */
  open(filter: WatchFilter): Readable | undefined {
    if (this.#open) return undefined;
    const { watch } = this.#options;
    const stream = new LineStream(() => {
      watch.stop('trace');
      this.#open = undefined;
    });
    this.#open = stream;
    const connections = new Map<bigint, number>(), owners = new Map<bigint, string | null>(), reasons = new Map<bigint, string | undefined>();
    let count = 0, first: bigint | undefined;
    watch.start('trace', filter, (event) => {
      if (!isEvent(event)) return;
      const isNew = event.what === 'opened' || event.what === 'accepted';
      // Of a trace before this one.
      if (event.cookie !== 0n && !isNew && !connections.has(event.cookie)) return;
      if (isNew) {
        if (connections.size >= MAX_TRACED) for (const map of [connections, owners, reasons]) map.clear();
        connections.set(event.cookie, connections.get(event.peerCookie) ?? ++count);
        owners.set(event.cookie, this.#owner(event));
        // What keeps them apart is known where it was opened.
        if (event.what === 'accepted') event.reason = reasons.get(event.peerCookie);
        else reasons.set(event.cookie, event.reason);
      }
      first ??= event.atNs;
      stream.tell(this.#line(event, Number((event.atNs - first) / 1_000n), connections.get(event.cookie) ?? null, owners.get(event.cookie) ?? this.#owner(event)));
      if (event.what === 'closed') for (const map of [connections, owners, reasons]) map.delete(event.cookie);
    });
    return stream;
  }

  close(): void {
    this.#open?.destroy();
  }

  #owner({ netnsCookie, flags }: WatchEvent): string | null {
    const pod = this.#options.names.ofNetns(netnsCookie);
    return pod ? `${flags.has('proxy') ? 'Envoy for ' : ''}${pod.namespace}/${pod.name}` : null;
  }

  #line(event: WatchEvent, atUs: number, connection: number | null, who: string | null): TraceLine {
    const end = (at: WatchEvent['local']): string | null => (at ? joinAddress(at.address, at.port) : null);
    return {
      at_us: atUs, connection, who, what: event.what, reason: event.reason ?? null, local: end(event.local), remote: end(event.remote), asked: end(event.asked),
      bytes: event.bytes, pid: event.pid || null, text: TEXTS[event.what](event),
    };
  }
}

function isEvent(event: Watched): event is WatchEvent {
  return event.what !== 'request' && event.what !== 'payload';
}
