// The load generator against itself between two namespaces, and against servers that misbehave.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer, type RequestListener } from 'node:http';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test, type TestContext } from 'node:test';
import { cgroup2Root } from '../common/cgroup.js';
import { buildDir } from '../common/paths.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { parseLoadResult, type LoadResult } from './load.js';
import { tcpBench } from './modes.js';

const exec = join(buildDir, 'underpass-exec');
const folder = mkdtempSync(join(tmpdir(), `up-bench-${process.pid}-`));
const [left, right] = [join(folder, 'left'), join(folder, 'right')];
const PORT = 9000;
let server: ChildProcess;

before(async () => {
  for (const path of [left, right]) {
    writeFileSync(path, '');
    await run('unshare', [`--net=${path}`, 'ip', 'link', 'set', 'lo', 'up']);
  }
  const name = `upb${process.pid}`;
  await run(exec, ['--netns', left, '--', 'ip', 'link', 'add', name, 'type', 'veth', 'peer', 'name', name, 'netns', right]);
  for (const [path, v4, v6] of [[left, '192.0.2.1/24', '2001:db8::1/64'], [right, '192.0.2.2/24', '2001:db8::2/64']] as const) {
    await run(exec, ['--netns', path, '--', 'ip', '-batch', '-'], { input: `addr add ${v4} dev ${name}\naddr add ${v6} dev ${name} nodad\nlink set ${name} up\n` });
  }
  server = spawn(exec, ['--netns', right, '--die-with-parent', '--', tcpBench, 'server', '--port', String(PORT)], { stdio: ['ignore', 'ignore', 'pipe'] });
  await once(server.stderr as NodeJS.ReadableStream, 'data');
});

after(async () => {
  server.kill('SIGTERM');
  if (server.exitCode === null) await once(server, 'exit');
  for (const path of [left, right]) await run('umount', ['--lazy', path]);
  rmSync(folder, { recursive: true });
});

async function client(args: readonly string[]): Promise<LoadResult> {
  const { stdout } = await run(exec, ['--netns', left, '--', tcpBench, ...args], { timeoutMs: 30_000 });
  return parseLoadResult(stdout);
}

async function here(args: readonly string[]): Promise<LoadResult> {
  return parseLoadResult((await run(tcpBench, args, { timeoutMs: 30_000 })).stdout);
}

for (const target of ['192.0.2.2', '[2001:db8::2]']) {
  test(`ping-pong: counts what it was asked for, over ${target}`, async () => {
    const result = await client(['ping-pong', '--connect', `${target}:${PORT}`, '--count', '5000', '--size', '64', '--connections', '7', '--warm-connections', '5']);
    assert.equal(result.requests, 5000);
    assert.equal(result.failed, 0, result.first_failure);
    assert.equal(result.connections_opened, 7);
    assert.equal(result.bytes_received, 5000 * 64);
    const { latency_us: latency } = result;
    assert.equal(latency.count, 5000);
    assert.ok(latency.min <= latency.p50 && latency.p50 <= latency.p90 && latency.p90 <= latency.p99 && latency.p99 <= latency.p999 && latency.p999 <= latency.max, JSON.stringify(latency));
  });
}

test('ping-pong: messages larger than any buffer, sizes that differ, a connection for each request', async () => {
  const result = await client(['ping-pong', '--connect', `192.0.2.2:${PORT}`, '--count', '40', '--size', '3000000', '--response-size', '1000001', '--connections', '3', '--new-connection-each']);
  assert.equal(result.failed, 0, result.first_failure);
  assert.equal(result.requests, 40);
  assert.equal(result.connections_opened, 40);
  assert.equal(result.bytes_received, 40 * 1_000_001);
});

test('bulk: the result is what the server counted', async () => {
  const result = await client(['bulk', '--connect', `192.0.2.2:${PORT}`, '--duration', '0.3', '--connections', '2', '--warm-connections', '3']);
  assert.equal(result.failed, 0, result.first_failure);
  assert.equal(result.bytes_received, result.bytes_sent);
  assert.ok(result.bytes_received > 0 && (result.bits_per_second ?? 0) > 0);
});

test('--cgroup: CPU time of a cgroup while measuring, 0 for one in which nothing runs', async () => {
  const empty = join(cgroup2Root(), `up-bench-${process.pid}`);
  await run('mkdir', [empty]);
  try {
    const own = await run(exec, ['--cgroup', empty, '--netns', left, '--', tcpBench, 'ping-pong', '--connect', `192.0.2.2:${PORT}`, '--duration', '0.3', '--warm-up', '0.1', '--cgroup', empty]);
    assert.ok((parseLoadResult(own.stdout).cgroup_usec[empty] ?? 0) > 0);
    assert.equal((await client(['ping-pong', '--connect', `192.0.2.2:${PORT}`, '--count', '10', '--cgroup', empty])).cgroup_usec[empty], 0);
  } finally {
    await run('rmdir', [empty]);
  }
});

