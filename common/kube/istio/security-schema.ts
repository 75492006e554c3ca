/** PeerAuthentication, AuthorizationPolicy, RequestAuthentication, with what Istio's own validation asks of one by itself. */
import { bool, choice, list, object, text, withCheck, word, type Report, type Schema } from '../schema.js';
import { ipBlock, oneTarget, policySelector, policyTargets } from './fields.js';
import type { AuthorizationOperation, AuthorizationPolicy, AuthorizationRule, AuthorizationSource, JwtRule, PeerAuthentication } from './security.js';
import { HEADER_NAME, isIpBlock } from './syntax.js';

const mutualTls = object({ mode: choice('UNSET', 'DISABLE', 'PERMISSIVE', 'STRICT') });

type PeerSpec = NonNullable<PeerAuthentication['spec']>;

export const peerAuthentication: Schema = withCheck<PeerSpec>(
  object({
    selector: policySelector,
    mtls: mutualTls,
    portLevelMtls: withCheck<Record<string, object>>({ type: 'map', values: mutualTls }, (value, report) => {
      const ports = Object.keys(value);
      if (ports.length === 0) report('found no port, expected at least one');
      for (const port of ports) if (!/^[1-9][0-9]{0,4}$/.test(port) || Number(port) > 65_535) report(`found "${port}", expected a port from 1 to 65535`, [port]);
    }),
  }),
  ({ selector, portLevelMtls }, report) => {
    if (portLevelMtls && Object.keys(selector?.matchLabels ?? {}).length === 0) report('found settings of ports without a selector, expected a selector: ports are those of workloads', ['portLevelMtls']);
  },
);

/** Exact, `prefix*`, `*suffix`, or `*` for anything that is there. */
const wildcardText = word;
const values = list(wildcardText);
const blocks = list(ipBlock);
const MAX_SERVICE_ACCOUNTS = 16;

const serviceAccounts = withCheck<string[]>(list(word), (value, report) => {
  if (value.length > MAX_SERVICE_ACCOUNTS) report(`found ${value.length} entries, expected at most ${MAX_SERVICE_ACCOUNTS}`);
  value.forEach((entry, index) => {
    if (entry.includes('*')) report(`found "${entry}", expected no wildcard`, [index]);
    else if (entry !== '' && (!/^[^/]+(\/[^/]+)?$/.test(entry) || entry.length > 320)) report(`found "${entry}", expected namespace/serviceAccount or a service account`, [index]);
  });
});

const trustDomains = withCheck<string[]>(values, (value, report) => {
  value.forEach((entry, index) => {
    if (entry.includes('/')) report(`found "${entry}", expected a trust domain, which has no "/"`, [index]);
    else if (!/^\*?[^*]*\*?$/.test(entry) || (entry.match(/\*/g)?.length ?? 0) > 1) report(`found "${entry}", expected at most one "*", at one end`, [index]);
  });
});

const ports = withCheck<string[]>(values, (value, report) => {
  value.forEach((entry, index) => {
    if (entry !== '' && (!/^[0-9]{1,5}$/.test(entry) || Number(entry) > 65_535)) report(`found "${entry}", expected a port`, [index]);
  });
});

