import { specCases } from '../testing.js';

specCases({
  apiVersion: 'security.istio.io/v1beta1',
  kind: 'PeerAuthentication',
  good: {
    nothing: '{}',
    'a namespace': '{mtls: {mode: STRICT}}',
    'ports of a workload': '{selector: {matchLabels: {app: a}}, mtls: {mode: UNSET}, portLevelMtls: {80: {mode: DISABLE}, "8080": {mode: PERMISSIVE}}}',
  },
  bad: [
    ['an unknown mode', '{mtls: {mode: STRCT}}', 'spec.mtls.mode', /did you mean STRICT/],
    ['ports of a namespace', '{portLevelMtls: {80: {mode: DISABLE}}}', 'spec.portLevelMtls', /expected a selector/],
    ['ports without one', '{selector: {matchLabels: {app: a}}, portLevelMtls: {}}', 'spec.portLevelMtls', /at least one/],
    ['a port that is none', '{selector: {matchLabels: {app: a}}, portLevelMtls: {http: {mode: DISABLE}}}', 'spec.portLevelMtls.http', /from 1 to 65535/],
    ['a wildcard in a selector', '{selector: {matchLabels: {app: "a*"}}}', 'spec.selector.matchLabels.app', /no wildcard/],
    ['a selector in another spelling', '{selector: {labels: {app: a}}}', 'spec.selector.labels', /did you mean "matchLabels"|expected one of matchLabels/],
  ],
  warned: [['a selector of everything', '{selector: {matchLabels: {}}}', 'spec.selector', /every workload/]],
});

const rule = (text: string, more = ''): string => `{${more} rules: [{${text}}]}`;
const RULE = 'spec.rules[0]';

