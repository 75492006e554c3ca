/** The connection to a control plane that all of this agent's streams share. */
import { credentials, type ChannelCredentials, type ClientDuplexStream } from '@grpc/grpc-js';
import { AggregatedDiscoveryServiceClient, AggregatedDiscoveryServiceService } from '../../proto/generated/envoy/service/discovery/v3/ads.js';
import { HealthDiscoveryServiceClient, type HealthCheckRequestOrEndpointHealthResponse, type HealthCheckSpecifier } from '../../proto/generated/envoy/service/health/v3/hds.js';
import type { Closable } from '../../common/lifecycle.js';
import { UnderpassError } from '../../common/errors.js';
import { encodeDeltaRequest, type DeltaRequest } from './delta-request.js';
import { decodeDeltaResponse, type DeltaResponse } from './delta-response.js';
import { releaseReceivedMessages } from './received-messages.js';

export type DeltaStream = ClientDuplexStream<DeltaRequest, DeltaResponse>;

const { path: DELTA_PATH } = AggregatedDiscoveryServiceService.deltaAggregatedResources;

export interface StreamOpener {
  /** Undefined while there is nothing to show who asks; `wake` is called when it is worth another try. */
  open(wake: () => void): DeltaStream | undefined;
  /** What is missing then. */
  waitsFor?(): string;
}

export class AdsChannel implements Closable, StreamOpener {
  readonly #client: AggregatedDiscoveryServiceClient;
  readonly #health: HealthDiscoveryServiceClient;

  /**
   * @param address `host:port`, or `unix:/path`
   * @param channelCredentials plaintext unless given (TLS: one channel an identity)
   * @param isAlone it shares its connection with no other channel of this process
   */
  constructor(readonly address: string, channelCredentials: ChannelCredentials = credentials.createInsecure(), { isAlone = false } = {}) {
    const port = Number(/^.+:(\d{1,5})$/.exec(address)?.[1]);
    if (!/^unix:./.test(address) && !(port >= 1 && port <= 65_535)) {
      throw new UnderpassError('UNDERPASS_BAD_ADDRESS', `connecting to the control plane: "${address}" is neither host:port, with a port from 1 to 65535, nor unix:/path`);
    }
    releaseReceivedMessages();
    this.#client = new AggregatedDiscoveryServiceClient(address, channelCredentials, {
      // A push of a large mesh is far beyond gRPC's default of 4 MB.
      'grpc.max_receive_message_length': -1,
      'grpc.keepalive_time_ms': 30_000,
      'grpc.keepalive_timeout_ms': 10_000,
      // The streams' own back-off decides; the channel's must not be slower than it.
      'grpc.initial_reconnect_backoff_ms': 100,
      'grpc.min_reconnect_backoff_ms': 100,
      'grpc.max_reconnect_backoff_ms': 2_000,
      ...(isAlone ? { 'grpc.use_local_subchannel_pool': 1 } : {}),
      // A Unix socket's path is no valid :authority.
      ...(address.startsWith('unix:') ? { 'grpc.default_authority': 'localhost' } : {}),
    });
    this.#health = new HealthDiscoveryServiceClient(address, channelCredentials, { channelOverride: this.#client.getChannel() });
  }

  openHealth(): ClientDuplexStream<HealthCheckRequestOrEndpointHealthResponse, HealthCheckSpecifier> {
    return this.#health.streamHealthCheck();
  }

  open(): DeltaStream {
    return this.#client.makeBidiStreamRequest(DELTA_PATH, encodeDeltaRequest, decodeDeltaResponse);
  }

  close(): void {
    this.#client.close();
  }
}
