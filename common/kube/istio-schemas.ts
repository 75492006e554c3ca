/**
 * Istio's networking kinds, every field of the API named. A field that is not acted on yet is marked: `refused` where
 * leaving it out would change what traffic does, `ignored` where it only tunes.
 */
import { bool, duration, integer, list, nearest, object, port, stringMap, text, type Path, type Schema } from './schema.js';

export const istioVersions: Record<string, readonly string[]> = {
  'networking.istio.io': ['v1', 'v1beta1', 'v1alpha3'],
};

/** Kinds that exist and pass with a warning. */
export const unservedIstioKinds: ReadonlySet<string> = new Set([
  'networking.istio.io/Gateway',
  'networking.istio.io/ServiceEntry',
  'networking.istio.io/Sidecar',
  'networking.istio.io/WorkloadEntry',
  'networking.istio.io/WorkloadGroup',
  'networking.istio.io/EnvoyFilter',
  'networking.istio.io/ProxyConfig',
  'security.istio.io/AuthorizationPolicy',
  'security.istio.io/PeerAuthentication',
  'security.istio.io/RequestAuthentication',
  'telemetry.istio.io/Telemetry',
  'extensions.istio.io/WasmPlugin',
  'gateway.networking.k8s.io/Gateway',
  'gateway.networking.k8s.io/GatewayClass',
  'gateway.networking.k8s.io/HTTPRoute',
  'gateway.networking.k8s.io/GRPCRoute',
  'gateway.networking.k8s.io/TCPRoute',
  'gateway.networking.k8s.io/TLSRoute',
  'gateway.networking.k8s.io/ReferenceGrant',
]);

const refused: Schema = { type: 'any', support: 'refused' };
const taken: Schema = { type: 'any' };
const ignored: Schema = { type: 'any', support: 'ignored' };

