// The programs behind the lab's images, each in a pod, reached from another pod by its Service's name, with no mesh between.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { createServer, Socket, type Server } from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Client, credentials } from '@grpc/grpc-js';
import { openSocket } from '../native/index.js';
import { AuthorizationService, CheckRequest, type CheckResponse } from '../proto/generated/envoy/service/auth/v3/external_auth.js';
import { RateLimitRequest, RateLimitServiceService, type RateLimitResponse } from '../proto/generated/envoy/service/ratelimit/v3/rls.js';
import { parseDuration, parseLoad, report } from './images/fortio.js';
import { acceptKey, decodeFrames, encodeFrame, OPCODE } from './images/websocket.js';
import { limitFor, parseDomain, RateLimits } from './images/rate-limits.js';
import { Lab } from './lab.js';

const NAME = `up-lab-images-${process.pid}`;

const server = (name: string, image: string, port: number, more = ''): string => `
apiVersion: apps/v1
kind: Deployment
metadata: {name: ${name}, namespace: shop}
spec:
  selector: {matchLabels: {app: ${name}}}
  template:
    metadata: {labels: {app: ${name}}}
    spec: {containers: [{name: main, image: ${image}${more}}]}
---
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: shop}
spec: {selector: {app: ${name}}, ports: [{port: ${port}, targetPort: ${port}}]}
`;
// Image names as Istio's samples have them.
const WORLD = [
  'apiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: shop}\nspec: {containers: [{name: curl, image: "curlimages/curl:8.1", command: [/bin/sleep, infinity]}]}\n',
  server('echo', 'echo', 8080),
  server('grpc', 'grpc-echo', 7070, ', env: [{name: VERSION, value: v7}]'),
  server('tls', 'tls-echo', 8443, ', env: [{name: TLS_HOSTS, value: "a.example.com,*.b.example.com"}]'),
  server('tcp', 'docker.io/istio/tcp-echo-server:1.3', 9000, ', args: ["9000,9001", hello]'),
  server('greeter', 'tcp-greeter', 3306, ', ports: [{containerPort: 3306}]'),
  server('httpbin', 'docker.io/kennethreitz/httpbin', 80, ', command: [gunicorn, --access-logfile, "-", -b, "0.0.0.0:80", "httpbin:app"], ports: [{containerPort: 80}]'),
  server('go-httpbin', 'docker.io/mccutchen/go-httpbin:v2.15.0', 8080),
  server('helloworld', 'docker.io/istio/examples-helloworld-v2:1.0', 5000),
  server('fortio', 'fortio/fortio:latest_release', 8080),
  server('authz', 'gcr.io/istio-testing/ext-authz:latest', 8000, ', ports: [{containerPort: 8000}, {containerPort: 9000}]'),
  'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: limits, namespace: shop}\ndata:\n  config.yaml: |\n    domain: ratelimit\n    descriptors: [{key: PATH, value: /a, rate_limit: {unit: hour, requests_per_unit: 1}}]\n',
  server('ratelimit', 'envoyproxy/ratelimit:9d8d70a8', 8081, ', command: [/bin/ratelimit], ports: [{containerPort: 8080}, {containerPort: 8081}], volumeMounts: [{name: c, mountPath: /data/ratelimit/config}]}], volumes: [{name: c, configMap: {name: limits}'),
  server('productpage', 'docker.io/istio/examples-bookinfo-productpage-v1:1.20.3', 9080),
  server('details', 'docker.io/istio/examples-bookinfo-details-v1:1.20.3', 9080),
  server('reviews', 'docker.io/istio/examples-bookinfo-reviews-v2:1.20.3', 9080),
  server('ratings', 'docker.io/istio/examples-bookinfo-ratings-v1:1.20.3', 9080),
].join('---\n');

let directory: string;
let lab: Lab;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-images-'));
  writeFileSync(join(directory, 'world.yaml'), WORLD);
  lab = await Lab.up({ name: NAME, sources: [directory], watch: false });
  await lab.whenReady({ timeoutMs: 60_000 });
});

after(async () => {
  for (const relay of relays) relay.close();
  await lab?.down();
  rmSync(directory, { recursive: true, force: true });
});

async function client(...argv: string[]): Promise<string> {
  const { code, stdout, stderr } = await lab.exec('shop/client', argv, { timeoutMs: 30_000 });
  assert.equal(code, 0, `${argv.join(' ')}: ${stderr}`);
  return stdout;
}
const curl = (...argv: string[]): Promise<string> => client('curl', '-sS', '--max-time', '20', ...argv);
const json = async <T = Record<string, unknown>>(...argv: string[]): Promise<T> => JSON.parse(await curl(...argv)) as T;
const status = (...argv: string[]): Promise<string> => curl('-o', '/dev/null', '-w', '%{http_code}', ...argv);

