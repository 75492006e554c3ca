/** Messages of gRPC, which Envoy alone sees, out of what it counts by the keys of its requests (proxy/request-log.ts). */
import { KEY_SEPARATOR, MESSAGE_STATS } from '../proxy/request-log.js';
import { EnvoyCounterReader } from './envoy-counters.js';
import { requestLabels } from './envoy-requests.js';
import { EnvoySums, type Counted, type EnvoySumsOptions } from './envoy-sums.js';

export interface MessageTotals {
  /** That clients sent. */
  request: bigint;
  response: bigint;
}

/** The last of a key's parts is how many messages a call had, sent by the client and by the server. */
const NAME = new RegExp(`^${MESSAGE_STATS}\\.calls\\.k\\.(.*${KEY_SEPARATOR}(\\d+),(\\d+))$`, 's');

export class MessageReader {
  readonly #totals = new Map<string, MessageTotals>();
  readonly #reader = new EnvoyCounterReader((name, calls) => {
    const [, key, request, response] = NAME.exec(name) ?? [];
    if (key !== undefined) this.#totals.set(key, { request: BigInt(request!) * calls, response: BigInt(response!) * calls });
  });

  read(text: string): void {
    this.#reader.read(text);
  }

  end(): ReadonlyMap<string, MessageTotals> {
    this.#reader.end();
    return this.#totals;
  }
}

export function addMessages(a: MessageTotals, b: MessageTotals): MessageTotals {
  return { request: a.request + b.request, response: a.response + b.response };
}

export const MESSAGES: Counted<MessageTotals> = {
  what: 'message',
  path: `/stats?format=json&type=Counters&filter=${encodeURIComponent(`^${MESSAGE_STATS}\\.`)}`,
  reader: () => new MessageReader(),
  add: addMessages,
  grown: (now, before) => {
    // What Envoy has dropped in the meantime begins anew.
    const base = before && now.request >= before.request && now.response >= before.response ? before : undefined;
    const growth = { request: now.request - (base?.request ?? 0n), response: now.response - (base?.response ?? 0n) };
    return { base, last: now, growth: base && growth.request === 0n && growth.response === 0n ? undefined : growth };
  },
  count: ({ request, response }) => request + response,
  labels: requestLabels,
  pack: ({ request, response }) => [`${request}`, `${response}`],
  unpack: (values) => {
    const [request, response] = values.map(BigInt);
    if (values.length !== 2 || request === undefined || response === undefined) throw new Error(`${values.length} numbers instead of 2`);
    return { request, response };
  },
};

export class EnvoyMessages extends EnvoySums<MessageTotals> {
  constructor(options: EnvoySumsOptions) {
    super(options, MESSAGES);
  }
}