/** Envoy's RE2 has no look-around and no back references, but is otherwise close enough for a first judgement. */
const regex: Schema = {
  type: 'string',
  nonEmpty: true,
  check: (value, report) => {
    if (typeof value !== 'string') return;
    if (value.length > 1024) report('found a pattern of more than 1024 characters, expected a shorter one');
    if (/\(\?(=|!|<=|<!)/.test(value) || /\\[1-9]/.test(value)) report(`found ${JSON.stringify(value)}, expected RE2 syntax, which has no look-around and no back references`);
    try {
      // RE2 writes flags and named groups its own way: (?i) and (?P<name>…).
      new RegExp(value.replace(/\(\?[imsU]+\)/g, '').replace(/\(\?P</g, '(?<'));
    } catch (error) {
      report(`found ${JSON.stringify(value)}, expected a valid regular expression: ${(error as Error).message.replace(/^Invalid regular expression: /, '')}`);
    }
  },
};

const stringMatch: Schema = { type: 'object', fields: { exact: text, prefix: text, regex }, oneOf: ['exact', 'prefix', 'regex'] };
/** A header's match may be empty: it then asks only for the header's presence. */
const headerMatch: Schema = {
  type: 'object',
  fields: { exact: text, prefix: text, regex },
  check: (value, report) => {
    const set = Object.keys(value as object).filter((key) => ['exact', 'prefix', 'regex'].includes(key));
    if (set.length > 1) report(`found ${set.join(' and ')}, expected at most one of exact, prefix, regex`);
  },
};

const host: Schema = {
  type: 'string',
  nonEmpty: true,
  check: (value, report) => {
    if (typeof value !== 'string' || value === '') return;
    if (!/^(\*|(\*\.)?[A-Za-z0-9_]([-A-Za-z0-9_]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([-A-Za-z0-9_]*[A-Za-z0-9_])?)*\.?|[0-9a-fA-F:.]+(\/\d+)?)$/.test(value)) {
      report(`found ${JSON.stringify(value)}, expected a host name, short or full, perhaps with a leading "*."`);
    }
  },
};

const destinationHost: Schema = {
  ...host,
  check: (value, report) => {
    if (typeof value === 'string' && value.includes('*')) report(`found ${JSON.stringify(value)}, expected a host without a wildcard`);
    else host.check?.(value, report);
  },
};

const destination = object({ host: destinationHost, subset: text, port: object({ number: port }, ['number']) }, ['host']);
const weight = integer(0, 0x7fff_ffff);
const httpDestinations = list(object({ destination, weight, headers: taken }, ['destination']));

const headerMap = (values: Schema): Schema => ({
  type: 'map',
  values,
  check: (value, report) => {
    for (const name of Object.keys(value as object)) {
      if (!/^:?[A-Za-z0-9!#$%&'*+.^_`|~-]+$/.test(name)) report(`found "${name}", expected a header's name`, [name]);
      if (['uri', 'scheme', 'method', 'authority'].includes(name)) report(`found the key "${name}", which a header match leaves out: use the field ${name} of the match`, [name]);
    }
  },
});

const httpMatch = object({
  name: text,
  uri: stringMatch,
  scheme: stringMatch,
  method: stringMatch,
  authority: stringMatch,
  headers: headerMap(headerMatch),
  withoutHeaders: headerMap(headerMatch),
  queryParams: { type: 'map', values: headerMatch },
  ignoreUriCase: bool,
  port,
  sourceLabels: stringMap,
  sourceNamespace: text,
  gateways: list(text),
  statPrefix: text,
});

const RETRY_CONDITIONS = [
  '5xx', 'gateway-error', 'reset', 'reset-before-request', 'connect-failure', 'envoy-ratelimited', 'retriable-4xx', 'refused-stream',
  'retriable-status-codes', 'retriable-headers', 'http3-post-connect-failure', 'cancelled', 'deadline-exceeded', 'internal', 'resource-exhausted', 'unavailable',
];

const retryOn: Schema = {
  type: 'string',
  check: (value, report) => {
    if (typeof value !== 'string') return;
    for (const word of value.split(',').map((part) => part.trim()).filter((part) => part !== '')) {
      if (RETRY_CONDITIONS.includes(word) || /^[1-5][0-9][0-9]$/.test(word)) continue;
      const near = nearest(word, RETRY_CONDITIONS);
      report(`found "${word}", expected a status code or one of Envoy's retry conditions${near ? ` (did you mean ${near}?)` : ''}`);
    }
  },
};

type Weighted = { weight?: number }[];

/** Istio's rule: one destination needs no weight, of several the sum must not be zero. */
function checkWeights(destinations: unknown, report: (message: string, path?: Path) => void): void {
  if (!Array.isArray(destinations) || destinations.length < 2) return;
  const total = (destinations as Weighted).reduce((sum, item) => sum + (item?.weight ?? 0), 0);
  if (total === 0) report('found weights with a sum of 0, expected each destination to say its share', ['route']);
  if (total > 0xffff_ffff) report(`found weights with a sum of ${total}, expected at most 4294967295`, ['route']);
}

const httpRoute: Schema = {
  type: 'object',
  fields: {
    name: text,
    match: list(httpMatch),
    route: httpDestinations,
    timeout: duration,
    retries: object({ attempts: integer(0, 0x7fff_ffff), perTryTimeout: { type: 'duration', minMs: 1 }, retryOn, retryRemoteLocalities: bool, retryIgnorePreviousHosts: bool, backoff: { type: 'duration', minMs: 1 } }),
    redirect: taken,
    directResponse: taken,
    delegate: taken,
    rewrite: taken,
    fault: taken,
    mirror: taken,
    mirrors: taken,
    mirrorPercent: taken,
    mirrorPercentage: taken,
    corsPolicy: taken,
    headers: taken,
  },
  check: (value, report) => {
    const route = value as { route?: unknown };
    const actions = ['route', 'redirect', 'directResponse', 'delegate'].filter((key) => key in route);
    if (actions.length === 0) report('found no destination, expected a route with at least one destination', ['route']);
    if (Array.isArray(route.route) && route.route.length === 0) report('found an empty list, expected at least one destination', ['route']);
    checkWeights(route.route, report);
  },
};

const l4Match = object({ port, destinationSubnets: list(text), sourceLabels: stringMap, sourceNamespace: text, gateways: list(text), sourceSubnet: ignored });
const tcpRoute: Schema = {
  ...object({ match: list(l4Match), route: list(object({ destination, weight }, ['destination']), 1) }, ['route']),
  check: (value, report) => checkWeights((value as { route?: unknown }).route, report),
};

const virtualService: Schema = {
  type: 'object',
  fields: {
    hosts: list(host),
    gateways: list(text),
    http: list(httpRoute),
    tcp: list(tcpRoute),
    tls: taken,
    exportTo: list(text),
  },
  check: (value, report) => {
    const spec = value as { http?: unknown[]; tcp?: unknown[]; tls?: unknown[] };
    if (!spec.http?.length && !spec.tcp?.length && !spec.tls?.length) report('found no route, expected at least one in http, tls or tcp', ['http']);
  },
};

const simpleLb: Schema = { type: 'string', values: ['LEAST_REQUEST', 'ROUND_ROBIN', 'RANDOM', 'LEAST_CONN', 'UNSPECIFIED'] };

const policyFields: Record<string, Schema> = {
  loadBalancer: object({ simple: simpleLb, consistentHash: taken, localityLbSetting: ignored, warmupDurationSecs: ignored, warmup: ignored }),
  connectionPool: object({
    tcp: object({ connectTimeout: { type: 'duration', minMs: 1 }, maxConnections: ignored, tcpKeepalive: ignored, maxConnectionDuration: ignored, idleTimeout: ignored }),
    http: ignored,
  }),
  outlierDetection: ignored,
  tls: object({ mode: { type: 'string', values: ['DISABLE', 'ISTIO_MUTUAL'] } }, ['mode']),
};
const trafficPolicy = object({ ...policyFields, portLevelSettings: refused, tunnel: refused, proxyProtocol: refused, retryBudget: ignored });

const destinationRule = object(
  {
    host,
    trafficPolicy,
    subsets: {
      type: 'array',
      items: object({ name: { type: 'string', nonEmpty: true }, labels: stringMap, trafficPolicy }, ['name']),
      check: (value, report) => {
        const seen = new Set<string>();
        (value as { name?: string }[]).forEach((subset, index) => {
          const name = subset?.name;
          if (typeof name !== 'string') return;
          if (!/^[a-z0-9]([-a-z0-9_.]*[a-z0-9])?$/i.test(name)) report(`found "${name}", expected letters, digits, "-", "_" and "."`, [index, 'name']);
          if (seen.has(name)) report(`found "${name}" again, expected each subset's name once`, [index, 'name']);
          seen.add(name);
        });
      },
    },
    exportTo: ignored,
    workloadSelector: refused,
  },
  ['host'],
);

/** By `group/Kind`: the schema of `spec`. */
export const istioSchemas: Record<string, Schema> = {
  'networking.istio.io/VirtualService': virtualService,
  'networking.istio.io/DestinationRule': destinationRule,
};
