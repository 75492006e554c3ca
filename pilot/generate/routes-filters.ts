/** A route's settings of HTTP filters: fault injection and CORS; and its edits of headers. */
import type { CorsPolicy, HeaderOperations, Headers, HttpFaultInjection, Percent } from '../../common/kube/types.js';
import { parseDurationMs } from '../../common/kube/schema.js';
import { pack } from '../../common/xds/any.js';
import { HeaderValueOption, HeaderValueOption_HeaderAppendAction, type RuntimeFractionalPercent } from '../../proto/generated/envoy/config/core/v3/base.js';
import { CorsPolicy as EnvoyCors } from '../../proto/generated/envoy/extensions/filters/http/cors/v3/cors.js';
import { HTTPFault } from '../../proto/generated/envoy/extensions/filters/http/fault/v3/fault.js';
import { FractionalPercent_DenominatorType, type FractionalPercent } from '../../proto/generated/envoy/type/v3/percent.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { millis } from './envoy.js';
import { stringMatcher } from './route-match.js';

const { HUNDRED, MILLION } = FractionalPercent_DenominatorType;

export const wholePercent = (percent: number): FractionalPercent => ({ numerator: percent, denominator: HUNDRED });
export const fractionalPercent = ({ value = 0 }: Percent): FractionalPercent => ({ numerator: Math.trunc(value * 10_000), denominator: MILLION });
export const runtimePercent = (default_value: FractionalPercent): RuntimeFractionalPercent => ({ default_value, runtime_key: '' });

/** By the name of the filter that they are for. */
export function perFilterConfig(fault: HttpFaultInjection | undefined, cors: CorsPolicy | undefined): Record<string, Any> {
  const result: Record<string, Any> = {};
  const injected = fault && httpFault(fault);
  if (injected) result['envoy.filters.http.fault'] = pack(HTTPFault, injected);
  if (cors) result['envoy.filters.http.cors'] = pack(EnvoyCors, corsPolicy(cors));
  return result;
}

const GRPC_STATUS = [
  'OK', 'CANCELLED', 'UNKNOWN', 'INVALID_ARGUMENT', 'DEADLINE_EXCEEDED', 'NOT_FOUND', 'ALREADY_EXISTS', 'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED',
  'FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED', 'INTERNAL', 'UNAVAILABLE', 'DATA_LOSS', 'UNAUTHENTICATED',
];

function httpFault({ delay, abort }: HttpFaultInjection): HTTPFault | undefined {
  const fault = HTTPFault.fromPartial({});
  const delayMs = delay?.fixedDelay === undefined ? undefined : parseDurationMs(delay.fixedDelay);
  if (delay && delayMs !== undefined) {
    fault.delay = { fault_delay_secifier: { $case: 'fixed_delay', value: millis(delayMs) }, percentage: delay.percentage ? fractionalPercent(delay.percentage) : wholePercent(delay.percent ?? 0) };
  }
  // No percentage means no request is aborted: Istio's documented default, and Envoy's.
  const percentage = abort?.percentage && fractionalPercent(abort.percentage);
  if (abort?.httpStatus !== undefined) fault.abort = { error_type: { $case: 'http_status', value: abort.httpStatus }, percentage };
  else if (abort?.grpcStatus !== undefined) {
    const code = /^\d+$/.test(abort.grpcStatus) ? Number(abort.grpcStatus) : GRPC_STATUS.indexOf(abort.grpcStatus);
    fault.abort = { error_type: { $case: 'grpc_status', value: code }, percentage };
  }
  return fault.delay || fault.abort ? fault : undefined;
}

function corsPolicy(cors: CorsPolicy): EnvoyCors {
  const maxAgeMs = cors.maxAge === undefined ? undefined : parseDurationMs(cors.maxAge);
  return EnvoyCors.fromPartial({
    allow_origin_string_match: (cors.allowOrigins ?? (cors.allowOrigin ?? []).map((exact) => ({ exact }))).flatMap((origin) => stringMatcher(origin) ?? []),
    allow_methods: (cors.allowMethods ?? []).join(','),
    allow_headers: (cors.allowHeaders ?? []).join(','),
    expose_headers: (cors.exposeHeaders ?? []).join(','),
    max_age: maxAgeMs === undefined ? '' : String(Math.trunc(maxAgeMs / 1_000)),
    ...(cors.allowCredentials === undefined ? {} : { allow_credentials: cors.allowCredentials }),
    filter_enabled: runtimePercent(wholePercent(100)),
    forward_not_matching_preflights: cors.unmatchedPreflights !== 'IGNORE',
  });
}

export interface HeaderEdits {
  request_headers_to_add: HeaderValueOption[];
  request_headers_to_remove: string[];
  response_headers_to_add: HeaderValueOption[];
  response_headers_to_remove: string[];
  /** What `:authority` or `host` is set to; Envoy has a field of its own for that. */
  authority: string | undefined;
}

const isAuthority = (name: string): boolean => [':authority', 'host'].includes(name.toLowerCase());
/** Envoy refuses edits of pseudo headers and of Host. */
const isInternal = (name: string): boolean => name.startsWith(':') || name.toLowerCase() === 'host';

export function headerEdits({ request, response }: Headers = {}): HeaderEdits {
  return {
    request_headers_to_add: additions(request),
    request_headers_to_remove: (request?.remove ?? []).filter((name) => !isInternal(name)),
    response_headers_to_add: additions(response),
    response_headers_to_remove: (response?.remove ?? []).filter((name) => !isInternal(name)),
    authority: authorityIn(request?.set) ?? authorityIn(request?.add),
  };
}

function authorityIn(headers: Record<string, string> | undefined): string | undefined {
  return Object.entries(headers ?? {}).find(([name, value]) => isAuthority(name) && value !== '')?.[1];
}

function additions(operations: HeaderOperations | undefined): HeaderValueOption[] {
  const { OVERWRITE_IF_EXISTS_OR_ADD, APPEND_IF_EXISTS_OR_ADD } = HeaderValueOption_HeaderAppendAction;
  const options = (headers: Record<string, string> | undefined, append_action: HeaderValueOption_HeaderAppendAction): HeaderValueOption[] =>
    Object.entries(headers ?? {})
      .filter(([name]) => !isInternal(name))
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, value]) => HeaderValueOption.fromPartial({ header: { key, value }, append_action }));
  return [...options(operations?.set, OVERWRITE_IF_EXISTS_OR_ADD), ...options(operations?.add, APPEND_IF_EXISTS_OR_ADD)];
}
