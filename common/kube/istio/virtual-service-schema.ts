/** VirtualService: its fields, and what Istio's own validation asks of one by itself. */
import { bool, choice, duration, ignored, integer, list, nearest, noted, object, port, refused, text, withCheck, word, type Report, type Schema } from '../schema.js';
import { destination, dnsLabel, exportTo, gatewayNames, hostOrAddress, ipBlock, labels, pattern, percent, presenceMatch, stringMatch } from './fields.js';
import type { Headers, HttpFaultInjection, HttpMatchRequest, HttpRedirect, HttpRetry, HttpRoute, RouteDestination, StringMatch, TlsRoute, VirtualService } from './networking.js';
import { HEADER_NAME, hostContains, hostsOverlap } from './syntax.js';

const PSEUDO_HEADERS = [':method', ':scheme', ':authority', ':path', ':status'];

const headerMatches = (mayBeStar: boolean): Schema => ({
  type: 'map',
  values: mayBeStar
    ? { type: 'object', fields: { exact: text, prefix: word, regex: withCheck<string>(text, (value, report, warn) => value !== '*' && pattern.check!(value, report, warn)) }, atMostOne: [['exact', 'prefix', 'regex']] }
    : presenceMatch,
  check: (value: Record<string, unknown>, report) => {
    for (const name of Object.keys(value)) {
      if (name.startsWith('@request.auth.claims')) continue;
      if (!PSEUDO_HEADERS.includes(name) && !HEADER_NAME.test(name)) report(`found "${name}", expected a header's name`, [name]);
      if (['uri', 'scheme', 'method', 'authority'].includes(name)) report(`found the key "${name}", which a header match leaves out: use the field ${name} of the match`, [name]);
    }
  },
});

/** Envoy takes no empty prefix for these. */
const filledMatch: Schema = withCheck<StringMatch>(stringMatch, ({ prefix }, report) => {
  if (prefix === '') report('found an empty prefix, expected a longer one: it would match everything', ['prefix']);
});

const httpMatch = object({
  name: text,
  uri: stringMatch,
  scheme: filledMatch,
  method: filledMatch,
  authority: filledMatch,
  headers: headerMatches(false),
  withoutHeaders: headerMatches(true),
  queryParams: { type: 'map', values: presenceMatch },
  ignoreUriCase: bool,
  port,
  sourceLabels: labels,
  sourceNamespace: dnsLabel,
  gateways: gatewayNames,
  statPrefix: text,
});

const RETRY_CONDITIONS = [
  '5xx', 'gateway-error', 'reset', 'reset-before-request', 'connect-failure', 'envoy-ratelimited', 'retriable-4xx', 'refused-stream',
  'retriable-status-codes', 'retriable-headers', 'http3-post-connect-failure', 'cancelled', 'deadline-exceeded', 'internal', 'resource-exhausted', 'unavailable',
];

export const retryOn: Schema = withCheck<string>(text, (value, report) => {
  for (const condition of value.split(',').map((part) => part.trim()).filter((part) => part !== '')) {
    if (RETRY_CONDITIONS.includes(condition) || /^[1-5][0-9][0-9]$/.test(condition)) continue;
    const near = nearest(condition, RETRY_CONDITIONS);
    report(`found "${condition}", expected a status code or one of Envoy's retry conditions${near ? ` (did you mean ${near}?)` : ''}`);
  }
});

export const positiveDuration: Schema = { type: 'duration', minMs: 1 };

export const retries: Schema = withCheck<HttpRetry>(
  object({ attempts: integer(0, 0x7fff_ffff), perTryTimeout: positiveDuration, retryOn, retryRemoteLocalities: bool, retryIgnorePreviousHosts: bool, backoff: positiveDuration }),
  (value, report) => {
    const more = (['perTryTimeout', 'retryOn', 'retryRemoteLocalities'] as const).filter((key) => value[key] !== undefined && value[key] !== '');
    if (!value.attempts && more.length > 0) report(`found ${more.join(' and ')} with no attempts, expected attempts of at least 1`, ['attempts']);
  },
);

