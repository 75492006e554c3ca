/** DestinationRule: its fields, and what Istio's own validation asks of one by itself. */
import { bool, choice, ignored, integer, list, noted, object, port, refused, text, withCheck, word, type Report, type Schema } from '../schema.js';
import { dnsLabel, exportTo, host, labels, policySelector, portSelector } from './fields.js';
import type { ClientTls, ConsistentHash, HttpConnectionPool, LoadBalancer, LocalityLbSetting, OutlierDetection, TrafficPolicy } from './networking.js';
import { isHostName, isIpAddress } from './syntax.js';

const positive: Schema = { type: 'duration', minMs: 1 };
const whole = integer(0, 0x7fff_ffff);
const number = (min: number, max: number): Schema => ({ type: 'number', min, max });
const TOPOLOGY = ['topology.kubernetes.io/region', 'topology.kubernetes.io/zone', 'topology.istio.io/subzone'];

/** `region`, `region/zone` or `region/zone/subzone`, the last part perhaps `*`. */
function localityProblem(value: string): string | undefined {
  const parts = value.split('/');
  if (parts.length > 3 || parts.some((part) => part === '')) return 'region, region/zone or region/zone/subzone';
  if (value.includes('*') && value.indexOf('*') !== value.length - 1) return 'at most one "*", at the end';
  return undefined;
}

/** Is each locality that one of the two says also said by the other? */
function localitiesOverlap(a: string, b: string): boolean {
  const [x, y] = [a.split('/'), b.split('/')];
  for (let index = 0; ; index++) {
    if (x[index] === undefined || y[index] === undefined || x[index] === '*' || y[index] === '*') return true;
    if (x[index] !== y[index]) return false;
  }
}

function checkLocalities(values: readonly string[], report: (index: number, message: string) => void): void {
  values.forEach((value, index) => {
    const expected = localityProblem(value);
    const before = values.slice(0, index).find((other) => localitiesOverlap(other, value));
    if (expected) report(index, `found "${value}", expected ${expected}`);
    else if (before !== undefined) report(index, `found "${value}", which overlaps with "${before}", expected each locality once`);
  });
}

