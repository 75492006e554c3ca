/** Istio's ways to write a value in a policy (exact, `prefix*`, `*suffix`, `*`, path templates, CIDRs) as Envoy's matchers. */
import { isIP } from 'node:net';
import { pack } from '../../../common/xds/any.js';
import type { TypedExtensionConfig } from '../../../proto/generated/envoy/config/core/v3/extension.js';
import type { CidrRange } from '../../../proto/generated/envoy/config/core/v3/address.js';
import { HeaderMatcher } from '../../../proto/generated/envoy/config/route/v3/route_components.js';
import { UriTemplateMatchConfig } from '../../../proto/generated/envoy/extensions/path/match/uri_template/v3/uri_template_match.js';
import { MetadataMatcher } from '../../../proto/generated/envoy/type/matcher/v3/metadata.js';
import { StringMatcher } from '../../../proto/generated/envoy/type/matcher/v3/string.js';
import { ValueMatcher } from '../../../proto/generated/envoy/type/matcher/v3/value.js';

/** Thrown for a value that can't be matched on: what that means depends on the policy's action. */
export class Unmatchable extends Error {}

export const regexMatch = (regex: string): StringMatcher => StringMatcher.fromPartial({ match_pattern: { $case: 'safe_regex', value: { regex } } });
export const exactMatch = (value: string): StringMatcher => StringMatcher.fromPartial({ match_pattern: { $case: 'exact', value } });
export const prefixMatch = (value: string): StringMatcher => StringMatcher.fromPartial({ match_pattern: { $case: 'prefix', value } });
export const suffixMatch = (value: string): StringMatcher => StringMatcher.fromPartial({ match_pattern: { $case: 'suffix', value } });

/** `*` asks for any value that is not empty. With a prefix put before it a suffix can only be said as a pattern. */
export function stringMatch(value: string, prefix = ''): StringMatcher {
  if (value === '*') return regexMatch('.+');
  if (value.startsWith('*')) return prefix === '' ? suffixMatch(value.slice(1)) : regexMatch(`${prefix}.*${escapeRegex(value.slice(1))}`);
  if (value.endsWith('*')) return prefixMatch(prefix + value.slice(0, -1));
  return exactMatch(prefix + value);
}

export function escapeRegex(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}

export function headerMatch(name: string, value: string, ignoreCase = false): HeaderMatcher {
  if (value === '*') return HeaderMatcher.fromPartial({ name, header_match_specifier: { $case: 'present_match', value: true } });
  return HeaderMatcher.fromPartial({ name, header_match_specifier: { $case: 'string_match', value: { ...stringMatch(value), ignore_case: ignoreCase } } });
}

/** One element of a header that holds a comma-separated list, or that comes several times. */
export function headerListMatch(name: string, value: string): HeaderMatcher {
  if (value === '*') return headerMatch(name, value);
  const inner = value.startsWith('*') ? `[^,]*${escapeRegex(value.slice(1))}` : value.endsWith('*') ? `${escapeRegex(value.slice(0, -1))}[^,]*` : escapeRegex(value);
  return HeaderMatcher.fromPartial({ name, header_match_specifier: { $case: 'string_match', value: regexMatch(`(.*,)?\\s*${inner}\\s*(,.*)?`) } });
}

const TEMPLATE_SEGMENT = /^(\*|\*\*|[\w.~!$&'()+,;=:@%-]*)$/;

/** `{*}` is one path segment, `{**}` any number of them, at the end. @throws Unmatchable for what Envoy has no template for */
export function pathTemplate(path: string): TypedExtensionConfig | undefined {
  if (!path.includes('{*}') && !path.includes('{**}')) return undefined;
  const path_template = path.replaceAll('{*}', '*').replaceAll('{**}', '**');
  const [first, ...segments] = path_template.split('/');
  const deep = segments.indexOf('**');
  if (first !== '' || !segments.every((segment) => TEMPLATE_SEGMENT.test(segment)) || (deep >= 0 && segments.slice(deep + 1).some((segment) => segment.includes('*')))) {
    throw new Unmatchable(`found ${JSON.stringify(path)}, expected {*} and {**} as whole segments, {**} after every {*}`);
  }
  return { name: 'uri-template', typed_config: pack(UriTemplateMatchConfig, UriTemplateMatchConfig.fromPartial({ path_template })) };
}

/** @throws Unmatchable */
export function cidr(written: string): CidrRange {
  const [address = '', length, ...rest] = written.split('/');
  const family = isIP(address);
  const bits = family === 6 ? 128 : 32;
  const prefix_len = length === undefined ? bits : /^\d+$/.test(length) ? Number(length) : -1;
  if (family === 0 || prefix_len < 0 || prefix_len > bits || rest.length > 0) throw new Unmatchable(`found ${JSON.stringify(written)}, expected an address or a CIDR range`);
  return { address_prefix: address, prefix_len };
}

/** @throws Unmatchable */
export function portNumber(written: string): number {
  if (!/^\d+$/.test(written) || Number(written) > 65_535) throw new Unmatchable(`found ${JSON.stringify(written)}, expected a port number`);
  return Number(written);
}

export const stringValue = (match: StringMatcher): ValueMatcher => ValueMatcher.fromPartial({ match_pattern: { $case: 'string_match', value: match } });
export const listValue = (match: ValueMatcher): ValueMatcher => ValueMatcher.fromPartial({ match_pattern: { $case: 'list_match', value: { match_pattern: { $case: 'one_of', value: match } } } });
export const anyValue = (matches: readonly ValueMatcher[]): ValueMatcher =>
  matches.length === 1 ? matches[0]! : ValueMatcher.fromPartial({ match_pattern: { $case: 'or_match', value: { value_matchers: [...matches] } } });

export function metadataMatch(filter: string, path: readonly string[], value: ValueMatcher): MetadataMatcher {
  return MetadataMatcher.fromPartial({ filter, path: path.map((key) => ({ segment: { $case: 'key' as const, value: key } })), value });
}

const JWT_FILTER = 'envoy.filters.http.jwt_authn';
/** Where the JWT filter puts the payload of a token that it found valid. */
export const JWT_PAYLOAD = 'payload';

export const claimMatch = (claim: string, match: StringMatcher): MetadataMatcher => metadataMatch(JWT_FILTER, [JWT_PAYLOAD, claim], stringValue(match));

/** A claim is a text or a list of texts. */
export function claimListMatch(path: readonly string[], values: readonly string[]): MetadataMatcher {
  const any = anyValue(values.map((value) => stringValue(stringMatch(value))));
  return metadataMatch(JWT_FILTER, [JWT_PAYLOAD, ...path], anyValue([listValue(any), any]));
}

/** The name of a header in brackets. @throws Unmatchable */
export function headerName(bracketed: string): string {
  const name = namesInBrackets(bracketed).join('][');
  if (!/^:?[\w!#$%&'*+.^`|~-]+$/.test(name)) throw new Unmatchable(`found ${JSON.stringify(bracketed)}, expected the name of a header in brackets`);
  return name;
}

/** A pattern in which `*` is anything. */
export const globRegex = (value: string): string => value.split('*').map(escapeRegex).join('.*');

/** `[a][b]` as `a`, `b`; a name that holds brackets itself is one name. @throws Unmatchable */
export function namesInBrackets(text: string): string[] {
  if (!text.startsWith('[') || !text.endsWith(']')) throw new Unmatchable(`found ${JSON.stringify(text)}, expected a name in brackets`);
  return /^(\[[^[\]]*\])+$/.test(text) ? text.slice(1, -1).split('][') : [text.slice(1, -1)];
}
