/**
 * One shape for all that `underpass flows` tells: a request or a connection, with the keys of Istio's access logs, whoever saw it.
 * What its witness can't know is null; docs/reference/logs.md.
 */
import { JSON_FORMAT, type AccessLogKey } from '../../common/telemetry/access-log-format.js';
import type { FlowRecord } from '../dataplane/kernel-flows.js';
import type { EnvoyFlow } from '../proxy/envoy-flow-logs.js';

export const FLOW_VERDICTS = ['allowed', 'denied', 'failed'] as const;
export const FLOW_WAYS = ['kernel', 'fast-path', 'envoy', 'hbone', 'iptables'] as const;
export type FlowVerdict = (typeof FLOW_VERDICTS)[number];
export type FlowRoute = (typeof FLOW_WAYS)[number];

export interface FlowEnd {
  namespace: string | null;
  /** Of this node. */
  pod: string | null;
  workload: string | null;
  address: string | null;
  port: number | null;
}

export interface Flow extends Record<AccessLogKey, string | number | null> {
  kind: 'connection' | 'request';
  /** Whose side it was seen on. */
  reporter: 'source' | 'destination';
  verdict: FlowVerdict;
  /** Null: it was denied before it had one. */
  way: FlowRoute | null;
  /** Why it was not short-circuited, or by what it was denied. */
  reason: string | null;
  source: FlowEnd;
  destination: FlowEnd;
  /** Bytes of both directions that passed from socket to socket, without TCP. */
  bytes_moved: number | null;
}

/** What names are made of. */
export interface FlowNames {
  ofNetns(cookie: bigint): { name: string; namespace: string } | undefined;
  ofAddress(address: string): { name: string; namespace: string } | undefined;
  /** Its connections are redirected by iptables. */
  isRedirected(pod: string): boolean;
}

const HBONE_PORT = 15008;
const NUMBERS: ReadonlySet<string> = new Set<AccessLogKey>(['response_code', 'bytes_received', 'bytes_sent', 'duration']);
const KEYS = Object.keys(JSON_FORMAT) as AccessLogKey[];

export function joinAddress(address: string, port: number): string {
  return `${address.includes(':') ? `[${address}]` : address}:${port}`;
}

export function splitAddress(text: string | null | undefined): { address: string | null; port: number | null } {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(text ?? '');
  return match ? { address: (match[1] ?? match[2])!, port: Number(match[3]) } : { address: null, port: null };
}

const nothing = (): Record<AccessLogKey, null> => Object.fromEntries(KEYS.map((key) => [key, null])) as Record<AccessLogKey, null>;

function end(pod: { name: string; namespace: string } | undefined, address: string | null, port: number | null, workload: { name: string; namespace: string } | undefined = undefined): FlowEnd {
  return { namespace: pod?.namespace ?? workload?.namespace ?? null, pod: pod?.name ?? null, workload: workload?.name ?? null, address, port };
}

/** @param now milliseconds since 1970, when it ended */
export function kernelFlow({ key, client, endpoint, way, reason, received, sent, moved, durationMs }: FlowRecord, names: FlowNames, now: number): Flow {
  const isDenied = way === 'denied';
  const source = names.ofNetns(key.client), destination = names.ofNetns(key.server);
  const server = joinAddress(endpoint, key.endpointPort), from = client.port === 0 ? null : joinAddress(client.address, client.port);
  return {
    ...nothing(),
    start_time: new Date(now - durationMs).toISOString(),
    bytes_received: isDenied ? 0 : Number(received), bytes_sent: isDenied ? 0 : Number(sent), duration: isDenied ? 0 : Math.round(durationMs * 1000) / 1000,
    upstream_host: server, upstream_local_address: from, downstream_remote_address: from,
    downstream_local_address: key.service ? joinAddress(key.service.address, key.service.port) : server,
    kind: 'connection', reporter: source ? 'source' : 'destination', verdict: isDenied ? 'denied' : 'allowed', way: isDenied ? null : 'kernel', reason: reason ?? null,
    source: end(source, client.address, client.port || null), destination: end(destination, endpoint, key.endpointPort),
    bytes_moved: isDenied ? 0 : Number(moved),
  };
}

