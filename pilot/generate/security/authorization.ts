/** The AuthorizationPolicies of a workload as Envoy's filters, in the order in which they decide: CUSTOM, AUDIT, DENY, ALLOW. */
import { pack } from '../../../common/xds/any.js';
import type { LoadedObject } from '../../../common/kube/yaml.js';
import type { AuthorizationPolicy } from '../../../common/kube/types.js';
import { Filter } from '../../../proto/generated/envoy/config/listener/v3/listener_components.js';
import { RBAC as Rbac, RBAC_Action, type Policy } from '../../../proto/generated/envoy/config/rbac/v3/rbac.js';
import { ExtAuthz as HttpExtAuthz } from '../../../proto/generated/envoy/extensions/filters/http/ext_authz/v3/ext_authz.js';
import { RBAC as HttpRbac } from '../../../proto/generated/envoy/extensions/filters/http/rbac/v3/rbac.js';
import type { HttpFilter } from '../../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { ExtAuthz as NetworkExtAuthz } from '../../../proto/generated/envoy/extensions/filters/network/ext_authz/v3/ext_authz.js';
import { RBAC as NetworkRbac } from '../../../proto/generated/envoy/extensions/filters/network/rbac/v3/rbac.js';
import type { Model } from '../../model/model.js';
import { extAuthz, EXT_AUTHZ_STAT_PREFIX, policyPrefix } from './ext-authz.js';
import { NEVER, rulePolicy } from './rules.js';
import { policiesFor, type PolicyTarget } from './targets.js';
import { trustDomains } from './trust-domains.js';

type Loaded = LoadedObject<AuthorizationPolicy>;
type Action = 'ALLOW' | 'DENY' | 'AUDIT' | 'CUSTOM';

const RBAC_ACTIONS: Record<Action, RBAC_Action> = { ALLOW: RBAC_Action.ALLOW, DENY: RBAC_Action.DENY, AUDIT: RBAC_Action.LOG, CUSTOM: RBAC_Action.DENY };

const SHADOW_PREFIXES: Partial<Record<RBAC_Action, string>> = { [RBAC_Action.ALLOW]: 'istio_dry_run_allow_', [RBAC_Action.DENY]: 'istio_dry_run_deny_' };

/** Its rules are counted and logged by the proxy, and decide nothing. */
export function isDryRun({ metadata }: AuthorizationPolicy): boolean {
  return /^(1|t|T|true|TRUE|True)$/.test(metadata.annotations?.['istio.io/dry-run'] ?? '');
}

export function actionOf({ spec }: AuthorizationPolicy): Action {
  return spec?.action ?? 'ALLOW';
}

export interface AuthorizationFilters {
  /** External authorization: before tokens are looked at. */
  customHttp: HttpFilter[];
  http: HttpFilter[];
  /** For connections of no known protocol. */
  network: Filter[];
}

const NOTHING: AuthorizationFilters = { customHttp: [], http: [], network: [] };

