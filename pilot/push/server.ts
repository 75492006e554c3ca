/** The ADS server: both variants, on TCP and Unix sockets. */
import { chmod, mkdir, rm, stat } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { dirname } from 'node:path';
import { status as GrpcStatus, ServerCredentials } from '@grpc/grpc-js';
import { UnderpassError, errorCode, errorMessage } from '../../common/errors.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import { VERSION } from '../../common/version.js';
import { AggregatedDiscoveryServiceService } from '../../proto/generated/envoy/service/discovery/v3/ads.js';
import type { Generators, Names } from '../generate/generator.js';
import type { ChangeSet } from '../model/changes.js';
import type { Proxy } from '../model/proxy.js';
import type { AuthenticatedCall } from '../ca/authenticate.js';
import type { PeerIdentity } from '../ca/peer-identity.js';
import type { ClientListener, ConnectionContext, ConnectionStatus } from './connection.js';
import { DeltaConnection } from './delta.js';
import { Assembler } from './assembler.js';
import { SendBudget } from './budget.js';
import { ConnectThrottle } from './connect-throttle.js';
import type { EncodedResponse } from './encode.js';
import type { PushMetrics } from './metrics.js';
import { PushQueue, type PushTarget } from './queue.js';
import { ServerGroup, type ServiceRegistry } from './server-group.js';
import { MapStore } from './shared-map.js';
import { SotwConnection } from './sotw.js';
import { DEFAULT_LIMITS, StreamGuard, type Caller, type StreamLimits } from './stream-guard.js';

const STOP_GRACE_MS = 1_000;
const DRAIN_TURN_MS = 50;
const MAX_RESPONSE_BYTES = 256 << 20;
/** A client that comes back says the version of each resource that it holds: some 100 bytes for each. */
const MAX_REQUEST_BYTES = 16 << 20;

/** Bytes of responses that may wait for the network, over all clients. */
const SEND_BUDGET_BYTES = 64 << 20;

/** Clients that may be at their first request at once: more would wait for each other, with what they said in memory. */
const MAX_CONNECTING = 16;

/** A client that is gone without a word is noticed by this and the time-out together. */
const KEEPALIVE_TIME_MS = 30_000;

const CHANNEL_OPTIONS = {
  'grpc.max_receive_message_length': MAX_REQUEST_BYTES,
  'grpc.max_send_message_length': MAX_RESPONSE_BYTES,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.max_concurrent_streams': 10_000,
};

/** Proves who calls; undefined when nobody could be recognized. */
export type Identify = (call: AuthenticatedCall) => Promise<PeerIdentity | undefined>;

export interface SecurePort {
  credentials: ServerCredentials;
  identify: Identify;
  /** What the port serves besides ADS. */
  addServices?: (server: ServiceRegistry, guard: StreamGuard) => void;
}

type AnyConnection = DeltaConnection | SotwConnection;

/** Responses are encoded already, and have what grpc-js uses of a Buffer: it copies them into its frames. */
const asIs = (response: EncodedResponse): Buffer => response as unknown as Buffer;
const service = {
  deltaAggregatedResources: { ...AggregatedDiscoveryServiceService.deltaAggregatedResources, responseSerialize: asIs },
  streamAggregatedResources: { ...AggregatedDiscoveryServiceService.streamAggregatedResources, responseSerialize: asIs },
};

export class AdsServer {
  readonly #server: ServerGroup;
  readonly #secureServers: ServerGroup[] = [];
  readonly #serveOn: (server: ServiceRegistry, identify?: Identify) => void;
  readonly #connections = new Set<AnyConnection>();
  readonly #queue: PushQueue;
  readonly #addresses: string[] = [];
  readonly #sockets: string[] = [];
  readonly #guard: StreamGuard;
  #closed: Promise<void> | undefined;
  clients: ClientListener | undefined;