/** A gRPC channel that is opened inside the client's pod: grpc-js takes sockets from a relay on a Unix socket. */
async function grpcIn(service: string, port: number): Promise<Client> {
  const socketPath = join(directory, `${service}.sock`);
  const { netns, ips } = lab.pod('shop', service);
  const relay = createServer((socket) => {
    void openSocket({ netns, family: 'ipv4', type: 'stream', connect: { address: ips[0] as string, port }, timeoutMs: 5_000 }).then((fd) => {
      const upstream = new Socket({ fd });
      socket.on('error', () => upstream.destroy());
      upstream.on('error', () => socket.destroy());
      socket.pipe(upstream).pipe(socket);
    });
  });
  await new Promise<void>((resolve) => relay.listen(socketPath, resolve));
  relays.push(relay);
  return new Client(`unix:${socketPath}`, credentials.createInsecure());
}
const relays: Server[] = [];

test('echo: says protocol and headers over HTTP/1.1 and h2c on one port', async () => {
  assert.equal((await json('http://echo:8080/x'))['protocol'], 'HTTP/1.1');
  const answer = await json<{ protocol: string; headers: Record<string, string> }>('--http2-prior-knowledge', '-H', 'a: b', 'http://echo:8080/x');
  assert.deepEqual([answer.protocol, answer.headers['a']], ['HTTP/2.0', 'b']);
});

test('echo: answers the status, the failures and the headers that it is asked for, and counts', async () => {
  await curl('-X', 'DELETE', 'http://echo:8080/count');
  assert.equal(await status('http://echo:8080/status/503'), '503');
  const flaky = [];
  for (let count = 0; count < 3; count++) flaky.push(await status('http://echo:8080/flaky/2/500?key=k'));
  assert.deepEqual(flaky, ['500', '500', '200']);
  assert.match(await curl('-i', 'http://echo:8080/headers?x-answer=yes'), /x-answer: yes/);
  await curl('-X', 'PUT', 'http://echo:8080/fail/502');
  assert.equal(await status('http://echo:8080/'), '502');
  await curl('-X', 'DELETE', 'http://echo:8080/fail');
  assert.equal(await status('http://echo:8080/'), '200');
  assert.deepEqual((await json('http://echo:8080/count'))['paths'], { '/status/503': 1, '/flaky/2/500': 3, '/headers': 1, '/': 2 });
  assert.equal((await lab.exec('shop/client', ['curl', '-sS', 'http://echo:8080/reset'])).code, 52, 'an empty reply');
});

test('echo: WebSocket messages come back, by its own client', async () => {
  const pod = lab.pod('shop', 'echo').name;
  assert.equal(await client('ws-client', 'http://echo:8080/chat', 'one', 'two'), `${pod}: one\n${pod}: two\n`);
});

test('grpc-echo: unary and each kind of stream, metadata, and a failure as often as asked', async () => {
  const lines = (text: string): { message: string; version: string; index: number; metadata: Record<string, string> }[] => text.trim().split('\n').map((line) => JSON.parse(line) as never);
  const [unary] = lines(await client('grpc-client', '-H', 'who=jesse', 'grpc:7070', 'Unary', '{"message":"hi"}'));
  assert.deepEqual([unary?.message, unary?.version, unary?.metadata['who']], ['hi', 'v7', 'jesse']);
  assert.deepEqual(lines(await client('grpc-client', 'grpc:7070', 'ServerStream', '{"count":3}')).map(({ index }) => index), [0, 1, 2]);
  assert.equal(lines(await client('grpc-client', 'grpc:7070', 'ClientStream', '{"message":"a"}', '{"message":"b"}'))[0]?.message, 'a b');
  assert.deepEqual(lines(await client('grpc-client', 'grpc:7070', 'BidiStream', '{"message":"a"}', '{"message":"b"}')).map(({ message }) => message), ['a', 'b']);
  const failing = ['grpc-client', 'grpc:7070', 'Unary', '{"fail":14,"times":1,"key":"k"}'];
  const failed = await lab.exec('shop/client', failing);
  assert.match(failed.stderr, /^code 14: asked to fail/);
  await client(...failing);
});

test('tls-echo: a certificate for each name, over HTTP/1.1 and HTTP/2', async () => {
  const to = (name: string): string[] => ['-k', '--connect-to', `${name}:443:tls:8443`, `https://${name}/`];
  for (const name of ['a.example.com', 'x.b.example.com']) {
    assert.match(await curl('-v', '--stderr', '-', '--http1.1', ...to(name)), new RegExp(`subject: CN=${name.replace('x.', '\\*\\.')}`));
    assert.equal((await json(...to(name)))['sni'], name);
  }
  assert.equal((await json('--http2', ...to('a.example.com')))['protocol'], 'HTTP/2.0');
});

