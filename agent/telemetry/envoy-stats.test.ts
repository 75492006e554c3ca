// Envoy's answer, in pieces of any size, becomes totals by key; one that broke off, or is none, becomes an error.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RequestStatsReader } from './envoy-stats.js';

/** As Envoy 1.40.0 answers; what it says of quantiles and of the last interval is left out. */
const ANSWER = `{"stats":[{"histograms":{"supported_percentiles":[0,100],"details":[${[
  '{"name":"underpass_requests.duration.k.a\\tb\\"c","totals":[{"lower_bound":0,"width":0,"count":3},{"lower_bound":1,"width":0.1,"count":1},{"lower_bound":250,"width":10,"count":2}],"intervals":[],"percentiles":[{"cumulative":0,"interval":null}]}',
  '{"name":"underpass_requests.request.k.a\\tb\\"c","totals":[{"lower_bound":50,"width":1,"count":6}],"intervals":[{"lower_bound":50,"width":1,"count":1}],"percentiles":[]}',
  '{"name":"underpass_requests.answer.k.a\\tb\\"c","totals":[{"lower_bound":4000000,"width":100000,"count":6}],"intervals":[],"percentiles":[]}',
  '{"name":"underpass_requests.duration.k.other","totals":[],"intervals":[],"percentiles":[]}',
  '{"name":"underpass_requests.unheard.k.other","totals":[{"lower_bound":1,"width":1,"count":6}],"intervals":[],"percentiles":[]}',
].join()}]}}]}`;

function read(text: string, size: number): ReturnType<RequestStatsReader['end']> {
  const reader = new RequestStatsReader();
  for (let from = 0; from < text.length; from += size) reader.read(text.slice(from, from + size));
  return reader.end();
}

test('RequestStatsReader: the same of an answer however it is cut', () => {
  const whole = read(ANSWER, ANSWER.length);
  for (const size of [1, 2, 7, 100]) assert.deepEqual(read(ANSWER, size), whole);
  assert.deepEqual([...whole.keys()], ['a\tb"c', 'other']);
  assert.equal(whole.get('other')!.requests, 0n);
});

test('RequestStatsReader: values in the buckets that they belong to, whole numbers as they are, others by the middle of their bin', () => {
  const { requests, durationUs, duration, request, requestBytes, answer, answerBytes } = read(ANSWER, 64).get('a\tb"c')!;
  assert.equal(requests, 6n);
  // 3 times 0, once 1, and twice something from 250 to 259 milliseconds.
  assert.deepEqual([duration[0], duration[1], duration[8], durationUs], [3n, 1n, 2n, 1_000n + 2n * 254_500n]);
  assert.deepEqual([request[5], requestBytes], [6n, 300n]);
  assert.deepEqual([answer.at(-1), answer.length], [6n, 20]);
  assert.ok(answerBytes > 24_000_000n && answerBytes < 24_600_000n);
});

test('RequestStatsReader: nothing counted is no error; an answer that broke off is', () => {
  for (const none of ['{"stats":[{"histograms":{"supported_percentiles":[0],"details":[]}}]}', '{"stats":[]}']) assert.equal(read(none, 10).size, 0);
  for (const length of [0, 10, 200, ANSWER.length - 3]) assert.throws(() => read(ANSWER.slice(0, length), 50), { code: 'UNDERPASS_ENVOY_STATS' });
  assert.throws(() => read('no', 1), { code: 'UNDERPASS_ENVOY_STATS' });
  assert.throws(() => read(`{"name":"${'x'.repeat(100_000)}`, 1_000), { code: 'UNDERPASS_ENVOY_STATS' });
});
