// The dashboard that an agent serves itself: where it is told, and what becomes of a port that something else has.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { dashboardFiles } from './files.js';
import { HostedDashboard } from './hosted.js';
import { DashboardServer } from './server.js';

test('a port that is taken is said where the address is asked for, and tried again; the agent is not troubled', async () => {
  const other = await DashboardServer.listen({ port: 0, files: dashboardFiles(), api: {} });
  const hosted = new HostedDashboard({ port: other.port, node: 'n', adminSocket: '/nonexistent/admin.sock', logger: logger('test').child({}, { level: 'fatal' }) });
  const told = async (): Promise<{ status?: number; body?: unknown }> => hosted.routes['/v1/dashboard']!(new URLSearchParams());
  await waitFor('the reason', async () => JSON.stringify(await told()).includes('something else does'), { timeoutMs: 60_000, everyMs: 20 });
  assert.equal((await told()).status, 503);
  const { port } = other;
  await other.close();
  await waitFor('the address', async () => (await told()).status === undefined, { timeoutMs: 60_000, everyMs: 20 });
  const { address } = (await told()).body as { address: string };
  assert.match(address, new RegExp(`^http://127\\.0\\.0\\.1:${port}/#token=`));
  // Its agent does not answer: the page is there, and says so.
  const answer = await fetch(`http://127.0.0.1:${port}/api/nodes`, { headers: { authorization: `Bearer ${address.split('=')[1]}` } });
  assert.match(JSON.stringify(await answer.json()), /"problem":"[^"]*admin\.sock/);
  await hosted.close();
  await assert.rejects(fetch(`http://127.0.0.1:${port}/`));
});