/** @param hbone for what comes out of a tunnel that ended in the same proxy */
export function authorizationFilters(model: Model, target: PolicyTarget, hbone: boolean): AuthorizationFilters {
  const policies = policiesFor<AuthorizationPolicy>(model, 'AuthorizationPolicy', target);
  if (policies.length === 0) return NOTHING;
  const of = (action: Action): Loaded[] => policies.filter(({ object }) => actionOf(object) === action);
  const domains = trustDomains(model.mesh);
  const rules = (action: Action, objects: readonly Loaded[], tcp: boolean, prefix = ''): Rbac => {
    const made: Record<string, Policy> = {};
    for (const { object } of objects) {
      const { name, namespace = '' } = object.metadata;
      const label = (index: number): string => `${prefix}ns[${namespace}]-policy[${name}]-rule[${index}]`;
      const written = object.spec?.rules ?? [];
      if (written.length === 0) made[label(0)] = NEVER;
      for (const [index, rule] of written.entries()) {
        const policy = rulePolicy(rule ?? {}, { tcp, allow: action === 'ALLOW', namespace, trustDomains: domains, hbone });
        if (policy) made[label(index)] = policy;
      }
    }
    return Rbac.fromPartial({ action: RBAC_ACTIONS[action], policies: made });
  };
  const decided = (tcp: boolean): { rules?: Rbac; shadow_rules?: Rbac; shadow_rules_stat_prefix: string }[] =>
    (['AUDIT', 'DENY', 'ALLOW'] as const).flatMap((action) => {
      const [enforced, dry] = [of(action).filter(({ object }) => !isDryRun(object)), of(action).filter(({ object }) => isDryRun(object))];
      if (enforced.length + dry.length === 0) return [];
      return {
        ...(enforced.length > 0 ? { rules: rules(action, enforced, tcp) } : {}),
        ...(dry.length > 0 ? { shadow_rules: rules(action, dry, tcp) } : {}),
        shadow_rules_stat_prefix: SHADOW_PREFIXES[dry.length > 0 ? RBAC_ACTIONS[action] : RBAC_Action.ALLOW] ?? '',
      };
    });
  const custom = customPairs(model, of('CUSTOM').filter(({ object }) => !isDryRun(object)), rules);
  return {
    customHttp: custom.http,
    http: decided(false).map(httpRbac),
    network: [...custom.network, ...decided(true).map(networkRbac)],
  };
}

/**
 * A filter that only notes whether one of the policies matches, and the one that asks the service if so. One provider a
 * workload; with several, or with one that is not there, what they match is refused.
 */
function customPairs(model: Model, policies: readonly Loaded[], rules: (action: Action, objects: readonly Loaded[], tcp: boolean, prefix: string) => Rbac): { http: HttpFilter[]; network: Filter[] } {
  const providers = [...new Set(policies.map(({ object }) => object.spec?.provider?.name ?? ''))].sort();
  const http: HttpFilter[] = [];
  const network: Filter[] = [];
  for (const name of providers) {
    const mine = policies.filter(({ object }) => (object.spec?.provider?.name ?? '') === name);
    const [httpRules, tcpRules] = [rules('CUSTOM', mine, false, policyPrefix(name)), rules('CUSTOM', mine, true, policyPrefix(name))];
    const service = providers.length === 1 ? extAuthz(model, name) : undefined;
    if (!service) {
      http.push(httpRbac({ rules: refusing(httpRules) }));
      network.push(networkRbac({ rules: refusing(tcpRules) }));
      continue;
    }
    http.push(httpRbac({ shadow_rules: httpRules, shadow_rules_stat_prefix: EXT_AUTHZ_STAT_PREFIX }), httpFilter('envoy.filters.http.ext_authz', HttpExtAuthz, service.http));
    if (service.network) {
      network.push(networkRbac({ shadow_rules: tcpRules, shadow_rules_stat_prefix: EXT_AUTHZ_STAT_PREFIX }), networkFilter('envoy.filters.network.ext_authz', NetworkExtAuthz, service.network));
    }
  }
  return { http, network };
}

function refusing({ policies }: Rbac): Rbac {
  return Rbac.fromPartial({ action: RBAC_Action.DENY, policies: Object.fromEntries(Object.entries(policies).map(([name, policy]) => [`${name}-deny-due-to-bad-CUSTOM-action`, policy])) });
}

const httpFilter = <T>(name: string, codec: Parameters<typeof pack<T>>[0], message: T): HttpFilter =>
  ({ name, is_optional: false, disabled: false, config_type: { $case: 'typed_config', value: pack(codec, message) } });

const networkFilter = <T>(name: string, codec: Parameters<typeof pack<T>>[0], message: T): Filter => Filter.fromPartial({ name, config_type: { $case: 'typed_config', value: pack(codec, message) } });

const httpRbac = (settings: Parameters<typeof HttpRbac.fromPartial>[0]): HttpFilter => httpFilter('envoy.filters.http.rbac', HttpRbac, HttpRbac.fromPartial(settings));

export const networkRbac = (settings: Parameters<typeof NetworkRbac.fromPartial>[0]): Filter => networkFilter('envoy.filters.network.rbac', NetworkRbac, NetworkRbac.fromPartial({ ...settings, stat_prefix: 'tcp.' }));
