import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { UnderpassError } from '../../common/errors.js';
import { AdminServer, askAgent, followAgent, json, openAgentStream, refusal } from './server.js';

test('AdminServer: answers over a socket of mode 0600, with typed errors, and takes over a stale socket', async (context) => {
  const folder = mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  const path = join(folder, 'agent.sock');
  await assert.rejects(askAgent(path, '/healthz'), { code: 'UNDERPASS_AGENT_NOT_RUNNING' });
  writeFileSync(path, '');
  const server = await AdminServer.listen(path, {
    '/healthz': () => ({ contentType: 'text/plain', body: 'ok\n' }),
    '/readyz': () => ({ status: 503, body: { missing: ['pods'] } }),
    '/refused': () => refusal(404, new UnderpassError('UNDERPASS_UNKNOWN_POD', 'pod x: not here', { hint: 'did you mean y?' })),
    '/broken': () => Promise.reject(new Error('the reason')),
  }, { '/readyz': (query) => ({ body: { set: query.get('on') } }) });
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.equal(await askAgent(path, '/healthz'), 'ok\n');
  assert.match(await askAgent(path, '/readyz?x=1', { okStatus: [503] }), /pods/);
  await assert.rejects(askAgent(path, '/broken'), { code: 'UNDERPASS_AGENT_REQUEST', message: /500.*the reason/s });
  const asItIs = { code: 'UNDERPASS_UNKNOWN_POD', message: 'pod x: not here', hint: 'did you mean y?' };
  await assert.rejects(askAgent(path, '/refused'), asItIs);
  await assert.rejects(followAgent(path, '/refused', () => undefined, new AbortController().signal), asItIs);
  await assert.rejects(openAgentStream(path, '/refused', new AbortController().signal), asItIs);
  assert.deepEqual(JSON.parse(await askAgent(path, '/readyz?on=true', { method: 'POST' })), { set: 'true' });
  await assert.rejects(askAgent(path, '/healthz', { method: 'POST' }), /405/);
  await assert.rejects(askAgent(path, '/nowhere', { method: 'POST' }), /404/);
  await assert.rejects(askAgent(path, '/toString'), /404.*\/healthz, \/readyz, \/refused, \/broken/s);
  await server.close();
  assert.equal(existsSync(path), false);
});

test('json: counters are numbers as long as a number holds them', () => {
  assert.deepEqual(JSON.parse(json({ a: 5n, b: 2n ** 63n, c: new Map([['k', 1n]]) })), { a: 5, b: '9223372036854775808', c: { k: 1 } });
});
