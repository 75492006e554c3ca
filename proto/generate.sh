#!/usr/bin/env bash
# Makes proto/generated/: TypeScript for every message this project reads or writes. Envoy's own protos come from the
# npm package @grpc/grpc-js-xds; what is newer than that package, or Istio's, lies beside this script and is laid over it.
set -euo pipefail
cd "$(dirname "$0")/.."
deps=node_modules/@grpc/grpc-js-xds/deps
tree=build/proto-tree
rm -rf "$tree" build/proto-out && mkdir -p "$tree" build/proto-out
cp -r "$deps"/envoy-api/. "$deps"/xds/. "$deps"/googleapis/. "$deps"/protoc-gen-validate/. "$tree"/
(cd proto && find . -name '*.proto' -print0 | xargs -0 cp --parents -t "../$tree")

# SocketAddress.network_namespace_filepath (Envoy 1.34 and later): where a listener or an upstream socket is opened.
address=$tree/envoy/config/core/v3/address.proto
sed -i 's/^  bool ipv4_compat = 6;/&\n  string network_namespace_filepath = 7;/' "$address"
grep -q 'network_namespace_filepath = 7' "$address"

# FilterStateMatcher.address_match: a filter state that is an address, compared with ranges.
filter_state=$tree/envoy/type/matcher/v3/filter_state.proto
sed -i 's/^    StringMatcher string_match = 2;/&\n    AddressMatcher address_match = 3;/; s/^import "envoy\/type\/matcher\/v3\/string.proto";/import "envoy\/type\/matcher\/v3\/address.proto";\n&/' "$filter_state"
grep -q 'address_match = 3' "$filter_state" && grep -q 'v3/address.proto' "$filter_state"

# RouteMatch.filter_state: routes that only connections with some filter state match.
routes=$tree/envoy/config/route/v3/route_components.proto
sed -i 's/^  repeated type.matcher.v3.MetadataMatcher dynamic_metadata = 13;/&\n  repeated type.matcher.v3.FilterStateMatcher filter_state = 16;/; s/^import "envoy\/type\/matcher\/v3\/metadata.proto";/import "envoy\/type\/matcher\/v3\/filter_state.proto";\n&/' "$routes"
grep -q 'filter_state = 16' "$routes" && grep -q 'v3/filter_state.proto' "$routes"

# ZipkinConfig.trace_context_option and collector_service, CustomTag.value, Tracing.operation and no_context_propagation: what Istio's tracing providers set.
zipkin=$tree/envoy/config/trace/v3/zipkin.proto
sed -i 's/^  string collector_hostname = 6;/&\n  enum TraceContextOption {\n    USE_B3 = 0;\n    USE_B3_WITH_W3C_PROPAGATION = 1;\n  }\n  TraceContextOption trace_context_option = 8;\n  core.v3.HttpService collector_service = 9;/; s/^import "google\/protobuf\/wrappers.proto";/import "envoy\/config\/core\/v3\/http_service.proto";\n&/' "$zipkin"
grep -q 'collector_service = 9' "$zipkin" && grep -q 'v3/http_service.proto' "$zipkin"
tag=$tree/envoy/type/tracing/v3/custom_tag.proto
sed -i 's/^    Metadata metadata = 5;/&\n    string value = 6;/' "$tag"
grep -q 'value = 6' "$tag"
# OpenTelemetryAccessLogConfig.grpc_service and log_name: what takes the place of common_config, which Envoy warns of.
otel=$tree/envoy/extensions/access_loggers/open_telemetry/v3/logs_service.proto
sed -i 's/^  repeated config.core.v3.TypedExtensionConfig formatters = 7;/&\n  config.core.v3.GrpcService grpc_service = 9;\n  string log_name = 10;/; s/^import "envoy\/config\/core\/v3\/extension.proto";/&\nimport "envoy\/config\/core\/v3\/grpc_service.proto";/' "$otel"
grep -q 'log_name = 10' "$otel" && grep -q 'v3/grpc_service.proto' "$otel"
manager=$tree/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto
sed -i 's/^    google.protobuf.BoolValue spawn_upstream_span = 10;/&\n    string operation = 11;\n    string upstream_operation = 12;\n    bool no_context_propagation = 13;/' "$manager"
grep -q 'no_context_propagation = 13' "$manager"

# The package's copy of validate.proto is older than the Envoy protos beside it; only the names matter here.
for rules in StringRules:26 BytesRules:14 RepeatedRules:5 MapRules:6 UInt32Rules:8 UInt64Rules:8 DoubleRules:8; do
  sed -i "s/^message ${rules%:*} {/&\n  optional bool ignore_empty = ${rules#*:};/" "$tree/validate/validate.proto"
done

roots=$(grep -v '^#' proto/roots.txt)
# shellcheck disable=SC2086
protoc --plugin=protoc-gen-ts_proto=node_modules/.bin/protoc-gen-ts_proto -I "$tree" -I /usr/include \
  --ts_proto_out=build/proto-out \
  --ts_proto_opt=esModuleInterop=true,importSuffix=.js,oneof=unions-value,outputServices=grpc-js,env=node,forceLong=bigint,outputTypeAnnotations=static-only,outputTypeRegistry=true,useExactTypes=false,snakeToCamel=false,exportCommonSymbols=false,unrecognizedEnum=true,stringEnums=false,unknownFields=true \
  $roots
# For what users write as JSON of any of these messages (EnvoyFilter): their descriptors, read at run time.
# shellcheck disable=SC2086
protoc -I "$tree" -I /usr/include --include_imports --descriptor_set_out=build/proto-out/descriptors.binpb $roots
rm -rf proto/generated && mv build/proto-out proto/generated
touch proto/generated/.stamp
