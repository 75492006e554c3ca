/** What each field of an AuthorizationPolicy's rule becomes, for HTTP and for plain TCP, as a formula that can be read. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../../common/xds/any.js';
import type { AuthorizationRule } from '../../../common/kube/types.js';
import type { Permission, Policy, Principal } from '../../../proto/generated/envoy/config/rbac/v3/rbac.js';
import type { HeaderMatcher } from '../../../proto/generated/envoy/config/route/v3/route_components.js';
import { UriTemplateMatchConfig } from '../../../proto/generated/envoy/extensions/path/match/uri_template/v3/uri_template_match.js';
import type { MetadataMatcher } from '../../../proto/generated/envoy/type/matcher/v3/metadata.js';
import type { StringMatcher } from '../../../proto/generated/envoy/type/matcher/v3/string.js';
import type { ValueMatcher } from '../../../proto/generated/envoy/type/matcher/v3/value.js';
import { rulePolicy, type RuleContext } from './rules.js';
import { withTrustDomains } from './trust-domains.js';

const text = (match: StringMatcher | undefined): string => {
  const pattern = match?.match_pattern;
  const value = pattern?.$case === 'safe_regex' ? `~${pattern.value.regex}` : pattern?.$case === 'prefix' ? `${pattern.value}*` : pattern?.$case === 'suffix' ? `*${pattern.value}` : String(pattern?.value);
  return match?.ignore_case ? `i:${value}` : value;
};
const value = (match: ValueMatcher | undefined): string => {
  const pattern = match?.match_pattern;
  if (pattern?.$case === 'string_match') return text(pattern.value);
  if (pattern?.$case === 'list_match') return `[${value(pattern.value.match_pattern?.value as ValueMatcher)}]`;
  if (pattern?.$case === 'or_match') return pattern.value.value_matchers.map(value).join('|');
  return assert.fail('no value');
};
const header = ({ name, header_match_specifier: match }: HeaderMatcher): string => `${name}=${match?.$case === 'string_match' ? text(match.value) : 'present'}`;
const metadata = ({ filter, path, value: match }: MetadataMatcher): string => `${filter}.${path.map(({ segment }) => segment?.value).join('.')}=${value(match)}`;

function formula({ rule: node }: Permission): string {
  switch (node?.$case) {
    case 'and_rules':
      return node.value.rules.map(formula).join(' & ');
    case 'or_rules':
      return `(${node.value.rules.map(formula).join(' | ')})`;
    case 'not_rule':
      return `!${formula(node.value)}`;
    case 'any':
      return 'any';
    case 'header':
      return header(node.value);
    case 'url_path':
      return `path=${text(node.value.rule?.value)}`;
    case 'uri_template':
      return `path=${unpack(UriTemplateMatchConfig, node.value.typed_config)!.path_template}`;
    case 'destination_port':
      return `port=${node.value}`;
    case 'destination_ip':
      return `to=${node.value.address_prefix}/${node.value.prefix_len}`;
    case 'requested_server_name':
      return `sni=${text(node.value)}`;
    case 'metadata':
      return metadata(node.value);
    default:
      return assert.fail(node?.$case);
  }
}

function who({ identifier: node }: Principal): string {
  switch (node?.$case) {
    case 'and_ids':
      return node.value.ids.map(who).join(' & ');
    case 'or_ids':
      return `(${node.value.ids.map(who).join(' | ')})`;
    case 'not_id':
      return `!${who(node.value)}`;
    case 'any':
      return 'any';
    case 'authenticated':
      return text(node.value.principal_name);
    case 'direct_remote_ip':
      return `from=${node.value.address_prefix}/${node.value.prefix_len}`;
    case 'remote_ip':
      return `client=${node.value.address_prefix}/${node.value.prefix_len}`;
    case 'header':
      return header(node.value);
    case 'metadata':
      return metadata(node.value).replace('envoy.filters.http.jwt_authn.payload', 'jwt');
    default:
      return assert.fail(node?.$case);
  }
}

const read = (policy: Policy | undefined): string => (policy ? `${policy.permissions.map(formula).join(' OR ')} BY ${policy.principals.map(who).join(' OR ')}` : 'never');

const context = (more: Partial<RuleContext> = {}): RuleContext => ({ tcp: false, allow: true, namespace: 'shop', trustDomains: ['cluster.local'], hbone: false, ...more });

const from = (source: object): AuthorizationRule => ({ from: [{ source }] });
const to = (operation: object): AuthorizationRule => ({ to: [{ operation }] });
const when = (key: string, values: string[], notValues?: string[]): AuthorizationRule => ({ when: [{ key, values, ...(notValues ? { notValues } : {}) }] });

/** The rule; for HTTP; ALLOW on TCP; DENY on TCP. */
const CASES: [AuthorizationRule, string, string, string][] = [
  [{}, 'any BY any', 'any BY any', 'any BY any'],
  [from({ principals: ['cluster.local/ns/a/sa/b', '*'] }), 'any BY (spiffe://cluster.local/ns/a/sa/b | ~.+)', 'any BY (spiffe://cluster.local/ns/a/sa/b | ~.+)', 'any BY (spiffe://cluster.local/ns/a/sa/b | ~.+)'],
  [from({ principals: ['cluster.local/ns/a/*', '*/sa/b.c'], notPrincipals: ['x'] }), 'any BY (spiffe://cluster.local/ns/a/* | ~spiffe://.*/sa/b\\.c) & !(spiffe://x)', '=', '='],
  [from({ namespaces: ['a', 'b*'], notNamespaces: ['bad'] }), 'any BY (~.*/ns/a/.* | ~.*/ns/b.*/.*) & !(~.*/ns/bad/.*)', '=', '='],
  [from({ trustDomains: ['cluster.local', 'td*', '*'], notTrustDomains: ['x.y'] }), 'any BY (spiffe://cluster.local/* | ~spiffe://td.*/.* | ~spiffe://.+/.*) & !(spiffe://x.y/*)', '=', '='],
  [when('source.trustDomain', ['a']), 'any BY (spiffe://a/*)', '=', '='],
  [from({ serviceAccounts: ['web', 'other/api'] }), 'any BY (~spiffe://.+/ns/shop/(.+/|)sa/web(/.+)? | ~spiffe://.+/ns/other/(.+/|)sa/api(/.+)?)', '=', '='],
  [from({ ipBlocks: ['10.0.0.0/8', '10.1.1.1'], notIpBlocks: ['fd00::/8'] }), 'any BY (from=10.0.0.0/8 | from=10.1.1.1/32) & !(from=fd00::/8)', '=', '='],
  [from({ remoteIpBlocks: ['1.2.3.0/24'], notRemoteIpBlocks: ['1.2.3.4'] }), 'any BY (client=1.2.3.0/24) & !(client=1.2.3.4/32)', '=', '='],
  [from({ requestPrincipals: ['https://i.example/me'] }), 'any BY jwt.iss=https://i.example & jwt.sub=me', 'never', 'any BY any'],
  [from({ requestPrincipals: ['*', '*/me', '*me', 'i/*', 'i*'] }), 'any BY (jwt.iss=~.+ & jwt.sub=~.+ | jwt.iss=~.+ & jwt.sub=me | jwt.iss=~.+ & jwt.sub=*me | jwt.iss=i & jwt.sub=~.+ | jwt.iss=i* & jwt.sub=~.+)', 'never', 'any BY any'],
  [from({ notRequestPrincipals: ['*'] }), 'any BY !jwt.iss=~.+ & jwt.sub=~.+', 'never', 'any BY any'],
  [to({ hosts: ['A.example', '*.b', 'c*', '*'] }), '(:authority=i:A.example | :authority=i:*.b | :authority=i:c* | :authority=present) BY any', 'never', 'any BY any'],
  [to({ notHosts: ['a'] }), '!(:authority=i:a) BY any', 'never', 'any BY any'],
  [to({ methods: ['GET', 'P*'], notMethods: ['PATCH'] }), '(:method=GET | :method=P*) & !(:method=PATCH) BY any', 'never', 'any BY any'],
  [to({ paths: ['/a', '/b/*', '*.html', '/x/{*}/y/{**}'], notPaths: ['/a/secret'] }), '(path=/a | path=/b/* | path=*.html | path=/x/*/y/**) & !(path=/a/secret) BY any', 'never', 'any BY any'],
  [to({ ports: ['80', '443'], notPorts: ['81'] }), '(port=80 | port=443) & !(port=81) BY any', '=', '='],
  [to({ ports: ['80'], methods: ['GET'] }), '(:method=GET) & (port=80) BY any', 'never', '(port=80) BY any'],
  [when('request.headers[x-a]', ['1', 'b*', '*'], ['no']), 'any BY (x-a=1 | x-a=b* | x-a=present) & !(x-a=no)', 'never', 'any BY any'],
  [when('request.experimental.inline.headers[x-l]', ['a.b']), 'any BY (x-l=~(.*,)?\\s*a\\.b\\s*(,.*)?)', 'never', 'any BY any'],
  [when('source.ip', ['10.0.0.1']), 'any BY (from=10.0.0.1/32)', '=', '='],
  [when('remote.ip', ['10.0.0.1']), 'any BY (client=10.0.0.1/32)', '=', '='],
  [when('source.namespace', ['a']), 'any BY (~.*/ns/a/.*)', '=', '='],
  [when('source.serviceAccount', ['a']), 'any BY (~spiffe://.+/ns/shop/(.+/|)sa/a(/.+)?)', '=', '='],
  [when('source.principal', ['a']), 'any BY (spiffe://a)', '=', '='],
  [when('request.auth.principal', ['i/s']), 'any BY jwt.iss=i & jwt.sub=s', 'never', 'any BY any'],
  [when('request.auth.audiences', ['a', 'b*']), 'any BY jwt.aud=[a|b*]|a|b*', 'never', 'any BY any'],
  [when('request.auth.presenter', ['p']), 'any BY jwt.azp=[p]|p', 'never', 'any BY any'],
  [when('request.auth.claims[group]', ['dev']), 'any BY jwt.group=[dev]|dev', 'never', 'any BY any'],
  [when('request.auth.claims[a][b]', [], ['x']), 'any BY !jwt.a.b=[x]|x', 'never', 'any BY any'],
  [when('destination.ip', ['10.0.0.0/8']), '(to=10.0.0.0/8) BY any', '=', '='],
  [when('destination.port', ['80']), '(port=80) BY any', '=', '='],
  [when('connection.sni', ['*.example']), '(sni=*.example) BY any', '=', '='],
  [when('experimental.envoy.filters.network.mysql_proxy[db.table]', ['[update]', 'x']), 'envoy.filters.network.mysql_proxy.db.table=[update]|x BY any', '=', '='],
  [{ ...from({ namespaces: ['a'] }), ...to({ ports: ['1'] }), ...when('source.ip', ['1.1.1.1']) }, '(port=1) BY (~.*/ns/a/.*) & (from=1.1.1.1/32)', '=', '='],
  [{ from: [{ source: { namespaces: ['a'] } }, { source: { namespaces: ['b'] } }], to: [{ operation: { ports: ['1'] } }, { operation: { ports: ['2'] } }] }, '(port=1) OR (port=2) BY (~.*/ns/a/.*) OR (~.*/ns/b/.*)', '=', '='],
];

