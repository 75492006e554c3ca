/** What a table has said of a head is kept as long as the head and the table are the same: by sockets that send one head again and again. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { HttpTable } from '../../agent/http/table.js';
import { answer, anew, byEnvoy, client, closeAll, connection, DRAWN, envoy, exchanges, fast, lesson, line, request, server, tableOf, taught, text, upstream, w } from './exchange-testing.js';

/** /a and all else as ever; /drawn to any of three endpoints, each of which has a policy of its own: the second one's lets it in. */
function tables(): HttpTable {
  const table = tableOf();
  const [of] = table.clusters[0]!.endpoints;
  const endpoints = [90, 81, 92].map((port, policy) => ({ ...of!, port, policy: policy + 1, text: line('x-endpoint', `${w.world.pod(1).ipv4}:${port}`, 160) }));
  const any = { path: { kind: 'any', value: '', inverted: false }, methods: undefined, headers: [] } as const;
  return {
    ...table,
    classes: [...table.classes, { ...w.kernel.http.tables.takeName()!, splits: [{ until: 1, cluster: 2, text: line('x-weight', '0', 32) }] }],
    virtualHosts: table.virtualHosts.map((each) => ({ ...each, rules: [{ ...any, path: { kind: 'exact', value: '/drawn', inverted: false }, verdict: 2 }, ...each.rules] })),
    clusters: [...table.clusters, { name: 'drawn', balance: 'random', endpoints }],
    policies: [...table.policies, { rules: [], otherwise: 'envoy' }, { rules: [{ ...any, verdict: 'allowed' }], otherwise: 'envoy' }, { rules: [], otherwise: 'envoy' }],
  };
}

exchanges(() => true, tables);

test('the same request under another table is of that table\'s class', async () => {
  const port = await connection();
  await taught('/a', 80, port);
  await fast('/a', 80);
  await fast('/a', 80);
  await anew();
  assert.equal(await byEnvoy(request('/a')), true);
  await taught('/a', 80, port, { connect: false });
  await fast('/a', 80);
  await closeAll();
});

test('the same request drawn to endpoints with different policies is judged by the policy of each', async () => {
  const port = await connection();
  const sent = request('/drawn');
  await upstream(81);
  let [moved, refused, isTaught] = [0, 0, false];
  for (let i = 0; i < 400 && (moved < 20 || refused < 40); i++) {
    const { counters } = await w.counted(() => client.do('send', 'c', sent));
    if (counters['http_requests_fast']) {
      assert.ok(isTaught);
      assert.equal(text(await server.do('receive', 's81', sent.length)), sent);
      await server.do('send', 's81', answer('ok'));
      moved++;
    } else {
      const [, drawn] = /^x-endpoint: [\d.]+:(\d+) *$/m.exec(text(await envoy.do('receive', 'd', sent.length + DRAWN)))!;
      assert.equal(counters['http_policy_envoy'] ?? 0, drawn === '81' ? 0 : 1, drawn);
      assert.ok(drawn !== '81' || !isTaught, 'an endpoint that was learnt and lets the request in was passed by');
      if (drawn === '81') {
        const passedOn = `GET /drawn HTTP/1.1\r\nhost: shop\r\nx-underpass-lesson: ${lesson(2, port)}\r\nx-last: 1\r\n\r\n`;
        await envoy.do('send', 'u81', passedOn);
        await server.do('receive', 's81', passedOn.length);
        await server.do('send', 's81', answer('ok'));
        await envoy.do('receive', 'u81', answer('ok').length);
        isTaught = true;
      } else {
        refused++;
      }
      await envoy.do('send', 'd', answer('ok'));
    }
    assert.equal(text(await client.do('receive', 'c', answer('ok').length)), answer('ok'));
  }
  assert.ok(moved >= 20 && refused >= 40, `${moved} moved, ${refused} refused`);
  await closeAll();
});
