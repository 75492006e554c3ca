/** What one stream watches of one resource type, and what it has been sent: the bookkeeping of both protocol variants. */
import type { Resource } from '../generate/resource.js';

export interface Nack {
  nonce: string;
  message: string;
  at: Date;
}

export class Watch {
  readonly names = new Set<string>();
  wildcard = false;
  /** Versions of what the client holds, or has refused: neither is sent again before its content changes. */
  readonly sent = new Map<string, string>();
  /** Of the response that waits for its ACK or NACK. */
  inFlight: string | undefined;
  lastNonce = '';
  acked = '';
  nack: Nack | undefined;

  constructor(readonly typeUrl: string) {}

  /** Resources of `candidates` whose content the client has not got. */
  unsent(candidates: readonly Resource[]): Resource[] {
    return candidates.filter(({ name, version }) => this.sent.get(name) !== version);
  }
}