  constructor(generators: Generators, version: () => string, readonly logger: Logger, readonly metrics: PushMetrics, limits: Partial<StreamLimits> = {}) {
    this.#guard = new StreamGuard({ limits: { ...DEFAULT_LIMITS, ...limits }, logger, refused: metrics.refusedStreams });
    const budget = new SendBudget(SEND_BUDGET_BYTES);
    const failed = (target: PushTarget, error: unknown): void => (target as AnyConnection).fail(GrpcStatus.INTERNAL, `generating its resources: ${errorMessage(error)}`, error);
    this.#queue = new PushQueue(failed, { budget, waited: (ms) => metrics.queueTime.observe(ms / 1_000) });
    const context: ConnectionContext = { generators, version, logger, metrics, budget, throttle: new ConnectThrottle(MAX_CONNECTING), assembler: new Assembler(), maps: new MapStore(), maxNames: this.#guard.limits.namesPerType, clients: () => this.clients, wake: (target: PushTarget) => this.#queue.wake(target) };
    const opened = (connection: AnyConnection): void => {
      this.#connections.add(connection);
      metrics.connections.set({ version: VERSION }, this.#connections.size);
    };
    const ended = (connection: AnyConnection): void => {
      this.#connections.delete(connection);
      metrics.connections.set({ version: VERSION }, this.#connections.size);
      this.#queue.remove(connection);
      for (const typeUrl of connection.watches.keys()) generators.get(typeUrl)?.forget?.(() => this.#watched(typeUrl));
    };
    this.#serveOn = (server, identify) => {
      const open = <C extends AnyConnection>(call: C['call'], make: (caller: Caller) => C): void => {
        const begin = (caller: Caller): void => {
          if (this.#guard.admit(call, caller)) opened(make(caller));
        };
        if (!identify) return begin(anonymous(call));
        void identify(call).then((identity) => {
          if (!identity) call.emit('error', { code: GrpcStatus.UNAUTHENTICATED, details: 'authentication failed' });
          else begin({ local: false, identity });
        });
      };
      server.addService(service, {
        deltaAggregatedResources: (call: DeltaConnection['call']) =>
          open<DeltaConnection>(call, (caller) => {
            const connection: DeltaConnection = new DeltaConnection(context, call, () => ended(connection), caller);
            return connection;
          }),
        streamAggregatedResources: (call: SotwConnection['call']) =>
          open<SotwConnection>(call, (caller) => {
            const connection: SotwConnection = new SotwConnection(context, call, () => ended(connection), caller);
            return connection;
          }),
      });
    };
    this.#server = this.#newServer();
    this.#serveOn(this.#server);
  }

  #newServer(): ServerGroup {
    return new ServerGroup({ logger: this.logger, keepaliveTimeMs: KEEPALIVE_TIME_MS, stopGraceMs: STOP_GRACE_MS, channel: CHANNEL_OPTIONS });
  }

  /** Opens a TLS port of its own, whose callers have to prove who they are. @returns the address with its port filled in */
  async listenSecure(address: string, { credentials, identify, addServices }: SecurePort): Promise<string> {
    const server = this.#newServer();
    this.#serveOn(server, identify);
    addServices?.(server, this.#guard);
    this.#secureServers.push(server);
    const port = await bind(server, address, credentials);
    return `${address.slice(0, address.lastIndexOf(':'))}:${port}`;
  }

  /** Addresses that are listened on, with the port that was given where port 0 was asked for. */
  get addresses(): readonly string[] {
    return this.#addresses;
  }

  /** @param address `host:port`, or `unix:PATH`. */
  async listen(address: string): Promise<void> {
    const path = address.startsWith('unix:') ? address.slice('unix:'.length) : undefined;
    if (path) await clearSocket(path);
    const port = await bind(this.#server, address, ServerCredentials.createInsecure());
    if (path) {
      // Who may open it is trusted with the Secrets of the namespace that it names.
      await chmod(path, 0o600);
      this.#sockets.push(path);
      this.#addresses.push(address);
    } else {
      this.#addresses.push(`${address.slice(0, address.lastIndexOf(':'))}:${port}`);
    }
  }

  /** Serves something else on the same addresses. Before the first listen(). */
  register(add: (server: ServiceRegistry, guard: StreamGuard) => void): void {
    add(this.#server, this.#guard);
  }

  push(change: ChangeSet): void {
    for (const connection of this.#connections) this.#queue.enqueue(connection, change);
  }

  status(): { addresses: readonly string[]; queued: number; connections: (ConnectionStatus & { queued: boolean })[] } {
    const connections = [...this.#connections].filter(({ proxy }) => proxy).map((connection) => ({ ...connection.status(), queued: this.#queue.has(connection) }));
    return { addresses: this.#addresses, queued: this.#queue.length, connections };
  }

  /** When the oldest change was made that some client has not acknowledged, or is still to be sent; undefined: all have all. By performance.now(). */
  behindSince(): number | undefined {
    return oldestOf([...this.#connections].flatMap((connection) => [connection.convergingSince, this.#queue.oldest(connection)]));
  }

  /** Who is connected, one a stream. */
  proxies(): Proxy[] {
    return [...this.#connections].flatMap(({ proxy }) => proxy ?? []);
  }

  /** The names of this type that the stream of this node id has subscribed to. */
  watchedNames(id: string, typeUrl: string): Iterable<string> {
    const connection = [...this.#connections].find(({ proxy }) => proxy?.id === id);
    return connection?.watches.get(typeUrl)?.names ?? [];
  }

  #watched(typeUrl: string): Iterable<Names> {
    // Thousands of streams watch the same names, which are held once.
    const shared = new Map<unknown, Names>();
    for (const { watches } of this.#connections) {
      const names = watches.get(typeUrl)?.names;
      if (names) shared.set(names.shared ?? names, names);
    }
    return shared.values();
  }

  /**
   * Streams end without an error, and their clients open others elsewhere.
   * @param overMs spread over it, so that another control plane does not get all of them at once
   */
  close(overMs = 0): Promise<void> {
    return (this.#closed ??= this.#close(overMs));
  }

  async #close(overMs: number): Promise<void> {
    const closed = Promise.all([this.#server, ...this.#secureServers].map((server) => server.close(overMs)));
    const ending = [...this.#connections];
    const turns = Math.max(1, Math.min(ending.length, Math.ceil(overMs / DRAIN_TURN_MS)));
    for (let turn = 0; turn < turns; turn++) {
      if (turn > 0) await sleep(overMs / turns);
      for (const { call } of ending.slice((turn * ending.length) / turns, ((turn + 1) * ending.length) / turns)) call.end();
    }
    // Those that came before the listeners were closed.
    for (const { call } of this.#connections) call.end();
    await closed;
    for (const path of this.#sockets) await rm(path, { force: true });
  }
}

export function oldestOf(times: readonly (number | undefined)[]): number | undefined {
  return times.reduce((oldest, time) => (oldest === undefined || (time !== undefined && time < oldest) ? time : oldest), undefined);
}

async function bind(server: ServerGroup, address: string, credentials: ServerCredentials): Promise<number | undefined> {
  try {
    return await server.listen(address, credentials);
  } catch (error) {
    throw new UnderpassError('UNDERPASS_PILOT_LISTEN', `listening on ${address}: ${errorMessage(error)}`, { cause: error, hint: 'is another pilot running there? choose another address' });
  }
}

/** The other end of a plaintext stream. A Unix socket's peer has no address. */
export function anonymous(call: { getPeer(): string }): Caller {
  return { local: call.getPeer() === 'unknown', identity: undefined };
}

/** Makes room for a Unix socket: one that nobody listens on any more is removed, one in use is not. */
async function clearSocket(path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  try {
    if (!(await stat(path)).isSocket()) throw new UnderpassError('UNDERPASS_PILOT_LISTEN', `listening on unix:${path}: something else than a socket is there`);
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return;
    throw error;
  }
  const inUse = await new Promise<boolean>((resolve) => {
    const probe = createConnection(path);
    probe.once('connect', () => resolve(true)).once('error', () => resolve(false));
    probe.once('connect', () => probe.destroy());
  });
  if (inUse) throw new UnderpassError('UNDERPASS_PILOT_LISTEN', `listening on unix:${path}: another process listens there`);
  await rm(path, { force: true });
}
