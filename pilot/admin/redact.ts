/**
 * What debug pages show, without credentials. In Envoy's messages these are the fields that Envoy itself marks as sensitive and
 * hides in its own dump, and headers that carry credentials; in objects, the same within EnvoyFilters, and values of environments.
 */
import { getOption, hasOption, toJson, type DescField } from '@bufbuild/protobuf';
import type { ReflectMessage } from '@bufbuild/protobuf/reflect';
import type { Any } from '@bufbuild/protobuf/wkt';
import type { KubeObject } from '../../common/kube/types.js';
import { valueMessageOf } from '../envoy-filter/compile.js';
import { create, decode, fileRegistry, packInto, parse, unpackAny } from '../envoy-filter/registry.js';

export const REDACTED = '[redacted]';

/** Not marked by Envoy, though they are credentials in themselves. */
const ALSO_SENSITIVE: ReadonlySet<string> = new Set([
  'envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.access_token',
  'envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.google_refresh_token',
  'envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.ServiceAccountJWTAccessCredentials.json_key',
]);
const SECRET_HEADER = /^(proxy-)?authorization$|^(set-)?cookie$|(api-?key|token|secret|password)$/i;
/** Messages about a header, with the field that has its name. */
const HEADER_NAMES: Readonly<Record<string, string>> = { 'envoy.config.core.v3.HeaderValue': 'key', 'envoy.config.route.v3.HeaderMatcher': 'name' };
/** In conditions of an AuthorizationPolicy. */
const HEADER_CONDITION = /^request\.headers\[(.*)\]$/;
/** In a plugin's own configuration nothing is known but the names of keys. */
const SECRET_KEY = /(password|passwd|secret|token|key)$/i;
/** kubectl writes the whole object there once more. */
const LAST_APPLIED = 'kubectl.kubernetes.io/last-applied-configuration';

/** An xDS resource as JSON, with what is inside of its Any values. @param typeUrl one of Envoy's or Istio's types that this build knows */
export function redactedResource(typeUrl: string, value: Uint8Array): unknown {
  return redactedJson(decode(typeUrl.slice(typeUrl.lastIndexOf('/') + 1), value));
}

function redactedJson(message: ReflectMessage): unknown {
  redact(message);
  return toJson(message.desc, message.message, { registry: fileRegistry(), useProtoFieldName: true });
}

function redact(message: ReflectMessage): void {
  const { typeName } = message.desc;
  if (typeName === 'google.protobuf.Any') return redactAny(message.message as Any);
  // Free form, and nothing that Envoy reads a credential from.
  if (/^google\.protobuf\.(Struct|Value|ListValue)$/.test(typeName)) return;
  const named = HEADER_NAMES[typeName];
  if (named !== undefined && SECRET_HEADER.test((message.message as unknown as Record<string, string>)[named]!)) {
    for (const field of message.fields) if (field.name !== named && message.isSet(field)) conceal(message, field);
    return;
  }
  for (const field of message.fields) {
    if (!message.isSet(field)) continue;
    if (isSensitive(field)) conceal(message, field);
    else for (const inner of messagesOf(message, field)) redact(inner);
  }
}

function messagesOf(message: ReflectMessage, field: DescField): Iterable<ReflectMessage> {
  if (field.fieldKind === 'message') return [message.get(field)];
  if (field.fieldKind === 'list' && field.listKind === 'message') return message.get(field) as Iterable<ReflectMessage>;
  if (field.fieldKind === 'map' && field.mapKind === 'message') return message.get(field).values() as Iterable<ReflectMessage>;
  return [];
}

function isSensitive(field: DescField): boolean {
  const mark = fileRegistry().getExtension('udpa.annotations.sensitive');
  return ALSO_SENSITIVE.has(`${field.parent.typeName}.${field.name}`) || (mark !== undefined && hasOption(field, mark) && getOption(field, mark) === true);
}

/** That something is there may be seen; what, not. */
function conceal(message: ReflectMessage, field: DescField): void {
  if (field.fieldKind === 'message' && field.message.typeName !== 'google.protobuf.Any') {
    const inner = message.get(field);
    for (const each of inner.fields) if (inner.isSet(each)) conceal(inner, each);
    return;
  }
  const known: unknown = field.fieldKind === 'scalar' ? message.get(field) : undefined;
  if (typeof known === 'string') message.set(field, REDACTED);
  else if (known instanceof Uint8Array) message.set(field, Buffer.from(REDACTED));
  else message.clear(field);
}

