/** A stream of ADS without a network: whose client reads only what it is told to, and what was written to it. */
import { EventEmitter } from 'node:events';
import { DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import type { EncodedResponse } from '../push/encode.js';

export class TestStream extends EventEmitter {
  readonly written: EncodedResponse[] = [];
  readonly #bytes: Buffer[] = [];
  /** To be called when the client has read that response. */
  readonly unread: (() => void)[] = [];
  paused = false;

  write(response: EncodedResponse, sent: () => void): boolean {
    this.written.push(response);
    this.#bytes.push(bytesOf(response));
    this.unread.push(sent);
    return true;
  }
  pause = (): void => void (this.paused = true);
  resume = (): void => void (this.paused = false);
  isPaused = (): boolean => this.paused;
  end = (): void => undefined;
  getPeer = (): string => 'test';

  /** What has come since the last call, as a client of incremental xDS reads it. */
  read(): DeltaDiscoveryResponse[] {
    const fresh: DeltaDiscoveryResponse[] = [];
    // One that has been read makes way for the next.
    for (let sent = this.unread.shift(); sent; sent = this.unread.shift()) {
      fresh.push(DeltaDiscoveryResponse.decode(this.#bytes.at(-1 - this.unread.length)!));
      sent();
    }
    return fresh;
  }
}

export function bytesOf(response: EncodedResponse): Buffer {
  const bytes = Buffer.alloc(response.byteLength);
  if (response.copy(bytes) !== bytes.length) throw new Error('a response is as long as it says');
  return bytes;
}