/** Envoy's templates of paths: `{*}` for one segment, `{**}` for the rest. */
const paths = withCheck<string[]>(values, (value, report) => {
  value.forEach((path, index) => {
    const segments = path.replace(/^\/+|\/+$/g, '').split('/');
    const isTemplate = /\{\*{1,2}\}/.test(path);
    const rest = segments.indexOf('{**}');
    if (rest >= 0 && segments.slice(rest + 1).some((segment) => /^\{\*{1,2}\}$/.test(segment))) report(`found "${path}", expected {**} as the last of the templates`, [index]);
    for (const segment of segments) {
      if (segment === '{*}' || segment === '{**}') continue;
      if (/[{}]/.test(segment)) report(`found "${path}", expected braces only as {*} or {**}, each a whole segment`, [index]);
      else if (isTemplate && !/^[a-zA-Z0-9\-._~%!$&'()+,;:@=]*$/.test(segment)) report(`found "${path}", expected plain text between the templates`, [index]);
    }
  });
});

const source = object({
  principals: values, notPrincipals: values, requestPrincipals: values, notRequestPrincipals: values, serviceAccounts, notServiceAccounts: serviceAccounts,
  namespaces: values, notNamespaces: values, ipBlocks: blocks, notIpBlocks: blocks, remoteIpBlocks: blocks, notRemoteIpBlocks: blocks,
  trustDomains, notTrustDomains: trustDomains,
});

const operation = object({ hosts: values, notHosts: values, ports, notPorts: ports, methods: values, notMethods: values, paths, notPaths: paths });

/** What `when` can ask for. A name that ends in `[` takes a key in brackets. */
const ATTRIBUTES = [
  'request.headers[', 'request.experimental.inline.headers[', 'source.ip', 'remote.ip', 'source.namespace', 'source.serviceAccount', 'source.principal', 'source.trustDomain', 'request.auth.principal',
  'request.auth.audiences', 'request.auth.presenter', 'request.auth.claims[', 'destination.ip', 'destination.port', 'connection.sni', 'experimental.envoy.filters.',
];

function checkCondition({ key, values: wanted = [], notValues = [] }: { key: string; values?: string[]; notValues?: string[] }, report: Report): void {
  if (wanted.length + notValues.length === 0) report('found nothing, expected values or notValues', ['values']);
  const known = ATTRIBUTES.find((name) => (/[[.]$/.test(name) ? key.startsWith(name) : key === name));
  if (!known) return report(`found "${key}", expected one of ${ATTRIBUTES.map((name) => (name.endsWith('[') ? `${name}…]` : name.replace(/\.$/, '.*'))).join(', ')}`, ['key']);
  if (/[[.]$/.test(known) && !/^[^[]+(\[[^[\]]+\])+$/.test(key)) report(`found "${key}", expected a key in brackets, e.g. ${known.startsWith('request.h') ? 'request.headers[x-user]' : `${known.replace(/[[.]$/, '')}[name]`}`, ['key']);
  for (const [field, entries] of [['values', wanted], ['notValues', notValues]] as const) {
    entries.forEach((entry, index) => {
      if (['source.ip', 'remote.ip', 'destination.ip'].includes(key) && !isIpBlock(entry)) report(`found "${entry}", expected an IP address, or a block such as 10.0.0.0/8`, [field, index]);
      if (key === 'destination.port' && (!/^[0-9]{1,5}$/.test(entry) || Number(entry) > 65_535)) report(`found "${entry}", expected a port`, [field, index]);
    });
  }
}

const filled = (value: object | undefined): boolean => Object.values(value ?? {}).some((list) => Array.isArray(list) && list.length > 0);

/** Of the ends of a connection only these are known before a request; the rest is HTTP. */
const TCP_SOURCE: readonly (keyof AuthorizationSource)[] = [
  'principals', 'notPrincipals', 'namespaces', 'notNamespaces', 'serviceAccounts', 'notServiceAccounts', 'ipBlocks', 'notIpBlocks', 'remoteIpBlocks', 'notRemoteIpBlocks', 'trustDomains', 'notTrustDomains',
];

function checkRule(rule: AuthorizationRule, report: Report): void {
  for (const key of ['from', 'to'] as const) if (rule[key]?.length === 0) report(`found an empty list, expected at least one entry, or no ${key}`, [key]);
  rule.from?.forEach(({ source: who }, index) => {
    if (!filled(who)) report('found nothing, expected at least one field of the source', ['from', index, 'source']);
    const account = who?.serviceAccounts?.length || who?.notServiceAccounts?.length;
    const other = (['principals', 'notPrincipals', 'namespaces', 'notNamespaces'] as const).find((key) => who?.[key]?.length);
    if (account && other) report(`found serviceAccounts and ${other}, expected one of them`, ['from', index, 'source', other]);
  });
  rule.to?.forEach(({ operation: what }, index) => {
    if (!filled(what)) report('found nothing, expected at least one field of the operation', ['to', index, 'operation']);
  });
}

/** Identity is established after an external server was asked, so CUSTOM rules can't speak of it. */
function checkCustom(rule: AuthorizationRule, report: Report): void {
  rule.from?.forEach(({ source: who }, index) => {
    for (const key of Object.keys(who ?? {})) if (!/ipblocks$/i.test(key)) report(`found ${key}, which action CUSTOM can't ask for, expected addresses alone`, ['from', index, 'source', key]);
  });
  rule.when?.forEach(({ key }, index) => {
    if (/^(source\.(namespace|serviceAccount|trustDomain|principal)$|request\.auth\.)/.test(key)) report(`found "${key}", which action CUSTOM can't ask for`, ['when', index, 'key']);
  });
}

function deniesTcpWhole({ from, to }: AuthorizationRule): boolean {
  const tcpFrom = from?.some(({ source: who }) => TCP_SOURCE.some((key) => who?.[key])) ?? false;
  const tcpTo = to?.some(({ operation: what }: { operation?: AuthorizationOperation }) => what?.ports || what?.notPorts) ?? false;
  return (!!from && !to && !tcpFrom) || (!!to && !tcpTo);
}

type PolicySpec = NonNullable<AuthorizationPolicy['spec']>;

export const authorizationPolicy: Schema = withCheck<PolicySpec>(
  object({
    ...policyTargets,
    rules: list(
      withCheck<AuthorizationRule>(
        object({ from: list(object({ source }, ['source'])), to: list(object({ operation }, ['operation'])), when: list(withCheck(object({ key: word, values, notValues: values }, ['key']), checkCondition)) }),
        checkRule,
      ),
    ),
    action: choice('ALLOW', 'DENY', 'AUDIT', 'CUSTOM'),
    provider: object({ name: text }),
  }),
  (spec, report, warn) => {
    const { action = 'ALLOW', rules } = spec;
    oneTarget(spec, report);
    if (action === 'CUSTOM' && !spec.provider?.name) report('found nothing, action CUSTOM needs the name of an extension provider', ['provider', 'name']);
    if (action !== 'CUSTOM' && spec.provider) report(`found a provider with action ${action}, expected it with CUSTOM`, ['provider']);
    if ((action === 'CUSTOM' || action === 'DENY') && !rules?.length) report(`found no rule, which with action ${action} matches nothing, expected rules; an empty one, {}, matches everything`, ['rules']);
    rules?.forEach((rule, index) => {
      if (action === 'CUSTOM') checkCustom(rule, (message, path = []) => report(message, ['rules', index, ...path]));
      if (action === 'DENY' && deniesTcpWhole(rule)) warn('this rule asks for what only HTTP has: it denies all traffic of TCP ports; name the ports that are meant', ['rules', index]);
    });
  },
);

const PRIVATE_PARTS = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'k'];

/** What is wrong with a key set; says nothing of what is in it, which may be private. */
function checkJwks(value: string, report: Report, warn: Report): void {
  let keys: unknown;
  try {
    const parsed = JSON.parse(value) as { keys?: unknown; kty?: unknown };
    keys = parsed.kty === undefined ? parsed.keys : [parsed];
  } catch {
    return report('found text that is not JSON, expected a JSON web key set');
  }
  if (!Array.isArray(keys)) return report('found no list of keys, expected a JSON web key set: {"keys": […]}');
  keys.forEach((key: Record<string, unknown> | null, index) => {
    const kty = key?.['kty'];
    const needed = { RSA: ['n', 'e'], EC: ['crv', 'x', 'y'], OKP: ['crv', 'x'], oct: ['k'] }[String(kty)];
    if (!needed) report(`found a key (number ${index}) of an unknown type, expected kty RSA, EC, OKP or oct`);
    else if (needed.some((part) => typeof key?.[part] !== 'string')) report(`found an incomplete key (number ${index}), expected ${needed.join(', ')}`);
    if (PRIVATE_PARTS.some((part) => key?.[part] !== undefined)) warn(`found a private key (number ${index}): public ones are enough to verify`);
  });
}

const headerName = withCheck<string>(word, (value, report) => {
  if (value !== '' && !HEADER_NAME.test(value)) report(`found ${JSON.stringify(value)}, expected a header's name`);
});

const jwksUri = withCheck<string>(text, (value, report) => {
  if (value !== '' && (!/^https?:\/\/[^/]/.test(value) || !URL.canParse(value))) report(`found ${JSON.stringify(value)}, expected a URL with http:// or https://`);
});

const jwtRule: Schema = withCheck<JwtRule>(
  object({
    issuer: text,
    audiences: list(word),
    jwksUri,
    jwks_uri: { ...jwksUri, aliasOf: 'jwksUri' },
    jwks: withCheck<string>(text, (value, report, warn) => value !== '' && checkJwks(value, report, warn)),
    fromHeaders: list(object({ name: word, prefix: text }, ['name'])),
    fromParams: list(word),
    fromCookies: list(word),
    outputPayloadToHeader: text,
    forwardOriginalToken: bool,
    outputClaimToHeaders: list(object({ header: headerName, claim: word }, ['header', 'claim'])),
    timeout: { type: 'duration', minMs: 1 },
    spaceDelimitedClaims: list(word),
  }),
  ({ issuer, jwksUri: uri, jwks }, report) => {
    if (!issuer && !uri) report('found nothing, expected an issuer or a jwksUri', ['issuer']);
    if (uri && jwks) report('found jwksUri and jwks, expected one of them', ['jwks']);
  },
);

export const requestAuthentication: Schema = withCheck(object({ ...policyTargets, jwtRules: list(jwtRule) }), oneTarget);

