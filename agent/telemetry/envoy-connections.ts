/** Envoy's part of Istio's TCP series, out of what it counts by the keys of proxy/connection-log.ts. */
import { CONNECTION_STATS_PATH, ConnectionStatsReader, NO_CONNECTIONS, type ConnectionTotals } from './envoy-connection-stats.js';
import { EnvoySums, type Counted, type EnvoySumsOptions, type KeyEnds } from './envoy-sums.js';
import type { FlowDirectory, FlowLabels } from './flow-labels.js';

const CONNECTIONS: Counted<ConnectionTotals> = {
  what: 'connection',
  path: CONNECTION_STATS_PATH,
  reader: () => new ConnectionStatsReader(),
  add: addConnections,
  grown,
  count: ({ opened }) => opened,
  labels: connectionLabels,
  pack: ({ opened, received, sent, openReceived, openSent, closed }) => [opened, received, sent, openReceived, openSent].map(String).concat([...closed].flatMap(([flags, count]) => [flags, `${count}`])),
  unpack: unpacked,
};

export class EnvoyConnections extends EnvoySums<ConnectionTotals> {
  constructor(options: EnvoySumsOptions) {
    super(options, CONNECTIONS);
  }
}

/** As those of connections that no proxy sees. */
function connectionLabels(directory: FlowDirectory, { side, source, destination, service, port, security, more }: KeyEnds): FlowLabels {
  const found = service ?? (destination && port !== undefined ? directory.serviceOf(destination, port) : undefined);
  return { ...directory.endLabels(side, { source, destination, service: found }), ...(security === undefined ? {} : { connection_security_policy: security }), ...more };
}

export function addConnections(a: ConnectionTotals, b: ConnectionTotals): ConnectionTotals {
  const closed = new Map(a.closed);
  for (const [flags, count] of b.closed) closed.set(flags, (closed.get(flags) ?? 0n) + count);
  return { opened: a.opened + b.opened, received: a.received + b.received, sent: a.sent + b.sent, openReceived: 0n, openSent: 0n, closed };
}

/**
 * What a connection has carried is told while it is open, and is in the counter when it ends. Envoy is read while both change:
 * what has been told of a connection already is not told again when its end shows before the counter does, or after.
 */
function grown(now: ConnectionTotals, before: ConnectionTotals | undefined): { base: ConnectionTotals | undefined; last: ConnectionTotals; growth: ConnectionTotals | undefined } {
  const fell = before && (now.opened < before.opened || now.received < before.received || now.sent < before.sent || [...before.closed].some(([flags, count]) => (now.closed.get(flags) ?? 0n) < count));
  // What Envoy has dropped in the meantime begins anew, but not what it still says of those that are open.
  const base = before && fell ? { ...NO_CONNECTIONS, openReceived: before.openReceived, openSent: before.openSent } : before;
  const { opened, received, sent, openReceived, openSent, closed } = base ?? NO_CONNECTIONS;
  const more = (all: bigint, told: bigint): bigint => (all > told ? all - told : 0n);
  const [moreReceived, moreSent] = [more(now.received + now.openReceived, received + openReceived), more(now.sent + now.openSent, sent + openSent)];
  const last = { ...now, openReceived: received + openReceived + moreReceived - now.received, openSent: sent + openSent + moreSent - now.sent };
  const ended = new Map([...now.closed].map(([flags, count]) => [flags, count - (closed.get(flags) ?? 0n)] as const).filter(([, count]) => count > 0n));
  const growth = { ...NO_CONNECTIONS, opened: now.opened - opened, received: moreReceived, sent: moreSent, closed: ended };
  const isNone = growth.opened === 0n && growth.received === 0n && growth.sent === 0n && ended.size === 0;
  return { base, last, growth: isNone && base ? undefined : growth };
}

function unpacked(values: readonly string[]): ConnectionTotals {
  const FIXED = 5;
  if (values.length < FIXED || (values.length - FIXED) % 2 !== 0) throw new Error(`${values.length} values, which is no sum of connections`);
  const [opened = 0n, received = 0n, sent = 0n, openReceived = 0n, openSent = 0n] = values.slice(0, FIXED).map(BigInt);
  const closed = new Map<string, bigint>();
  for (let at = FIXED; at < values.length; at += 2) closed.set(values[at]!, BigInt(values[at + 1]!));
  return { opened, received, sent, openReceived, openSent, closed };
}
