/**
 * Many delta ADS clients in one process, each with a stream of its own as Envoy has it: clusters, the endpoints that they
 * name, listeners, the routes that they name; every response is acknowledged. Talks to its parent by messages:
 *   in  {address, proxies}                    connect all
 *   out {synced, bytes, ms}                   all clients have all four types
 *   in  {watch: name}                         from now on report responses that carry this endpoint set
 *   out {seen: count, at: [epoch ms…], names, bytes} after every client has had it, or {late: count} after a time
 */
import { Client, credentials, type ClientDuplexStream } from '@grpc/grpc-js';
import { DeltaDiscoveryRequest } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { AggregatedDiscoveryServiceService } from '../../proto/generated/envoy/service/discovery/v3/ads.js';
import { TYPE } from '../generate/resource.js';
import type { ProxyIdentity } from './mesh.js';

const MAX_MESSAGE_BYTES = 256 << 20;
const definition = AggregatedDiscoveryServiceService.deltaAggregatedResources;

type Stream = ClientDuplexStream<DeltaDiscoveryRequest, Buffer>;

interface Watching {
  name: string;
  at: number[];
  names: number;
  bytes: number;
  responses: number;
}

let clients: BenchClient[] = [];
let watching: Watching | undefined;
let totalBytes = 0;
let startedAt = 0;

class BenchClient {
  readonly #stream: Stream;
  readonly done = new Set<string>();
  #wantedEndpoints = -1;
  #wantedRoutes = -1;
  #gotEndpoints = 0;
  #gotRoutes = 0;
  #isSynced = false;

  constructor(channel: Client, proxy: ProxyIdentity) {
    this.#stream = channel.makeBidiStreamRequest(definition.path, definition.requestSerialize, (bytes: Buffer) => bytes);
    this.#stream.on('data', (bytes: Buffer) => this.#receive(bytes));
    this.#stream.on('error', (error: Error) => process.send?.({ error: error.message }));
    this.#send({ node: { id: proxy.id, metadata: proxy.metadata }, type_url: TYPE.cluster });
  }

  #send(request: Parameters<typeof DeltaDiscoveryRequest.fromPartial>[0]): void {
    this.#stream.write(DeltaDiscoveryRequest.fromPartial(request));
  }

  #receive(bytes: Buffer): void {
    const at = Date.now();
    totalBytes += bytes.length;
    const { type_url, nonce, names } = scan(bytes, !this.#isSynced || watching !== undefined);
    this.#send({ type_url, response_nonce: nonce });
    if (watching) {
      watching.bytes += bytes.length;
      watching.responses++;
      watching.names += names.length;
      if (type_url === TYPE.endpoint && names.includes(watching.name)) {
        watching.at.push(at);
        if (watching.at.length === clients.length) report();
      }
    }
    if (this.#isSynced) return;
    if (type_url === TYPE.cluster && this.#wantedEndpoints < 0) {
      const wanted = names.filter((name) => name.startsWith('outbound|'));
      this.#wantedEndpoints = wanted.length;
      this.#send({ type_url: TYPE.endpoint, resource_names_subscribe: wanted });
      this.#send({ type_url: TYPE.listener });
    } else if (type_url === TYPE.endpoint) this.#gotEndpoints += names.length;
    else if (type_url === TYPE.listener && this.#wantedRoutes < 0) {
      const ports = new Set(names.flatMap((name) => /^0\.0\.0\.0_(\d+)$/.exec(name)?.[1] ?? []));
      this.#wantedRoutes = ports.size;
      this.#send({ type_url: TYPE.route, resource_names_subscribe: [...ports] });
    } else if (type_url === TYPE.route) this.#gotRoutes += names.length;
    if (this.#wantedRoutes >= 0 && this.#gotEndpoints >= this.#wantedEndpoints && this.#gotRoutes >= this.#wantedRoutes) {
      this.#isSynced = true;
      if (clients.every((client) => client.#isSynced)) process.send?.({ synced: clients.length, bytes: totalBytes, ms: Date.now() - startedAt });
    }
  }
}

/** Of a DeltaDiscoveryResponse: its type, nonce and the names of its resources. The bodies are Envoy's business, and stay unread. */
function scan(bytes: Buffer, wantsNames: boolean): { type_url: string; nonce: string; names: string[] } {
  const found = { type_url: '', nonce: '', names: [] as string[] };
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++]!;
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const field = varint() >> 3;
    const end = varint() + at;
    if (field === 4) found.type_url = bytes.toString('latin1', at, end);
    else if (field === 5) found.nonce = bytes.toString('latin1', at, end);
    else if (field === 2 && wantsNames) {
      // Resource.name is field 3; all fields of before it have a length.
      while (at < end) {
        const inner = varint() >> 3;
        const innerEnd = varint() + at;
        if (inner === 3) {
          found.names.push(bytes.toString('latin1', at, innerEnd));
          break;
        }
        at = innerEnd;
      }
    }
    at = end;
  }
  return found;
}

function report(): void {
  const { at, names, bytes, responses } = watching!;
  watching = undefined;
  process.send?.({ seen: at.length, at, names, bytes, responses });
}

process.on('message', (message: { address?: string; proxies?: ProxyIdentity[]; watch?: string }) => {
  if (message.address && message.proxies) {
    startedAt = Date.now();
    clients = message.proxies.map((proxy) => new BenchClient(new Client(message.address!, credentials.createInsecure(), { 'grpc.max_receive_message_length': MAX_MESSAGE_BYTES, 'grpc.use_local_subchannel_pool': 1 }), proxy));
  } else if (message.watch) {
    watching = { name: message.watch, at: [], names: 0, bytes: 0, responses: 0 };
    process.send?.({ watching: message.watch });
  }
});
process.on('disconnect', () => process.exit(0));
