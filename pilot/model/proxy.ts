/** A client of the control plane as its node id and metadata describe it. */
import { isIP } from 'node:net';
import { UnderpassError } from '../../common/errors.js';
import { STATS_LOGGER } from '../../common/telemetry/stats-logger.js';
import { CEL_FILTER } from '../../common/xds/cel-filter.js';
import type { Locality } from './types.js';
import type { PeerIdentity } from '../ca/peer-identity.js';

export type ProxyType = 'sidecar' | 'ztunnel' | 'router' | 'waypoint';

export interface Proxy {
  /** The node id, `type~ip~name.namespace~domain`. */
  id: string;
  type: ProxyType;
  ip: string;
  name: string;
  namespace: string;
  /** All addresses of the workload, if it says more than one. */
  ips: readonly string[];
  labels: Readonly<Record<string, string>>;
  serviceAccount: string | undefined;
  nodeName: string | undefined;
  /** Where it says that it is, if it does. */
  locality: Locality | undefined;
  /** Its agent answers DNS queries: it can be given addresses that nobody else knows. */
  dnsCapture: boolean;
  /** As the proxy says; for what is meant for some versions only. */
  istioVersion: string;
  /** Envoy's `--service-cluster`: as what it names itself to others. */
  cluster?: string;
  /** Its stream has shown who it is, or comes over a socket that only this machine's proxies reach: it may be given keys. */
  isTrusted: boolean;
  /** All that it says of itself. */
  metadata: Readonly<Record<string, unknown>>;
  /** Its Envoy has all that Istio's metrics are made with here. */
  canCount: boolean;
  /** The filter by which its Envoy can take a header of a request away; absent: it has none, or is no Envoy that says what it has. */
  dropsBy?: HeaderDropper;
  /** Who its stream has proven to be; absent on plaintext ports and Unix sockets. */
  identity?: PeerIdentity;
}

/** Names of Envoy's extensions; see pilot/telemetry/metrics.ts. */
const COUNTING: readonly string[] = [STATS_LOGGER, CEL_FILTER, 'envoy.access_loggers.wasm', 'envoy.wasm.runtime.v8', 'envoy.filters.http.header_mutation', 'envoy.filters.http.header_to_metadata', 'envoy.filters.http.lua', 'envoy.filters.http.match_delegate'];

/** Names of Envoy's extensions, the cheaper one first; the other is in every version that is in use. */
const DROPPERS = ['envoy.filters.http.header_mutation', 'envoy.filters.http.header_to_metadata'] as const;
export type HeaderDropper = (typeof DROPPERS)[number];

const TYPES: readonly string[] = ['sidecar', 'ztunnel', 'router', 'waypoint'];

/**
 * @param extensions that its Envoy says it has
 * @throws UnderpassError `UNDERPASS_NODE_ID` when the id is not one that istiod would take.
 */
export function parseProxy(id: string, metadata: Record<string, unknown> = {}, place?: { region: string; zone: string; sub_zone: string }, extensions: readonly { name: string; disabled: boolean }[] = []): Proxy {
  const [type = '', ip = '', fullName = '', domain, ...rest] = id.split('~');
  const dot = fullName.lastIndexOf('.');
  if (!TYPES.includes(type) || isIP(ip) === 0 || dot <= 0 || domain === undefined || rest.length > 0) {
    throw new UnderpassError('UNDERPASS_NODE_ID', `reading node id ${JSON.stringify(id)}: expected type~ip~name.namespace~domain with type ${TYPES.join(', ')}`);
  }
  const text = (key: string): string | undefined => (typeof metadata[key] === 'string' ? metadata[key] : undefined);
  const labels: Record<string, string> = {};
  const given = metadata['LABELS'];
  if (typeof given === 'object' && given !== null) for (const [key, value] of Object.entries(given)) if (typeof value === 'string') labels[key] = value;
  const has = (name: string): boolean => extensions.some((extension) => extension.name === name && !extension.disabled);
  const dropsBy = DROPPERS.find(has);
  const ips = [ip, ...(text('INSTANCE_IPS') ?? '').split(',').map((part) => part.trim()).filter((part) => isIP(part) !== 0)];
  return {
    id,
    type: type as ProxyType,
    ip,
    name: fullName.slice(0, dot),
    namespace: text('NAMESPACE') || fullName.slice(dot + 1),
    ips: [...new Set(ips)],
    labels,
    serviceAccount: text('SERVICE_ACCOUNT'),
    nodeName: text('NODE_NAME'),
    locality: place && (place.region || place.zone || place.sub_zone) ? { region: place.region, zone: place.zone, subzone: place.sub_zone } : undefined,
    dnsCapture: text('DNS_CAPTURE') === 'true',
    istioVersion: text('ISTIO_VERSION') ?? '',
    isTrusted: false,
    metadata,
    canCount: COUNTING.every(has),
    ...(dropsBy ? { dropsBy } : {}),
  };
}
