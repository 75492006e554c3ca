// Who gets what of the dashboard's server: by its Host header, its method, its token, and over the loopback address alone.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { request } from 'node:http';
import { connect } from 'node:net';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { projectRoot } from '../../common/paths.js';
import { dashboardFiles } from './files.js';
import { DashboardServer } from './server.js';

async function serve(context: TestContext): Promise<DashboardServer> {
  const server = await DashboardServer.listen({ port: 0, files: dashboardFiles(), api: { '/api/graph': async (query) => ({ body: { asked: query.get('x') } }), '/api/broken': () => Promise.reject(new Error('the agent is away')) } });
  context.after(() => server.close());
  return server;
}

interface Answer { status: number; headers: NodeJS.Dict<string | string[]>; text: string }
const ask = ({ port }: DashboardServer, path: string, { method = 'GET', headers = {} }: { method?: string; headers?: Record<string, string> } = {}): Promise<Answer> => new Promise((resolve, reject) => {
  request({ host: '127.0.0.1', port, path, method, headers, agent: false }, (response) => {
    let text = '';
    response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk)).once('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text }));
  }).once('error', reject).end();
});

test('files are anybody\'s, with a policy that allows neither inline nor foreign scripts and styles; what is said of the mesh wants the token', async (context) => {
  const server = await serve(context);
  const page = await ask(server, '/');
  assert.equal(page.status, 200);
  assert.match(String(page.headers['content-security-policy']), /^default-src 'none'; script-src 'self'; style-src 'self';/);
  assert.doesNotMatch(String(page.headers['content-security-policy']), /unsafe|https?:|\*/);
  assert.doesNotMatch(page.text, /token|style=|<script>|<style/);
  for (const path of ['/main.js', '/worker.js', '/style.css', '/icon.svg']) assert.equal((await ask(server, path)).status, 200, path);
  assert.equal((await ask(server, '/api/graph')).status, 401);
  assert.equal((await ask(server, `/api/graph?token=${server.token}`)).status, 401);
  assert.equal((await ask(server, '/api/graph', { headers: { authorization: `Bearer ${server.token.slice(1)}x` } })).status, 401);
  const answer = await ask(server, '/api/graph?x=y', { headers: { authorization: `Bearer ${server.token}` } });
  assert.deepEqual([answer.status, JSON.parse(answer.text)], [200, { asked: 'y' }]);
  assert.ok(server.token.length >= 43 && server.address.endsWith(`/#token=${server.token}`));
});

test('a name that is pointed to 127.0.0.1 is refused, and so is all but GET and HEAD', async (context) => {
  const server = await serve(context);
  const authorization = `Bearer ${server.token}`;
  for (const host of ['evil.example', `evil.example:${server.port}`, '127.0.0.1', `127.0.0.1:${server.port + 1}`]) assert.equal((await ask(server, '/api/graph', { headers: { host, authorization } })).status, 403, host);
  assert.equal((await ask(server, '/api/graph', { headers: { host: `localhost:${server.port}`, authorization } })).status, 200);
  for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) assert.equal((await ask(server, '/api/graph', { method, headers: { authorization } })).status, 405, method);
  const head = await ask(server, '/api/graph', { method: 'HEAD', headers: { authorization } });
  assert.deepEqual([head.status, head.text], [200, '']);
});

test('no other file is reached, and a failure says why', async (context) => {
  const server = await serve(context);
  for (const path of ['/../package.json', '/%2e%2e/package.json', '/main.d.ts', '/main.js.map', '/tsconfig.tsbuildinfo', '/api/toString', '/constructor']) assert.equal((await ask(server, path, { headers: { authorization: `Bearer ${server.token}` } })).status, 404, path);
  const broken = await ask(server, '/api/broken', { headers: { authorization: `Bearer ${server.token}` } });
  assert.deepEqual([broken.status, JSON.parse(broken.text)], [502, { message: 'the agent is away' }]);
});

test('nothing listens on the machine\'s other addresses, and a port that is taken is said', async (context) => {
  const server = await serve(context);
  for (const { address } of Object.values(networkInterfaces()).flatMap((each) => each ?? []).filter(({ internal }) => !internal)) {
    const outcome = await new Promise<string>((resolve) => {
      const socket = connect({ host: address, port: server.port, timeout: 5_000 }, () => resolve('connected'));
      socket.once('error', () => resolve('refused')).once('timeout', () => resolve('refused')).once('close', () => socket.destroy());
    });
    assert.equal(outcome, 'refused', address);
  }
  await assert.rejects(DashboardServer.listen({ port: server.port, files: new Map(), api: {} }), { code: 'UNDERPASS_PORT_TAKEN' });
});

test('the pages write text and never markup', () => {
  const folder = join(projectRoot, 'dashboard');
  for (const name of readdirSync(folder).filter((each) => each.endsWith('.ts'))) assert.doesNotMatch(readFileSync(join(folder, name), 'utf8'), /innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function/, name);
});

test('requests that do not wait for the answer before them end their connection: thousands in one packet are not answered at once', async (context) => {
  const server = await serve(context);
  const socket = connect(server.port, '127.0.0.1').setEncoding('utf8').on('error', () => undefined);
  context.after(() => socket.destroy());
  let text = '';
  socket.on('data', (chunk: string) => (text += chunk));
  const closed = new Promise((resolve) => socket.once('close', resolve));
  socket.write(`GET /main.js HTTP/1.1\r\nhost: 127.0.0.1:${server.port}\r\n\r\n`.repeat(500));
  await closed;
  assert.ok(text.split('HTTP/1.1 200').length <= 2);
  assert.equal((await ask(server, '/main.js')).status, 200);
});
