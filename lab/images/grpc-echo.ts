/**
 * The service of the `grpc-echo` image, shared by server and client: real gRPC framing, JSON in place of protobuf messages,
 * which neither a proxy nor a test looks into.
 */
import type { ServiceDefinition } from '@grpc/grpc-js';

export interface EchoRequest {
  message?: string;
  /** How many answers a server stream has. */
  count?: number;
  /** Between a stream's answers. */
  intervalMs?: number;
  /** Answers with this gRPC status code instead … */
  fail?: number;
  /** … only to the first so many requests with this key. */
  times?: number;
  key?: string;
}

export interface EchoResponse {
  message: string;
  pod: string;
  version: string;
  metadata: Record<string, string>;
  index: number;
}

const serialize = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));
const deserialize = (bytes: Buffer): never => JSON.parse(bytes.toString('utf8')) as never;
const method = (name: string, requestStream: boolean, responseStream: boolean) => ({
  path: `/underpass.lab.Echo/${name}`,
  requestStream,
  responseStream,
  requestSerialize: serialize,
  requestDeserialize: deserialize,
  responseSerialize: serialize,
  responseDeserialize: deserialize,
});

export const ECHO_SERVICE = {
  Unary: method('Unary', false, false),
  ServerStream: method('ServerStream', false, true),
  ClientStream: method('ClientStream', true, false),
  BidiStream: method('BidiStream', true, true),
} satisfies ServiceDefinition;