test('rulePolicy: every field as HTTP and as TCP; an ALLOW rule that TCP can not judge matches nothing, a DENY rule is read without what it can not', () => {
  for (const [rule, http, allowTcp, denyTcp] of CASES) {
    const expected = (wanted: string): string => (wanted === '=' ? http : wanted);
    assert.equal(read(rulePolicy(rule, context())), http, JSON.stringify(rule));
    assert.equal(read(rulePolicy(rule, context({ allow: false }))), http, `DENY ${JSON.stringify(rule)}`);
    assert.equal(read(rulePolicy(rule, context({ tcp: true }))), expected(allowTcp), `TCP ${JSON.stringify(rule)}`);
    assert.equal(read(rulePolicy(rule, context({ tcp: true, allow: false }))), expected(denyTcp), `DENY on TCP ${JSON.stringify(rule)}`);
  }
});

test('rulePolicy: what can not be matched never widens ALLOW and never narrows DENY', () => {
  for (const bad of [from({ ipBlocks: ['nonsense'] }), to({ ports: ['99999'] }), when('no.such.attribute', ['x']), when('request.headers', ['x']), when('request.headers[a b]', ['x']), to({ paths: ['/a{*}'] }), to({ paths: ['/{**}/{*}'] }), to({ paths: ['{*}'] }), when('experimental.envoy.filters.x', ['y'])]) {
    assert.equal(read(rulePolicy(bad, context())), 'never', JSON.stringify(bad));
    assert.equal(read(rulePolicy(bad, context({ allow: false }))), 'any BY any', JSON.stringify(bad));
  }
});

test('withTrustDomains: the mesh under all of its names, others as they are written', () => {
  const domains = ['new', 'old'];
  assert.deepEqual(withTrustDomains(['cluster.local/ns/a/sa/b'], domains), ['new/ns/a/sa/b', 'old/ns/a/sa/b']);
  assert.deepEqual(withTrustDomains(['old/ns/a/sa/b'], domains), ['new/ns/a/sa/b', 'old/ns/a/sa/b']);
  assert.deepEqual(withTrustDomains(['*/ns/a/sa/b', 'foreign/ns/a/sa/b', '*', 'old/*'], domains), ['*/ns/a/sa/b', 'foreign/ns/a/sa/b', '*', 'old/*']);
  assert.deepEqual(withTrustDomains(['*ld/ns/a/sa/b'], domains), ['new/ns/a/sa/b', '*ld/ns/a/sa/b']);
});
