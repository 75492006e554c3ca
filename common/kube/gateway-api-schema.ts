/** The Gateway API's kinds, with what the API's own definitions and Istio ask of one by itself. */
import { anything, bool, choice, ignored, integer, list, object, port, refused, stringMap, text, withCheck, word, type Report, type Schema } from './schema.js';
import { labels, pattern } from './istio/fields.js';
import { HEADER_NAME, isHostName, isIpAddress } from './istio/syntax.js';
import type { GatewayListener, HTTPPathMatch, HTTPRoute, HTTPRouteFilter, HTTPRouteMatch, HTTPRouteRule, KubeGateway, TypedMatch } from './gateway-api.js';

const regExp = (value: string, report: Report, warn: Report): void => pattern.check!(value, report, warn);

const grammar = (isRight: (value: string) => boolean, expected: string): Schema => withCheck<string>(word, (value, report) => {
  if (value !== '' && !isRight(value)) report(`found ${JSON.stringify(value)}, expected ${expected}`);
});

const isLowerHost = (value: string): boolean => value === value.toLowerCase() && isHostName(value) && !isIpAddress(value);
const hostname = grammar((value) => isLowerHost(value.startsWith('*.') ? value.slice(2) : value), 'a host name in lower case, perhaps with a leading "*."');
const preciseHostname = grammar(isLowerHost, 'a host name in lower case, without a wildcard');
const headerName = grammar((value) => HEADER_NAME.test(value) && value.length <= 256, "a header's name");
const sectionName = grammar((value) => /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/.test(value) && value.length <= 253, 'lower-case letters, digits, "-" and "."');

/** GEP-2257: up to four numbers with h, m, s, ms, in whole ones. */
const gatewayDuration = grammar((value) => /^([0-9]{1,5}(h|m|s|ms)){1,4}$/.test(value), 'a duration such as 500ms, 10s or 1h30m');

const labelSelector = object({ matchLabels: labels, matchExpressions: list(object({ key: word, operator: choice('In', 'NotIn', 'Exists', 'DoesNotExist'), values: list(text) }, ['key', 'operator'])) });

const objectRef = { group: text, kind: word, name: word, namespace: text };
const secretRef = object(objectRef, ['name']);
const caRef = object(objectRef, ['kind', 'name']);
const localRef = object({ group: text, kind: word, name: word }, ['group', 'kind', 'name']);

type BackendObject = { group?: string; kind?: string; port?: number };
const needsPort = ({ group = '', kind = 'Service', port: number }: BackendObject, report: Report): void => {
  if (group === '' && kind === 'Service' && number === undefined) report('found nothing, a Service needs it', ['port']);
};
const backendObject = withCheck<BackendObject>(object({ ...objectRef, port }, ['name']), needsPort);
const backendRef = (more: Record<string, Schema> = {}): Schema => withCheck<BackendObject>(object({ ...objectRef, port, weight: integer(0, 1_000_000), ...more }, ['name']), needsPort);

const parentRefs = list(object({ ...objectRef, sectionName, port }, ['name']));
const commonRoute = { parentRefs, useDefaultGateways: ignored(text) };

export const gatewayClass: Schema = object({ controllerName: word, parametersRef: ignored(object({ ...objectRef }, ['group', 'kind', 'name'])), description: text }, ['controllerName']);

const fromNamespaces = object({ from: choice('All', 'Selector', 'Same', 'None'), selector: labelSelector });
const validationMode = ignored(choice('AllowValidOnly', 'AllowInsecureFallback'));
const frontend = object({ validation: object({ caCertificateRefs: list(caRef, 1), mode: validationMode }, ['caCertificateRefs']) });

const listenerTls = object({
  mode: choice('Terminate', 'Passthrough'),
  certificateRefs: list(secretRef),
  frontendValidation: refused(object({ caCertificateRefs: list(secretRef), mode: validationMode })),
  options: { type: 'map', values: text },
});

const PROTOCOLS = ['HTTP', 'HTTPS', 'TLS', 'TCP', 'UDP', 'HBONE'];

