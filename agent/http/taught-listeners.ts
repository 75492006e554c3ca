/**
 * Chains of pods that the kernel learns from. They ask for the taught tables, and connections with HTTP say whose they are:
 * what is only handed on says it to the next listener alone, so that a program's own TCP never comes to a pod's inbound chain
 * with it.
 */
import type { Filter, FilterChain } from '../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TcpProxy } from '../../proto/generated/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.js';
import { pack, unpack } from '../../common/xds/any.js';
import { handedOn } from '../proxy/filter-state.js';
import { renameInChain, type FoldedListeners } from '../proxy/fold-listeners.js';
import { inspectionName, type InspectionKind } from '../proxy/inspection.js';
import { CLASS_HEADER, CLIENT_STATE, CONNECTION_STATE, LESSON_HEADER } from './names.js';
import { taughtName } from './taught-clusters.js';
import { taughtTableName } from './taught-routes.js';

/** The kinds of internal listeners that have HTTP. */
export const TAUGHT_KINDS = ['http', 'unknown'] as const;
/** What is handed on has it until the next listener. */
const ACCEPTED_STATE = 'underpass.accepted';
const TAUGHT_INSPECTION = new RegExp(`^${inspectionName('.*~taught', '(?:http|unknown)' as InspectionKind)}$`);
const NEVER = { seconds: 0n, nanos: 0 };

export interface TaughtPod {
  /** Of its network namespace. */
  netnsCookie: bigint;
}

/** What a class's pods' listeners have in common, for those of them that the kernel learns from. */
export function taughtListeners(folded: FoldedListeners, classKey: string): FoldedListeners {
  const inner = new Map(TAUGHT_KINDS.map((kind) => [inspectionName(classKey, kind), inspectionName(taughtName(classKey), kind)]));
  const change = (chain: FilterChain): FilterChain => taughtChain(renameInChain(chain, (name) => inner.get(name) ?? name, (name) => taughtTableName(name, classKey)));
  const received = (chain: FilterChain): FilterChain => (isHttp(chain) ? before(ofHttp(`%FILTER_STATE(${ACCEPTED_STATE}:PLAIN)%`), change(chain)) : change(chain));
  const { http, unknown, plain } = folded.inspected;
  return { ...folded, chains: folded.chains.map(change), defaultChain: change(folded.defaultChain), inspected: { plain, http: http.map(received), unknown: unknown.map(received) } };
}

/** The chain as it stands in the pod's own listener. */
export function ofClient(chain: FilterChain, { netnsCookie }: TaughtPod): FilterChain {
  const client = `${netnsCookie.toString(16).padStart(16, '0')}-%DOWNSTREAM_REMOTE_PORT%`;
  if (isHttp(chain)) return before(ofHttp(client), chain);
  return leadsTo(chain).some((name) => TAUGHT_INSPECTION.test(name)) ? before(handedOn('underpass.accepted', { [ACCEPTED_STATE]: client }), chain) : chain;
}

function ofHttp(client: string): Filter {
  return handedOn('underpass.client', { [CLIENT_STATE]: client, [CONNECTION_STATE]: '%CONNECTION_ID%' });
}

function before(filter: Filter, chain: FilterChain): FilterChain {
  return { ...chain, filters: [filter, ...chain.filters] };
}

function isHttp({ filters }: FilterChain): boolean {
  return filters.some(({ config_type }) => config_type?.$case === 'typed_config' && unpack(HttpConnectionManager, config_type.value));
}

function leadsTo({ filters }: FilterChain): string[] {
  return filters.flatMap(({ config_type }) => {
    const specifier = config_type?.$case === 'typed_config' ? unpack(TcpProxy, config_type.value)?.cluster_specifier : undefined;
    return specifier?.$case === 'cluster' ? [specifier.value] : [];
  });
}

function taughtChain(chain: FilterChain): FilterChain {
  return changeManager(chain, (manager) => {
    manager.common_http_protocol_options = lasting(manager);
    const specifier = manager.route_specifier;
    if (specifier?.$case === 'route_config') specifier.value.request_headers_to_remove.push(LESSON_HEADER, CLASS_HEADER);
  });
}

/** Envoy does not see what the kernel moves: to it a busy connection is idle. */
function lasting({ common_http_protocol_options: given }: HttpConnectionManager): HttpConnectionManager['common_http_protocol_options'] {
  const options = given ?? HttpConnectionManager.fromPartial({ common_http_protocol_options: {} }).common_http_protocol_options!;
  return { ...options, idle_timeout: NEVER, max_connection_duration: undefined, max_requests_per_connection: undefined };
}

/** @param change in place */
export function changeManager(chain: FilterChain, change: (manager: HttpConnectionManager) => void): FilterChain {
  return {
    ...chain,
    filters: chain.filters.map((filter): Filter => {
      const manager = filter.config_type?.$case === 'typed_config' ? unpack(HttpConnectionManager, filter.config_type.value) : undefined;
      if (!manager) return filter;
      change(manager);
      return { ...filter, config_type: { $case: 'typed_config', value: pack(HttpConnectionManager, manager) } };
    }),
  };
}