const NOT_FOR_HEADERS = /[\u0000-\u0008\u000a-\u001f\u007f]/;

function checkHeaderNames(value: Headers, report: Report): void {
  for (const direction of ['request', 'response'] as const) {
    for (const operation of ['set', 'add', 'remove'] as const) {
      const entries = value[direction]?.[operation] ?? {};
      const names = Array.isArray(entries) ? entries : Object.keys(entries);
      names.forEach((name, index) => {
        const path = [direction, operation, Array.isArray(entries) ? index : name];
        const authority = /^(:authority|host)$/i.test(name);
        if (name === '') report("found an empty name, expected a header's name", path);
        else if (authority && direction === 'request' && operation !== 'remove') return;
        else if (name.startsWith(':') || authority) report(`found "${name}", expected a header other than Host and those that begin with ":"`, path);
        else if (!HEADER_NAME.test(name)) report(`found ${JSON.stringify(name)}, expected a header's name`, path);
      });
      if (Array.isArray(entries)) continue;
      for (const [name, content] of Object.entries(entries)) if (NOT_FOR_HEADERS.test(content)) report('found a control character, expected printable text', [direction, operation, name]);
    }
  }
}

const operations = object({ set: { type: 'map', values: text }, add: { type: 'map', values: text }, remove: list(text) });
const headers: Schema = withCheck<Headers>(object({ request: operations, response: operations }), checkHeaderNames);

const weight = integer(0, 0x7fff_ffff);

/** One destination needs no weight; of several the sum must not be zero. */
function checkWeights(value: readonly RouteDestination[], report: Report): void {
  if (value.length < 2) return;
  const total = value.reduce((sum, item) => sum + (item.weight ?? 0), 0);
  if (total === 0) report('found weights with a sum of 0, expected each destination to say its share');
  if (total > 0xffff_ffff) report(`found weights with a sum of ${total}, expected at most 4294967295`);
}

const httpDestinations = withCheck(list(object({ destination, weight, headers }, ['destination'])), checkWeights);
const routeDestinations = withCheck(list(object({ destination, weight }, ['destination']), 1), checkWeights);

/** Those that Envoy knows. */
const REDIRECT_CODES = [301, 302, 303, 307, 308];

const redirect: Schema = withCheck<HttpRedirect>(
  object({
    uri: text, prefixRewrite: text, authority: text, port, derivePort: choice('FROM_PROTOCOL_DEFAULT', 'FROM_REQUEST_PORT'),
    scheme: choice('http', 'https'), redirectCode: { ...integer(), check: (value: number, report) => REDIRECT_CODES.includes(value) || report(`found ${value}, expected one of ${REDIRECT_CODES.join(', ')}`) },
  }),
  (value, report) => {
    if (value.uri && value.prefixRewrite) report('found uri and prefixRewrite, expected one of them');
    if (value.port !== undefined && value.derivePort !== undefined) report('found port and derivePort, expected one of them');
    const { uri, prefixRewrite, authority, scheme } = value;
    if (!uri && !prefixRewrite && !authority && !scheme && value.port === undefined && value.derivePort === undefined) report('found nothing that differs from the request, expected uri, prefixRewrite, authority, port or scheme');
  },
);

const LARGE_BODY_BYTES = 100 * 1024;
const MAX_BODY_BYTES = 1024 * 1024;