test('tls-echo: the name that was asked for is said also to a client that would take up its session of TLS 1.2 again', async () => {
  const request = "printf 'GET / HTTP/1.1\\r\\nHost: a.example.com\\r\\nConnection: close\\r\\n\\r\\n'";
  const connect = 'openssl s_client -connect tls:8443 -servername a.example.com -tls1_2 -ign_eof 2> /dev/null';
  const script = `session=$(mktemp); ${request} | ${connect} -sess_out $session; ${request} | ${connect} -sess_in $session; rm $session`;
  const answers = (await client('sh', '-c', script)).split('\n').filter((line) => line.startsWith('{'));
  assert.deepEqual(answers.map((line) => (JSON.parse(line) as { sni: unknown }).sni), ['a.example.com', 'a.example.com']);
});

test('tcp-echo-server and tcp-greeter: lines come back behind the prefix; the greeter speaks first', async () => {
  assert.equal(await client('bash', '-c', 'exec 3<>/dev/tcp/tcp/9000; echo world >&3; head -1 <&3'), 'hello world\n');
  assert.match(await client('bash', '-c', 'exec 3<>/dev/tcp/greeter/3306; head -1 <&3'), /^220 greeter-\S+/);
});

test('httpbin: the endpoints of the documentation, its log, and go-httpbin\'s lists', async () => {
  const headers = await json<{ headers: Record<string, string> }>('-H', 'x-test: 1', 'http://httpbin/headers');
  assert.deepEqual([headers.headers['X-Test'], headers.headers['Host']], ['1', 'httpbin']);
  assert.equal(await status('http://httpbin/status/418'), '418');
  assert.equal(await status('-X', 'POST', 'http://httpbin/get'), '405');
  const posted = await json<{ json: unknown; url: string }>('-d', '{"a":1}', '-H', 'content-type: application/json', 'http://httpbin/post?x=y');
  assert.deepEqual([posted.json, posted.url], [{ a: 1 }, 'http://httpbin/post?x=y']);
  assert.match(await curl('-i', 'http://httpbin/response-headers?foo=bar'), /foo: bar/i);
  assert.match(await curl('http://httpbin/html'), /Moby-Dick/);
  const { log } = lab.pod('shop', 'httpbin').containers[0] ?? {};
  assert.match(await client('cat', log ?? ''), /"GET \/status\/418 HTTP\/1.1" 418/);
  assert.deepEqual((await json<{ headers: Record<string, string[]> }>('http://go-httpbin:8080/headers')).headers['Host'], ['go-httpbin:8080']);
});

test('helloworld: version and instance', async () => {
  assert.match(await curl('http://helloworld:5000/hello'), /^Hello version: v2, instance: helloworld-/);
});

