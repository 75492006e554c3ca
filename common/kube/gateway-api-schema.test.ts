import { specCases } from './testing.js';

const API = 'gateway.networking.k8s.io';
const listener = (text: string): string => `{gatewayClassName: istio, listeners: [{${text}}]}`;
const LISTENER = 'spec.listeners[0]';

specCases({
  apiVersion: `${API}/v1`,
  kind: 'Gateway',
  good: {
    'listeners of every kind': `
gatewayClassName: istio
addresses: [{type: Hostname, value: a.example}]
infrastructure: {labels: {a: b}, annotations: {c: d}}
listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: "*.example.com", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}, kinds: [{kind: HTTPRoute}]}}
  - {name: https, port: 443, protocol: HTTPS, tls: {mode: Terminate, certificateRefs: [{name: a, namespace: b}]}}
  - {name: pass, port: 443, protocol: TLS, hostname: a.example, tls: {mode: Passthrough}}
  - {name: tcp, port: 9000, protocol: TCP}`,
  },
  bad: [
    ['no class', '{listeners: [{name: a, port: 80, protocol: HTTP}]}', 'spec.gatewayClassName', /required/],
    ['no listener', '{gatewayClassName: istio, listeners: []}', 'spec.listeners', /at least 1 item/],
    ['an unknown protocol', listener('name: a, port: 80, protocol: http'), `${LISTENER}.protocol`, /expected one of HTTP, HTTPS/],
    ['HTTPS without TLS settings', listener('name: a, port: 443, protocol: HTTPS'), `${LISTENER}.tls`, /needs it/],
    ['TLS settings on HTTP', listener('name: a, port: 80, protocol: HTTP, tls: {certificateRefs: [{name: a}]}'), `${LISTENER}.tls`, /expected HTTPS or TLS/],
    ['no certificate', listener('name: a, port: 443, protocol: HTTPS, tls: {mode: Terminate}'), `${LISTENER}.tls.certificateRefs`, /needs a certificate/],
    ['HTTPS that passes through', listener('name: a, port: 443, protocol: HTTPS, tls: {mode: Passthrough}'), `${LISTENER}.tls.mode`, /protocol TLS/],
    ['a host on TCP', listener('name: a, port: 80, protocol: TCP, hostname: a.b'), `${LISTENER}.hostname`, /knows none/],
    ['a host in upper case', listener('name: a, port: 80, protocol: HTTP, hostname: A.example'), `${LISTENER}.hostname`, /lower case/],
    ['a name twice', '{gatewayClassName: a, listeners: [{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}]}', 'spec.listeners[1].name', /found "a" again/],
    ['the same listener twice', '{gatewayClassName: a, listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}]}', 'spec.listeners[1]', /that differs/],
    ['a selector of namespaces that is missing', listener('name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector}}'), `${LISTENER}.allowedRoutes.namespaces.selector`, /needs it/],
  ],
});

const rule = (text: string): string => `{parentRefs: [{name: gw}], rules: [{${text}}]}`;
const RULE = 'spec.rules[0]';
const BACKEND = 'backendRefs: [{name: web, port: 80}]';