async function listen(context: TestContext, instance: Server): Promise<string> {
  instance.listen(0, '127.0.0.1');
  await once(instance, 'listening');
  context.after(() => new Promise<void>((resolve) => void instance.close(() => resolve())));
  return `127.0.0.1:${(instance.address() as AddressInfo).port}`;
}

/** Answers each connection's bytes as `answer` says. */
function raw(context: TestContext, answer: (socket: Socket, text: string) => void): Promise<string> {
  return listen(context, createServer((socket) => {
    socket.on('error', () => undefined);
    socket.on('data', (chunk) => answer(socket, chunk.toString()));
  }));
}

test('http: lengths, chunks, 204, HEAD and answers that end with the connection', async (context) => {
  const handler: RequestListener = (request, response) => {
    const path = request.url ?? '';
    response.setHeader('x-version', path.slice(1));
    if (path === '/chunked') {
      response.write('first line\n');
      setImmediate(() => response.end('x'.repeat(100_000)));
    } else if (path === '/none') response.writeHead(204).end();
    else if (path === '/close') {
      response.useChunkedEncodingByDefault = false;
      response.writeHead(200, { connection: 'close' });
      response.end('until the end');
    } else response.end('body line\nmore');
  };
  const web = createHttpServer(handler);
  web.keepAliveTimeout = 60_000;
  context.after(() => web.closeAllConnections());
  const target = await listen(context, web);
  for (const [path, body, opened] of [['/plain', 'body line', 3], ['/chunked', 'first line', 3], ['/none', '', 3], ['/close', 'until the end', 30]] as const) {
    const result = await here(['http', '--connect', target, '--path', path, '--count', '30', '--connections', '3', '--tally', 'body']);
    assert.equal(result.failed, 0, `${path}: ${result.first_failure}`);
    assert.deepEqual(result.tally, { [body]: 30 }, path);
    assert.equal(result.connections_opened, opened, path);
  }
  const head = await here(['http', '--connect', target, '--path', '/plain', '--method', 'HEAD', '--count', '9', '--tally', 'header:X-Version']);
  assert.equal(head.failed, 0, head.first_failure);
  assert.deepEqual(head.tally, { plain: 9 });
});

test('http: headers and host reach the server; a connection for each request says so', async (context) => {
  const seen = new Set<string>();
  const target = await listen(context, createHttpServer((request, response) => {
    seen.add(`${request.headers.host} ${request.headers['user'] as string} ${request.headers.connection}`);
    response.end('ok');
  }));
  const result = await here(['http', '--connect', target, '--host', 'shop.example', '--header', 'user: jesse', '--count', '12', '--connections', '4', '--new-connection-each']);
  assert.deepEqual([...seen], ['shop.example jesse close']);
  assert.equal(result.connections_opened, 12);
  assert.equal(result.failed, 0, result.first_failure);
});

test('http: bodies arrive whole; heads are numbered for each connection; each Nth request asks for the other path', async (context) => {
  const seen: string[] = [];
  const bodies = new Set<string>();
  const target = await listen(context, createHttpServer((request, response) => {
    let body = '';
    request.on('data', (chunk: Buffer) => (body += chunk.toString())).on('end', () => {
      bodies.add(`${request.method} ${request.headers['content-length']} ${body === 'x'.repeat(1024)}`);
      seen.push(`${request.socket.remotePort} ${request.headers['x-request-number'] as string}`);
      response.end(request.url);
    });
  }));
  const result = await here(['http', '--connect', target, '--method', 'POST', '--body', '1024', '--vary', '--other-path', '/other', '--other-each', '5', '--count', '40', '--connections', '2', '--tally', 'body']);
  assert.equal(result.failed, 0, result.first_failure);
  assert.deepEqual([...bodies], ['POST 1024 true']);
  assert.equal(new Set(seen).size, 40, 'no connection sends a head twice');
  assert.ok(seen.every((each) => /^\d+ \d{10}$/.test(each)), seen[0]);
  assert.deepEqual([result.tally['/other'], result.tally['/']], [8, 32]);
});