test('bookinfo: the page has details and reviews with black stars, and who is signed in', async () => {
  const page = await curl('http://productpage:9080/productpage');
  assert.match(page, /<dd>1234567890<\/dd>/);
  assert.match(page, /<font color="black">(<span class="glyphicon glyphicon-star"><\/span>){5}<\/font>/);
  assert.match(page, /Reviews served by:<\/dt><u>reviews-/);
  assert.match(await curl('-b', 'session=jason', 'http://productpage:9080/productpage'), /jason \(/);
  const { reviews } = await json<{ reviews: { rating: unknown }[] }>('http://productpage:9080/api/v1/products/0/reviews');
  assert.deepEqual(reviews.map(({ rating }) => rating), [{ stars: 5, color: 'black' }, { stars: 4, color: 'black' }]);
});

test('fortio: counts the statuses of its calls', async () => {
  assert.match(await client('fortio', 'load', '-c', '2', '-qps', '0', '-n', '20', '-loglevel', 'Warning', 'http://httpbin/get'), /^Code 200 : 20 \(100\.0 %\)\nAll done 20 calls/);
  assert.match(await client('fortio', 'load', '-curl', '-quiet', 'http://fortio:8080/x'), /^HTTP\/1.1 200 OK\n/);
});

test('ext-authz: allows by header over HTTP and over gRPC, and says what it checked', async () => {
  assert.equal(await status('-H', 'x-ext-authz: allow', 'http://authz:8000/x'), '200');
  assert.equal(await status('http://authz:8000/x'), '403');
  assert.match(await curl('http://authz:8000/x'), /^denied by ext_authz/);
  const channel = await grpcIn('authz', 9000);
  try {
    const check = (headers: Record<string, string>): Promise<CheckResponse> =>
      new Promise((resolve, reject) => channel.makeUnaryRequest(AuthorizationService.check.path, AuthorizationService.check.requestSerialize, AuthorizationService.check.responseDeserialize, CheckRequest.fromPartial({ attributes: { request: { http: { method: 'GET', path: '/x', host: 'web', headers } } } }), (error, answer) => (error ? reject(error) : resolve(answer as CheckResponse))));
    assert.equal((await check({ 'x-ext-authz': 'allow' })).status?.code, 0);
    const denied = await check({});
    assert.equal(denied.status?.code, 7);
    assert.equal(denied.http_response?.$case, 'denied_response');
  } finally {
    channel.close();
  }
});

test('ratelimit: counts by its ConfigMap over gRPC', async () => {
  const channel = await grpcIn('ratelimit', 8081);
  const { path, requestSerialize, responseDeserialize } = RateLimitServiceService.shouldRateLimit;
  const ask = (value: string): Promise<number> =>
    new Promise((resolve, reject) => channel.makeUnaryRequest(path, requestSerialize, responseDeserialize, RateLimitRequest.fromPartial({ domain: 'ratelimit', descriptors: [{ entries: [{ key: 'PATH', value }] }] }), (error, answer) => (error ? reject(error) : resolve((answer as RateLimitResponse).overall_code))));
  try {
    assert.deepEqual([await ask('/a'), await ask('/a'), await ask('/b')], [1, 2, 1], 'OK, OVER_LIMIT, OK');
  } finally {
    channel.close();
  }
});

test('parseLoad, parseDuration, report: as fortio reads and writes', () => {
  const { connections, qps, calls, seconds, headers, url } = parseLoad(['-c', '3', '-qps=20', '-n', '5', '-t', '1m', '-allow-initial-errors', '-H', 'a: b', 'host/x']);
  assert.deepEqual([connections, qps, calls, seconds, headers, url], [3, 20, 5, 60, { a: 'b' }, 'http://host/x']);
  assert.equal(parseDuration('1m30s250ms'), 90.25);
  assert.deepEqual(report(new Map([[503, 1], [200, 3], [-1, 4]])), ['Code  -1 : 4 (50.0 %)', 'Code 200 : 3 (37.5 %)', 'Code 503 : 1 (12.5 %)']);
});

test('websocket frames: RFC 6455\'s own example key, both masks, lengths around 126, frames in pieces', () => {
  assert.equal(acceptKey('dGhlIHNhbXBsZSBub25jZQ=='), 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=');
  for (const length of [0, 125, 126, 4000]) {
    for (const masked of [true, false]) {
      const payload = Buffer.alloc(length, 'ab');
      const bytes = Buffer.concat([encodeFrame({ opcode: OPCODE.text, payload }, masked), Buffer.from([0x81])]);
      const { frames, rest } = decodeFrames(bytes);
      assert.deepEqual(frames.map((frame) => [frame.opcode, Buffer.from(frame.payload)]), [[OPCODE.text, payload]]);
      assert.equal(rest.length, 1);
      assert.equal(decodeFrames(bytes.subarray(0, 1)).frames.length, 0);
    }
  }
});

test('RateLimits: nested descriptors, values before keys alone, windows that end, unlimited ones, hits', () => {
  const config = parseDomain('domain: d\ndescriptors:\n  - key: a\n    value: x\n    rate_limit: {unit: minute, requests_per_unit: 2}\n    descriptors: [{key: b, rate_limit: {unit: second, requests_per_unit: 1}}]\n  - {key: a, rate_limit: {unit: hour, requests_per_unit: 5}}\n  - {key: free, rate_limit: {unlimited: true}}\n');
  assert.equal(limitFor(config, [{ key: 'a', value: 'x' }])?.requests_per_unit, 2);
  assert.equal(limitFor(config, [{ key: 'a', value: 'y' }])?.requests_per_unit, 5);
  assert.equal(limitFor(config, [{ key: 'a', value: 'x' }, { key: 'b', value: 'z' }])?.requests_per_unit, 1);
  assert.equal(limitFor(config, [{ key: 'b', value: 'z' }]), undefined);
  let now = 59;
  const limits = new RateLimits([config], () => now);
  const hit = (hits?: number): boolean => limits.hit('d', [{ key: 'a', value: 'x' }], hits).over;
  assert.deepEqual([hit(), hit(), hit()], [false, false, true]);
  now = 60;
  assert.deepEqual([hit(2), hit()], [false, true]);
  assert.deepEqual([limits.hit('d', [{ key: 'free', value: '' }]).over, limits.hit('other', []).over], [false, false]);
  assert.throws(() => parseDomain('domain: d\ndescriptors: [{key: a, rate_limit: {unit: week, requests_per_unit: 1}}]'), /descriptors\[0\]\.rate_limit\.unit: found week/);
});
