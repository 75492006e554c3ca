// Messages of gRPC: what Envoy counts of calls by their messages becomes sums of messages.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MessageReader, MESSAGES } from './envoy-messages.js';

function read(stats: Record<string, number>) {
  const reader = new MessageReader();
  reader.read(JSON.stringify({ stats: Object.entries(stats).map(([name, value]) => ({ name: `underpass_messages.calls.k.${name}`, value })) }));
  return reader.end();
}

test('EnvoyMessages: calls times their messages, each key for itself, and nothing of what is none', () => {
  const found = read({ 'a\tgrpc\t0\t2,3': 4, 'a\tgrpc\t0\t1,1': 10, 'a\tgrpc\t0\tmany': 1 });
  assert.deepEqual([...found], [['a\tgrpc\t0\t2,3', { request: 8n, response: 12n }], ['a\tgrpc\t0\t1,1', { request: 10n, response: 10n }]]);
});

test('EnvoyMessages: growth is on what was, and begins anew where Envoy has dropped it', () => {
  const [before, now] = [{ request: 8n, response: 12n }, { request: 10n, response: 15n }];
  assert.deepEqual(MESSAGES.grown(now, before), { base: before, last: now, growth: { request: 2n, response: 3n } });
  assert.equal(MESSAGES.grown(before, before).growth, undefined);
  assert.deepEqual(MESSAGES.grown(before, now), { base: undefined, last: before, growth: before });
  assert.deepEqual(MESSAGES.unpack(MESSAGES.pack(now)), now);
  assert.throws(() => MESSAGES.unpack(['1']), /1 numbers instead of 2/);
});