const directResponse = object(
  {
    status: integer(200, 599),
    body: {
      type: 'object',
      fields: { string: text, bytes: withCheck<string>(text, (value, report) => /^[A-Za-z0-9+/_-]*={0,2}$/.test(value) || report('found text that is not base64, expected base64')) },
      atMostOne: [['string', 'bytes']],
      check: (value: { string?: string; bytes?: string }, report, warn) => {
        const size = Buffer.byteLength(value.string ?? value.bytes ?? '');
        if (size > MAX_BODY_BYTES) report(`found ${size} bytes, expected at most ${MAX_BODY_BYTES}`);
        else if (size > LARGE_BODY_BYTES) warn(`found ${size} bytes: each proxy keeps a copy of them`);
      },
    },
  },
  ['status'],
);

const rewrite: Schema = withCheck<{ uri?: string; authority?: string; uriRegexRewrite?: object }>(
  object({ uri: text, authority: text, uriRegexRewrite: object({ match: pattern, rewrite: word }, ['match', 'rewrite']) }),
  (value, report) => {
    if (value.uri && value.uriRegexRewrite) report('found uri and uriRegexRewrite, expected one of them');
    if (!value.uri && !value.uriRegexRewrite && !value.authority) report('found nothing to rewrite, expected uri, uriRegexRewrite or authority');
  },
);

const GRPC_STATUSES = [
  'OK', 'CANCELLED', 'UNKNOWN', 'INVALID_ARGUMENT', 'DEADLINE_EXCEEDED', 'NOT_FOUND', 'ALREADY_EXISTS', 'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED',
  'FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED', 'INTERNAL', 'UNAVAILABLE', 'DATA_LOSS', 'UNAUTHENTICATED',
];

const fault: Schema = withCheck<HttpFaultInjection>(
  object({
    delay: object({
      percent: noted(integer(0, 100), 'deprecated, still read; `percentage` wins'),
      percentage: percent,
      fixedDelay: positiveDuration,
      exponentialDelay: refused(duration, 'Istio refuses it as well'),
    }),
    abort: {
      type: 'object',
      fields: { percentage: percent, httpStatus: integer(200, 599), grpcStatus: choice(...GRPC_STATUSES), http2Error: refused(text, 'Istio refuses it as well') },
      atMostOne: [['httpStatus', 'grpcStatus', 'http2Error']],
    },
  }),
  (value, report, warn) => {
    if (!value.delay && !value.abort) report('found nothing, expected a delay or an abort');
    if (value.abort && value.abort.httpStatus === undefined && value.abort.grpcStatus === undefined) warn('found no httpStatus and no grpcStatus: nothing is aborted', ['abort']);
    if (value.delay && value.delay.fixedDelay === undefined && value.delay.exponentialDelay === undefined) warn('found no fixedDelay: nothing is delayed', ['delay']);
  },
);

const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'CONNECT', 'OPTIONS', 'TRACE', '*'];
const corsHeader = withCheck<string>(word, (value, report) => value === '' || HEADER_NAME.test(value) || report(`found ${JSON.stringify(value)}, expected a header's name or "*"`));

const corsPolicy = object({
  allowOrigin: noted(list(word), 'deprecated, still read: exact origins'),
  allowOrigins: list(withCheck<StringMatch>(stringMatch, (value, report) => Object.values(value).every((item) => item !== '') || report('found an empty text, expected an origin'))),
  allowMethods: list(choice(...METHODS)),
  allowHeaders: list(corsHeader),
  exposeHeaders: list(corsHeader),
  maxAge: { type: 'duration', minMs: 1_000 },
  allowCredentials: bool,
  unmatchedPreflights: choice('UNSPECIFIED', 'FORWARD', 'IGNORE'),
});

function checkActions(route: HttpRoute, report: Report): void {
  const { redirect: redirects, directResponse: answer } = route;
  if (route.delegate) {
    for (const key of ['route', 'redirect', 'directResponse'] as const) if (route[key]) report(`found delegate and ${key}, expected one of them`, [key]);
    return;
  }
  const actions = (['route', 'redirect', 'directResponse'] as const).filter((key) => (key === 'route' ? route.route?.length : route[key]));
  if (actions.length === 0) report('found no destination, expected a route with at least one, a redirect, a directResponse or a delegate', ['route']);
  if (actions.length > 1) report(`found ${actions.join(' and ')}, expected one of them`, [actions[1]!]);
  const instead = redirects ? 'redirect' : answer ? 'directResponse' : undefined;
  if (instead && route.fault) report(`found fault with ${instead}, expected it with a route`, ['fault']);
  if (instead && route.rewrite) report(`found rewrite with ${instead}, expected it with a route`, ['rewrite']);
}

