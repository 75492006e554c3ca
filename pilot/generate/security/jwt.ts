/** RequestAuthentication: a token that is there must be valid; none at all is no mistake (a policy may ask for one). */
import { pack } from '../../../common/xds/any.js';
import type { JwtRule, RequestAuthentication } from '../../../common/kube/types.js';
import { JwtAuthentication, JwtProvider, JwtRequirement } from '../../../proto/generated/envoy/extensions/filters/http/jwt_authn/v3/config.js';
import type { HttpFilter } from '../../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import type { Model } from '../../model/model.js';
import { jwksSource, nobodysJwks, usableJwks } from '../../model/jwks.js';
import { JWT_PAYLOAD } from './matchers.js';
import { policiesFor, type PolicyTarget } from './targets.js';

/** Claims that hold several values with blanks between, as OAuth writes them. */
const SPACE_DELIMITED = ['permission', 'scope'];

/** @param clearRouteCache a gateway's routes may match on claims */
export function jwtFilter(model: Model, target: PolicyTarget, clearRouteCache: boolean): HttpFilter | undefined {
  const rules = policiesFor<RequestAuthentication>(model, 'RequestAuthentication', target)
    .flatMap(({ object }) => object.spec?.jwtRules ?? [])
    .sort((a, b) => (a.issuer < b.issuer ? -1 : a.issuer > b.issuer ? 1 : 0));
  if (rules.length === 0) return undefined;
  const providers = Object.fromEntries(rules.map((rule, index) => [`origins-${index}`, provider(model, rule, clearRouteCache)]));
  const named = Object.keys(providers).map((value) => JwtRequirement.fromPartial({ requires_type: { $case: 'provider_name', value } }));
  const orMissing = named.map((requirement) => any([requirement, JwtRequirement.fromPartial({ requires_type: { $case: 'allow_missing', value: {} } })]));
  // Of several issuers whose tokens come in the same place one must take the token; in places of their own each must be good.
  const requires = orMissing.length === 1 ? orMissing[0]! : any([...named, JwtRequirement.fromPartial({ requires_type: { $case: 'requires_all', value: { requirements: orMissing } } })]);
  const message = JwtAuthentication.fromPartial({
    providers,
    bypass_cors_preflight: true,
    rules: [{ match: { path_specifier: { $case: 'prefix', value: '/' } }, requirement_type: { $case: 'requires', value: requires } }],
  });
  return { name: 'envoy.filters.http.jwt_authn', is_optional: false, disabled: false, config_type: { $case: 'typed_config', value: pack(JwtAuthentication, message) } };
}

const any = (requirements: JwtRequirement[]): JwtRequirement => JwtRequirement.fromPartial({ requires_type: { $case: 'requires_any', value: { requirements } } });

function provider(model: Model, rule: JwtRule, clearRouteCache: boolean): JwtProvider {
  return JwtProvider.fromPartial({
    issuer: rule.issuer,
    audiences: rule.audiences ?? [],
    forward: rule.forwardOriginalToken ?? false,
    forward_payload_header: rule.outputPayloadToHeader ?? '',
    payload_in_metadata: JWT_PAYLOAD,
    normalize_payload_in_metadata: { space_delimited_claims: [...new Set([...SPACE_DELIMITED, ...(rule.spaceDelimitedClaims ?? [])])].sort() },
    clear_route_cache: clearRouteCache,
    claim_to_headers: (rule.outputClaimToHeaders ?? []).map(({ header, claim }) => ({ header_name: header, claim_name: claim })),
    from_headers: (rule.fromHeaders ?? []).map(({ name, prefix = '' }) => ({ name, value_prefix: prefix })),
    from_params: rule.fromParams ?? [],
    from_cookies: rule.fromCookies ?? [],
    jwks_source_specifier: { $case: 'local_jwks', value: { specifier: { $case: 'inline_string', value: keys(model, rule) } } },
  });
}

/** Keys that were not fetched yet, or are none, are replaced by one that no token is signed with. */
function keys(model: Model, rule: JwtRule): string {
  return (rule.jwks ? usableJwks(rule.jwks) : model.jwks.get(jwksSource(rule))) ?? nobodysJwks();
}
