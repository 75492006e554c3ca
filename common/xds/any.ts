/**
 * Any values of xDS: packed from typed messages, and decoded only when somebody reads them.
 * The registry is filled by ts-proto: every generated message that was imported can be found by its type name.
 */
import { messageTypeRegistry, type MessageType, type UnknownMessage } from '../../proto/generated/typeRegistry.js';
import { Any } from '../../proto/generated/google/protobuf/any.js';

const PREFIX = 'type.googleapis.com/';

export interface Codec<T> {
  readonly $type: string;
  encode(message: T): { finish(): Uint8Array };
  decode(input: Uint8Array): T;
  fromPartial(object: never): T;
}

/** `type.googleapis.com/<full name>` of a generated message. */
export function typeUrl(codec: { readonly $type: string }): string {
  return PREFIX + codec.$type;
}

export function pack<T>(codec: { readonly $type: string; encode(message: T): { finish(): Uint8Array } }, message: T): Any {
  return { type_url: typeUrl(codec), value: Buffer.from(codec.encode(message).finish()) };
}

/** Decodes an Any as `codec`'s message, or undefined when it holds another type. */
export function unpack<T>(codec: { readonly $type: string; decode(input: Uint8Array): T }, any: Any | undefined): T | undefined {
  return any && any.type_url === typeUrl(codec) ? codec.decode(any.value) : undefined;
}

/** The generated message type of an Any, if this build knows it. */
export function messageTypeOf(any: Any): MessageType<UnknownMessage> | undefined {
  return messageTypeRegistry.get(any.type_url.slice(any.type_url.indexOf('/') + 1)) as MessageType<UnknownMessage> | undefined;
}
