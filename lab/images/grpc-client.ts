/**
 * `grpc-client [options] HOST:PORT METHOD [JSON…]`: calls Unary, ServerStream, ClientStream or BidiStream of the `grpc-echo`
 * image and prints each answer as a line of JSON. Exit 1 and `code N: details` on stderr when the call fails.
 *   -n N            so many calls one after another on one channel
 *   -H name=value   metadata, may be repeated
 *   --timeout MS    default 10000
 */
import { Client, credentials, Metadata, type CallOptions } from '@grpc/grpc-js';
import { parseArgs } from 'node:util';
import { ECHO_SERVICE, type EchoRequest, type EchoResponse } from './grpc-echo.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { n: { type: 'string', short: 'n', default: '1' }, header: { type: 'string', short: 'H', multiple: true, default: [] }, timeout: { type: 'string', default: '10000' } },
});
const [address, name = 'Unary', ...bodies] = positionals;
const method = ECHO_SERVICE[name as keyof typeof ECHO_SERVICE];
if (!address || !method) {
  process.stderr.write('usage: grpc-client [-n N] [-H name=value]… [--timeout MS] HOST:PORT Unary|ServerStream|ClientStream|BidiStream [JSON…]\n');
  process.exit(2);
}
const requests = (bodies.length ? bodies : ['{"message":"hello"}']).map((body) => JSON.parse(body) as EchoRequest);
const metadata = new Metadata();
for (const header of values.header) metadata.add(header.slice(0, header.indexOf('=')), header.slice(header.indexOf('=') + 1));
const client = new Client(address, credentials.createInsecure());
const print = (response: EchoResponse): void => void process.stdout.write(`${JSON.stringify(response)}\n`);

function call(): Promise<void> {
  return new Promise((resolve, reject) => {
    const options: CallOptions = { deadline: Date.now() + Number(values.timeout) };
    const { path, requestSerialize: to, responseDeserialize: from, requestStream, responseStream } = method;
    const [first] = requests as [EchoRequest];
    const done = (error: Error | null, response?: EchoResponse): void => {
      if (error) return reject(error);
      print(response as EchoResponse);
      resolve();
    };
    if (!requestStream && !responseStream) return void client.makeUnaryRequest(path, to, from, first, metadata, options, done);
    if (requestStream && !responseStream) {
      const stream = client.makeClientStreamRequest<EchoRequest, EchoResponse>(path, to, from, metadata, options, done);
      for (const request of requests) stream.write(request);
      return void stream.end();
    }
    const duplex = requestStream ? client.makeBidiStreamRequest<EchoRequest, EchoResponse>(path, to, from, metadata, options) : undefined;
    const stream = duplex ?? client.makeServerStreamRequest<EchoRequest, EchoResponse>(path, to, from, first, metadata, options);
    stream.on('data', print);
    stream.on('error', reject);
    stream.on('end', resolve);
    for (const request of requests) duplex?.write(request);
    duplex?.end();
  });
}

try {
  for (let count = 0; count < Number(values.n); count++) await call();
} catch (error) {
  const { code, details } = error as { code?: number; details?: string };
  process.stderr.write(`code ${code}: ${details}\n`);
  process.exitCode = 1;
}
client.close();
