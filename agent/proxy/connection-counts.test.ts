import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ConnectionCounts } from './connection-counts.js';

interface Question {
  filter: RegExp;
  answer(counts: Record<string, number>): void;
  fail(error: Error): void;
}

function counts(): { of: (uid: string) => Promise<number>; questions: Question[] } {
  const questions: Question[] = [];
  const made = new ConnectionCounts({ stats: (filter) => new Promise((resolve, reject) => questions.push({ filter: new RegExp(filter), answer: (values) => resolve(new Map(Object.entries(values))), fail: reject })) });
  return { of: (uid) => made.of(uid), questions };
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test('ConnectionCounts: a pod has its connections out and in, and its tunnels; Envoy is asked for all pods at once', async () => {
  const { of, questions } = counts();
  const [a, b] = [of('u-1'), of('u-2')];
  const names = ['listener.pod_u-1.downstream_cx_active', 'listener.pod_u-1_inbound.downstream_cx_active', 'http.pod_u-1_hbone.downstream_rq_active'];
  for (const name of names) assert.match(name, questions[0]!.filter);
  for (const name of ['listener.admin.downstream_cx_active', 'http.pod_u-1.downstream_rq_total']) assert.doesNotMatch(name, questions[0]!.filter);
  questions[0]!.answer(Object.fromEntries(names.map((name, index) => [name, 10 ** index])));
  assert.equal(await a, 111);
  await turn();
  questions[1]!.answer({ [names[0]!]: 1 });
  assert.equal(await b, 0);
});

test('ConnectionCounts: who asks during a question has the answer of the next one, together with all others; a failure is theirs who asked, and the next question is another', async () => {
  const { of, questions } = counts();
  const first = of('u-1');
  const others = Array.from({ length: 50 }, () => of('u-1'));
  assert.equal(questions.length, 1);
  const failed = assert.rejects(first, /away/);
  questions[0]!.fail(new Error('away'));
  await failed;
  await turn();
  assert.equal(questions.length, 2);
  questions[1]!.answer({ 'listener.pod_u-1.downstream_cx_active': 3 });
  assert.deepEqual(new Set(await Promise.all(others)), new Set([3]));
  const last = of('u-1');
  assert.equal(questions.length, 3);
  questions[2]!.answer({});
  assert.equal(await last, 0);
});
