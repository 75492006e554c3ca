/**
 * What the agent and the programs of the HTTP fast path tell each other while it runs: that the agent lives, which pods' tables
 * hold, what is under way, and which connections are to end. bpf/http-structs.h; docs/http-fast-path.md.
 */
import type { Closable } from '../../common/lifecycle.js';
import type { BpfMap, BpfObject, TcpSocketName } from '../../native/index.js';
import { StructCodec, u32, u64 } from './kernel-codec.js';

/** `suspended`: all goes through Envoy, which teaches nothing; what is under way ends. */
export type HttpPodState = 'off' | 'suspended' | 'live';

export interface HttpPod {
  /** The table whose ports and hosts hold; 0: none. */
  table: number;
  state: HttpPodState;
  /** What is fast gets an `x-request-id`, if it has none. */
  requestIds?: boolean;
}

export interface HttpActivity {
  /** Exchanges that the kernel has under way for the pod's clients, and those that it has begun. */
  underWay: bigint;
  started: bigint;
}

/** How many upstream connections there are that are one client's alone. */
export interface HttpUpstreams {
  open: number;
  /** At one server. */
  most: number;
}

/** A connection that is to end, since its other half has. */
export interface HttpEnd {
  side: 'client' | 'server';
  /** All that the server sent has been moved, and it had ended by a FIN. */
  orderly: boolean;
  netnsCookie: bigint;
  /** Without a cookie: whichever has these addresses. */
  socket: TcpSocketName;
}

/** An endpoint that is left out for a while, by its place in `http_monitors`. */
export interface HttpEjected {
  monitor: number;
  reason: 'consecutive_5xx' | 'consecutive_gateway_failure';
}

const STATES = { off: 'HTTP_POD_OFF', suspended: 'HTTP_POD_SUSPENDED', live: 'HTTP_POD_LIVE' } as const;
/** Of the two entries of `http_control`. */
const AGENTS = u32(0);
const KERNELS = u32(1);

export class KernelHttpControl implements Closable {
  readonly #object: BpfObject;
  readonly #maps: Record<'control' | 'pods' | 'activity' | 'clients' | 'servers' | 'channels' | 'upstreams' | 'sockets', BpfMap>;
  readonly #codecs: Record<'control' | 'pod' | 'activity' | 'event' | 'tuple' | 'channel' | 'upstream', StructCodec>;
  readonly #states: Record<HttpPodState, number>;
  readonly #endOfClient: number;
  readonly #ejected: number;
  readonly #forGateway: number;
  readonly #idle: number;
  readonly #fast: number;
  #onEnd: ((end: HttpEnd) => void) | undefined;
  readonly #lost: number;
  readonly #cut: number;
  readonly #untoldOrderly: number;
  #ring: Closable | undefined;

