/** A delta ADS server for tests: answers from a table, or plays a recording; every request is kept. */
import { rmSync } from 'node:fs';
import { Server, ServerCredentials, type ServerDuplexStream } from '@grpc/grpc-js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { AggregatedDiscoveryServiceService } from '../../proto/generated/envoy/service/discovery/v3/ads.js';
import { DeltaDiscoveryResponse, type DeltaDiscoveryRequest } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { waitFor } from '../../common/retry.js';
import type { Recording, RecordedSession } from './recording.js';

type Call = ServerDuplexStream<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;

export class TestStream {
  readonly requests: DeltaDiscoveryRequest[] = [];
  readonly subscribed = new Map<string, Set<string>>();
  /** All names that were ever subscribed to: a push may cross an unsubscription. */
  readonly asked = new Set<string>();
  readonly acks: string[] = [];
  readonly nacks: { type: string; nonce: string; message: string }[] = [];
  nodeId = '';
  #nonce = 0;
  ended = false;

  /** Who its caller has proven to be; of plaintext nobody. */
  identity: string | undefined;

  constructor(readonly call: Call, readonly id: number) {}

  note(request: DeltaDiscoveryRequest): void {
    this.requests.push(request);
    if (request.node) this.nodeId = request.node.id;
    const names = this.subscribed.get(request.type_url) ?? new Set();
    this.subscribed.set(request.type_url, names);
    for (const name of request.resource_names_subscribe) {
      names.add(name);
      this.asked.add(`${request.type_url} ${name}`);
    }
    for (const name of request.resource_names_unsubscribe) names.delete(name);
    if (!request.response_nonce) return;
    if (request.error_detail) this.nacks.push({ type: request.type_url, nonce: request.response_nonce, message: request.error_detail.message });
    else this.acks.push(request.response_nonce);
  }

  /** Sends and returns the nonce. */
  send(response: Partial<DeltaDiscoveryResponse> & { type_url: string }): string {
    const nonce = `${this.id}-${++this.#nonce}`;
    this.call.write(DeltaDiscoveryResponse.fromPartial({ ...(response as object), nonce }));
    return nonce;
  }

  async answered(nonce: string): Promise<void> {
    await waitFor(`an answer to ${nonce}`, () => this.acks.includes(nonce) || this.nacks.some((nack) => nack.nonce === nonce), { everyMs: 5 });
  }
}

/** How a control plane knows its callers; default: it asks nobody. */
export interface ControlPlaneSecurity {
  credentials(): Promise<ServerCredentials>;
  /** Whether the first request's caller may ask as that node; one that may not has been told when it is false. */
  admit(stream: TestStream, first: DeltaDiscoveryRequest): Promise<boolean>;
  /** Adds what is served beside ADS. */
  register(server: Server): void;
}

export class TestControlPlane {
  readonly streams: TestStream[] = [];
  /** Reaction to each request of a stream; set by the test. */
  onRequest: (stream: TestStream, request: DeltaDiscoveryRequest) => void = () => undefined;
  #server: Server | undefined;

  /** @param address `unix:/path` or `127.0.0.1:0` */
  constructor(private address_: string, readonly security?: ControlPlaneSecurity) {}

  get address(): string {
    return this.address_;
  }

  get stream(): TestStream {
    const stream = this.streams.at(-1);
    if (!stream) throw new Error('no stream is open');
    return stream;
  }

  async start(): Promise<void> {
    const server = new Server();
    this.security?.register(server);
    server.addService(AggregatedDiscoveryServiceService, {
      deltaAggregatedResources: (call: Call) => {
        const stream = new TestStream(call, this.streams.length);
        this.streams.push(stream);
        let admitted: Promise<boolean> | undefined;
        call.on('data', (request: DeltaDiscoveryRequest) => {
          admitted ??= this.security?.admit(stream, request) ?? Promise.resolve(true);
          void admitted.then((isAdmitted) => {
            if (!isAdmitted || stream.ended) return;
            stream.note(request);
            this.onRequest(stream, request);
          });
        });
        const ended = (): void => {
          stream.ended = true;
        };
        call.on('error', ended);
        call.on('cancelled', ended);
        call.on('end', () => {
          ended();
          call.end();
        });
      },
    });
    if (this.address_.startsWith('unix:')) rmSync(this.address_.slice(5), { force: true });
    const credentials = this.security ? await this.security.credentials() : ServerCredentials.createInsecure();
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync(this.address_, credentials, (error, bound) => (error ? reject(error) : resolve(bound)));
    });
    if (!this.address_.startsWith('unix:')) this.address_ = this.address_.replace(/:\d+$/, `:${port}`);
    this.#server = server;
  }

  /** Ends all connections at once, as a control plane that was killed. */
  stop(): void {
    this.#server?.forceShutdown();
    this.#server = undefined;
    for (const stream of this.streams) stream.ended = true;
  }

  /** Plays a recording step by step to the streams that carry the node ids of its sessions. */
  play(recording: Recording, sessionOf: (nodeId: string) => RecordedSession | undefined): (step: number) => Promise<void> {
    return async (step) => {
      const isLive = (stream: TestStream): boolean => !stream.ended && sessionOf(stream.nodeId) !== undefined;
      await waitFor('a stream of the recording', () => this.streams.some(isLive), { everyMs: 5 });
      const live = this.streams.filter(isLive);
      await Promise.all(
        live.map(async (stream) => {
          const session = sessionOf(stream.nodeId);
          for (const event of session?.events ?? []) {
            if (event.dir !== 'recv' || event.step !== step) continue;
            const response = recording.response(event);
            // What the recorded client had to ask for first, this one has to ask for too.
            await waitFor(`a subscription to ${response.type_url} as in ${event.file}`, () => {
              const names = stream.subscribed.get(response.type_url);
              return names && (names.size === 0 || response.resources.every(({ name }) => stream.asked.has(`${response.type_url} ${name}`)));
            }, { everyMs: 5 });
            await stream.answered(stream.send(response));
          }
        }),
      );
    };
  }
}

/** Answers each subscription from a table: type → name → resource; `push` sends all of a type again. */
export class TableControlPlane extends TestControlPlane {
  readonly tables = new Map<string, Map<string, Any>>();

  constructor(address: string) {
    super(address);
    this.onRequest = (stream, request) => this.#answer(stream, request);
  }

  set(any: Any, name: string): void {
    const table = this.tables.get(any.type_url) ?? new Map<string, Any>();
    this.tables.set(any.type_url, table.set(name, any));
  }

  push(typeUrl: string, removed: string[] = []): void {
    for (const stream of this.streams) {
      const names = stream.subscribed.get(typeUrl);
      if (stream.ended || !names) continue;
      stream.send({ type_url: typeUrl, resources: this.#resources(typeUrl, names.size ? [...names] : undefined), removed_resources: removed });
    }
  }

  #answer(stream: TestStream, request: DeltaDiscoveryRequest): void {
    if (request.response_nonce || (request.resource_names_unsubscribe.length > 0 && request.resource_names_subscribe.length === 0)) return;
    const names = request.resource_names_subscribe;
    stream.send({ type_url: request.type_url, resources: this.#resources(request.type_url, names.length ? names : undefined) });
  }

  #resources(typeUrl: string, names: readonly string[] | undefined): DeltaDiscoveryResponse['resources'] {
    const table = this.tables.get(typeUrl) ?? new Map<string, Any>();
    return [...table]
      .filter(([name]) => names?.includes(name) ?? true)
      .map(([name, resource]) => ({ name, resource, version: '', aliases: [], resource_name: undefined, ttl: undefined, cache_control: undefined, metadata: undefined }));
  }
}
