/**
 * One delta ADS stream that outlives its connections: subscriptions, ACK, NACK, reconnect. What was accepted stays until
 * the control plane says otherwise; on a reconnect it is announced in initial_resource_versions.
 * Protocol: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol (incremental variant).
 */
import { status as grpcStatus } from '@grpc/grpc-js';
import type { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import { DeltaDiscoveryRequest } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { Backoff } from '../../common/retry.js';
import type { DeltaStream, StreamOpener } from './channel.js';
import { encodedVersions, heldVersions, wantedNames, type DeltaRequest } from './delta-request.js';
import type { DeltaResponse } from './delta-response.js';
import { ResourceError, withVersion, type AnyResourceType, type XdsResource, type XdsResourceType } from './resource-type.js';

/** A type's share of a stream. `T` is the decoded message. */
export interface TypeState<T = unknown> {
  readonly type: XdsResourceType<T>;
  readonly resources: ReadonlyMap<string, XdsResource<T>>;
  /** Subscribed names; unused for wildcard types. */
  readonly names: ReadonlySet<string>;
  /** Rejected by us, by resource; the last good one is still in `resources`. */
  readonly rejected: ReadonlyMap<string, string>;
  /** Whether an answer for this type came since the stream was made (on whatever connection). */
  readonly answered: boolean;
  /** Names that the control plane said do not exist. */
  readonly absent: ReadonlySet<string>;
}

export interface Change {
  type: AnyResourceType;
  /** Names whose content differs from before. What was resent unchanged is not in it. */
  updated: readonly string[];
  removed: readonly string[];
  /** What was there before under those names, as far as anything was. */
  replaced: ReadonlyMap<string, XdsResource<unknown>>;
  /** The first answer of this type on this stream. */
  first: boolean;
}

export interface StreamStatus {
  connected: boolean;
  /** Since when it is so; absent while it never was connected. */
  since?: string;
  connects: number;
  lastError: string | undefined;
  acks: number;
  nacks: { type: string; message: string }[];
}

interface MutableState extends TypeState {
  resources: Map<string, XdsResource<unknown>>;
  /** Others have the map as well: what changes is a copy. */
  isShared: boolean;
  names: ReadonlySet<string>;
  rejected: Map<string, string>;
  absent: Set<string>;
  answered: boolean;
  /** Asked for on the connection that is up now. */
  requested: ReadonlySet<string> | undefined;
  wanted: boolean;
  /** Nothing was received of it on the connection that is up now. */
  unheard: boolean;
}

export interface DeltaStreamOptions {
  channel: StreamOpener;
  node: Node;
  types: readonly AnyResourceType[];
  onChange: (change: Change) => void;
  logger: Logger;
  backoff?: Backoff;
}

const MAX_REMEMBERED_NACKS = 20;
const NO_NAMES: ReadonlySet<string> = new Set();

export class DeltaAdsStream implements Closable {
  readonly #options: DeltaStreamOptions;
  readonly #states = new Map<string, MutableState>();
  readonly #backoff: Backoff;
  #node: Node;
  #stream: DeltaStream | undefined;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;
  #started = false;
  #nodeSent = false;
  #status: StreamStatus = { connected: false, connects: 0, lastError: undefined, acks: 0, nacks: [] };

  constructor(options: DeltaStreamOptions) {
    this.#options = options;
    this.#node = options.node;
    this.#backoff = options.backoff ?? new Backoff({ initialMs: 100, maxMs: 15_000, factor: 1.6, jitter: 0.2 });
    for (const type of options.types) {
      this.#states.set(type.typeUrl, {
        type, resources: type.hold(), isShared: false, names: NO_NAMES, rejected: new Map(), absent: new Set(),
        answered: false, requested: undefined, wanted: type.wildcard, unheard: true,
      });
    }
  }

  get status(): Readonly<StreamStatus> {
    return this.#status;
  }

  state<T>(type: XdsResourceType<T>): TypeState<T> {
    return this.#state(type) as unknown as TypeState<T>;
  }

  /** Fills in what an earlier process had accepted, so that it is there before, or without, the control plane. */
  preload(type: AnyResourceType, resources: Iterable<XdsResource<unknown>>): void {
    const own = ownResources(this.#state(type));
    for (const resource of resources) own.set(resource.name, resource);
  }

  /** What there is of a type now, in a map that is never altered: streams that have the same have the same map. */
  settled<T>(type: XdsResourceType<T>): ReadonlyMap<string, XdsResource<T>> {
    const state = this.#state(type);
    if (!state.isShared) state.resources = type.maps.like(state.resources as Map<string, XdsResource<T>>) as Map<string, XdsResource<unknown>>;
    state.isShared = true;
    return state.resources as Map<string, XdsResource<T>>;
  }

  start(): void {
    if (this.#started || this.#closed) return;
    this.#started = true;
    this.#connect();
  }

  /** Another node id from now on (its pod went away): a new connection, with all that is known already. */
  setNode(node: Node): void {
    this.#node = node;
    if (this.#stream) this.#disconnect('node changed', 0);
  }

  /** Subscribes to exactly these names, a set that is not altered; what is no longer asked for is forgotten. */
  setNames(type: AnyResourceType, names: ReadonlySet<string>): void {
    const state = this.#state(type);
    state.names = names;
    state.wanted ||= names.size > 0;
    const gone = (map: { keys(): Iterable<string> }): string[] => [...map.keys()].filter((name) => !names.has(name));
    for (const name of gone(state.resources)) ownResources(state).delete(name);
    for (const map of [state.rejected, state.absent]) for (const name of gone(map)) map.delete(name);
    this.#subscribe(state);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#retry);
    const stream = this.#stream;
    this.#stream = undefined;
    this.#status = { ...this.#status, connected: false };
    stream?.cancel();
  }

  #state(type: AnyResourceType): MutableState {
    const state = this.#states.get(type.typeUrl);
    if (!state) throw new Error(`${type.shortName} is no type of this stream`);
    return state;
  }

  #connect(): void {
    if (this.#closed) return;
    const { channel } = this.#options;
    let stream: DeltaStream | undefined;
    try {
      stream = channel.open(this.#wake);
    } catch (error) {
      // TLS with files that are no keys.
      return this.#disconnect(errorMessage(error), this.#backoff.next());
    }
    if (!stream) return this.#disconnect(`waiting for ${channel.waitsFor?.() ?? 'the control plane'}`, this.#backoff.next());
    this.#stream = stream;
    this.#nodeSent = false;
    this.#status = { ...this.#status, connects: this.#status.connects + 1 };
    for (const state of this.#states.values()) {
      state.requested = undefined;
      state.unheard = true;
    }
    const lost = (reason: string): void => {
      if (this.#stream === stream) this.#disconnect(reason, this.#backoff.next());
    };
    stream.on('data', (response: DeltaResponse) => {
      if (this.#stream === stream) this.#receive(response);
    });
    stream.on('error', (error: Error) => lost(errorMessage(error)));
    stream.on('end', () => lost('the control plane ended the stream'));
    for (const state of this.#states.values()) this.#subscribe(state);
  }

  /** One for good: whoever keeps those that wait has each of them once. */
  readonly #wake = (): void => {
    if (this.#stream) return;
    clearTimeout(this.#retry);
    this.#backoff.reset();
    this.#connect();
  };

  #disconnect(reason: string, delayMs: number): void {
    const stream = this.#stream;
    this.#stream = undefined;
    if (this.#status.connected) this.#options.logger.warn({ node: this.#node.id, reason }, 'control plane: stream lost, state kept');
    this.#status = { ...this.#status, ...(this.#status.connected ? { since: new Date().toISOString() } : {}), connected: false, lastError: reason };
    stream?.removeAllListeners('data');
    stream?.on('error', () => undefined);
    stream?.cancel();
    clearTimeout(this.#retry);
    if (!this.#closed) this.#retry = setTimeout(() => this.#connect(), delayMs);
  }

  #subscribe(state: MutableState): void {
    const stream = this.#stream;
    if (!stream || !state.wanted) return;
    const first = state.requested === undefined;
    if (state.type.wildcard) {
      state.requested = NO_NAMES;
      // No names in the first request of a type means all of them.
      if (first) this.#send({ type_url: state.type.typeUrl }, announced(state));
      return;
    }
    if (first) {
      // A first request without names would be a wildcard subscription.
      if (state.names.size === 0) return;
      state.requested = state.names;
      return this.#send({ type_url: state.type.typeUrl }, [wantedNames(state.names), ...announced(state)]);
    }
    const requested = state.requested ?? NO_NAMES;
    const subscribe = [...state.names].filter((name) => !requested.has(name));
    const unsubscribe = [...requested].filter((name) => !state.names.has(name));
    if (subscribe.length + unsubscribe.length === 0) return;
    state.requested = state.names;
    this.#send({ type_url: state.type.typeUrl, resource_names_subscribe: subscribe, resource_names_unsubscribe: unsubscribe });
  }

  #send(request: Parameters<typeof DeltaDiscoveryRequest.fromPartial>[0], held: readonly Uint8Array[] = []): void {
    const message: DeltaRequest = { ...DeltaDiscoveryRequest.fromPartial(request), held };
    if (!this.#nodeSent) message.node = this.#node;
    this.#nodeSent = true;
    this.#stream?.write(message);
  }

  #receive(response: DeltaResponse): void {
    if (!this.#status.connected) this.#options.logger.info({ node: this.#node.id }, 'control plane: connected');
    this.#backoff.reset();
    if (!this.#status.connected || this.#status.lastError !== undefined) this.#status = { ...this.#status, since: new Date().toISOString(), connected: true, lastError: undefined };
    const state = this.#states.get(response.type_url);
    if (!state) {
      this.#send({
        type_url: response.type_url, response_nonce: response.nonce,
        error_detail: { code: grpcStatus.INVALID_ARGUMENT, message: `${response.type_url} was not asked for` },
      });
      return;
    }
    // The control plane knows only what was accepted: of what was refused it sends what there still is, and tells no removal.
    if (state.unheard && state.type.wildcard) state.rejected.clear();
    state.unheard = false;
    const { updated, removed, replaced, errors } = this.#apply(state, response);
    if (errors.length > 0) {
      const message = errors.join('\n');
      this.#status.nacks.push({ type: state.type.shortName, message });
      this.#status.nacks.splice(0, this.#status.nacks.length - MAX_REMEMBERED_NACKS);
      this.#options.logger.warn({ node: this.#node.id, type: state.type.shortName, errors }, 'control plane: resources rejected');
      this.#send({ type_url: response.type_url, response_nonce: response.nonce, error_detail: { code: grpcStatus.INVALID_ARGUMENT, message } });
    } else {
      this.#status.acks++;
      this.#send({ type_url: response.type_url, response_nonce: response.nonce });
    }
    const first = !state.answered;
    state.answered = true;
    try {
      this.#options.onChange({ type: state.type, updated, removed, replaced, first });
    } catch (error) {
      this.#options.logger.error({ node: this.#node.id, type: state.type.shortName, error: errorMessage(error) }, 'control plane: a change could not be taken up; what was there stays');
    }
  }

  #apply(state: MutableState, response: DeltaResponse): Pick<Change, 'updated' | 'removed' | 'replaced'> & { errors: string[] } {
    const updated: string[] = [];
    const removed: string[] = [];
    const replaced = new Map<string, XdsResource<unknown>>();
    const errors: string[] = [];
    for (const { name, version, resource } of response.resources) {
      // istiod still answers for names whose unsubscription has just crossed its push.
      if (!state.type.wildcard && !state.names.has(name)) continue;
      try {
        const next = state.type.decode(name, version, resource);
        const old = state.resources.get(name);
        state.rejected.delete(name);
        state.absent.delete(name);
        if (old && state.type.equals(old, next)) {
          // The old object stays, and with it whatever was computed from it; only its version may be newer.
          if (old.version !== version) ownResources(state).set(name, withVersion(old, version));
          continue;
        }
        if (old && !replaced.has(name)) replaced.set(name, old);
        // The name of all streams that have it: each response brings a string of its own.
        ownResources(state).set(next.name, next);
        updated.push(name);
      } catch (error) {
        // What the checks did not foresee is refused like the rest: a stream must not end with its process.
        const message = error instanceof ResourceError ? error.message : `${state.type.shortName} "${name}": (whole): ${errorMessage(error)}`;
        state.rejected.set(name, message);
        errors.push(message);
      }
    }
    for (const name of response.removed_resources) {
      state.rejected.delete(name);
      if (state.names.has(name)) state.absent.add(name);
      const old = state.resources.get(name);
      if (!old) continue;
      if (!replaced.has(name)) replaced.set(name, old);
      ownResources(state).delete(name);
      removed.push(name);
    }
    return { updated, removed, replaced, errors };
  }
}

function ownResources(state: MutableState): Map<string, XdsResource<unknown>> {
  if (state.isShared) state.resources = new Map(state.resources);
  state.isShared = false;
  return state.resources;
}

/** What is there already, for the first request of a type on a connection. */
function announced(state: MutableState): readonly Uint8Array[] {
  if (state.resources.size === 0) return [];
  return [state.isShared ? heldVersions(state.resources) : encodedVersions(state.resources)];
}
