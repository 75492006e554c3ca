/** A delta ADS client for tests, that remembers all it was told. */
import { credentials, type ClientDuplexStream } from '@grpc/grpc-js';
import { AggregatedDiscoveryServiceClient } from '../../proto/generated/envoy/service/discovery/v3/ads.js';
import { DeltaDiscoveryRequest, type DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { waitFor } from '../../common/retry.js';

const WAIT_MS = 10_000;

export class TestClient {
  readonly responses: DeltaDiscoveryResponse[] = [];
  readonly #client: AggregatedDiscoveryServiceClient;
  readonly #stream: ClientDuplexStream<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;
  error: Error | undefined;
  /** Answers each response by itself. */
  autoAck = true;

  constructor(address: string, readonly nodeId: string, readonly metadata: Record<string, unknown> = {}) {
    this.#client = new AggregatedDiscoveryServiceClient(address, credentials.createInsecure());
    this.#stream = this.#client.deltaAggregatedResources();
    this.#stream.on('data', (response: DeltaDiscoveryResponse) => {
      this.responses.push(response);
      if (this.autoAck) this.ack(response);
    });
    this.#stream.on('error', (error: Error) => (this.error = error));
  }

  send(request: Parameters<typeof DeltaDiscoveryRequest.fromPartial>[0]): void {
    this.#stream.write(DeltaDiscoveryRequest.fromPartial({ node: { id: this.nodeId, metadata: this.metadata }, ...request }));
  }

  subscribe(typeUrl: string, names: string[] = [], versions: Record<string, string> = {}): void {
    this.send({ type_url: typeUrl, resource_names_subscribe: names, initial_resource_versions: versions });
  }

  ack({ type_url, nonce }: DeltaDiscoveryResponse, error?: string): void {
    this.send({ type_url, response_nonce: nonce, ...(error === undefined ? {} : { error_detail: { code: 3, message: error } }) });
  }

  of(typeUrl: string): DeltaDiscoveryResponse[] {
    return this.responses.filter((response) => response.type_url === typeUrl);
  }

  /** The `count`-th response of that type. */
  async nth(typeUrl: string, count: number): Promise<DeltaDiscoveryResponse> {
    return waitFor(`response ${count} of ${typeUrl}`, () => this.of(typeUrl)[count - 1], { timeoutMs: WAIT_MS, everyMs: 5 });
  }

  close(): void {
    this.#stream.cancel();
    this.#client.close();
  }
}