const listener: Schema = withCheck<GatewayListener>(
  object(
    {
      name: sectionName,
      hostname,
      port,
      protocol: word,
      tls: listenerTls,
      allowedRoutes: object({ namespaces: fromNamespaces, kinds: list(object({ group: text, kind: word }, ['kind'])) }),
    },
    ['name', 'port', 'protocol'],
  ),
  ({ protocol, tls, hostname: host, allowedRoutes }, report, warn) => {
    if (!PROTOCOLS.includes(protocol) && !protocol.includes('/')) report(`found "${protocol}", expected one of ${PROTOCOLS.join(', ')}`, ['protocol']);
    if (protocol === 'UDP') warn('found UDP, which this control plane does not serve', ['protocol']);
    if ((protocol === 'HTTPS' || protocol === 'TLS') && !tls) report(`found nothing, protocol ${protocol} needs it`, ['tls']);
    if ((protocol === 'HTTP' || protocol === 'TCP' || protocol === 'UDP') && tls) report(`found TLS settings with protocol ${protocol}, expected HTTPS or TLS`, ['tls']);
    if ((protocol === 'TCP' || protocol === 'UDP') && host) report(`found a host name with protocol ${protocol}, which knows none, expected nothing`, ['hostname']);
    if (protocol === 'HTTPS' && tls?.mode === 'Passthrough') report('found Passthrough with HTTPS, expected Terminate, or protocol TLS', ['tls', 'mode']);
    if (tls && (tls.mode ?? 'Terminate') === 'Terminate' && !tls.certificateRefs?.length && Object.keys(tls.options ?? {}).length === 0) report('found nothing, mode Terminate needs a certificate', ['tls', 'certificateRefs']);
    if (allowedRoutes?.namespaces?.from === 'Selector' && !allowedRoutes.namespaces.selector) report('found nothing, from: Selector needs it', ['allowedRoutes', 'namespaces', 'selector']);
  },
);

export const kubeGateway: Schema = withCheck<KubeGateway['spec']>(
  object(
    {
      gatewayClassName: word,
      listeners: list(listener, 1),
      addresses: list(object({ type: text, value: text })),
      infrastructure: object({ labels: stringMap, annotations: stringMap, parametersRef: ignored(localRef) }),
      allowedListeners: ignored(object({ namespaces: fromNamespaces }), 'ListenerSets are not served'),
      tls: object({
        backend: refused(object({ clientCertificateRef: secretRef })),
        frontend: refused(object({ default: frontend, perPort: list(object({ port, tls: frontend }, ['port', 'tls'])) }, ['default'])),
      }),
      defaultScope: ignored(text),
    },
    ['gatewayClassName', 'listeners'],
  ),
  ({ listeners = [] }, report) => {
    const keys = listeners.map(({ port: number, protocol, hostname: host }) => `${number} ${protocol} ${host ?? ''}`);
    listeners.forEach(({ name }, index) => {
      if (listeners.findIndex((other) => other.name === name) < index) report(`found "${name}" again, expected each listener's name once`, ['listeners', index, 'name']);
      if (keys.indexOf(keys[index]!) < index) report('found the port, protocol and host name of a listener before it, expected one that differs', ['listeners', index]);
    });
  },
);

const headers = list(object({ name: headerName, value: text }, ['name', 'value']));
const headerFilter = object({ set: headers, add: headers, remove: list(word) });

const pathModifier: Schema = withCheck<{ type: string; replaceFullPath?: string; replacePrefixMatch?: string }>(
  object({ type: choice('ReplaceFullPath', 'ReplacePrefixMatch'), replaceFullPath: text, replacePrefixMatch: text }, ['type']),
  ({ type, ...value }, report) => {
    const field = type === 'ReplaceFullPath' ? 'replaceFullPath' : 'replacePrefixMatch';
    for (const key of ['replaceFullPath', 'replacePrefixMatch'] as const) {
      if (key === field && value[key] === undefined) report(`found nothing, type ${type} needs it`, [key]);
      if (key !== field && value[key] !== undefined) report(`found ${key} with type ${type}, expected ${field}`, [key]);
    }
  },
);

const fraction = withCheck<{ numerator: number; denominator?: number }>(object({ numerator: integer(0), denominator: integer(1) }, ['numerator']), ({ numerator, denominator = 100 }, report) => {
  if (numerator > denominator) report(`found ${numerator} of ${denominator}, expected at most the whole`, ['numerator']);
});
const mirror: Schema = { type: 'object', fields: { backendRef: backendObject, percent: integer(0, 100), fraction }, required: ['backendRef'], atMostOne: [['percent', 'fraction']] };

/** The field that goes with each type of filter. */
const FILTER_FIELDS: Record<string, string> = {
  RequestHeaderModifier: 'requestHeaderModifier', ResponseHeaderModifier: 'responseHeaderModifier', RequestMirror: 'requestMirror', RequestRedirect: 'requestRedirect',
  URLRewrite: 'urlRewrite', CORS: 'cors', ExternalAuth: 'externalAuth', ExtensionRef: 'extensionRef',
};

function checkFilter(filter: HTTPRouteFilter, report: Report): void {
  const field = FILTER_FIELDS[filter.type];
  for (const key of Object.values(FILTER_FIELDS)) {
    const set = key in filter;
    if (key === field && !set) report(`found nothing, type ${filter.type} needs it`, [key]);
    if (key !== field && set) report(`found ${key} with type ${filter.type}, expected ${field}`, [key]);
  }
}

