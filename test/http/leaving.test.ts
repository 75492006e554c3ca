/** A pod that leaves while others have exchanges at its servers. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { client, closeAll, connection, exchanges, request, server, taught, w } from './exchange-testing.js';

exchanges();

test('a pod that leaves keeps its hooks while others have exchanges at its servers; what is under way when they go is ended', async () => {
  const { uid } = w.podRecord(w.world.pod(1));
  await taught('/a', 80, await connection());
  assert.equal(w.kernel.liveConnections(uid), 0);
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  assert.equal(w.kernel.liveConnections(uid), 1);
  w.kernel.removePod(uid);
  await server.do('close', 's80');
  const got = await client.do('receive', 'c', 1, 5);
  assert.match(String(got.error), /reset/, JSON.stringify(got));
  w.put({ acceleration: 'force' }, [w.world.pod(1)]);
  await closeAll();
});
