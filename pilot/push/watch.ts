/** What one stream watches of one resource type, and what it has been sent: the bookkeeping of both protocol variants. */
import { Memo } from '../../common/memo.js';
import type { Resource } from '../generate/resource.js';
import type { ResourceList, Whole } from '../generate/resource-list.js';
import { checkNames } from './stream-guard.js';
import { entryHash, SharedMap, type MapStore } from './shared-map.js';

const SUBSCRIBED = '*';
const hashes = new Memo<Resource, number>();

const resourceHash = (resource: Resource): number => hashes.once(resource, () => entryHash(resource.name, resource.version));

export interface Nack {
  nonce: string;
  message: string;
  at: string;
}

export class Watch {
  /** Names subscribed to; a map of names to nothing, since it is shared in the same way as versions are. */
  readonly names: SharedMap;
  wildcard = false;
  /** Versions of what the client holds, or has refused: neither is sent again before its content changes. */
  readonly sent: SharedMap;
  /** The nonce of the newest response while that waits for its ACK or NACK. */
  inFlight: string | undefined;
  lastNonce = '';
  acked = '';
  nack: Nack | undefined;
  /** The client's next request is answered whatever it says: what it depends on was sent anew and waits for this. */
  alwaysRespond = false;

  constructor(readonly typeUrl: string, store: MapStore) {
    this.names = new SharedMap(store);
    this.sent = new SharedMap(store);
  }

  /** @throws StreamRefusal when that is more than `max` names */
  subscribe(names: readonly string[], max: number): void {
    this.names.setAll({ items: names, nameOf: (name) => name, versionOf: () => SUBSCRIBED });
    checkNames(names, this.names.size, max);
  }

  /** @param shared only to a client that has been sent nothing yet */
  noteSent(resources: readonly Resource[], shared?: ResourceList): void {
    if (shared) this.sent.begin(shared.versions);
    this.sent.setAll({ items: resources, nameOf: ({ name }) => name, versionOf: ({ version }) => version, hashOf: resourceHash });
  }

  /** The client holds all of this and nothing else. */
  noteWhole({ shared, own }: Whole): void {
    this.sent.begin(shared.versions);
    for (const { name, version } of own) this.sent.set(name, version);
  }

  /** What of all this is to be sent, and taken away, of a client that was sent the same list before; undefined: it has to be compared in full. */
  changesFrom({ shared, own }: Whole): { changed: Resource[]; removed: string[] } | undefined {
    const { versions } = shared;
    const differences = this.sent.differencesFrom(versions);
    if (!differences) return undefined;
    const names = new Set(own.map(({ name }) => name));
    const removed: string[] = [];
    for (const [name, version] of differences) {
      if (names.has(name)) continue;
      if (versions.has(name)) return undefined;
      if (version !== undefined) removed.push(name);
    }
    return { changed: own.filter(this.isUnsent), removed };
  }

  isUnsent = ({ name, version }: Resource): boolean => this.sent.get(name) !== version;
}
