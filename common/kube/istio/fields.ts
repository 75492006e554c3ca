/** Schemas of the parts that several of Istio's kinds share: hosts, patterns, labels, selectors, destinations. */
import { choice, list, object, port, refused, stringMap, text, withCheck, word, type Report, type Schema } from '../schema.js';
import { isDnsLabel, isHostName, isIpAddress, isIpBlock, isPartialWildcard, isWildcardHost, patternProblem, PROTOCOLS, isUnixAddress } from './syntax.js';

const found = (value: string, expected: string): string => `found ${JSON.stringify(value)}, expected ${expected}`;

const grammar = (isRight: (value: string) => boolean, expected: string): Schema =>
  withCheck<string>(word, (value, report) => {
    if (value !== '' && !isRight(value)) report(found(value, expected));
  });

export const pattern: Schema = withCheck<string>(word, (value, report) => {
  const expected = patternProblem(value);
  if (expected) report(found(value, expected));
});

export const dnsLabel = grammar(isDnsLabel, 'at most 63 letters, digits and "-", beginning and ending with a letter or digit');
export const ipAddress = grammar(isIpAddress, 'an IP address');
export const ipBlock = grammar(isIpBlock, 'an IP address, or a block such as 10.0.0.0/8');
export const unixAddress = grammar(isUnixAddress, 'unix:// and an absolute path');
/** A host, short or full, perhaps with a wildcard as its first label. */
export const host = grammar((value) => isWildcardHost(value), 'a host name, short or full, perhaps with a leading "*."');
/** As `host`, or an address, which clients may ask for as well. */
export const hostOrAddress = grammar((value) => isWildcardHost(value) || isIpAddress(value), 'a host name, short or full, perhaps with a leading "*."');
export const plainHost = grammar((value) => isHostName(value), 'a host name without a wildcard');
export const protocol: Schema = withCheck<string>(text, (value, report) => {
  if (value !== '' && !PROTOCOLS.includes(value.toUpperCase())) report(found(value, `one of ${PROTOCOLS.join(', ')}`));
});

export const stringMatch: Schema = { type: 'object', fields: { exact: text, prefix: text, regex: pattern }, oneOf: ['exact', 'prefix', 'regex'] };

/** A match of a header or parameter may be empty: it then asks only for its presence. */
export const presenceMatch: Schema = {
  type: 'object',
  fields: { exact: text, prefix: word, regex: pattern },
  atMostOne: [['exact', 'prefix', 'regex']],
};

