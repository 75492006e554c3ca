/** More ends of connections at once than the ring buffer holds, and an agent that died before it came to them: no client waits in vain. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { TAUGHT_MARK } from '../../agent/http/names.js';
import { AgentFastPath } from '../../agent/http/agent-fast-path.js';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { answer, client, DRAWN, ends, envoy, exchanges, lesson, request, server, stopBeat, tableOf, text, VIP, w } from './exchange-testing.js';

/** Of some eighty bytes each. */
const RING_BYTES = 4_096;
const CLIENTS = 80;
exchanges(() => false, tableOf, {}, { maxEntries: { http_events: RING_BYTES } });

let agent: AgentFastPath | undefined;
after(() => agent?.close());

function start(): AgentFastPath {
  // Pods' states and tables are the test's; this is for what ends.
  return new AgentFastPath({
    kernel: w.kernel.http, pods: () => w.world.pods.map((pod) => w.podRecord(pod)), netnsPath: (uid) => w.world.pods.find((pod) => w.podRecord(pod).uid === uid)!.netns,
    proxyPid: () => envoy.pid, requestIds: () => false, problem: () => undefined, on: true, logger: logger('test.lost'),
  });
}

/** So many clients, each with an exchange that the kernel has under way with a server connection of its own. */
async function underWay(): Promise<string[]> {
  const names = Array.from({ length: CLIENTS }, (_, i) => `${i}`);
  for (const name of names) {
    const { port } = await client.do('connect', `c${name}`, VIP, 80);
    await envoy.do('accept', `d${name}`, 'listener');
    await envoy.do('connect', `u${name}`, w.world.pod(1).ipv4, 80, TAUGHT_MARK);
    await server.do('accept', `s${name}`, 'listener80');
    await client.do('send', `c${name}`, request('/a'));
    await envoy.do('receive', `d${name}`, request('/a').length + DRAWN);
    const passedOn = `GET /a HTTP/1.1\r\nhost: shop\r\nx-underpass-lesson: ${lesson(0, port!)}\r\n\r\n`;
    await envoy.do('send', `u${name}`, passedOn);
    await server.do('receive', `s${name}`, passedOn.length);
    await server.do('send', `s${name}`, answer('taught'));
    await envoy.do('receive', `u${name}`, answer('taught').length);
    await envoy.do('send', `d${name}`, answer('taught'));
    assert.equal(text(await client.do('receive', `c${name}`, answer('taught').length)), answer('taught'));
    await client.do('send', `c${name}`, request('/a'));
    assert.equal(text(await server.do('receive', `s${name}`, request('/a').length)), request('/a'));
  }
  return names;
}

async function areReset(names: readonly string[]): Promise<void> {
  for (const name of names) {
    const got = await client.do('receive', `c${name}`, 1, 5);
    assert.match(String(got.error), /reset/, `client ${name}: ${JSON.stringify(got)}`);
  }
}

async function closeEach(names: readonly string[]): Promise<void> {
  for (const name of names) for (const [of, end] of [[client, 'c'], [envoy, 'd'], [envoy, 'u']] as const) await of.do('close', `${end}${name}`);
}

test('events that a dead agent had no time for, and those that found no room meanwhile: the next one ends them all', async () => {
  stopBeat();
  const beat = setInterval(() => w.kernel.http.control.beat(true, w.kernel.http.control.lostEnds()), 100);
  const names = await underWay();
  clearInterval(beat);
  w.kernel.http.control.close(); // nobody reads the ring buffer
  for (const name of names) await server.do('reset', `s${name}`);
  assert.ok(w.kernel.http.control.lostEnds() > 20, `${w.kernel.http.control.lostEnds()} did not fit`);
  assert.equal(w.kernel.http.control.untoldEnds().length, w.kernel.http.control.lostEnds());
  agent = start();
  await areReset(names);
  assert.ok(agent.status.endings.clientsReset >= CLIENTS, JSON.stringify(agent.status.endings));
  await closeEach(names);
  assert.deepEqual(w.kernel.http.control.untoldEnds(true), []);
});

test('ends that find no room while the agent runs: it is off for a while, and ends those that it was not told of', async () => {
  await waitFor('it to be on', async () => agent!.status.on, { timeoutMs: 120_000, everyMs: 20 });
  const lost = w.kernel.http.control.lostEnds();
  const names = await underWay();
  // All at once, and without a turn of this process's.
  const asked = names.map((name) => server.do('reset', `s${name}`));
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 700);
  await Promise.all(asked);
  assert.ok(w.kernel.http.control.lostEnds() > lost + 20, `${w.kernel.http.control.lostEnds() - lost} did not fit`);
  await areReset(names);
  assert.equal(agent!.status.on, false);
  assert.equal(agent!.status.reason, 'ends of connections were lost');
  await closeEach(names);
  ends.length = 0;
});