const cors = object({
  allowOrigins: list(word), allowCredentials: bool, allowMethods: list(word), allowHeaders: list(word), exposeHeaders: list(word), maxAge: integer(1),
});

const httpFilter: Schema = withCheck<HTTPRouteFilter>(
  object(
    {
      type: choice(...Object.keys(FILTER_FIELDS)),
      requestHeaderModifier: headerFilter,
      responseHeaderModifier: headerFilter,
      requestMirror: mirror,
      requestRedirect: object({ scheme: choice('http', 'https'), hostname: preciseHostname, path: pathModifier, port, statusCode: withCheck<number>(integer(), (value, report) => {
        if (![301, 302, 303, 307, 308].includes(value)) report(`found ${value}, expected 301, 302, 303, 307 or 308`);
      }) }),
      urlRewrite: object({ hostname: preciseHostname, path: pathModifier }),
      cors,
      externalAuth: refused(),
      extensionRef: refused(localRef),
    },
    ['type'],
  ),
  checkFilter,
);

/** A backend's own filters edit headers; Istio knows no others there. */
const onBackend = (filter: Schema): Schema =>
  withCheck<HTTPRouteFilter[]>(list(filter), (filters, report) => {
    filters.forEach(({ type }, index) => {
      if (!type.endsWith('HeaderModifier')) report(`found ${type}, expected RequestHeaderModifier or ResponseHeaderModifier: backends have no others`, [index, 'type']);
    });
  });