specCases({
  apiVersion: 'security.istio.io/v1',
  kind: 'AuthorizationPolicy',
  good: {
    'nothing, which denies everything': '{}',
    'a rule for everything': '{action: DENY, rules: [{}]}',
    'rules in full': `
selector: {matchLabels: {app: a}}
action: ALLOW
rules:
  - from: [{source: {principals: [cluster.local/ns/a/sa/b, "*"], notNamespaces: [x], requestPrincipals: ["*/*"], ipBlocks: [10.0.0.0/8, "::1"], notRemoteIpBlocks: [1.2.3.4]}}, {source: {serviceAccounts: [a/b, c], trustDomains: ["*.example"]}}]
    to: [{operation: {hosts: ["*.a"], ports: ["80"], methods: [GET], paths: ["/a*", "/b/{*}/c/{**}"], notPaths: [/x]}}]
    when: [{key: "request.headers[x-user]", values: [a]}, {key: source.ip, notValues: [10.0.0.1]}, {key: "request.auth.claims[a][b]", values: [c]}, {key: destination.port, values: ["80"]}, {key: connection.sni, values: [a]}, {key: "experimental.envoy.filters.a[b]", values: [c]}]`,
    'an external server': '{action: CUSTOM, provider: {name: opa}, rules: [{from: [{source: {ipBlocks: [10.0.0.1]}}], to: [{operation: {paths: [/a]}}]}]}',
    'a target': '{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: a}], rules: [{}]}',
    audit: '{action: AUDIT, rules: [{to: [{operation: {ports: ["80"]}}]}]}',
  },
  bad: [
    ['an unknown action', '{action: REJECT}', 'spec.action', /expected one of ALLOW, DENY, AUDIT, CUSTOM/],
    ['DENY without rules', '{action: DENY}', 'spec.rules', /matches nothing, expected rules/],
    ['CUSTOM without a provider', '{action: CUSTOM, rules: [{}]}', 'spec.provider.name', /needs the name of an extension provider/],
    ['a provider without CUSTOM', '{action: ALLOW, provider: {name: a}, rules: [{}]}', 'spec.provider', /expected it with CUSTOM/],
    ['CUSTOM that asks for identity', '{action: CUSTOM, provider: {name: a}, rules: [{from: [{source: {principals: [a]}}]}]}', `${RULE}.from[0].source.principals`, /can't ask for/],
    ['CUSTOM that asks for claims', '{action: CUSTOM, provider: {name: a}, rules: [{when: [{key: "request.auth.claims[a]", values: [b]}]}]}', `${RULE}.when[0].key`, /can't ask for/],
    ['an empty list of sources', rule('from: []'), `${RULE}.from`, /or no from/],
    ['an empty source', rule('from: [{source: {}}]'), `${RULE}.from[0].source`, /at least one field/],
    ['an empty operation', rule('to: [{operation: {}}]'), `${RULE}.to[0].operation`, /at least one field/],
    ['an operation without its key', rule('to: [{}]'), `${RULE}.to[0].operation`, /required/],
    ['an empty principal', rule('from: [{source: {principals: [""]}}]'), `${RULE}.from[0].source.principals[0]`, /not empty/],
    ['a block that is none', rule('from: [{source: {ipBlocks: [10.0.0.0/99]}}]'), `${RULE}.from[0].source.ipBlocks[0]`, /10\.0\.0\.0\/8/],
    ['service accounts and namespaces', rule('from: [{source: {serviceAccounts: [a], namespaces: [b]}}]'), `${RULE}.from[0].source.namespaces`, /found serviceAccounts and namespaces/],
    ['a service account with a wildcard', rule('from: [{source: {serviceAccounts: ["a/*"]}}]'), `${RULE}.from[0].source.serviceAccounts[0]`, /no wildcard/],
    ['a port as a number', rule('to: [{operation: {ports: [80]}}]'), `${RULE}.to[0].operation.ports[0]`, /put it in quotes/],
    ['a port that is none', rule('to: [{operation: {ports: ["80000"]}}]'), `${RULE}.to[0].operation.ports[0]`, /expected a port/],
    ['a template within a segment', rule('to: [{operation: {paths: ["/a{*}"]}}]'), `${RULE}.to[0].operation.paths[0]`, /a whole segment/],
    ['a template after the last one', rule('to: [{operation: {paths: ["/{**}/{*}"]}}]'), `${RULE}.to[0].operation.paths[0]`, /last of the templates/],
    ['an unknown attribute', rule('when: [{key: source.user, values: [a]}]'), `${RULE}.when[0].key`, /expected one of request\.headers\[…\]/],
    ['a header without brackets', rule('when: [{key: request.headers, values: [a]}]'), `${RULE}.when[0].key`, /expected one of request\.headers/],
    ['a condition without values', rule('when: [{key: source.ip}]'), `${RULE}.when[0].values`, /values or notValues/],
    ['an address in a condition that is none', rule('when: [{key: remote.ip, values: [a]}]'), `${RULE}.when[0].values[0]`, /IP address/],
    ['a selector and a target', '{selector: {matchLabels: {a: b}}, targetRef: {kind: Service, name: a}, rules: [{}]}', 'spec.targetRef', /found selector and targetRef/],
    ['a target of another kind', '{targetRef: {kind: Pod, name: a}, rules: [{}]}', 'spec.targetRef.kind', /expected one of Service/],
    ['a target elsewhere', '{targetRef: {kind: Service, name: a, namespace: b}, rules: [{}]}', 'spec.targetRef.namespace', /its own namespace/],
  ],
  warned: [['DENY that closes TCP ports', '{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}', RULE, /denies all traffic of TCP ports/]],
});

const jwt = (text: string): string => `{jwtRules: [{issuer: a, ${text}}]}`;
const JWT = 'spec.jwtRules[0]';
const KEY = '{"kty":"RSA","e":"AQAB","n":"xA"}';

specCases({
  apiVersion: 'security.istio.io/v1',
  kind: 'RequestAuthentication',
  good: {
    nothing: '{}',
    'a rule in full': jwt(`audiences: [b], jwks: '{"keys":[${KEY}]}', fromHeaders: [{name: x-jwt, prefix: "Bearer "}], fromParams: [t], fromCookies: [c], outputPayloadToHeader: x-p, forwardOriginalToken: true, outputClaimToHeaders: [{header: x-a, claim: a.b}], timeout: 5s`),
    'keys to fetch': jwt('jwksUri: "https://a.example/jwks"'),
    'keys to fetch, in the other spelling': jwt('jwks_uri: "http://a.example:8080/jwks"'),
  },
  bad: [
    ['no issuer and no keys', '{jwtRules: [{audiences: [a]}]}', `${JWT}.issuer`, /issuer or a jwksUri/],
    ['keys and where to fetch them', jwt(`jwksUri: "https://a/", jwks: '${KEY}'`), `${JWT}.jwks`, /found jwksUri and jwks/],
    ['an address of another kind', jwt('jwksUri: "ftp://a/"'), `${JWT}.jwksUri`, /http:\/\/ or https:\/\//],
    ['keys that are not JSON', jwt('jwks: "{secret"'), `${JWT}.jwks`, /^found text that is not JSON, expected a JSON web key set$/],
    ['keys without a list', jwt(`jwks: '{"key": []}'`), `${JWT}.jwks`, /no list of keys/],
    ['a key of an unknown type', jwt(`jwks: '{"keys":[{"kty":"DSA"}]}'`), `${JWT}.jwks`, /number 0\) of an unknown type/],
    ['a key that lacks a part', jwt(`jwks: '{"keys":[{"kty":"RSA","n":"a"}]}'`), `${JWT}.jwks`, /incomplete key/],
    ['a header without a name', jwt('fromHeaders: [{prefix: a}]'), `${JWT}.fromHeaders[0].name`, /required/],
    ['an empty parameter', jwt('fromParams: [""]'), `${JWT}.fromParams[0]`, /not empty/],
    ['a header that is none', jwt('outputClaimToHeaders: [{header: "a b", claim: c}]'), `${JWT}.outputClaimToHeaders[0].header`, /a header's name/],
    ['an audience that is empty', jwt('audiences: [""]'), `${JWT}.audiences[0]`, /not empty/],
  ],
  warned: [['a private key', jwt(`jwks: '{"keys":[{"kty":"RSA","n":"a","e":"b","d":"c"}]}'`), `${JWT}.jwks`, /found a private key \(number 0\)/]],
});
