/**
 * The small grammars of Istio's API: host names, wildcards, addresses, patterns. Each function answers with what was
 * expected, or with undefined when the text is right. The rules are those of Istio's own validation.
 */
import { isIP, isIPv4 } from 'node:net';
import { RE2JS } from 're2js';

/** Upper case passes, as it does in Istio. */
const LABEL = /^[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$/;
const WILDCARD_LABEL = /^(\*|(\*-?)?[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?)$/;

export function isDnsLabel(text: string): boolean {
  return LABEL.test(text);
}

export function isIpAddress(text: string): boolean {
  return isIP(text) !== 0;
}

/** An address, or a block `address/bits`. */
export function isIpBlock(text: string): boolean {
  const [address = '', bits, ...more] = text.split('/');
  if (!isIpAddress(address) || more.length > 0) return false;
  return bits === undefined || (/^(0|[1-9][0-9]{0,2})$/.test(bits) && Number(bits) <= (isIPv4(address) ? 32 : 128));
}

function labels(parts: readonly string[]): boolean {
  const last = parts[parts.length - 1]!;
  if (/^[0-9]+$/.test(last)) return false;
  return parts.every((part, index) => LABEL.test(part) || (part === '' && index > 0 && index === parts.length - 1));
}

/** A DNS name without a wildcard, perhaps with a dot at its end. */
export function isHostName(text: string): boolean {
  return text !== '' && text.length <= 255 && labels(text.split('.'));
}

/** A DNS name whose first label may be, or begin with, a wildcard; or `*` alone. */
export function isWildcardHost(text: string): boolean {
  if (text === '' || text.length > 255) return false;
  const [first = '', ...rest] = text.split('.');
  return WILDCARD_LABEL.test(first) && (rest.length === 0 || labels(rest));
}

/** `*.example.com` is one, `*-a.example.com` is not. */
export function isPartialWildcard(host: string): boolean {
  return host.includes('*') && host !== '*' && !host.startsWith('*.');
}

/** Does a host, perhaps a wildcard, contain another one? */
export function hostContains(outer: string, inner: string): boolean {
  const [a, b] = [outer.toLowerCase(), inner.toLowerCase()];
  if (a === b || a === '*') return true;
  return a.startsWith('*') && b.endsWith(a.slice(1)) && b.length >= a.length;
}

/** Is there a name that both hosts have? */
export function hostsOverlap(a: string, b: string): boolean {
  return hostContains(a, b) || hostContains(b, a);
}

/** The protocols that Istio names; case does not matter. */
export const PROTOCOLS: readonly string[] = ['HTTP', 'HTTPS', 'GRPC', 'GRPC-WEB', 'HTTP2', 'HTTP_PROXY', 'TCP', 'TLS', 'UDP', 'MONGO', 'REDIS', 'MYSQL'];

export const isTlsProtocol = (protocol: string): boolean => ['HTTPS', 'TLS'].includes(protocol.toUpperCase());
export const isHttpProtocol = (protocol: string): boolean => ['HTTP', 'HTTP2', 'HTTP_PROXY', 'GRPC', 'GRPC-WEB'].includes(protocol.toUpperCase());

export const HEADER_NAME = /^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/;

/** What is wrong with a pattern in the syntax of RE2. */
export function patternProblem(pattern: string): string | undefined {
  if (pattern.length > 1024) return 'a pattern of at most 1024 characters';
  try {
    RE2JS.compile(pattern);
    return undefined;
  } catch (error) {
    return `a regular expression of RE2: ${(error as Error).message.replace(/^error parsing regexp: /, '')}`;
  }
}

/** `unix:///path` and `unix://@abstract` */
export function isUnixAddress(text: string): boolean {
  const path = text.startsWith('unix://') ? text.slice('unix://'.length) : '';
  return path.startsWith('@') ? path.length > 1 : path.startsWith('/') && !path.endsWith('/');
}
