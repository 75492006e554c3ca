import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MEASURED, deviations, readReport, renderMatrix, type Expectation, type Line } from './report.js';

const text = (...lines: Line[]): string => lines.map((line) => JSON.stringify(line)).join('\r\n');
const row = (name: string, state: 'ok' | 'wrong answer', detail = ''): Line => ({ group: 'self-test', name, state, detail });
const expected: Expectation = { seen: '6.1', atLeast: { 'self-test': 2 }, exceptions: { 'self-test: fionread': { state: 'wrong answer', why: 'answers 0' } } };

test('deviations: a kernel that answers as expected has none', () => {
  const column = readReport('6.1', text({ kernel: '6.1.9' }, row('order', 'ok'), row('fionread', 'wrong answer', '0 of 64'), { done: true }));
  assert.deepEqual(deviations(column, expected), []);
});

test('deviations: a wrong answer, an unexpected right one and one that is gone are all told', () => {
  const wrong = readReport('6.1', text({ kernel: '6.1.9' }, row('order', 'wrong answer', 'lost'), row('fionread', 'ok'), { done: true }));
  assert.deepEqual(deviations(wrong, expected), [
    'self-test: order: wrong answer, expected ok: lost',
    'self-test: fionread: ok, expected wrong answer: ',
  ]);
  const gone = readReport('6.1', text({ kernel: '6.1.9' }, row('order', 'ok'), { done: true }));
  assert.deepEqual(deviations(gone, expected), ['self-test: fionread: not checked, expected wrong answer', 'self-test: 1 checks, expected at least 2']);
});

test('deviations: a guest that did not come to its end, or checked nothing, is never as expected', () => {
  const none: Expectation = { seen: '', atLeast: {}, exceptions: {} };
  assert.deepEqual(deviations(readReport('6.1', ''), none), ['nothing was checked']);
  assert.deepEqual(deviations(readReport('6.1', text({ kernel: '6.1.9' }, row('order', 'ok'))), none), [
    'the checks did not come to their end; the last was self-test: order',
  ]);
});

test('renderMatrix: a column a kernel, a line for the tests of a file, - where it was not asked, and the reason of what is not ok', () => {
  const flow = (name: string, state: 'ok' | 'wrong answer', detail = ''): Line => ({ group: 'flow tests', name, state, detail });
  const one = readReport('6.1', text({ kernel: '6.1.9' }, row('order', 'ok'), row('fionread', 'wrong answer', '0 of 64'), flow('bulk', 'ok'), flow('order', 'wrong answer', 'lost'), { done: true }));
  const two = readReport('6.12', text({ kernel: '6.12.9' }, row('order', 'ok'), { group: MEASURED, name: 'waiting', state: 'ok', detail: '4096' }, { done: true }));
  assert.equal(
    renderMatrix([one, two]),
    [
      '                     6.1.9         6.12.9',
      'self-test',
      '  order              ok            ok',
      '  fionread           wrong answer  -',
      'flow tests           1 of 2        -',
      'bytes in the kernel',
      '  waiting            -             4096',
      'Not ok',
      '  6.1.9  self-test: fionread: wrong answer: 0 of 64',
      '  6.1.9  flow tests: order: wrong answer: lost',
    ].join('\n'),
  );
});