const LABEL_VALUE = /^(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?$/;
const LABEL_KEY = /^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/i;

/** Labels to compare with a workload's own. */
export const labels: Schema = withCheck<Record<string, string>>(stringMap, (value, report) => {
  for (const [key, item] of Object.entries(value)) {
    if (!LABEL_KEY.test(key)) report(found(key, "a label's key"), [key]);
    if (!LABEL_VALUE.test(item)) report(found(item, "a label's value: at most 63 letters, digits, \"-\", \"_\" and \".\", beginning and ending with a letter or digit"), [key]);
  }
});

const selectorLabels = (field: string): Schema =>
  withCheck<Record<string, Record<string, string> | undefined>>(object({ [field]: stringMap }), (value, report, warn) => {
    const entries = Object.entries(value[field] ?? {});
    if (entries.length === 0) warn('found a selector without labels: it selects every workload of the namespace', []);
    for (const [key, item] of entries) {
      if (key === '') report('found an empty key, expected a label\'s key', [field]);
      else if (`${key}${item}`.includes('*')) report(found(`${key}: ${item}`, 'no wildcard in a selector'), [field, key]);
    }
  });

/** `labels` of networking kinds. */
export const workloadSelector = selectorLabels('labels');
/** `matchLabels` of policies. */
export const policySelector = selectorLabels('matchLabels');

const TARGETS = ['Service', 'networking.istio.io/ServiceEntry', 'gateway.networking.k8s.io/Gateway', 'gateway.networking.k8s.io/GatewayClass'];

export const targetRef: Schema = withCheck<{ group?: string; kind: string; namespace?: string }>(object({ group: text, kind: word, name: word, namespace: text }, ['kind', 'name']), (value, report) => {
  const target = value.group && value.group !== 'core' ? `${value.group}/${value.kind}` : value.kind;
  if (!TARGETS.includes(target)) report(`found ${target}, expected one of ${TARGETS.join(', ')}`, ['kind']);
  if (value.namespace) report(`found "${value.namespace}", expected nothing: a policy is about objects of its own namespace`, ['namespace']);
});

/** The three ways for a policy to say what it is about, of which one is taken. */
export const policyTargets = { selector: policySelector, targetRef, targetRefs: list(targetRef) };

export const oneTarget = (value: { selector?: unknown; targetRef?: unknown; targetRefs?: unknown[] }, report: Report): void => {
  const set = (['selector', 'targetRef', 'targetRefs'] as const).filter((key) => (key === 'targetRefs' ? value.targetRefs?.length : value[key]));
  if (set.length > 1) report(`found ${set.join(' and ')}, expected at most one of selector, targetRef, targetRefs`, [set[1]!]);
};

export const portSelector = object({ number: port }, ['number']);

export const destination = object(
  {
    host: withCheck<string>(host, (value, report) => {
      if (value === '*') report('found "*", expected a host: everything is no destination');
    }),
    subset: dnsLabel,
    port: portSelector,
  },
  ['host'],
);

/** Names of namespaces that may see an object, `.` for its own, `*` for all; a ServiceEntry's may be `~` for none. */
export const exportTo = (mayBeNobody = false): Schema =>
  withCheck<string[]>(list(word), (value, report) => {
    value.forEach((entry, index) => {
      if (entry !== '*' && entry !== '.' && !(mayBeNobody && entry === '~') && !isDnsLabel(entry)) report(found(entry, `a namespace, ".", "*"${mayBeNobody ? ' or "~"' : ''}`), [index]);
      if (value.indexOf(entry) < index) report(found(entry, 'each entry once'), [index]);
    });
    for (const alone of ['*', '~']) if (value.includes(alone) && value.length > 1) report(`found "${alone}" with others, expected it alone`);
  });

/** `host`, or `namespace/host` with `*` and `.` as namespaces: where Gateways and Sidecars name hosts. */
export const scopedHost = (kind: 'gateway' | 'sidecar'): Schema =>
  withCheck<string>(word, (value, report) => {
    if (value === '') return;
    const slash = value.indexOf('/');
    if (slash < 0 && kind === 'sidecar') return report(found(value, 'namespace/host, e.g. ./* or istio-system/*'));
    const [namespace, name] = slash < 0 ? ['*', value] : [value.slice(0, slash), value.slice(slash + 1)];
    const plain = kind === 'sidecar' && namespace.startsWith('~') ? namespace.slice(1) : namespace;
    const emptyIsRight = kind === 'sidecar' && namespace === '~';
    if (!emptyIsRight && plain !== '*' && plain !== '.' && !isDnsLabel(plain)) report(found(value, `a namespace before the "/", or "*", "."${kind === 'sidecar' ? ', "~"' : ''}`));
    if (name !== '*' && !name.includes('.') && !isIpAddress(name)) return report(found(value, 'a full host name: short ones are not looked up here'));
    if (!isWildcardHost(name) && !(kind === 'gateway' && isIpAddress(name))) report(found(value, 'a full host name, perhaps with a leading "*.", or "*"'));
    else if (isPartialWildcard(name)) report(found(value, 'a wildcard that is a whole label, "*."'));
  });

/** Names of Gateways: `namespace/name`, a name of the same namespace, or `mesh`. */
export const gatewayNames: Schema = withCheck<string[]>(list(word), (value, report, warn) => {
  value.forEach((name, index) => {
    const parts = name.split('/');
    if (parts.length === 1 && name.includes('.') && isHostName(name)) warn(`found ${JSON.stringify(name)}, an old way to write a Gateway's name; ${name.split('.')[1]}/${name.split('.')[0]} is the present one`, [index]);
    else if (name !== '' && (parts.length > 2 || !parts.every(isDnsLabel))) report(found(name, 'the name of a Gateway, namespace/name, or mesh'), [index]);
  });
});

export const percent: Schema = withCheck<{ value?: number }>(object({ value: { type: 'number', min: 0, max: 100 } }), ({ value }, report) => {
  if (value !== undefined && value > 0 && value < 0.0001) report(`found ${value}, expected 0 or at least 0.0001`, ['value']);
});

const TLS_VERSIONS = choice('TLS_AUTO', 'TLSV1_0', 'TLSV1_1', 'TLSV1_2', 'TLSV1_3');

/** TLS of a server, as far as fields go; what a Gateway and a Sidecar allow of it differs. */
export const serverTlsFields: Record<string, Schema> = {
  httpsRedirect: { type: 'boolean' },
  mode: choice('PASSTHROUGH', 'SIMPLE', 'MUTUAL', 'AUTO_PASSTHROUGH', 'ISTIO_MUTUAL', 'OPTIONAL_MUTUAL'),
  serverCertificate: text,
  privateKey: text,
  caCertificates: text,
  caCrl: refused(text),
  credentialName: text,
  credentialNames: { ...list(word), check: (value: string[], report) => value.length > 2 && report(`found ${value.length} names, expected at most two: one for each kind of key`) },
  caCertCredentialName: text,
  tlsCertificates: list(object({ serverCertificate: text, privateKey: text, caCertificates: text })),
  subjectAltNames: list(word),
  verifyCertificateSpki: list(word),
  verifyCertificateHash: list(word),
  minProtocolVersion: TLS_VERSIONS,
  maxProtocolVersion: TLS_VERSIONS,
  cipherSuites: list(text),
  insecureSkipVerify: { type: 'boolean' },
};