const PATH = /^\/[A-Za-z0-9/\-._~!$&'()*+,;=:%@]*$/;

function checkPath({ type = 'PathPrefix', value = '/' }: HTTPPathMatch, report: Report, warn: Report): void {
  if (type === 'RegularExpression') return regExp(value, (message) => report(message, ['value']), warn);
  if (!PATH.test(value)) report(`found ${JSON.stringify(value)}, expected a path that begins with "/"`, ['value']);
  else if (/\/\/|\/\.{1,2}(\/|$)|%2f/i.test(value)) report(`found ${JSON.stringify(value)}, expected a path without "//", "/./", "/../" and "%2f"`, ['value']);
}

function checkTyped(entries: readonly TypedMatch[], report: Report, warn: Report): void {
  entries.forEach(({ type, name, value }, index) => {
    if (type === 'RegularExpression') regExp(value, (message) => report(message, [index, 'value']), warn);
    if (entries.findIndex((other) => other.name.toLowerCase() === name.toLowerCase()) < index) warn(`found "${name}" again: only the first one counts`, [index, 'name']);
  });
}

const typedMatches = withCheck<TypedMatch[]>(list(object({ type: choice('Exact', 'RegularExpression'), name: headerName, value: text }, ['name', 'value'])), checkTyped);

const httpMatch = object({
  path: withCheck<HTTPPathMatch>(object({ type: choice('Exact', 'PathPrefix', 'RegularExpression'), value: text }), checkPath),
  headers: typedMatches,
  queryParams: typedMatches,
  method: choice('GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'CONNECT', 'OPTIONS', 'TRACE', 'PATCH'),
});

const sessionPersistence = refused(
  object({ sessionName: text, absoluteTimeout: gatewayDuration, idleTimeout: gatewayDuration, type: choice('Cookie', 'Header'), cookieConfig: object({ lifetimeType: choice('Permanent', 'Session') }) }),
);

const prefixesOnly = (matches: readonly HTTPRouteMatch[] = [{}]): boolean => matches.every(({ path }) => (path?.type ?? 'PathPrefix') === 'PathPrefix');

function checkHttpRule({ filters = [], backendRefs = [], matches, timeouts }: HTTPRouteRule, report: Report): void {
  filters.forEach((filter, index) => {
    const once = filter.type !== 'RequestMirror' && filter.type !== 'ExtensionRef';
    if (once && filters.findIndex(({ type }) => type === filter.type) < index) report(`found ${filter.type} again, expected it once`, ['filters', index, 'type']);
    if (filter.type === 'RequestRedirect' && backendRefs.length > 0) report('found a redirect with backendRefs, expected one of them', ['filters', index]);
    if (filter.type === 'URLRewrite' && filters.some(({ type }) => type === 'RequestRedirect')) report('found a rewrite with a redirect, expected one of them', ['filters', index]);
    const path = filter.urlRewrite?.path ?? filter.requestRedirect?.path;
    if (path?.type === 'ReplacePrefixMatch' && !prefixesOnly(matches)) report('found ReplacePrefixMatch with a match that is no prefix, expected matches by PathPrefix alone', ['filters', index]);
  });
  const longMs = (value?: string): number => {
    const units: Record<string, number> = { h: 3_600_000, m: 60_000, s: 1_000, ms: 1 };
    return [...(value ?? '').matchAll(/([0-9]+)(ms|h|m|s)/g)].reduce((sum, [, amount, unit]) => sum + Number(amount) * units[unit!]!, 0);
  };
  const [request, backend] = [longMs(timeouts?.request), longMs(timeouts?.backendRequest)];
  if (request > 0 && backend > request) report(`found ${timeouts!.backendRequest}, expected no more than request: ${timeouts!.request}`, ['timeouts', 'backendRequest']);
}

const httpRule: Schema = withCheck<HTTPRouteRule>(
  object({
    name: sectionName,
    matches: list(httpMatch),
    filters: list(httpFilter),
    backendRefs: list(backendRef({ filters: onBackend(httpFilter) })),
    timeouts: object({ request: gatewayDuration, backendRequest: gatewayDuration }),
    retry: object({ codes: list(integer(400, 599)), attempts: integer(0, 0x7fff_ffff), backoff: gatewayDuration }),
    sessionPersistence,
  }),
  checkHttpRule,
);

const noParent = ({ parentRefs: parents }: HTTPRoute['spec'], _: Report, warn: Report): void => {
  if (!parents?.length) warn('found no parent: the route is attached to nothing', ['parentRefs']);
};

export const httpRoute: Schema = withCheck(object({ ...commonRoute, hostnames: list(hostname), rules: list(httpRule) }), noParent);

const grpcFilter: Schema = withCheck<HTTPRouteFilter>(
  object(
    {
      type: choice('RequestHeaderModifier', 'ResponseHeaderModifier', 'RequestMirror', 'ExtensionRef'),
      requestHeaderModifier: headerFilter, responseHeaderModifier: headerFilter, requestMirror: mirror, extensionRef: refused(localRef),
    },
    ['type'],
  ),
  checkFilter,
);

const methodMatch: Schema = withCheck<{ type?: string; service?: string; method?: string }>(object({ type: choice('Exact', 'RegularExpression'), service: text, method: text }), ({ type, service, method }, report, warn) => {
  if (!service && !method) report('found nothing, expected a service or a method');
  for (const [key, value] of [['service', service], ['method', method]] as const) {
    if (!value) continue;
    if (type === 'RegularExpression') regExp(value, (message) => report(message, [key]), warn);
    else if (!/^[A-Za-z_][A-Za-z_0-9.]*$/.test(value)) report(`found "${value}", expected a name of gRPC`, [key]);
  }
});

export const grpcRoute: Schema = withCheck(
  object({
    ...commonRoute,
    hostnames: list(hostname),
    rules: list(
      object({
        name: sectionName,
        matches: list(object({ method: methodMatch, headers: typedMatches })),
        filters: list(grpcFilter),
        backendRefs: list(backendRef({ filters: onBackend(grpcFilter) })),
        sessionPersistence,
      }),
    ),
  }),
  noParent,
);

const l4Rules = withCheck<unknown[]>(list(object({ name: sectionName, backendRefs: list(backendRef(), 1) }, ['backendRefs']), 1), (rules, _, warn) => {
  if (rules.length > 1) warn('found another rule, which nothing reaches: these rules have no conditions, so that the first takes all', [1]);
});
export const tlsRoute: Schema = withCheck(object({ ...commonRoute, hostnames: list(hostname), rules: l4Rules }, ['rules']), noParent);
export const tcpRoute: Schema = withCheck(object({ ...commonRoute, rules: l4Rules }, ['rules']), noParent);

export const referenceGrant: Schema = object(
  { from: list(object({ group: text, kind: word, namespace: word }, ['group', 'kind', 'namespace']), 1), to: list(object({ group: text, kind: word, name: text }, ['group', 'kind']), 1) },
  ['from', 'to'],
);

export const backendTlsPolicy: Schema = object(
  {
    targetRefs: list(object({ group: text, kind: word, name: word, sectionName }, ['group', 'kind', 'name']), 1),
    validation: withCheck<{ caCertificateRefs?: unknown[]; wellKnownCACertificates?: string }>(
      object(
        { caCertificateRefs: list(localRef), wellKnownCACertificates: choice('System'), hostname: preciseHostname, subjectAltNames: list(object({ type: choice('Hostname', 'URI'), hostname, uri: text }, ['type'])) },
        ['hostname'],
      ),
      ({ caCertificateRefs, wellKnownCACertificates }, report) => {
        if (!caCertificateRefs?.length === !wellKnownCACertificates) report('found none or both of caCertificateRefs and wellKnownCACertificates, expected one of them');
      },
    ),
    options: ignored({ type: 'map', values: anything }),
  },
  ['targetRefs', 'validation'],
);
