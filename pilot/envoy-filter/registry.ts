/**
 * Envoy's messages by name, with JSON that users write (protobuf's own JSON form, `Any` by `@type`) turned into them. The
 * generated codecs are faster but know no JSON; this is read when the first EnvoyFilter or WasmPlugin needs it.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { create as createMessage, createFileRegistry, fromBinary, fromJson, toBinary, type DescMessage, type FileRegistry, type JsonValue, type Message } from '@bufbuild/protobuf';
import { reflect, type ReflectMessage } from '@bufbuild/protobuf/reflect';
import { FileDescriptorSetSchema, type Any } from '@bufbuild/protobuf/wkt';
import { projectRoot } from '../../common/paths.js';
import type { CompiledPatch } from './types.js';

const TYPE_PREFIX = 'type.googleapis.com/';

let registry: FileRegistry | undefined;

export function fileRegistry(): FileRegistry {
  return (registry ??= createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(join(projectRoot, 'proto', 'generated', 'descriptors.binpb')))));
}

/** @throws Error when there is no such message: a programming error */
export function descOf(name: string): DescMessage {
  const desc = fileRegistry().getMessage(name);
  if (!desc) throw new Error(`no message ${name} among the descriptors`);
  return desc;
}

export function decode(name: string, bytes: Uint8Array): ReflectMessage {
  const desc = descOf(name);
  return reflect(desc, fromBinary(desc, bytes));
}

export function encode(message: ReflectMessage): Buffer {
  return Buffer.from(toBinary(message.desc, message.message));
}

export function create(name: string, fields: Record<string, unknown>): ReflectMessage {
  const desc = descOf(name);
  return reflect(desc, createMessage(desc, fields));
}

/** @throws Error that says which key or type is not known */
export function parse(name: string, value: unknown): ReflectMessage {
  const desc = descOf(name);
  return reflect(desc, fromJson(desc, value as JsonValue, { registry: fileRegistry() }));
}

/** The message inside of an Any; undefined when this build has no descriptor of its type. */
export function unpackAny(any: Any): ReflectMessage | undefined {
  const desc = fileRegistry().getMessage(any.typeUrl.slice(any.typeUrl.lastIndexOf('/') + 1));
  return desc && reflect(desc, fromBinary(desc, any.value));
}

export function packInto(any: Any, message: ReflectMessage): void {
  any.typeUrl = TYPE_PREFIX + message.desc.typeName;
  any.value = toBinary(message.desc, message.message);
}

/** Messages that stand for one value: merging them field by field would mix two values. */
const ATOMIC = /^google\.protobuf\.(Duration|Timestamp|FieldMask|.*Value)$/;

/**
 * Merges as protobuf does (scalars are replaced, lists appended, messages merged), but durations and wrappers as a whole,
 * and the contents of an Any of the same type.
 * @param replaceLists lists are replaced, except within an Any
 */
export function merge(target: ReflectMessage, patch: ReflectMessage, replaceLists = false): void {
  for (const field of patch.fields) {
    if (!patch.isSet(field)) continue;
    switch (field.fieldKind) {
      case 'list': {
        const list = target.get(field);
        if (replaceLists) list.clear();
        for (const item of patch.get(field)) list.add(item);
        break;
      }
      case 'map': {
        const map = target.get(field);
        for (const [key, item] of patch.get(field)) map.set(key, item);
        break;
      }
      case 'message': {
        const value = patch.get(field);
        if (!target.isSet(field) || ATOMIC.test(field.message.typeName)) target.set(field, value);
        else if (field.message.typeName === 'google.protobuf.Any') mergeAny(target.get(field).message as Any, value.message as Any);
        else merge(target.get(field), value, replaceLists);
        break;
      }
      default:
        target.set(field, patch.get(field));
    }
  }
}

/** Merges `value`, a copy of the patch's, as its operation says. */
export function mergePatch(target: ReflectMessage, value: ReflectMessage, { operation }: CompiledPatch): void {
  merge(target, value, operation === 'MERGE_AND_REPLACE_LIST');
}

function mergeAny(target: Any, patch: Any): void {
  const [mine, theirs] = target.typeUrl === patch.typeUrl ? [unpackAny(target), unpackAny(patch)] : [];
  if (mine && theirs) {
    merge(mine, theirs);
    packInto(target, mine);
    return;
  }
  target.typeUrl = patch.typeUrl;
  target.value = patch.value;
}

/** A deep copy: patches are kept and must not be changed through what they were put into. */
export function clone(message: ReflectMessage): ReflectMessage {
  return reflect(message.desc, fromBinary(message.desc, toBinary(message.desc, message.message)));
}

/** The plain object behind, with its fields by protobuf-es' names. */
export function plain<T = Record<string, unknown>>(message: ReflectMessage): T & Message {
  return message.message as T & Message;
}
