/** Envoy's filter of access logs by an expression in CEL. */
import { AccessLogFilter } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { StringValue } from '../../proto/generated/google/protobuf/wrappers.js';
import { pack } from './any.js';

export const CEL_FILTER = 'envoy.access_loggers.extension_filters.cel';
const TYPE = 'type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter';

export function celFilter(expression: string): AccessLogFilter {
  // The message of the extension has this one field, as a StringValue has.
  return AccessLogFilter.fromPartial({ filter_specifier: { $case: 'extension_filter', value: { name: CEL_FILTER, config_type: { $case: 'typed_config', value: { type_url: TYPE, value: pack(StringValue, { value: expression }).value } } } } });
}
