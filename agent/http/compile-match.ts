/** What Envoy's matchers ask of a request, as far as the kernel can ask the same; what it can't is unknown, with a reason. */
import type { HeaderMatcher, RouteMatch } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import type { StringMatcher } from '../../proto/generated/envoy/type/matcher/v3/string.js';
import type { Condition } from './conditions.js';
import { HTTP_METHODS, HTTP_NAME_MAX, HTTP_PATH_MAX, HTTP_VALUE_MAX } from './limits.js';
import type { HeaderTest, PathKind } from './table.js';

/**
 * Headers that Envoy writes, removes or reads in its own way before it looks for a route, so that what the client sent is not what
 * is matched.
 */
const CHANGED = /^(?::|(?:x-envoy-|x-forwarded-|x-underpass-|x-b3-|proxy-))|^(?:host|connection|keep-alive|te|upgrade|transfer-encoding|content-length|expect|via|x-request-id|x-client-trace-id|b3|traceparent|tracestate|x-ot-span-context)$/;
/** Of header names, without those whose bit 0x20 tells two apart. */
const NAME = /^[!#$%&'*+\-.0-9A-Z_a-z|]+$/;
const PRINTABLE = /^[\x20-\x7e]*$/;
const LETTERS = /[A-Za-z]/;

const unknown = (reason: string): Condition => ({ unknown: reason });

export function routeCondition(match: RouteMatch | undefined): Condition {
  if (!match) return unknown('it has no match');
  const parts: Condition[] = [pathOf(match)];
  for (const header of match.headers) parts.push(headerCondition(header));
  if (match.query_parameters.length > 0) parts.push(unknown('it looks at query parameters'));
  if (match.grpc) parts.push(unknown('it is for gRPC alone'));
  if (match.runtime_fraction) parts.push(unknown('it is for a part of the requests'));
  if (match.tls_context) parts.push(unknown("it looks at the client's certificate"));
  if (match.dynamic_metadata.length > 0) parts.push(unknown('it looks at metadata'));
  if (match._unknownFields && Object.keys(match._unknownFields).length > 0) parts.push(unknown('it has settings that are not known here'));
  const { path_specifier, case_sensitive, headers, query_parameters, grpc, runtime_fraction, tls_context, dynamic_metadata, _unknownFields, ...rest } = match;
  if (Object.values(rest).some((value) => value !== undefined && !(Array.isArray(value) && value.length === 0))) parts.push(unknown('it has settings that are not known here'));
  return { and: parts };
}

function pathOf({ path_specifier: specifier, case_sensitive }: RouteMatch): Condition {
  switch (specifier?.$case) {
    case 'prefix':
      return pathCondition('prefix', specifier.value, case_sensitive === false);
    case 'path':
      return pathCondition('exact', specifier.value, case_sensitive === false);
    case 'path_separated_prefix':
      return pathCondition('separated', specifier.value, case_sensitive === false);
    case 'safe_regex':
      return unknown('its path is a regular expression');
    default:
      return unknown('its path is a template, or none');
  }
}

export function pathCondition(kind: Exclude<PathKind, 'any'>, value: string, ignoresCase = false): Condition {
  // Whatever the kernel reads begins with a slash.
  if (kind === 'prefix' && (value === '' || value === '/')) return true;
  if (ignoresCase && LETTERS.test(value)) return unknown('its path may be in capital letters or small ones');
  if (!isText(value, HTTP_PATH_MAX)) return unknown(`its path has more than ${HTTP_PATH_MAX} bytes, or unusual ones`);
  return { path: { kind, value, inverted: false } };
}

/** Of the path without its query, as RBAC asks for it. */
export function pathTextCondition(matcher: StringMatcher | undefined): Condition {
  const pattern = matcher?.match_pattern;
  if (pattern?.$case === 'exact' || pattern?.$case === 'prefix') return pathCondition(pattern.$case, pattern.value, matcher!.ignore_case);
  return unknown(`its path is matched by ${pattern?.$case ?? 'nothing'}`);
}

export function headerCondition(matcher: HeaderMatcher): Condition {
  const { invert_match: inverts, treat_missing_header_as_empty: missingIsEmpty } = matcher;
  const name = matcher.name.toLowerCase();
  const asked = askedOf(matcher);
  if (typeof asked === 'string') return unknown(`header ${name}: ${asked}`);
  if (name === ':method') return inverts ? { not: methodCondition(asked) } : methodCondition(asked);
  if (name === ':authority') return inverts ? { not: hostCondition(asked) } : hostCondition(asked);
  if (CHANGED.test(name)) return unknown(`header ${name} is Envoy's own`);
  if (!NAME.test(name) || name.length > HTTP_NAME_MAX) return unknown(`header ${name}: its name has more than ${HTTP_NAME_MAX} bytes, or unusual ones`);
  const test = (kind: HeaderTest['kind'], value: string, inverted: boolean): Condition => ({ header: { name, kind, value, inverted } });
  if (asked.kind === 'present') {
    if (missingIsEmpty) return unknown(`header ${name}: its presence is asked for where a missing one counts as empty`);
    return test('present', '', asked.value === '' ? inverts : !inverts);
  }
  if (asked.ignoresCase && LETTERS.test(asked.value)) return unknown(`header ${name}: capital letters count as small ones`);
  if (asked.value === '') return unknown(`header ${name}: it is asked to be empty`);
  if (asked.value !== asked.value.trim() || !isText(asked.value, HTTP_VALUE_MAX)) return unknown(`header ${name}: its value has more than ${HTTP_VALUE_MAX} bytes, or unusual ones`);
  if (!inverts) return test(asked.kind, asked.value, false);
  // One that is absent matches nothing, inverted or not, unless it counts as empty.
  return missingIsEmpty ? test(asked.kind, asked.value, true) : { and: [test('present', '', false), test(asked.kind, asked.value, true)] };
}

interface Asked {
  kind: HeaderTest['kind'];
  /** Of `present`: '' or `absent`. */
  value: string;
  ignoresCase: boolean;
}

function askedOf({ header_match_specifier: specifier }: HeaderMatcher): Asked | string {
  if (!specifier) return { kind: 'present', value: '', ignoresCase: false };
  switch (specifier.$case) {
    case 'present_match':
      return { kind: 'present', value: specifier.value ? '' : 'absent', ignoresCase: false };
    case 'exact_match':
      return { kind: 'exact', value: specifier.value, ignoresCase: false };
    case 'prefix_match':
      return { kind: 'prefix', value: specifier.value, ignoresCase: false };
    case 'string_match': {
      const { match_pattern: pattern, ignore_case: ignoresCase } = specifier.value;
      if (pattern?.$case === 'exact' || pattern?.$case === 'prefix') return { kind: pattern.$case, value: pattern.value, ignoresCase };
      return `it is matched by ${pattern?.$case ?? 'nothing'}`;
    }
    default:
      return `it is matched by ${specifier.$case}`;
  }
}

function methodCondition({ kind, value, ignoresCase }: Asked): Condition {
  if (kind === 'present') return value === '';
  if (kind !== 'exact' || ignoresCase) return unknown('the method is matched by more than its name');
  return { methods: HTTP_METHODS.filter((method) => method === value) };
}

function hostCondition({ kind, value, ignoresCase }: Asked): Condition {
  if (kind === 'present') return value === '';
  if (value === '' || !isText(value, HTTP_VALUE_MAX)) return unknown(`the host is asked to be one of more than ${HTTP_VALUE_MAX} bytes, or of none`);
  const small = value.toLowerCase();
  const header: HeaderTest = { name: '', kind, value: small, inverted: false };
  // The kernel compares small letters.
  return { header, ...(ignoresCase || !LETTERS.test(value) ? {} : { isLoose: true }) };
}

function isText(text: string, mostBytes: number): boolean {
  return PRINTABLE.test(text) && text.length <= mostBytes;
}
