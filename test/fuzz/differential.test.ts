// The parser beside a real Envoy: short, from a fixed seed. `make fuzz` does it for longer.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { corpus, writeCorpus } from './corpus.js';
import { compare, fuzz, newTally, taken } from './differential.js';
import { EnvoyReader } from './envoy-reader.js';

const folder = mkdtempSync(join(tmpdir(), 'up-fuzz-'));
let envoy: EnvoyReader;
before(async () => {
  envoy = await EnvoyReader.start(folder);
});
after(async () => {
  await envoy.close();
  rmSync(folder, { recursive: true });
});

test('http-parse.h: what it takes of the known tricks, Envoy reads the same', async () => {
  const tally = newTally();
  await compare(await taken(corpus), envoy, tally);
  assert.deepEqual(tally.differences.slice(0, 10), []);
  assert.ok(tally.compared.request >= 30 && tally.compared.answer >= 15 && tally.compared['answer-to-head'] >= 3, JSON.stringify(tally.compared));
});

test('EnvoyReader: sees a message that ends elsewhere, and one that Envoy refuses', async () => {
  const get = 'GET /a HTTP/1.1\r\nHost: a\r\n\r\n';
  const requests = await envoy.readRequests([{ text: get, close: false }, { text: get + 'x', close: false }, { text: get.replace('\r\n\r\n', '\r\nContent-Length: 9\r\n\r\n'), close: false }, { text: get.replace('Host', 'Host '), close: false }, { text: get, close: false }]);
  assert.deepEqual(requests.map((got) => typeof got), ['object', 'string', 'string', 'string', 'object']);
  const answer = 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello';
  const plain = { toHead: false, ends: false, interim: false };
  const answers = await envoy.readAnswers([{ ...plain, text: answer }, { ...plain, text: answer + '!' }, { ...plain, text: answer.slice(0, -1), ends: true }, { ...plain, text: answer.replace(':', ' :') }, { ...plain, text: answer }]);
  assert.deepEqual(answers.map((got) => (typeof got === 'string' ? got.slice(0, 10) : [got.status, got.body, got.reused])), [[200, 'hello', true], [200, 'hello', false], 'broken off', [502, 'upstream connect error or disconnect/reset before headers. reset reason: protocol error', false], [200, 'hello', true]]);
});

test('http-parse.h: what the fuzzer finds that it takes, Envoy reads the same', async (t) => {
  const tally = newTally();
  writeCorpus(join(folder, 'corpus'));
  const { code, log } = await fuzz(['-seed=1', '-runs=100000', '-max_len=1200', 'corpus'], folder, (batch) => compare(batch, envoy, tally));
  t.diagnostic(`compared ${JSON.stringify(tally.compared)}`);
  assert.equal(code, 0, log.slice(-2000));
  assert.deepEqual(tally.differences.slice(0, 10), []);
  assert.ok(tally.compared.request >= 1000 && tally.compared.answer >= 1000 && tally.compared['answer-to-head'] >= 200, JSON.stringify(tally.compared));
});