function redactAny(any: Any): void {
  let inner = unpackAny(any);
  if (inner && /\.TypedStruct$/.test(inner.desc.typeName)) {
    const { type_url: typeUrl, value } = toJson(inner.desc, inner.message, { registry: fileRegistry(), useProtoFieldName: true }) as { type_url?: string; value?: unknown };
    inner = typedStruct(typeUrl ?? '', value ?? {});
  }
  if (!inner) {
    // Of a type that is not known nothing can be said, so nothing is shown.
    inner = create('google.protobuf.StringValue', { value: `${REDACTED} ${any.typeUrl}` });
  } else {
    redact(inner);
  }
  packInto(any, inner);
}

function typedStruct(typeUrl: string, value: unknown): ReflectMessage | undefined {
  try {
    return parse(typeUrl.slice(typeUrl.lastIndexOf('/') + 1), value);
  } catch {
    return undefined;
  }
}

interface Patches {
  configPatches?: { applyTo?: string; patch?: { value?: unknown } }[];
}

/** A copy of a configuration object. Of a Secret only its name is left. */
export function redactedObject(object: KubeObject & { spec?: unknown }): unknown {
  const { apiVersion, kind, metadata } = object;
  if (kind === 'Secret') return { apiVersion, kind, metadata: { name: metadata.name, namespace: metadata.namespace } };
  const spec = kind === 'EnvoyFilter' ? redactedPatches(object.spec as Patches | undefined) : object.spec;
  const text = JSON.stringify({ ...object, spec }, (key, value: unknown) => {
    if (key === LAST_APPLIED) return undefined;
    if (key === 'pluginConfig') return redactedKeys(value, SECRET_KEY);
    if ((key === 'set' || key === 'add') && isRecord(value)) return redactedKeys(value, SECRET_HEADER);
    // By name, matches of VirtualServices; in lists, those of the Gateway API and what it sets, and conditions.
    if (HEADER_MATCHES.has(key) && isRecord(value)) return Object.fromEntries(Object.entries(value).map(([name, match]) => [name, SECRET_HEADER.test(name) ? allRedacted(match) : match]));
    if (isRecord(value) && isSecretHeader(value)) return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, HEADER_VALUES.has(name) ? allRedacted(item) : item]));
    if (key === 'env' && Array.isArray(value)) return value.map((entry: unknown) => (isRecord(entry) && 'value' in entry ? { ...entry, value: REDACTED } : entry));
    return value;
  });
  return JSON.parse(text);
}

const HEADER_MATCHES: ReadonlySet<string> = new Set(['headers', 'withoutHeaders']);
const HEADER_VALUES: ReadonlySet<string> = new Set(['value', 'values', 'notValues']);

function isSecretHeader({ name, key }: Record<string, unknown>): boolean {
  const header = typeof key === 'string' ? HEADER_CONDITION.exec(key)?.[1] : name;
  return typeof header === 'string' && SECRET_HEADER.test(header);
}

function allRedacted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(allRedacted);
  return isRecord(value) ? Object.fromEntries(Object.entries(value).map(([key, item]) => [key, allRedacted(item)])) : REDACTED;
}

function redactedPatches(spec: Patches | undefined): unknown {
  return { ...spec, configPatches: spec?.configPatches?.map((entry) => (entry.patch?.value === undefined ? entry : { ...entry, patch: { ...entry.patch, value: redactedValue(entry.applyTo, entry.patch.value) } })) };
}

/** What is no message of Envoy's was refused, and may be anything. */
function redactedValue(applyTo: string | undefined, value: unknown): unknown {
  const name = valueMessageOf(applyTo);
  if (name === undefined) return REDACTED;
  try {
    return redactedJson(parse(name, value));
  } catch {
    return REDACTED;
  }
}

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value);

function redactedKeys(value: unknown, secret: RegExp): unknown {
  if (Array.isArray(value)) return value.map((item: unknown) => redactedKeys(item, secret));
  if (!isRecord(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, secret.test(key) && (typeof item === 'string' || typeof item === 'number') ? REDACTED : redactedKeys(item, secret)]));
}