test('http: connections of so many requests each; warm ones have all been answered; what is measured begins when its input has ended', async (context) => {
  let answered = 0;
  const perConnection = new Map<Socket, number>();
  const target = await listen(context, createHttpServer((request, response) => {
    perConnection.set(request.socket, (perConnection.get(request.socket) ?? 0) + 1);
    answered++;
    response.end('ok');
  }));
  const child = spawn(tcpBench, ['http', '--connect', target, '--count', '60', '--connections', '3', '--requests-per-connection', '7', '--warm-requests', '20', '--wait'], { stdio: ['pipe', 'pipe', 'inherit'] });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  await once(child.stdout, 'data');
  assert.deepEqual(JSON.parse(output), { final: false, warm: true });
  const before = answered;
  assert.ok(before >= 60, String(before));
  child.stdin.end();
  await once(child, 'close');
  const result = parseLoadResult(output);
  assert.equal(result.failed, 0, result.first_failure);
  assert.deepEqual([result.requests, result.requests_begun, answered - before], [60, 60, 60]);
  assert.equal(Math.max(...perConnection.values()), 7);
});

test('http: what fails is counted by its kind, and nothing is tried twice', async (context) => {
  const ok = 'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok';
  const cases: [string, (socket: Socket, text: string) => void, string][] = [
    ['status', (socket) => socket.write('HTTP/1.1 503 no\r\ncontent-length: 4\r\n\r\nbusy'), 'answer 503'],
    ['closed', (socket) => socket.end('HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this'), 'before the whole answer'],
    ['closed', (socket) => socket.resetAndDestroy(), 'reset'],
    ['malformed', (socket) => socket.write('SSH-2.0-OpenSSH\r\n'), 'not an HTTP/1 status line'],
    ['malformed', (socket) => socket.write(ok + ok), 'data after the answer'],
    ['timeout', () => undefined, 'no answer'],
  ];
  for (const [kind, answer, text] of cases) {
    let requests = 0;
    const target = await raw(context, (socket, request) => {
      requests++;
      answer(socket, request);
    });
    const result = await here(['http', '--connect', target, '--count', '3', '--timeout', '0.3']);
    assert.equal(result.failures[kind], 3, `${kind}: ${JSON.stringify(result)}`);
    assert.equal(result.failed, 3);
    assert.ok(result.first_failure.includes(text), result.first_failure);
    assert.equal(requests, 3, kind);
  }
});

test('http: an idle connection that the server closes is no failure, since nothing was asked', async (context) => {
  const target = await raw(context, (socket) => {
    socket.write('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok');
    setTimeout(() => socket.end(), 20);
  });
  const result = await here(['http', '--connect', target, '--count', '4', '--pause', '0.1']);
  assert.equal(result.requests, 4);
  assert.equal(result.failed, 0, result.first_failure);
  assert.equal(result.connections_opened, 4);
});

test('a refused connection is a counted failure; a signal ends the run with its result', async (context) => {
  const closed = await raw(context, () => undefined);
  const refused = await here(['http', '--connect', closed.replace(/\d+$/, '1'), '--count', '2']);
  assert.equal(refused.failures['connect'], 2);
  const web = createHttpServer((_, response) => void response.end('ok'));
  context.after(() => web.closeAllConnections());
  const child = spawn(tcpBench, ['http', '--connect', await listen(context, web), '--pause', '0.01', '--progress', '0.05'], { stdio: ['ignore', 'pipe', 'inherit'] });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  await waitFor('progress', () => output.split('\n').length > 3);
  child.kill('SIGTERM');
  const [code] = (await once(child, 'close')) as [number];
  assert.equal(code, 0);
  const result = parseLoadResult(output);
  assert.ok(result.requests > 0);
  assert.equal(result.failed, 0, result.first_failure);
});

test('wrong usage: exit 2, one line that names the argument, and the usage', async () => {
  for (const [args, text] of [
    [[], 'expected server, ping-pong, bulk or http'],
    [['http'], '--connect is missing'],
    [['http', '--connect', 'nowhere'], 'expected HOST:PORT'],
    [['ping-pong', '--connect', 'x:1', '--connections', '0'], '--connections'],
    [['ping-pong', '--connect', 'x:1', '--size', '3'], '--size'],
    [['http', '--connect', 'x:1', '--header', 'nocolon'], 'nocolon'],
    [['http', '--connect', 'x:1', '--other-each', '3'], 'belong together'],
    [['ping-pong', '--connect', 'x:1', '--vary'], 'are of http'],
    [['bulk', '--connect', 'x:1', '--wait'], 'bulk has neither'],
    [['http', '--connect', 'x:1', 'more'], 'unexpected argument more'],
    [['http', '--connect', '127.0.0.1:no-such-service'], 'resolving 127.0.0.1 port no-such-service'],
  ] as const) {
    const { stderr } = await run(tcpBench, args, { okCodes: [2] });
    assert.ok(stderr.split('\n')[0]?.includes(text), `${args.join(' ')}: ${stderr.split('\n')[0]}`);
  }
});
