/**
 * How requests are traced, where the decision is one that the kernel can make as Envoy would: a share of those that say nothing
 * of it themselves (ConnectionManagerUtility::mutateTracingRequestHeader in Envoy's source/common/http/conn_manager_utility.cc).
 */
import { Tracing } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { OpenTelemetryConfig } from '../../proto/generated/envoy/config/trace/v3/opentelemetry.js';
import { ZipkinConfig } from '../../proto/generated/envoy/config/trace/v3/zipkin.js';
import { HttpConnectionManager_Tracing, type HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { UuidRequestIdConfig } from '../../proto/generated/envoy/extensions/request_id/uuid/v3/uuid.js';
import { FractionalPercent_DenominatorType as Denominator, type FractionalPercent, type Percent } from '../../proto/generated/envoy/type/v3/percent.js';
import { unpack } from '../../common/xds/any.js';
import { isEmpty } from '../proxy/neutral-chain.js';
import type { Reason } from './compile-action.js';
import type { HttpTrace } from './table.js';

/** Of a connection manager; `sampled` may be 1. */
export type Traced = HttpTrace;

/** Of a request's id Envoy looks at the remainder by this. */
const DRAWS = 10_000;
const OF: Readonly<Partial<Record<Denominator, number>>> = { [Denominator.HUNDRED]: 100, [Denominator.TEN_THOUSAND]: 10_000, [Denominator.MILLION]: 1_000_000 };

/** Undefined where nothing is traced; sampled and yet sent nowhere is what Istio says by default. */
export function tracedAs({ tracing, request_id_extension }: Pick<HttpConnectionManager, 'tracing' | 'request_id_extension'>): Traced | Reason | undefined {
  if (!tracing?.provider) return undefined;
  const kind = kindOf(tracing.provider);
  if (typeof kind === 'object') return kind;
  if (request_id_extension) {
    const ids = unpack(UuidRequestIdConfig, request_id_extension.typed_config);
    if (!ids) return { reason: 'requests are traced, and their ids are made in a way of their own' };
    if (ids.use_request_id_for_trace_sampling === false) return { reason: 'all requests are traced' };
  }
  const rest: HttpConnectionManager_Tracing = {
    ...tracing, provider: undefined, client_sampling: undefined, random_sampling: undefined, overall_sampling: undefined, custom_tags: [], verbose: false, max_path_tag_length: undefined, spawn_upstream_span: undefined,
  };
  if (!isEmpty(HttpConnectionManager_Tracing, rest)) return { reason: 'requests are traced with settings of their own' };
  const draws = (percent: Percent | undefined): number => (percent ? Math.round((percent.value * DRAWS) / 100) : DRAWS);
  return { kind, sampled: Math.min(draws(tracing.random_sampling), draws(tracing.overall_sampling)) / DRAWS };
}

function kindOf({ name, config_type }: NonNullable<HttpConnectionManager_Tracing['provider']>): HttpTrace['kind'] | Reason {
  const config = config_type?.$case === 'typed_config' ? config_type.value : undefined;
  const zipkin = unpack(ZipkinConfig, config);
  if (zipkin) {
    const rest: ZipkinConfig = { ...zipkin, collector_cluster: '', collector_endpoint: '', collector_hostname: '', collector_endpoint_version: 0, collector_service: undefined, trace_id_128bit: false, shared_span_context: undefined, split_spans_for_request: false };
    // `trace_context_option`, for one.
    return isEmpty(ZipkinConfig, rest) ? 'b3' : { reason: 'requests are traced by headers of more than one kind' };
  }
  const otel = unpack(OpenTelemetryConfig, config);
  if (!otel) return { reason: `requests are traced by ${name}` };
  const rest: OpenTelemetryConfig = { ...otel, grpc_service: undefined, http_service: undefined, service_name: '', resource_detectors: [] };
  return isEmpty(OpenTelemetryConfig, rest) ? 'w3c' : { reason: 'requests are traced as a sampler of its own says' };
}

/** Of one route, which may have settings that take the place of the connection manager's. */
export function tracedRoute({ kind, sampled }: Traced, route: Tracing | undefined): HttpTrace | Reason {
  if (route && !isEmpty(Tracing, { ...route, client_sampling: undefined, random_sampling: undefined, overall_sampling: undefined, custom_tags: [] })) return { reason: 'it is traced with settings of its own' };
  const share = route ? shareOf(route) : sampled;
  if (share === undefined) return { reason: 'its share of requests to be traced can not be told' };
  return share < 1 ? { kind, sampled: share } : { reason: 'all of its requests are traced' };
}

/** Both percentages are looked up for the same remainder. */
function shareOf({ random_sampling: random, overall_sampling: overall }: Tracing): number | undefined {
  const [ofRandom, ofOverall] = [random, overall].map((percent) => (percent ? OF[percent.denominator] : 1));
  if (ofRandom === undefined || ofOverall === undefined) return undefined;
  const holds = (draw: number, of: number, percent: FractionalPercent | undefined): boolean => !percent || draw % of < percent.numerator;
  return Array.from({ length: DRAWS }, (_, draw) => draw).filter((draw) => holds(draw, ofRandom, random) && holds(draw, ofOverall, overall)).length / DRAWS;
}
