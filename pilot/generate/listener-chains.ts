/** Filter chains of an outbound listener: their matches, and which two of them Envoy could not tell apart. */
import { isIPv4, isIPv6 } from 'node:net';
import { FilterChain, FilterChainMatch } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { MeshConfig } from '../model/mesh.js';
import { seconds } from './envoy.js';
import { outboundHttp } from './http-filters.js';
import type { L4Chain } from './tcp-routes.js';

/** What the HTTP inspector calls the protocols it finds in plaintext. */
export const PLAINTEXT_HTTP = ['http/1.1', 'h2c'];

export interface HttpChain {
  /** Name of the route configuration. */
  routes: string;
  /** The HTTP inspector decides whether a connection is HTTP; else every one is taken to be. */
  sniffed: boolean;
}

export type ListenerChain = L4Chain | HttpChain;

export const isHttpChain = (chain: ListenerChain): chain is HttpChain => 'routes' in chain;

const names = (chain: L4Chain): readonly string[] => (chain.sni?.includes('*') ? [] : (chain.sni ?? []));

/** Takes every connection that comes to its listener. */
export function takesAll(chain: ListenerChain): boolean {
  return isHttpChain(chain) ? !chain.sniffed : names(chain).length === 0 && !chain.cidrs?.length;
}

export const needsTlsInspector = (chain: ListenerChain): boolean => !isHttpChain(chain) && Boolean(chain.sni?.length);
export const needsHttpInspector = (chain: ListenerChain): boolean => isHttpChain(chain) && chain.sniffed;

/** Equal for chains that match the same connections. */
export function matchKey(chain: ListenerChain): string {
  if (isHttpChain(chain)) return chain.sniffed ? 'http' : '';
  const cidrs = (chain.cidrs ?? []).map(parseCidr).filter(({ address, length }) => !(length === 0 && isAny(address)));
  return `${[...new Set(names(chain))].sort().join()}|${[...new Set(cidrs.map(({ address, length }) => `${isIPv4(address) ? masked(address, length) : address}/${length}`))].sort().join()}`;
}

export function filterChain(mesh: MeshConfig, chain: ListenerChain, listener: string): FilterChain {
  const common = { transport_socket_connect_timeout: seconds(15) };
  if (isHttpChain(chain)) {
    const match = chain.sniffed ? { filter_chain_match: { transport_protocol: 'raw_buffer', application_protocols: PLAINTEXT_HTTP } } : {};
    return FilterChain.fromPartial({ ...common, ...match, filters: [outboundHttp(mesh, listener, chain.routes)] });
  }
  return FilterChain.fromPartial({
    ...common,
    ...(takesAll(chain) ? {} : { filter_chain_match: l4Match(chain) }),
    ...(chain.config ? { metadata: { filter_metadata: { istio: { config: chain.config } } } } : {}),
    filters: chain.filters,
  });
}

function l4Match(chain: L4Chain): FilterChainMatch {
  const ranges = [...(chain.cidrs ?? [])].sort().map(parseCidr);
  return FilterChainMatch.fromPartial({
    server_names: [...names(chain)].sort(),
    prefix_ranges: ranges.filter(({ address }) => !isAny(address)).map(({ address, length }) => ({ address_prefix: address, prefix_len: length })),
  });
}

const isAny = (address: string): boolean => address === '0.0.0.0' || address === '::';

/** `10.0.0.0/8`, or one address. */
export function parseCidr(written: string): { address: string; length: number } {
  const [address = '', length] = written.split('/');
  return { address, length: length === undefined ? (isIPv6(address) ? 128 : 32) : Number(length) };
}

function masked(address: string, length: number): string {
  const bits = address.split('.').reduce((sum, part) => sum * 256 + Number(part), 0);
  const size = 2 ** (32 - length);
  const kept = Math.floor(bits / size) * size;
  return [24, 16, 8, 0].map((shift) => Math.floor(kept / 2 ** shift) % 256).join('.');
}
