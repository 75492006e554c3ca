/** What one stream watches of one resource type, and what it has been sent: the bookkeeping of both protocol variants. */
import type { Resource } from '../generate/resource.js';

export interface Nack {
  nonce: string;
  message: string;
  at: string;
}

export class Watch {
  readonly names = new Set<string>();
  wildcard = false;
  /** Versions of what the client holds, or has refused: neither is sent again before its content changes. */
  readonly sent = new Map<string, string>();
  /** The nonce of the newest response while that waits for its ACK or NACK. */
  inFlight: string | undefined;
  lastNonce = '';
  acked = '';
  nack: Nack | undefined;
  /** The client's next request is answered whatever it says: what it depends on was sent anew and waits for this. */
  alwaysRespond = false;

  constructor(readonly typeUrl: string) {}

  isUnsent = ({ name, version }: Resource): boolean => this.sent.get(name) !== version;
}