export function checkLocality(value: LocalityLbSetting, report: Report): void {
  const { distribute = [], failover = [], failoverPriority = [] } = value;
  if (distribute.length > 0 && failover.length > 0) return report('found distribute and failover, expected one of them', ['failover']);
  if (failover.length > 0 && failoverPriority.some((label) => TOPOLOGY.includes(label))) report('found failover with a label of topology, expected one way to order regions', ['failoverPriority']);
  checkLocalities(distribute.map(({ from }) => from), (index, message) => report(message, ['distribute', index, 'from']));
  distribute.forEach(({ to }, index) => {
    const total = Object.values(to).reduce((sum, share) => sum + share, 0);
    if (total !== 100) report(`found shares with a sum of ${total}, expected 100`, ['distribute', index, 'to']);
    const names = Object.keys(to);
    checkLocalities(names, (n, message) => report(message, ['distribute', index, 'to', names[n]!]));
  });
  failover.forEach(({ from, to }, index) => {
    if (from === to) report(`found "${to}" as its own failover, expected another region`, ['failover', index, 'to']);
    for (const [key, region] of [['from', from], ['to', to]] as const) if (/[/*]/.test(region)) report(`found "${region}", expected a region alone`, ['failover', index, key]);
  });
}

export const localityLbSetting: Schema = withCheck(
  object({
    enabled: bool,
    distribute: list(object({ from: word, to: { type: 'map', values: integer(1, 100) } }, ['from', 'to'])),
    failover: list(object({ from: word, to: word }, ['from', 'to'])),
    failoverPriority: list(word),
  }),
  checkLocality,
);

function isPrime(value: number): boolean {
  for (let factor = 2; factor * factor <= value; factor++) if (value % factor === 0) return false;
  return value > 1;
}

const cookie = object({ name: word, path: text, ttl: { type: 'duration' }, attributes: list(object({ name: word, value: text }, ['name'])) }, ['name']);

const consistentHash: Schema = withCheck<ConsistentHash>(
  {
    type: 'object',
    fields: {
      httpHeaderName: word,
      httpCookie: cookie,
      useSourceIp: bool,
      httpQueryParameterName: word,
      ringHash: object({ minimumRingSize: integer(0) }),
      maglev: object({ tableSize: integer(0) }),
      minimumRingSize: noted(integer(0), 'deprecated, still read: `ringHash.minimumRingSize`'),
    },
    oneOf: ['httpHeaderName', 'httpCookie', 'useSourceIp', 'httpQueryParameterName'],
    atMostOne: [['ringHash', 'maglev', 'minimumRingSize']],
  },
  (value, report, warn) => {
    const { maglev, httpCookie } = value;
    if (value.minimumRingSize !== undefined) warn('found the deprecated field minimumRingSize; ringHash.minimumRingSize is the present one', ['minimumRingSize']);
    if (maglev && (!maglev.tableSize || maglev.tableSize >= 5_000_011 || !isPrime(maglev.tableSize))) report(`found ${maglev.tableSize ?? 'nothing'}, expected a prime number below 5000011`, ['maglev', 'tableSize']);
    const names = httpCookie?.attributes?.map(({ name }) => name) ?? [];
    names.forEach((name, index) => names.indexOf(name) < index && report(`found "${name}" again, expected each attribute once`, ['httpCookie', 'attributes', index, 'name']));
  },
);

const loadBalancer: Schema = {
  type: 'object',
  fields: {
    simple: choice('LEAST_REQUEST', 'ROUND_ROBIN', 'RANDOM', 'PASSTHROUGH', 'LEAST_CONN', 'UNSPECIFIED'),
    consistentHash,
    localityLbSetting,
    zoneAwareLbSetting: ignored(undefined, 'zone-aware routing of Envoy is not asked for'),
    warmupDurationSecs: noted(positive, 'deprecated, still read: `warmup.duration`'),
    warmup: object({ duration: positive, minimumPercent: number(0, 100), aggression: number(Number.MIN_VALUE, Number.MAX_VALUE) }, ['duration']),
  },
  atMostOne: [['simple', 'consistentHash'], ['warmupDurationSecs', 'warmup'], ['localityLbSetting', 'zoneAwareLbSetting']],
};

export const tcpKeepalive = object({ probes: integer(0, 0xffff_ffff), time: positive, interval: positive });

export const connectionPool: Schema = withCheck<{ tcp?: object; http?: HttpConnectionPool }>(
  object({
    tcp: object({ maxConnections: whole, connectTimeout: positive, tcpKeepalive, maxConnectionDuration: positive, idleTimeout: { type: 'duration' } }),
    http: object({
      http1MaxPendingRequests: whole,
      http2MaxRequests: whole,
      maxRequestsPerConnection: whole,
      maxRetries: whole,
      idleTimeout: positive,
      h2UpgradePolicy: choice('DEFAULT', 'DO_NOT_UPGRADE', 'UPGRADE'),
      useClientProtocol: bool,
      maxConcurrentStreams: whole,
      http2KeepAlive: object({ interval: positive, timeout: positive }, ['interval', 'timeout']),
    }),
  }),
  ({ tcp, http }, report) => {
    if (!tcp && !http) report('found nothing, expected tcp or http');
    if (http?.h2UpgradePolicy === 'UPGRADE' && http.useClientProtocol) report('found useClientProtocol with h2UpgradePolicy UPGRADE, expected one of them', ['http', 'useClientProtocol']);
  },
);

export const outlierDetection: Schema = withCheck<OutlierDetection>(
  object({
    consecutiveErrors: noted(whole, 'deprecated'),
    splitExternalLocalOriginErrors: bool,
    consecutiveLocalOriginFailures: integer(0, 0xffff_ffff),
    consecutiveGatewayErrors: integer(0, 0xffff_ffff),
    consecutive5xxErrors: integer(0, 0xffff_ffff),
    interval: positive,
    baseEjectionTime: positive,
    maxEjectionPercent: integer(0, 100),
    minHealthPercent: integer(0, 100),
    outlierDetectionHttpErrorCodes: ignored(list(integer(100, 599)), 'Envoy counts 5xx'),
  }),
  (value, report, warn) => {
    if (value.consecutiveErrors !== undefined) warn('found the deprecated field consecutiveErrors; consecutiveGatewayErrors and consecutive5xxErrors are the present ones', ['consecutiveErrors']);
    if (value.consecutiveLocalOriginFailures && !value.splitExternalLocalOriginErrors) report('found a count of local failures, expected splitExternalLocalOriginErrors: true with it', ['consecutiveLocalOriginFailures']);
  },
);

export const clientTls: Schema = withCheck<ClientTls>(
  object({
    mode: choice('DISABLE', 'SIMPLE', 'MUTUAL', 'ISTIO_MUTUAL'),
    clientCertificate: text,
    privateKey: text,
    caCertificates: text,
    credentialName: text,
    subjectAltNames: list(word),
    sni: text,
    insecureSkipVerify: bool,
    caCrl: refused(text),
  }),
  (value, report) => {
    const { mode = 'DISABLE', credentialName } = value;
    if (value.insecureSkipVerify && (mode === 'SIMPLE' || mode === 'MUTUAL')) {
      for (const key of ['caCertificates', 'subjectAltNames', ...(mode === 'SIMPLE' ? (['credentialName'] as const) : [])] as const) {
        if (value[key]?.length) report(`found ${key} with insecureSkipVerify, expected one of them`, [key]);
      }
    }
    if (credentialName && (mode === 'SIMPLE' || mode === 'MUTUAL')) {
      for (const key of ['clientCertificate', 'privateKey', 'caCertificates', 'caCrl'] as const) if (value[key]) report(`found ${key} with credentialName, expected one of them`, [key]);
    } else if (mode === 'MUTUAL') {
      for (const key of ['clientCertificate', 'privateKey'] as const) if (!value[key]) report('found nothing, mode MUTUAL needs it (or credentialName)', [key]);
    }
  },
);

/** Failover by locality needs to be told when endpoints fail. */
function warnFailover(policy: { loadBalancer?: LoadBalancer; outlierDetection?: OutlierDetection }, warn: Report): void {
  const setting = policy.loadBalancer?.localityLbSetting;
  if ((setting?.failover?.length || setting?.failoverPriority?.length) && !policy.outlierDetection) warn('found failover without outlierDetection: without it no endpoint is ever seen to fail', ['loadBalancer', 'localityLbSetting']);
}

const policyFields = { loadBalancer, connectionPool, outlierDetection, tls: clientTls };

const portPolicy: Schema = withCheck<TrafficPolicy>(object({ port: portSelector, ...policyFields }, ['port']), (value, report, warn) => {
  if (!Object.keys(policyFields).some((key) => key in value)) report(`found no setting, expected at least one of ${Object.keys(policyFields).join(', ')}`);
  warnFailover(value, warn);
});

const trafficPolicy: Schema = withCheck<TrafficPolicy>(
  object({
    ...policyFields,
    portLevelSettings: list(portPolicy),
    tunnel: withCheck<{ targetHost: string }>(object({ protocol: choice('CONNECT', 'POST'), targetHost: word, targetPort: port }, ['targetHost', 'targetPort']), ({ targetHost }, report) => {
      if (!isHostName(targetHost) && !isIpAddress(targetHost)) report(`found "${targetHost}", expected a host or an address`, ['targetHost']);
    }),
    proxyProtocol: object({ version: choice('V1', 'V2') }),
    retryBudget: object({ percent: number(0, 100), minRetryConcurrency: integer(0), budgetInterval: ignored(positive, 'Envoy has no such interval') }),
  }),
  (value, report, warn) => {
    if (Object.keys(value).length === 0) report('found no setting, expected at least one');
    const ports = value.portLevelSettings?.map(({ port: selector }) => selector?.number) ?? [];
    ports.forEach((number, index) => ports.indexOf(number) < index && report(`found port ${number} again, expected each port once`, ['portLevelSettings', index, 'port', 'number']));
    warnFailover(value, warn);
  },
);

type Spec = { exportTo?: string[]; subsets?: { name: string }[]; workloadSelector?: object };

export const destinationRule: Schema = withCheck<Spec>(
  object(
    {
      host,
      trafficPolicy,
      subsets: list(object({ name: dnsLabel, labels, trafficPolicy }, ['name'])),
      exportTo: exportTo(),
      workloadSelector: policySelector,
    },
    ['host'],
  ),
  ({ subsets = [], exportTo: seenBy = [], workloadSelector: selector }, report) => {
    if (selector && seenBy.includes('*')) report('found "*" with a workloadSelector, expected "." or its own namespace: the rule is for workloads of it', ['exportTo']);
    const names = subsets.map(({ name }) => name);
    names.forEach((name, index) => names.indexOf(name) < index && report(`found "${name}" again, expected each subset's name once`, ['subsets', index, 'name']));
  },
);