const isAuthority = (name: string): boolean => /^(:authority|host)$/i.test(name);

function checkRoute(route: HttpRoute, report: Report, warn: Report): void {
  checkActions(route, report);
  if (route.mirror && route.mirrors?.length) report('found mirror and mirrors, expected one of them', ['mirrors']);
  if (route.mirrorPercent !== undefined) warn('found the deprecated field mirrorPercent; mirrorPercentage is the present one', ['mirrorPercent']);
  if (route.redirect?.prefixRewrite && route.match?.some(({ uri }) => uri && uri.prefix === undefined)) report('found a match of the uri by something else than a prefix, expected a prefix where prefixRewrite is used', ['redirect', 'prefixRewrite']);
  const authorities = [route.rewrite?.authority, ...Object.keys({ ...route.headers?.request?.set, ...route.headers?.request?.add }).filter(isAuthority)].filter((one) => one);
  if (authorities.length > 1) report('found several values for the authority, expected it in one place: rewrite.authority, or a request header', ['rewrite', 'authority']);
}

const httpRoute: Schema = withCheck<HttpRoute>(
  object({
    name: text,
    match: list(httpMatch),
    route: httpDestinations,
    redirect,
    directResponse,
    delegate: object({ name: text, namespace: text }),
    rewrite,
    timeout: duration,
    retries,
    fault,
    mirror: destination,
    mirrorPercent: noted(integer(0, 100), 'deprecated, still read'),
    mirror_percent: { ...integer(0, 100), aliasOf: 'mirrorPercent' },
    mirrorPercentage: object({ value: { type: 'number', min: 0, max: 100 } }),
    mirrors: list(object({ destination, percentage: object({ value: { type: 'number', min: 0, max: 100 } }) }, ['destination'])),
    corsPolicy,
    headers,
  }),
  checkRoute,
);

const l4Fields = { port, destinationSubnets: list(ipBlock), sourceLabels: labels, sourceNamespace: dnsLabel, gateways: gatewayNames };
const tcpRoute = object({ match: list(object({ ...l4Fields, sourceSubnet: ignored(ipBlock, 'Istio does not act on it either') })), route: routeDestinations }, ['route']);
const tlsRoute = object({ match: list(object({ ...l4Fields, sniHosts: list(word, 1) }, ['sniHosts']), 1), route: routeDestinations }, ['match', 'route']);

type Spec = VirtualService['spec'];

function checkSniHosts(routes: readonly TlsRoute[], hosts: readonly string[], report: Report, warn: Report): void {
  routes.forEach(({ match }, r) =>
    match.forEach(({ sniHosts }, m) =>
      sniHosts.forEach((sni, s) => {
        const path = ['tls', r, 'match', m, 'sniHosts', s];
        if (/^[0-9.]+$|:/.test(sni)) warn(`found "${sni}", an address: most clients send none as SNI`, path);
        // A short host stands for its full name in the cluster.
        else if (!hosts.some((host) => hostContains(host, sni) || (!host.includes('.') && sni.startsWith(`${host}.`)))) report(`found "${sni}", expected a name within one of the hosts: ${hosts.join(', ')}`, path);
      }),
    ),
  );
}

/** What a match asks for, apart from its name: two of the same make the second one useless. */
const matchKey = ({ name: _, ...rest }: HttpMatchRequest): string => JSON.stringify(rest);

