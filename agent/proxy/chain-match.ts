/**
 * Envoy finds a filter chain by narrowing: destination port, destination address, server name, transport protocol,
 * application protocol, … At each step the most specific entry wins and there is no way back, so when several listeners
 * are folded into one, a listener's default chain has to stand at every dead end that its own chains lead into.
 * https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/listener/v3/listener_components.proto#filterchainmatch
 */
import { FilterChainMatch } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import type { CidrRange } from '../../proto/generated/envoy/config/core/v3/address.js';

/** The dimensions after port and address, in Envoy's order. */
const NARROWING = [
  'server_names', 'transport_protocol', 'application_protocols', 'direct_source_prefix_ranges', 'source_type', 'source_prefix_ranges', 'source_ports',
] as const satisfies readonly (keyof FilterChainMatch)[];

/** `match` (of a listener on `port` and `prefixes`) as it has to be in the folded listener. */
export function narrowed(match: FilterChainMatch | undefined, port: number | undefined, prefixes: readonly CidrRange[]): FilterChainMatch {
  const result = FilterChainMatch.fromPartial((match ?? {}) as never);
  if (port !== undefined) result.destination_port ??= port;
  if (result.prefix_ranges.length === 0) result.prefix_ranges = [...prefixes];
  return result;
}

/** Where a connection may end up without a chain: each match cut off after its first dimensions, one value a dimension. */
export function deadEnds(matches: readonly FilterChainMatch[], port: number, prefixes: readonly CidrRange[]): FilterChainMatch[] {
  const taken = new Set(matches.flatMap((match) => expand(match).map(key)));
  const ends: FilterChainMatch[] = [];
  const add = (candidate: FilterChainMatch): void => {
    for (const single of expand(candidate)) {
      const id = key(single);
      if (taken.has(id)) continue;
      taken.add(id);
      ends.push(single);
    }
  };
  add(narrowed(undefined, port, prefixes));
  for (const match of matches) {
    for (let depth = 0; depth < NARROWING.length; depth++) {
      const cut = FilterChainMatch.fromPartial(match as never) as unknown as Record<string, unknown>;
      const empty = FilterChainMatch.fromPartial({}) as unknown as Record<string, unknown>;
      for (const field of NARROWING.slice(depth)) cut[field] = empty[field];
      add(cut as unknown as FilterChainMatch);
    }
  }
  return ends;
}

/** Whether one of `ends` takes what `match` would, but for the protocol that it asks for, where there is no chain for that. */
export function endsIn(match: FilterChainMatch, ends: readonly FilterChainMatch[]): boolean {
  if (match.application_protocols.length === 0) return false;
  const taken = new Set(ends.flatMap((end) => expand(end).map(key)));
  const empty = FilterChainMatch.fromPartial({});
  const cut = { ...match, application_protocols: empty.application_protocols, direct_source_prefix_ranges: empty.direct_source_prefix_ranges, source_type: empty.source_type, source_prefix_ranges: empty.source_prefix_ranges, source_ports: empty.source_ports };
  return expand(cut).every((single) => taken.has(key(single)));
}

/** One match for each combination of values: what Envoy compares when it looks for chains that match the same. */
function expand(match: FilterChainMatch): FilterChainMatch[] {
  let results = [match];
  for (const field of ['prefix_ranges', ...NARROWING] as const) {
    const values = match[field];
    if (!Array.isArray(values) || values.length < 2) continue;
    results = results.flatMap((result) => values.map((value) => ({ ...result, [field]: [value] })));
  }
  return results;
}

function key(match: FilterChainMatch): string {
  return JSON.stringify([
    match.destination_port, match.prefix_ranges.map(cidr), match.server_names, match.transport_protocol, match.application_protocols,
    match.direct_source_prefix_ranges.map(cidr), match.source_type, match.source_prefix_ranges.map(cidr), match.source_ports,
  ]);
}

function cidr(range: CidrRange): string {
  return `${range.address_prefix}/${range.prefix_len ?? 0}`;
}
