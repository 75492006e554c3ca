/** What the kernel does with a request by its table: the meaning of table.ts, for tests to compare with Envoy and with the kernel. */
import { pathHolds } from './conditions.js';
import { HTTP_METHODS, type HttpMethod } from './limits.js';
import { ENVOY, type ClassIndex, type HttpRule, type HttpTable, type RuleList } from './table.js';

export interface HttpRequest {
  method: string;
  /** With its query. */
  target: string;
  host: string;
  /** Names in small letters. */
  headers: readonly (readonly [name: string, value: string])[];
}

/** The class that a request has; ENVOY: Envoy's to find. */
export function classOfRequest(table: HttpTable, destination: { address: string; port: number }, request: HttpRequest): ClassIndex {
  const port = table.ports.find(({ address, port: each }) => each === destination.port && address === destination.address) ?? table.ports.find(({ address, port: each }) => each === destination.port && address === undefined);
  if (port?.routes === undefined) return ENVOY;
  const { hosts } = table.routes[port.routes]!;
  const host = request.host.toLowerCase();
  const found = hosts.find((each) => each.host === host) ?? hosts.find((each) => each.host === '*');
  return found ? judge(table.virtualHosts[found.virtualHost]!, request, ENVOY) : ENVOY;
}

/** @param doubt the verdict where none is to be told */
export function judge<Verdict>({ rules, otherwise }: RuleList<Verdict>, request: HttpRequest, doubt: Verdict): Verdict {
  if (!(HTTP_METHODS as readonly string[]).includes(request.method)) return doubt;
  for (const rule of rules) {
    const holds = ruleHolds(rule, request);
    if (holds === undefined) return doubt;
    if (holds) return rule.verdict;
  }
  return otherwise;
}

/** Undefined: a header that counts came twice. */
function ruleHolds({ path, methods, headers }: HttpRule<unknown>, request: HttpRequest): boolean | undefined {
  if (methods && !methods.includes(request.method as HttpMethod)) return false;
  if (!pathHolds(path, request.target.split(/[?#]/, 1)[0]!)) return false;
  for (const { name, kind, value, inverted } of headers) {
    const found = name === '' ? [request.host.toLowerCase()] : request.headers.flatMap(([each, text]) => (each === name ? [text] : []));
    if (found.length > 1) return undefined;
    const [text] = found;
    const holds = text !== undefined && (kind === 'present' || (kind === 'exact' ? text === value : text.startsWith(value)));
    if (holds === inverted) return false;
  }
  return true;
}