function warnUnreachable(routes: readonly { match?: readonly object[] }[], warn: Report, kind: string): void {
  const seen = new Map<string, number>();
  let catchAll = -1;
  routes.forEach(({ match }, index) => {
    if (catchAll >= 0) return warn(`this rule is never reached: rule ${catchAll} before it takes everything`, [kind, index]);
    if (!match?.length) {
      catchAll = index;
      return;
    }
    match.forEach((item, m) => {
      const key = matchKey(item as HttpMatchRequest);
      const before = seen.get(key);
      if (before !== undefined) warn(`this match is never reached: rule ${before} has the same`, [kind, index, 'match', m]);
      else seen.set(key, index);
    });
  });
}

/** The prefix of a match that asks for nothing else. */
function onlyPrefix({ name: _, uri, ignoreUriCase, statPrefix: __, ...more }: HttpMatchRequest): string | undefined {
  return uri?.prefix === undefined || ignoreUriCase || Object.keys(more).length > 0 ? undefined : uri.prefix;
}

/** A rule for `/` takes what rules for `/a` after it are for. */
function warnCovered(http: readonly HttpRoute[], warn: Report): void {
  const before: { prefix: string; rule: number }[] = [];
  http.forEach(({ match = [] }, rule) => {
    match.forEach((item, m) => {
      const wanted = item.ignoreUriCase ? undefined : (item.uri?.prefix ?? item.uri?.exact);
      const cover = wanted === undefined ? undefined : before.find(({ prefix }) => wanted.startsWith(prefix) && (wanted !== prefix || onlyPrefix(item) !== wanted));
      if (cover) warn(`this match is never reached: rule ${cover.rule} takes all with prefix "${cover.prefix}"`, ['http', rule, 'match', m]);
    });
    for (const item of match) {
      const prefix = onlyPrefix(item);
      if (prefix !== undefined) before.push({ prefix, rule });
    }
  });
}

export const virtualService: Schema = withCheck<Spec>(
  object({ hosts: list(hostOrAddress), gateways: gatewayNames, http: list(httpRoute), tls: list(tlsRoute), tcp: list(tcpRoute), exportTo: exportTo() }),
  (spec, report, warn) => {
    const { hosts = [], gateways = [], http = [], tls = [], tcp = [] } = spec;
    if (http.length + tls.length + tcp.length === 0) report('found no route, expected at least one in http, tls or tcp', ['http']);
    if (hosts.length === 0) {
      for (const key of ['gateways', 'tls', 'tcp'] as const) if (spec[key]?.length) report(`found ${key} in a VirtualService without hosts, expected http alone: it is a delegate`, [key]);
      http.forEach((route, index) => route.delegate && report('found a delegate in a VirtualService without hosts, which is a delegate itself', ['http', index, 'delegate']));
    }
    const forMesh = gateways.length === 0 || gateways.includes('mesh');
    hosts.forEach((host, index) => {
      if (host === '*' && forMesh) report('found "*", expected a host: only Gateways take all', ['hosts', index]);
      const before = hosts.findIndex((other) => hostsOverlap(other, host));
      if (before < index) report(`found "${host}", which "${hosts[before]}" has already, expected each host once`, ['hosts', index]);
    });
    if (forMesh && !gateways.some((name) => name !== 'mesh')) {
      http.forEach((route, r) =>
        route.match?.forEach((match, m) => {
          for (const name of Object.keys({ ...match.headers, ...match.withoutHeaders })) {
            if (name.startsWith('@request.auth.claims')) report(`found "${name}", which only Gateways can match, expected gateways`, ['http', r, 'match', m, 'headers', name]);
          }
        }),
      );
    }
    checkSniHosts(tls, hosts, report, warn);
    warnUnreachable(http, warn, 'http');
    warnCovered(http, warn);
    warnUnreachable(tls, warn, 'tls');
    warnUnreachable(tcp, warn, 'tcp');
  },
);
