import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../common/paths.js';

interface Reports {
  new (write: (lines: string) => void): { readonly tests: number; add(chunk: string): void };
  sum(reports: readonly object[], durationMs: number): string;
}
const { Report } = (await import(join(projectRoot, 'test/report.mjs'))) as { Report: Reports };

test('Report: what two runs wrote is told with one sum and both runs\' failures, wherever its chunks are cut', () => {
  const run = (name: string, counts: number[], failures: string): string => `✔ ${name} (1ms)\nℹ tests are told of\n${['tests', 'suites', 'pass', 'fail', 'cancelled', 'skipped', 'todo'].map((count, index) => `ℹ ${count} ${counts[index]}\n`).join('')}ℹ duration_ms 12.5\n${failures}`;
  for (const size of [1, 7, 10_000]) {
    let lines = '';
    const reports = [run('first', [5, 1, 3, 1, 0, 1, 0], '\n✖ failing tests:\n\ntest at x\n✖ one\n'), run('second', [7, 0, 6, 1, 0, 0, 0], '\n✖ failing tests:\n\n✖ two\n')].map((text) => {
      const report = new Report((some) => (lines += some));
      for (let at = 0; at < text.length; at += size) report.add(text.slice(at, at + size));
      return report;
    });
    assert.equal(lines, '✔ first (1ms)\nℹ tests are told of\n✔ second (1ms)\nℹ tests are told of\n');
    assert.deepEqual(reports.map(({ tests }) => tests), [5, 7]);
    assert.equal(Report.sum(reports, 20), 'ℹ tests 12\nℹ suites 1\nℹ pass 9\nℹ fail 2\nℹ cancelled 0\nℹ skipped 1\nℹ todo 0\nℹ duration_ms 20\n\n✖ failing tests:\n\ntest at x\n✖ one\n\n✖ failing tests:\n\n✖ two\n');
  }
});

test('Report: a run that ended before its counts has no test', () => {
  const report = new Report(() => undefined);
  report.add('✔ one (1ms)\nℹ te');
  assert.equal(report.tests, 0);
});
