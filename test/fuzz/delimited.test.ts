// What Envoy writes after hostile input, and whether the kernel's readers of Envoy see its messages' ends: short, from a fixed seed.
// `make fuzz` does it for longer.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { corpus, writeCorpus, type Message } from './corpus.js';
import { nothingDelimited, passOn } from './delimited.js';
import { fuzz } from './differential.js';
import { EnvoyRelay } from './envoy-relay.js';

const folder = mkdtempSync(join(tmpdir(), 'up-fuzz-relay-'));
let relay: EnvoyRelay;
before(async () => {
  relay = await EnvoyRelay.start(folder);
});
after(async () => {
  await relay.close();
  rmSync(folder, { recursive: true });
});

test('EnvoyRelay: knows where each message that Envoy wrote ends, whoever sent what', async () => {
  const [written] = await relay.passRequests([{ kind: 'request', text: 'POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\nGET /b HTTP/1.1\r\nHost: b\r\nContent-Length: 4\r\n\r\nfour' }]);
  const messages = written!.ends.map((end, i) => written!.text.slice(written!.ends[i - 1] ?? 0, end));
  assert.deepEqual(messages.map((text) => /^(\w+ \S+) /.exec(text)?.[1]), ['POST /a', 'GET /b', 'GET /next']);
  assert.ok(messages[0]!.endsWith('abcde\r\n0\r\n\r\n') && messages[1]!.endsWith('\r\n\r\nfour'), JSON.stringify(messages));
  assert.equal(written!.text.length, written!.ends.at(-1));
  const answers: Message[] = [['answer', 'HTTP/1.1 200 OK\r\n\r\nuntil the end'], ['answer', 'HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef'], ['answer-to-head', 'HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n']].map(([kind, text]) => ({ kind, text }) as Message);
  const got = await relay.passAnswers(answers);
  assert.deepEqual(got.map(({ text, ends }) => text.slice(text.indexOf('\r\n\r\n') + 4, ends[0])), ['d\r\nuntil the end\r\n0\r\n\r\n', 'abc', '']);
  assert.ok(got.every(({ text, ends }) => text.slice(ends[0]).startsWith('HTTP/1.1 200 OK\r\n')), JSON.stringify(got));
});

test('http_read_envoys_request, http_read_envoys_answer: after the known tricks Envoy\'s messages are ended where Envoy ends them', async () => {
  const tally = nothingDelimited();
  await passOn(corpus, relay, tally);
  assert.deepEqual(tally.misread, []);
  assert.ok(tally.by.request.ended >= 100 && tally.by.answer.ended >= 15 && tally.by['answer-to-head'].ended >= 3, JSON.stringify(tally.by));
});

test('http_read_envoys_request, http_read_envoys_answer: after what the fuzzer makes, too', async (t) => {
  const tally = nothingDelimited();
  writeCorpus(join(folder, 'corpus'));
  const { code, log } = await fuzz(['-seed=1', '-runs=4000', '-max_len=1200', 'corpus'], folder, (batch) => passOn(batch, relay, tally), { hostile: true });
  t.diagnostic(JSON.stringify(tally.by));
  assert.equal(code, 0, log.slice(-2000));
  assert.deepEqual(tally.misread.slice(0, 5), []);
  assert.ok(tally.by.request.ended >= 300 && tally.by.answer.ended >= 300 && tally.by['answer-to-head'].ended >= 50, JSON.stringify(tally.by));
});
