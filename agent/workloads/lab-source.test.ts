import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pino } from 'pino';
import { LabSource } from './lab-source.js';

test('LabSource: asks for its node, survives a lab that goes away, and ends with its signal', async (context) => {
  const folder = mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  const socketPath = join(folder, 'lab.sock');
  const urls: string[] = [];
  const lab = async (name: string): Promise<Server> => {
    const server = createServer((request, response) => {
      urls.push(request.url ?? '');
      response.writeHead(200).write(JSON.stringify({ pods: [{ name }] }) + '\n');
    });
    await new Promise<void>((resolve) => server.listen(socketPath, resolve));
    return server;
  };
  const end = async (server: Server): Promise<void> => {
    const closed = new Promise((resolve) => server.close(resolve));
    server.closeAllConnections();
    await closed;
  };

  const lines: string[] = [];
  const abort = new AbortController();
  const source = new LabSource(socketPath, 'node-1', pino({}, { write: (line: string) => void lines.push(line) }));
  assert.equal(source.problem, 'not connected yet');
  const first = await lab('first');
  const sets = source.watch(abort.signal)[Symbol.asyncIterator]();
  assert.deepEqual((await sets.next()).value, [{ name: 'first' }]);
  assert.equal(source.problem, undefined);
  await end(first);
  const next = sets.next();
  await new Promise((resolve) => setTimeout(resolve, 400));
  assert.match(source.problem ?? '', /lab\.sock/);
  const second = await lab('second');
  assert.deepEqual((await next).value, [{ name: 'second' }]);
  assert.equal(source.problem, undefined);
  assert.equal(lines.filter((line) => line.includes('lost the lab')).length, 1, 'one line a loss, not one an attempt');
  assert.deepEqual([...new Set(urls)], ['/v1/pods?watch=1&node=node-1']);
  const last = sets.next();
  abort.abort();
  assert.equal((await last).done, true);
  await end(second);
});
