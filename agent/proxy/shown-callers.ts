/** What it takes, beside the filters, that each caller has upstream connections of its own, by which the application sees it. */
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import { pack, unpack } from '../../common/xds/any.js';
import type { FoldedInbound } from './fold-inbound.js';
import { renameInChain } from './fold-listeners.js';

const HTTP_PROTOCOL_OPTIONS = 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions';
/** Of requests: a server is not to hold the connections of all who called within Envoy's hour. */
const IDLE_SECONDS = 60n;

/** Ports of chains that lead to one of these clusters, ascending. */
export function portsTo(clusters: ReadonlySet<string>, { direct, mesh }: Pick<FoldedInbound, 'direct' | 'mesh'>): number[] {
  if (clusters.size === 0) return [];
  const ports = new Set<number>();
  for (const chain of [...direct, ...mesh]) {
    renameInChain(chain, (name) => {
      const port = chain.filter_chain_match?.destination_port;
      if (port !== undefined && clusters.has(name)) ports.add(port);
      return name;
    }, (name) => name);
  }
  return [...ports].sort((a, b) => a - b);
}

/** The cluster with connections that end when nobody has asked for anything for a while, unless it says when. */
export function endingIdle(cluster: Cluster): Cluster {
  const given = unpack(HttpProtocolOptions, cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS]);
  if (given?.common_http_protocol_options?.idle_timeout) return cluster;
  const options = given ?? HttpProtocolOptions.fromPartial({ upstream_protocol_options: { $case: 'explicit_http_config', value: { protocol_config: { $case: 'http_protocol_options', value: {} } } } });
  const common = { ...options.common_http_protocol_options, idle_timeout: { seconds: IDLE_SECONDS, nanos: 0 } };
  return { ...cluster, typed_extension_protocol_options: { ...cluster.typed_extension_protocol_options, [HTTP_PROTOCOL_OPTIONS]: pack(HttpProtocolOptions, HttpProtocolOptions.fromPartial({ ...options, common_http_protocol_options: common })) } };
}
