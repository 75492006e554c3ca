/**
 * Any values of xDS: packed from typed messages, and decoded only when somebody reads them.
 * The registry is filled by ts-proto: every generated message that was imported can be found by its type name.
 */
import { BinaryWriter } from '@bufbuild/protobuf/wire';
import { messageTypeRegistry, type MessageType, type UnknownMessage } from '../../proto/generated/typeRegistry.js';
import { Any } from '../../proto/generated/google/protobuf/any.js';
import { heldBytes } from '../held-bytes.js';

const PREFIX = 'type.googleapis.com/';

export interface Codec<T> {
  readonly $type: string;
  encode(message: T, writer?: BinaryWriter): BinaryWriter;
  decode(input: Uint8Array): T;
  fromPartial(object: never): T;
}

const urls = new Map<string, string>();

/** `type.googleapis.com/<full name>` of a generated message; one string for all that ask. */
export function typeUrl({ $type }: { readonly $type: string }): string {
  let url = urls.get($type);
  if (url === undefined) urls.set($type, (url = PREFIX + $type));
  return url;
}

type Encoder<T> = { encode(message: T, writer?: BinaryWriter): BinaryWriter };

/** For all messages: its buffer has grown to the largest, and is not to be allocated for each. */
let writer = new BinaryWriter();

/** A message's bytes, in memory of their own. */
export function encode<T>(codec: Encoder<T>, message: T): Uint8Array {
  try {
    return codec.encode(message, writer).finish();
  } catch (error) {
    // What it had written of a message with a field that can't be encoded is in it still.
    writer = new BinaryWriter();
    throw error;
  }
}

export function pack<T>(codec: Encoder<T> & { readonly $type: string }, message: T): Any {
  return { type_url: typeUrl(codec), value: Buffer.from(encode(codec, message)) };
}

/** The same for what is held for long, of which there are very many. */
export function packHeld<T>(codec: Encoder<T> & { readonly $type: string }, message: T): Any {
  return { type_url: typeUrl(codec), value: heldBytes(encode(codec, message)) };
}

/** Decodes an Any as `codec`'s message, or undefined when it holds another type. */
export function unpack<T>(codec: { readonly $type: string; decode(input: Uint8Array): T }, any: Any | undefined): T | undefined {
  return any && any.type_url === typeUrl(codec) ? codec.decode(any.value) : undefined;
}

/** The generated message type of an Any, if this build knows it. */
export function messageTypeOf(any: Any): MessageType<UnknownMessage> | undefined {
  return messageTypeRegistry.get(any.type_url.slice(any.type_url.indexOf('/') + 1)) as MessageType<UnknownMessage> | undefined;
}
