/** Pods that leave while exchanges are under way. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { answer, client, closeAll, connection, exchanges, request, server, taught, text, w } from './exchange-testing.js';

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

test('an exchange that ends when its pod is gone is counted nowhere', async () => {
  const { netnsCookie } = w.world.pod(0);
  await taught('/a', 80, await connection());
  await client.do('send', 'c', request('/a'));
  await server.do('receive', 's80', request('/a').length);
  assert.equal(w.kernel.http.control.activity(netnsCookie).underWay, 1n);
  w.kernel.http.control.forgetActivity(netnsCookie);
  await server.do('send', 's80', answer('late'));
  assert.equal(text(await client.do('receive', 'c', answer('late').length)), answer('late'));
  assert.equal(w.kernel.http.control.activity(netnsCookie).underWay, 0n);
  await closeAll();
});