/** @returns undefined for what says nothing about anybody's traffic */
export function envoyFlow(told: EnvoyFlow, names: FlowNames): Flow | undefined {
  const text = (key: keyof EnvoyFlow): string | null => (told[key] === undefined || told[key] === '-' || told[key] === '' ? null : told[key]);
  const named = (value: string | null): { name: string; namespace: string } | undefined => {
    const [namespace = '', name] = (value ?? '').split('/');
    return name === undefined ? undefined : { namespace, name };
  };
  const isOutbound = told.side === 'outbound';
  const owner = named(text('owner')), caller = named(text('caller'));
  if (!owner) return undefined;
  const logged = nothing() as Record<AccessLogKey, string | number | null>;
  for (const key of KEYS) logged[key] = NUMBERS.has(key) && text(key) !== null ? Number(text(key)) : text(key);
  // Behind a listener within this Envoy: a pod's inbound side, or the one that tunnels.
  const within = /^envoy:\/\/(.*)\/([^/]*)$/.exec(text('upstream_host') ?? '');
  const client = splitAddress(text('downstream_remote_address')), server = splitAddress(within ? within[2] : (text('upstream_host') ?? text('downstream_local_address')));
  const [workload, namespace] = (text('upstream_workload') ?? '').split(';');
  const isTunnel = isOutbound && (server.port === HBONE_PORT || (within !== null && !within[1]!.includes('/inbound-mesh/')));
  const dialled = server.port === HBONE_PORT ? splitAddress(text('downstream_local_address')) : server;
  const denied = [text('response_code_details'), text('connection_termination_details')].find((why) => why !== null && /rbac_access_denied|ext_authz_denied|jwt_authn_access_denied/i.test(why));
  const isRequest = text('method') !== null;
  const hasFailed = isRequest ? text('response_code') === '0' || text('response_flags') !== null : text('response_flags') !== null;
  return {
    ...logged,
    kind: isRequest ? 'request' : 'connection', reporter: isOutbound ? 'source' : 'destination',
    verdict: denied === undefined ? (hasFailed ? 'failed' : 'allowed') : 'denied',
    way: isTunnel ? 'hbone' : names.isRedirected(`${owner.namespace}/${owner.name}`) ? 'iptables' : 'envoy',
    reason: denied ?? (hasFailed ? (text('response_code_details') ?? text('upstream_transport_failure_reason') ?? text('response_flags')) : null),
    source: isOutbound ? end(owner, client.address, client.port) : end(caller ?? names.ofAddress(client.address ?? ''), client.address, client.port),
    destination: isOutbound ? end(names.ofAddress(dialled.address ?? ''), dialled.address, dialled.port, workload ? { name: workload, namespace: namespace ?? '' } : undefined) : end(owner, server.address, server.port),
    bytes_moved: null,
  };
}

export interface FlowFilter {
  from?: string;
  to?: string;
  verdict?: FlowVerdict;
  way?: FlowRoute;
}

/** `who`: a pod, a workload, a namespace, NAMESPACE/POD, NAMESPACE/WORKLOAD or an address. */
export function isEnd({ namespace, pod, workload, address }: FlowEnd, who: string): boolean {
  const slash = who.indexOf('/');
  const name = slash < 0 ? who : who.slice(slash + 1);
  const isNamed = [pod, workload].some((each) => each !== null && (each === name || each.startsWith(`${name}-`)));
  return slash < 0 ? isNamed || namespace === who || address === who : namespace === who.slice(0, slash) && isNamed;
}

export function passes(flow: Flow, { from, to, verdict, way }: FlowFilter): boolean {
  return (from === undefined || isEnd(flow.source, from)) && (to === undefined || isEnd(flow.destination, to)) && (verdict === undefined || flow.verdict === verdict) && (way === undefined || flow.way === way);
}
