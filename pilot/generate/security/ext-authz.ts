/** CUSTOM policies: an external authorization service of MeshConfig's extensionProviders decides on what they match. */
import { parseDurationMs } from '../../../common/kube/schema.js';
import { ApiVersion } from '../../../proto/generated/envoy/config/core/v3/config_source.js';
import { GrpcService } from '../../../proto/generated/envoy/config/core/v3/grpc_service.js';
import { ExtAuthz as HttpExtAuthz } from '../../../proto/generated/envoy/extensions/filters/http/ext_authz/v3/ext_authz.js';
import { ExtAuthz as NetworkExtAuthz } from '../../../proto/generated/envoy/extensions/filters/network/ext_authz/v3/ext_authz.js';
import type { MetadataMatcher } from '../../../proto/generated/envoy/type/matcher/v3/metadata.js';
import { ListStringMatcher } from '../../../proto/generated/envoy/type/matcher/v3/string.js';
import { StatusCode } from '../../../proto/generated/envoy/type/v3/http_status.js';
import type { ExtAuthzGrpcProvider, ExtAuthzHttpProvider } from '../../model/mesh.js';
import type { Model } from '../../model/model.js';
import { millis } from '../envoy.js';
import { clusterName } from '../names.js';
import { metadataMatch, prefixMatch, stringMatch, stringValue } from './matchers.js';

/** The RBAC filter before it leaves its verdict in its metadata under this name, with the shadow rules' prefix. */
export const EXT_AUTHZ_STAT_PREFIX = 'istio_ext_authz_';
const EFFECTIVE_POLICY = `${EXT_AUTHZ_STAT_PREFIX}shadow_effective_policy_id`;
const DEFAULT_TIMEOUT_MS = 600_000;

export interface ExtAuthz {
  http: HttpExtAuthz;
  /** Undefined: a service that speaks HTTP can't judge plain connections. */
  network: NetworkExtAuthz | undefined;
}

/** How the names of a provider's policies begin: by that the ext_authz filter knows that one of them matched. */
export function policyPrefix(provider: string): string {
  return `istio-ext-authz-${provider}-`;
}

/** Undefined: there is no such provider, or its service does not exist. Then whatever its policies match is refused. */
export function extAuthz(model: Model, name: string): ExtAuthz | undefined {
  const provider = model.mesh.extensionProviders.find((candidate) => candidate.name === name);
  const settings = provider?.envoyExtAuthzHttp ?? provider?.envoyExtAuthzGrpc;
  if (!provider || !settings) return undefined;
  const slash = settings.service.indexOf('/');
  const [namespace, host] = slash < 0 ? [undefined, settings.service] : [settings.service.slice(0, slash), settings.service.slice(slash + 1)];
  const service = model.services.get(host);
  if (!service || (namespace !== undefined && service.namespace !== namespace)) return undefined;
  const cluster = clusterName(settings.port, '', host);
  return provider.envoyExtAuthzHttp ? { http: httpFilter(provider.envoyExtAuthzHttp, name, host, cluster), network: undefined } : grpcFilters(provider.envoyExtAuthzGrpc!, name, cluster);
}

const matched = (filter: string, provider: string): MetadataMatcher => metadataMatch(filter, [EFFECTIVE_POLICY], stringValue(prefixMatch(policyPrefix(provider))));

const timeout = (written: string | undefined) => millis((written !== undefined && parseDurationMs(written)) || DEFAULT_TIMEOUT_MS);

function headers(names: readonly string[] | undefined): ListStringMatcher | undefined {
  return names?.length ? ListStringMatcher.fromPartial({ patterns: names.map((name) => ({ ...stringMatch(name), ignore_case: true })) }) : undefined;
}

type Common = Pick<ExtAuthzHttpProvider, 'failOpen' | 'statusOnError' | 'clearRouteCache' | 'includeRequestBodyInCheck'>;

const common = ({ failOpen = false, statusOnError, clearRouteCache = false, includeRequestBodyInCheck: body }: Common, provider: string) => ({
  failure_mode_allow: failOpen,
  clear_route_cache: clearRouteCache,
  transport_api_version: ApiVersion.V3,
  filter_enabled_metadata: matched('envoy.filters.http.rbac', provider),
  ...(statusOnError && Number(statusOnError) in StatusCode ? { status_on_error: { code: Number(statusOnError) as StatusCode } } : {}),
  ...(body ? { with_request_body: { max_request_bytes: body.maxRequestBytes ?? 0, allow_partial_message: body.allowPartialMessage ?? false, pack_as_bytes: body.packAsBytes ?? false } } : {}),
});

function httpFilter(settings: ExtAuthzHttpProvider, provider: string, host: string, cluster: string): HttpExtAuthz {
  const allowed = headers(settings.includeRequestHeadersInCheck) ?? headers(settings.includeHeadersInCheck);
  const added = Object.entries(settings.includeAdditionalHeadersInCheck ?? {}).sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, value]) => ({ key, value }));
  const [upstream, denied, success] = [headers(settings.headersToUpstreamOnAllow), headers(settings.headersToDownstreamOnDeny), headers(settings.headersToDownstreamOnAllow)];
  return HttpExtAuthz.fromPartial({
    ...common(settings, provider),
    services: {
      $case: 'http_service',
      value: {
        path_prefix: settings.pathPrefix ?? '',
        // Envoy wants an URI and does not read its host.
        server_uri: { uri: `http://${host}`, timeout: timeout(settings.timeout), http_upstream_type: { $case: 'cluster', value: cluster } },
        ...(allowed || added.length > 0 ? { authorization_request: { ...(allowed ? { allowed_headers: allowed } : {}), headers_to_add: added } } : {}),
        ...(upstream || denied || success
          ? { authorization_response: { ...(upstream ? { allowed_upstream_headers: upstream } : {}), ...(denied ? { allowed_client_headers: denied } : {}), ...(success ? { allowed_client_headers_on_success: success } : {}) } }
          : {}),
      },
    },
  });
}

function grpcFilters(settings: ExtAuthzGrpcProvider, provider: string, cluster: string): ExtAuthz {
  const service = GrpcService.fromPartial({
    // The bar of a cluster's name is no character of an authority: servers refuse it.
    target_specifier: { $case: 'envoy_grpc', value: { cluster_name: cluster, authority: cluster.replaceAll('|', '_.') } },
    timeout: timeout(settings.timeout),
  });
  return {
    http: HttpExtAuthz.fromPartial({ ...common(settings, provider), services: { $case: 'grpc_service', value: service } }),
    network: NetworkExtAuthz.fromPartial({
      stat_prefix: 'tcp.',
      failure_mode_allow: settings.failOpen ?? false,
      transport_api_version: ApiVersion.V3,
      grpc_service: service,
      filter_enabled_metadata: matched('envoy.filters.network.rbac', provider),
    }),
  };
}
