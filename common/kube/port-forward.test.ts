// The client's side of a forwarded port, against a server that speaks the protocol; with a real kubelet: test/kube/real-node.test.ts.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect } from 'node:net';
import { test, type TestContext } from 'node:test';
import type { WebSocket } from 'ws';
import type { ApiServer } from './kubeconfig.js';
import { forwardPort, type ForwardedPort } from './port-forward.js';
import { serveSockets } from './websocket-testing.js';

async function world(context: TestContext, answer: (socket: WebSocket) => void, refusal?: number): Promise<{ server: ApiServer; asked: string[] }> {
  const asked: string[] = [];
  const url = await serveSockets(context, {
    onAsked: (request) => asked.push(request.url ?? ''),
    onOpened: (opened) => {
      assert.equal(opened.protocol, 'v4.channel.k8s.io');
      for (const channel of [0, 1]) opened.send(Buffer.of(channel, 0xb8, 0x0b));
      answer(opened);
    },
    ...(refusal === undefined ? {} : { refusal: { status: refusal, body: '' } }),
  });
  return { asked, server: { url, credentials: () => Promise.resolve({ headers: {}, rejectUnauthorized: true }) } };
}

async function forward(context: TestContext, server: ApiServer, problems: string[] = []): Promise<ForwardedPort> {
  const forwarded = await forwardPort(server, { namespace: 'istio-system', pod: 'grafana-1', port: 3000, listen: 0, onProblem: (reason) => problems.push(reason) });
  context.after(() => forwarded.close());
  return forwarded;
}

test('bytes go both ways in order, of several connections at a time, and an end is an end', async (context) => {
  const { server, asked } = await world(context, (socket) => {
    socket.on('message', (message: Buffer) => {
      assert.equal(message[0], 0);
      // In pieces, as a kubelet's come.
      for (let at = 1; at < message.length; at += 30_000) socket.send(Buffer.concat([Buffer.of(0), message.subarray(at, at + 30_000)]));
      if (message.includes('end')) socket.close();
    });
  });
  const { port } = await forward(context, server);
  const ask = async (text: Buffer): Promise<Buffer> => {
    const socket = connect(port, '127.0.0.1');
    const parts: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => parts.push(chunk));
    socket.write(text);
    socket.write('end');
    await once(socket, 'close');
    return Buffer.concat(parts);
  };
  const texts = [Buffer.alloc(3_000_000, 'a'), Buffer.from('b'), Buffer.alloc(200_000, 'c')];
  const answers = await Promise.all(texts.map(ask));
  answers.forEach((answer, index) => assert.ok(answer.equals(Buffer.concat([texts[index]!, Buffer.from('end')])), `connection ${index}: ${answer.length} bytes`));
  assert.equal(asked[0], '/api/v1/namespaces/istio-system/pods/grafana-1/portforward?ports=3000');
});

test('what the kubelet says is wrong is told, and its connection ends', async (context) => {
  const { server } = await world(context, (socket) => socket.on('message', () => {
    socket.send(Buffer.concat([Buffer.of(1), Buffer.from('connection refused in the pod')]));
    socket.close();
  }));
  const problems: string[] = [];
  const { port } = await forward(context, server, problems);
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => undefined).write('x');
  await once(socket, 'close');
  assert.deepEqual(problems, ['connection refused in the pod']);
});

test('who may not forward hears it at once', async (context) => {
  const { server } = await world(context, () => undefined, 403);
  await assert.rejects(forward(context, server), { status: 403 });
});
