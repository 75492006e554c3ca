/** The `grpc-echo` image's server: see grpc-echo.ts for what it can be asked. */
import { Server, ServerCredentials, type Metadata, type sendUnaryData, type ServerDuplexStream, type ServerReadableStream, type ServerUnaryCall, type ServerWritableStream } from '@grpc/grpc-js';
import { setTimeout as delay } from 'node:timers/promises';
import { ECHO_SERVICE, type EchoRequest, type EchoResponse } from './grpc-echo.js';
import { endOnSignal, identity, portList } from './http.js';

const failures = new Map<string, number>();

function reply(request: EchoRequest, metadata: Metadata, index = 0): EchoResponse {
  const { pod, version } = identity;
  const headers = Object.fromEntries(Object.entries(metadata.getMap()).map(([name, value]) => [name, String(value)]));
  return { message: request.message ?? '', pod, version, metadata: headers, index };
}

function failure({ fail, times, key = '' }: EchoRequest): { code: number; details: string } | undefined {
  if (!fail) return undefined;
  const seen = (failures.get(key) ?? 0) + 1;
  failures.set(key, seen);
  return times === undefined || seen <= times ? { code: fail, details: `asked to fail, ${identity.pod}` } : undefined;
}

const implementation = {
  Unary(call: ServerUnaryCall<EchoRequest, EchoResponse>, callback: sendUnaryData<EchoResponse>): void {
    const wrong = failure(call.request);
    if (wrong) callback(wrong);
    else callback(null, reply(call.request, call.metadata));
  },
  async ServerStream(call: ServerWritableStream<EchoRequest, EchoResponse>): Promise<void> {
    const { count = 3, intervalMs = 0 } = call.request;
    const wrong = failure(call.request);
    if (wrong) return void call.emit('error', wrong);
    for (let index = 0; index < count && !call.cancelled; index++) {
      if (index > 0 && intervalMs > 0) await delay(intervalMs);
      call.write(reply(call.request, call.metadata, index));
    }
    call.end();
  },
  ClientStream(call: ServerReadableStream<EchoRequest, EchoResponse>, callback: sendUnaryData<EchoResponse>): void {
    const messages: string[] = [];
    call.on('data', (request: EchoRequest) => messages.push(request.message ?? ''));
    call.on('end', () => callback(null, reply({ message: messages.join(' ') }, call.metadata)));
  },
  BidiStream(call: ServerDuplexStream<EchoRequest, EchoResponse>): void {
    let index = 0;
    call.on('data', (request: EchoRequest) => call.write(reply(request, call.metadata, index++)));
    call.on('end', () => call.end());
    call.on('error', () => undefined);
  },
};

for (const port of portList('GRPC_PORTS', [7070])) {
  const server = new Server();
  server.addService(ECHO_SERVICE, implementation as never);
  server.bindAsync(`[::]:${port}`, ServerCredentials.createInsecure(), (error) => {
    if (!error) return;
    process.stderr.write(`listening on port ${port}: ${error.message}\n`);
    process.exit(1);
  });
}
endOnSignal();