  constructor(object: BpfObject) {
    this.#object = object;
    this.#maps = { control: object.map('http_control'), pods: object.map('http_pods'), activity: object.map('http_activity'), clients: object.map('http_clients'), servers: object.map('http_servers'), channels: object.map('http_channels'), upstreams: object.map('http_upstreams'), sockets: object.map('sockets') };
    this.#codecs = {
      control: new StructCodec(object, 'http_control').check(this.#maps.control, 'value'),
      pod: new StructCodec(object, 'http_pod').check(this.#maps.pods, 'value'),
      activity: new StructCodec(object, 'http_activity').check(this.#maps.activity, 'value'),
      event: new StructCodec(object, 'http_event'),
      channel: new StructCodec(object, 'http_channel').check(this.#maps.channels, 'value'),
      tuple: new StructCodec(object, 'tuple'),
      upstream: new StructCodec(object, 'http_upstream_key').check(this.#maps.upstreams, 'key'),
    };
    const states = object.enumValues('http_pod_state');
    this.#states = { off: states[STATES.off]!, suspended: states[STATES.suspended]!, live: states[STATES.live]! };
    const channelStates = object.enumValues('http_channel_state');
    this.#idle = channelStates['HTTP_IDLE']!;
    this.#fast = channelStates['HTTP_FAST']!;
    this.#lost = channelStates['HTTP_LOST']!;
    this.#cut = object.enumValues('http_unknown')['HTTP_CUT']!;
    this.#untoldOrderly = object.enumValues('http_untold')['HTTP_UNTOLD_ORDERLY']!;
    const kinds = object.enumValues('http_end');
    this.#endOfClient = kinds['HTTP_END_CLIENT']!;
    this.#ejected = kinds['HTTP_EJECTED']!;
    this.#forGateway = object.enumValues('http_ejected_for')['HTTP_EJECTED_FOR_GATEWAY']!;
  }

  /**
   * Says that the agent lives, and ends what is to be ended; for a second what is taught may be repeated, if `on`.
   * CLOCK_MONOTONIC, as bpf_ktime_get_ns() has it.
   * @param knownLost see `lostEnds`: while there are others nothing new is fast, whatever `on` says
   * @param aheadMs that much longer, for who has no turn when it is due
   */
  beat(on: boolean, knownLost: number, aheadMs = 0): void {
    this.#maps.control.set(AGENTS, this.#codecs.control.encode({ heartbeat_ns: process.hrtime.bigint() + BigInt(aheadMs) * 1_000_000n, on: Number(on), lost_events: knownLost }));
  }

  /** By CLOCK_MONOTONIC, in nanoseconds; 0: never. */
  lastBeat(): { at: bigint; on: boolean } {
    const value = this.#maps.control.get(AGENTS)!;
    return { at: this.#codecs.control.bigint(value, 'heartbeat_ns'), on: this.#codecs.control.number(value, 'on') !== 0 };
  }

  /** Ends that the ring buffer had no room for, since the maps were made. */
  lostEnds(): number {
    const value = this.#maps.control.get(KERNELS);
    return value ? this.#codecs.control.number(value, 'lost_events') : 0;
  }

  setPod(netnsCookie: bigint, { table, state, requestIds }: HttpPod): void {
    this.#maps.pods.set(u64(netnsCookie), this.#codecs.pod.encode({ table, state: this.#states[state], request_ids: Number(requestIds ?? false) }));
  }

  /** Nothing of the pod is fast any more. */
  removePod(netnsCookie: bigint): void {
    this.#maps.pods.delete(u64(netnsCookie));
  }

  forgetActivity(netnsCookie: bigint): void {
    this.#maps.activity.delete(u64(netnsCookie));
  }

  pods(): Map<bigint, HttpPod> {
    const nameOf = (value: number): HttpPodState => (value === this.#states.live ? 'live' : value === this.#states.suspended ? 'suspended' : 'off');
    const { pod } = this.#codecs;
    return new Map(this.#maps.pods.entries().map(([key, value]) => [key.readBigUInt64LE(), { table: pod.number(value, 'table'), state: nameOf(pod.number(value, 'state')), ...(pod.number(value, 'request_ids') === 0 ? {} : { requestIds: true }) }]));
  }

  activity(netnsCookie: bigint): HttpActivity {
    const value = this.#maps.activity.get(u64(netnsCookie));
    if (!value) return { underWay: 0n, started: 0n };
    return { underWay: BigInt.asIntN(64, this.#codecs.activity.bigint(value, 'under_way')), started: this.#codecs.activity.bigint(value, 'started') };
  }

  /** Clients' connections on which nothing has been under way for so long, in milliseconds, and that are not Envoy's for good. Walks a large map. */
  idleClients(idleMs: number): HttpEnd[] {
    const before = process.hrtime.bigint() - BigInt(idleMs) * 1_000_000n;
    const { channel } = this.#codecs;
    return this.#clientsThat((value) => {
      const usedNs = channel.bigint(value, 'used_ns');
      return channel.number(value, 'state') !== this.#idle || usedNs === 0n || usedNs > before ? undefined : 'orderly';
    });
  }

  /**
   * Clients' connections that are to end, and of which the ring buffer had no room to tell. Walks a large map.
   * @param all also those that were told of, and not ended: by a former agent
   */
  untoldEnds(all = false): HttpEnd[] {
    const { channel } = this.#codecs;
    return this.#clientsThat((value) => {
      const untold = channel.number(value, 'untold');
      if (untold !== 0) return untold === this.#untoldOrderly ? 'orderly' : 'reset';
      return all && channel.number(value, 'state') === this.#lost && channel.number(value, 'unknown') === this.#cut ? 'reset' : undefined;
    });
  }

  /** Clients' connections that have an exchange with a server of this namespace under way. Walks a large map. */
  exchangesAt(server: bigint): HttpEnd[] {
    const { channel } = this.#codecs;
    return this.#clientsThat((value) => (channel.number(value, 'state') === this.#fast && channel.bigint(value, 'server_netns') === server ? 'reset' : undefined));
  }

  /** Ends them, as the programs would have it. */
  endExchangesAt(server: bigint): void {
    for (const end of this.exchangesAt(server)) this.#onEnd?.(end);
  }

  /** How the connection of a channel is to end; undefined: it is not. */
  #clientsThat(how: (channel: Buffer) => 'orderly' | 'reset' | undefined): HttpEnd[] {
    return this.#maps.channels.entries().flatMap(([key, value]): HttpEnd[] => {
      const end = how(value);
      if (end === undefined) return [];
      const of = this.#codecs.channel.bytes(value, 'tuple');
      return [{ side: 'client', orderly: end === 'orderly', netnsCookie: this.#codecs.tuple.bigint(of, 'netns_cookie'), socket: { ...this.#socket(of), cookie: key.readBigUInt64LE() } }];
    });
  }

  /**
   * Removes what the programs keep of sockets that are gone: that ended when their pod's hooks were no more. The kernel itself
   * takes sockets out of the sockhash.
   * @returns of how many
   */
  forgetGone(): number {
    const { sockets, channels, clients, servers } = this.#maps;
    const isGone = (cookie: Buffer): boolean => sockets.get(cookie) === undefined;
    let forgotten = 0;
    for (const [key, cookie] of clients.entries()) {
      if (!isGone(cookie)) continue;
      clients.delete(key);
      forgotten += Number(channels.delete(cookie));
    }
    for (const [server] of servers.entries()) if (isGone(server)) forgotten += Number(servers.delete(server));
    return forgotten;
  }

  #socket(of: Buffer): Omit<TcpSocketName, 'cookie'> {
    const { tuple } = this.#codecs;
    return { local: tuple.bytes(of, 'local'), remote: tuple.bytes(of, 'remote'), localPort: tuple.number(of, 'local_port'), remotePort: tuple.number(of, 'remote_port') };
  }

  /** Connections that are one client's alone: of the node, and of the server that has most of them. */
  upstreams(): HttpUpstreams {
    const counts = this.#maps.upstreams.entries().map(([key, value]) => ({ port: this.#codecs.upstream.number(key, 'port'), open: Math.max(0, value.readInt32LE()) }));
    return { open: counts.find(({ port }) => port === 0)?.open ?? 0, most: Math.max(0, ...counts.filter(({ port }) => port !== 0).map(({ open }) => open)) };
  }

  /** Cookies of servers' sockets that belong to a client connection that is gone. */
  orphans(): bigint[] {
    // In this order: a client is listed before a server is learnt for it.
    const servers = this.#maps.servers.entries();
    const clients = new Set(servers.length === 0 ? [] : this.#maps.clients.entries().map(([, cookie]) => cookie.readBigUInt64LE()));
    return servers.flatMap(([server, client]) => (clients.has(client.readBigUInt64LE()) ? [] : server.readBigUInt64LE()));
  }

  /** From now on ends are told; those that a former agent did not come to, too. */
  listen(onEnd: (end: HttpEnd) => void, onEjected: (ejected: HttpEjected) => void = () => undefined): void {
    const { event } = this.#codecs;
    this.#onEnd = onEnd;
    this.#ring ??= this.#object.ringBuffer('http_events', (record) => {
      if (event.number(record, 'type') === this.#ejected) {
        onEjected({ monitor: Number(event.bigint(record, 'cookie')), reason: event.number(record, 'orderly') === this.#forGateway ? 'consecutive_gateway_failure' : 'consecutive_5xx' });
        return;
      }
      const [of, cookie] = [event.bytes(record, 'tuple'), event.bigint(record, 'cookie')];
      onEnd({
        side: event.number(record, 'type') === this.#endOfClient ? 'client' : 'server',
        orderly: event.number(record, 'orderly') !== 0,
        netnsCookie: event.bigint(record, 'netns_cookie'),
        socket: { ...this.#socket(of), ...(cookie === 0n ? {} : { cookie }) },
      });
    });
  }

  close(): void {
    void this.#ring?.close();
    this.#ring = undefined;
  }
}
