/**
 * Messages of gRPC. Envoy's filter for its statistics keeps both numbers in one text, which no counter can add; a script, which
 * calls of gRPC alone meet, puts each of them into metadata as the answer passes, so that a call that is broken off has what came
 * until its last answer.
 */
import { accept } from '../../common/telemetry/stats-logger.js';
import { pack } from '../../common/xds/any.js';
import type { AccessLogFilter } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { ExtensionWithMatcher } from '../../proto/generated/envoy/extensions/common/matching/v3/extension_matcher.js';
import { Lua } from '../../proto/generated/envoy/extensions/filters/http/lua/v3/lua.js';
import type { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { MetadataMatcher } from '../../proto/generated/envoy/type/matcher/v3/metadata.js';
import { HttpRequestHeaderMatchInput } from '../../proto/generated/envoy/type/matcher/v3/http_inputs.js';
import { Matcher } from '../../proto/generated/xds/type/matcher/v3/matcher.js';

/** Its object in filter state has this name, too. */
const GRPC_STATS = 'envoy.filters.http.grpc_stats';
const METADATA = 'underpass.messages';

/** Of metadata of a call: how many messages the client sent, and the server. */
export const MESSAGE_VALUES = { request: `%DYNAMIC_METADATA(${METADATA}:request)%`, response: `%DYNAMIC_METADATA(${METADATA}:response)%` } as const;

const SCRIPT = `function envoy_on_response(handle)
  local function tell()
    local counted = handle:streamInfo():filterState():get("${GRPC_STATS}")
    if counted == nil then return end
    local request, response = string.match(tostring(counted), "^(%d+),(%d+)$")
    if request == nil then return end
    handle:streamInfo():dynamicMetadata():set("${METADATA}", "request", tonumber(request))
    handle:streamInfo():dynamicMetadata():set("${METADATA}", "response", tonumber(response))
  end
  for _ in handle:bodyChunks() do tell() end
  tell()
end
`;

const input = (type_url: string, value: Buffer): { name: string; typed_config: { type_url: string; value: Buffer } } => ({ name: 'underpass.content_type', typed_config: { type_url, value } });
const contentType = pack(HttpRequestHeaderMatchInput, HttpRequestHeaderMatchInput.fromPartial({ header_name: 'content-type' }));
const SKIP = 'type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3.SkipFilter';

const counter = {
  name: 'underpass.messages',
  is_optional: false,
  disabled: false,
  config_type: {
    $case: 'typed_config' as const,
    value: pack(ExtensionWithMatcher, ExtensionWithMatcher.fromPartial({
      extension_config: { name: 'underpass.messages', typed_config: pack(Lua, Lua.fromPartial({ default_source_code: { specifier: { $case: 'inline_string', value: SCRIPT } } })) },
      xds_matcher: Matcher.fromPartial({
        matcher_type: {
          $case: 'matcher_list',
          value: {
            matchers: [{
              predicate: { match_type: { $case: 'not_matcher', value: { match_type: { $case: 'single_predicate', value: { input: input(contentType.type_url, contentType.value), matcher: { $case: 'value_match', value: { match_pattern: { $case: 'prefix', value: 'application/grpc' } } } } } } } },
              on_match: { on_match: { $case: 'action', value: { name: 'skip', typed_config: { type_url: SKIP, value: Buffer.alloc(0) } } } },
            }],
          },
        },
      }),
    })),
  },
};

/** Before Envoy's own counts, so that answers have passed that one; false: the manager has none. */
export function countMessages({ http_filters }: HttpConnectionManager): boolean {
  const index = http_filters.findIndex(({ name }) => name === GRPC_STATS);
  if (index >= 0) http_filters.splice(index, 0, counter);
  return index >= 0;
}

/** A call that had none, or was answered before, has nothing to add. */
export const hasMessages: AccessLogFilter = accept({
  $case: 'metadata_filter',
  value: { matcher: MetadataMatcher.fromPartial({ filter: METADATA, path: [{ segment: { $case: 'key', value: 'request' } }], value: { match_pattern: { $case: 'present_match', value: true } } }), match_if_key_not_found: { value: false } } as never,
});