specCases({
  apiVersion: `${API}/v1beta1`,
  kind: 'HTTPRoute',
  good: {
    'rules in full': `
parentRefs: [{name: gw, sectionName: http, namespace: a, port: 80}, {kind: Service, group: "", name: web}]
hostnames: ["*.example.com", a.example]
rules:
  - name: first
    matches: [{path: {type: Exact, value: /a}, method: GET, headers: [{name: x, value: y}, {type: RegularExpression, name: z, value: "a.*"}], queryParams: [{name: q, value: r}]}, {path: {type: RegularExpression, value: "/v[0-9]+"}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [c]}}, {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}, percent: 10}}, {type: URLRewrite, urlRewrite: {hostname: b.example}}, {type: CORS, cors: {allowOrigins: ["https://a"], allowMethods: [GET], maxAge: 5}}]
    backendRefs: [{name: web, port: 80, weight: 9}, {name: v2, port: 80, weight: 1, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: a, value: b}]}}]}]
    timeouts: {request: 1m, backendRequest: 500ms}
    retry: {attempts: 2, codes: [503], backoff: 10ms}
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]`,
  },
  bad: [
    ['a backend without a port', rule('backendRefs: [{name: web}]'), `${RULE}.backendRefs[0].port`, /a Service needs it/],
    ['a path that is relative', rule(`matches: [{path: {value: a}}], ${BACKEND}`), `${RULE}.matches[0].path.value`, /begins with/],
    ['a path with dots', rule(`matches: [{path: {value: /a/../b}}], ${BACKEND}`), `${RULE}.matches[0].path.value`, /without/],
    ['a pattern that is none', rule(`matches: [{path: {type: RegularExpression, value: "("}}], ${BACKEND}`), `${RULE}.matches[0].path.value`, /regular expression/],
    ['an unknown method', rule(`matches: [{method: get}], ${BACKEND}`), `${RULE}.matches[0].method`, /did you mean GET/],
    ['a filter without its field', rule(`filters: [{type: URLRewrite}], ${BACKEND}`), `${RULE}.filters[0].urlRewrite`, /needs it/],
    ['a filter with the field of another', rule(`filters: [{type: URLRewrite, urlRewrite: {}, cors: {}}], ${BACKEND}`), `${RULE}.filters[0].cors`, /expected urlRewrite/],
    ['a redirect with backends', rule(`filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}], ${BACKEND}`), `${RULE}.filters[0]`, /redirect with backendRefs/],
    ['a filter twice', rule(`filters: [{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}], ${BACKEND}`), `${RULE}.filters[1].type`, /expected it once/],
    ['a prefix of an exact match', rule(`matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}], ${BACKEND}`), `${RULE}.filters[0]`, /by PathPrefix alone/],
    ['a status that is no redirect', rule('filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]'), `${RULE}.filters[0].requestRedirect.statusCode`, /found 200/],
    ['a weight out of range', rule('backendRefs: [{name: web, port: 80, weight: -1}]'), `${RULE}.backendRefs[0].weight`, /from 0 to 1000000/],
    ['more than the whole mirrored', rule(`filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}, fraction: {numerator: 3, denominator: 2}}}], ${BACKEND}`), `${RULE}.filters[0].requestMirror.fraction.numerator`, /at most the whole/],
    ['a backend that may take longer than the request', rule(`timeouts: {request: 1s, backendRequest: 2s}, ${BACKEND}`), `${RULE}.timeouts.backendRequest`, /no more than request/],
    ['a duration of Go\'s', rule(`timeouts: {request: 1.5s}, ${BACKEND}`), `${RULE}.timeouts.request`, /a duration such as/],
    ['a filter of somebody else\'s', rule(`filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}], ${BACKEND}`), `${RULE}.filters[0].extensionRef`, /not supported/],
    ['a mirror on a backend', rule('backendRefs: [{name: web, port: 80, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}}}]}]'), `${RULE}.backendRefs[0].filters[0].type`, /backends have no others/],
  ],
  warned: [
    ['a route without a parent', `{rules: [{${BACKEND}}]}`, 'spec.parentRefs', /attached to nothing/],
    ['a header twice', rule(`matches: [{headers: [{name: a, value: b}, {name: A, value: c}]}], ${BACKEND}`), `${RULE}.matches[0].headers[1].name`, /only the first/],
  ],
});

specCases({
  apiVersion: `${API}/v1`,
  kind: 'GRPCRoute',
  good: { 'a method and headers': rule(`matches: [{method: {service: a.b.C, method: Do}, headers: [{name: a, value: b}]}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: a, value: b}]}}], ${BACKEND}`) },
  bad: [
    ['a match of no method', rule(`matches: [{method: {type: Exact}}], ${BACKEND}`), `${RULE}.matches[0].method`, /a service or a method/],
    ['a service that is no name', rule(`matches: [{method: {service: a/b}}], ${BACKEND}`), `${RULE}.matches[0].method.service`, /name of gRPC/],
  ],
});

for (const kind of ['TLSRoute', 'TCPRoute']) {
  specCases({
    apiVersion: `${API}/v1alpha2`,
    kind,
    good: { backends: rule('backendRefs: [{name: web, port: 80}, {name: b, port: 80, weight: 2}]') },
    bad: [
      ['no rule', '{parentRefs: [{name: a}]}', 'spec.rules', /required/],
      ['a rule without backends', rule('name: a'), `${RULE}.backendRefs`, /required/],
    ],
    warned: [['a second rule', `{parentRefs: [{name: a}], rules: [{${BACKEND}}, {${BACKEND}}]}`, 'spec.rules[1]', /nothing reaches/]],
  });
}

specCases({
  apiVersion: `${API}/v1beta1`,
  kind: 'ReferenceGrant',
  good: { 'a grant': '{from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: a}], to: [{group: "", kind: Secret, name: b}]}' },
  bad: [['nothing granted', '{from: [{group: a, kind: b, namespace: c}]}', 'spec.to', /required/]],
});

specCases({
  apiVersion: `${API}/v1`,
  kind: 'GatewayClass',
  good: { 'a controller': '{controllerName: istio.io/gateway-controller, description: a}' },
  bad: [['no controller', '{}', 'spec.controllerName', /required/]],
});
