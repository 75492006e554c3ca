/** The tests that a kernel of the matrix runs: those of the kernel side, and those of the HTTP fast path's exchanges. */
import { existsSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { projectRoot } from '../../common/paths.js';
import { TESTS } from './report.js';

const KERNEL_SIDE = 'dist/agent/dataplane';
/** Without Envoy: what the guests have none of. */
const EXCHANGES = ['exchange', 'adversary', 'bound', 'pipelining', 'lost', 'leaving', 'totals', 'tracing', 'leaks', 'upgrade'].map((name) => `dist/test/http/${name}.test.js`);

/** @returns compiled files, relative to the project, whose path holds one of the parts; of those that are there */
export function testFiles(parts: readonly string[]): string[] {
  const kernelSide = readdirSync(join(projectRoot, KERNEL_SIDE)).filter((name) => name.endsWith('.test.js')).sort();
  return [...kernelSide.map((name) => join(KERNEL_SIDE, name)), ...EXCHANGES].filter((file) => existsSync(join(projectRoot, file)) && parts.some((part) => file.replace('dist/', '').includes(part)));
}

/** What the rows of a file's tests are found under. */
export function groupOf(file: string): string {
  return basename(file).replace('.test.js', TESTS);
}
