// The client's side of the protocol, against a server that speaks it and can fail in ways that a kubelet is not made to.
import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import type { WebSocket } from 'ws';
import { execInPod } from './exec.js';
import type { ApiServer } from './kubeconfig.js';
import { serveSockets } from './websocket-testing.js';

const frame = (channel: number, text: string): Buffer => Buffer.concat([Buffer.from([channel]), Buffer.from(text)]);
const failed = (code: number): string => JSON.stringify({ status: 'Failure', reason: 'NonZeroExitCode', message: `command terminated with exit code ${code}`, details: { causes: [{ reason: 'ExitCode', message: String(code) }] } });

interface World { server: ApiServer; asked: URL[]; protocols: string[] }

async function world(context: TestContext, answer: (socket: WebSocket) => void, refusal?: { status: number; body: string }, onRefusedEnd?: () => void): Promise<World> {
  const seen: World = { server: undefined as never, asked: [], protocols: [] };
  const url = await serveSockets(context, {
    onAsked: (request) => seen.asked.push(new URL(request.url ?? '', 'http://x')),
    onOpened: (opened) => {
      seen.protocols.push(opened.protocol);
      answer(opened);
    },
    ...(refusal ? { refusal } : {}),
    ...(onRefusedEnd ? { onRefusedEnd } : {}),
  });
  return Object.assign(seen, { server: { url: new URL('/below/', url), credentials: () => Promise.resolve({ headers: { authorization: 'Bearer x' }, rejectUnauthorized: true }) } });
}

const options = { namespace: 'ns', pod: 'agent-1', container: 'agent', command: ['/bin/x', 'request', '/v1/status?a=b c'] };

test('execInPod: output in pieces and both channels, the command word by word, the newest protocol', async (context) => {
  const { server, asked, protocols } = await world(context, (socket) => {
    for (const piece of [frame(1, ''), frame(1, '{"a":'), frame(2, 'a warning\n'), frame(1, '1}'), frame(3, '{"status":"Success"}')]) socket.send(piece);
    socket.close();
  });
  const { stdout, stderr, code } = await execInPod(server, options);
  assert.deepEqual([stdout.toString(), stderr, code], ['{"a":1}', 'a warning\n', 0]);
  assert.equal(asked[0]!.pathname, '/below/api/v1/namespaces/ns/pods/agent-1/exec');
  assert.deepEqual([asked[0]!.searchParams.getAll('command'), asked[0]!.searchParams.get('container')], [options.command, 'agent']);
  assert.deepEqual(protocols, ['v5.channel.k8s.io']);
});

test('execInPod: the command\'s exit code; what is no exit code is an error', async (context) => {
  const one = await world(context, (socket) => socket.send(frame(3, failed(3))));
  assert.equal((await execInPod(one.server, options)).code, 3);
  const other = await world(context, (socket) => socket.send(frame(3, '{"status":"Failure","reason":"InternalError","message":"no such container"}')));
  await assert.rejects(execInPod(other.server, options), { code: 'UNDERPASS_KUBERNETES', message: 'no such container' });
});

test('execInPod: the connection of a refusal is closed, also where the server keeps it', { timeout: 20_000 }, async (context) => {
  let onEnd: () => void;
  const ended = new Promise<void>((resolve) => (onEnd = resolve));
  const { server } = await world(context, () => undefined, { status: 403, body: '{"message":"no"}' }, () => onEnd());
  await assert.rejects(execInPod(server, options), { status: 403 });
  await ended;
});

test('execInPod: output that is taken later than it comes is waited for, and whole', async (context) => {
  const { server } = await world(context, (socket) => {
    for (const piece of ['a', 'b', 'c']) socket.send(frame(1, piece));
    socket.send(frame(3, '{"status":"Success"}'));
  });
  const taken: string[] = [];
  const taking: Promise<void>[] = [];
  const take = async (chunk: Buffer): Promise<void> => {
    await new Promise((resolve) => setTimeout(resolve, 5));
    taken.push(chunk.toString());
  };
  const onStdout = (chunk: Buffer): Promise<void> => taking[taking.push(take(chunk)) - 1]!;
  assert.equal((await execInPod(server, { ...options, onStdout })).code, 0);
  await Promise.all(taking);
  assert.equal(taken.join(''), 'abc');
});

test('execInPod: a refusal has the server\'s status and words; a connection that ends early, a silent one and too much output are errors', async (context) => {
  const refused = await world(context, () => undefined, { status: 403, body: '{"kind":"Status","message":"pods \\"agent-1\\" is forbidden: cannot get resource \\"pods/exec\\""}' });
  await assert.rejects(execInPod(refused.server, options), { status: 403, message: /403 pods "agent-1" is forbidden/ });
  const ended = await world(context, (socket) => socket.close());
  await assert.rejects(execInPod(ended.server, options), /the connection ended before the command did/);
  const silent = await world(context, () => undefined);
  await assert.rejects(execInPod(silent.server, { ...options, timeoutMs: 50 }), /not done in 50 ms/);
  const long = await world(context, (socket) => socket.send(frame(1, 'x'.repeat(2_000))));
  await assert.rejects(execInPod(long.server, { ...options, maxBytes: 1_000 }), /longer than 1000 bytes/);
});

test('execInPod: output that is taken as it comes has no bound of time or length, and the command hears by its standard input that nobody listens any more', async (context) => {
  let gone = false;
  const { server, asked } = await world(context, (socket) => {
    socket.on('close', () => (gone = true));
    for (const piece of [frame(1, '{"a":'), frame(1, '1}\n'), frame(2, 'a warning\n')]) socket.send(piece);
  });
  const end = new AbortController();
  const seen: string[] = [];
  const running = execInPod(server, { ...options, timeoutMs: 1, maxBytes: 10, signal: end.signal, onStdout: (chunk) => void (seen.push(chunk.toString()) === 2 && end.abort(new Error('enough'))) });
  await assert.rejects(running, /enough/);
  assert.deepEqual(seen, ['{"a":', '1}\n']);
  assert.equal(asked[0]!.searchParams.get('stdin'), 'true');
  while (!gone) await new Promise((resolve) => setImmediate(resolve));
});
