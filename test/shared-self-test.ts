/**
 * Loaded into an agent before its own code (`node --import`): its self-test is one that another agent of the tests has passed
 * since this machine was booted, with the same programs. Each takes seconds, and the tests start many agents. Without one that was
 * passed, this agent's is run and kept. test/agent-node.test.ts and those of the self-test itself have agents that do without this.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { SelfTestVerdict } from '../agent/parts.js';
import { realParts } from '../agent/real-parts.js';
import { buildDir, projectRoot } from '../common/paths.js';

/** What the verdict depends on. */
const PROGRAMS = [
  ...['underpass.node', 'socket-probe', 'underpass-exec'].map((name) => join(buildDir, name)),
  ...['self-test.js', 'self-test-http.js', 'kernel.js'].map((name) => join(projectRoot, 'dist', 'agent', 'dataplane', name)),
];

function place(): string {
  const hash = createHash('sha256').update(readFileSync('/proc/sys/kernel/random/boot_id'));
  for (const program of PROGRAMS) hash.update(readFileSync(program));
  return join(buildDir, 'self-tests', `${hash.digest('hex').slice(0, 32)}.json`);
}

const own = realParts.selfTest;
realParts.selfTest = async (logger) => {
  const path = place();
  if (existsSync(path)) return JSON.parse(readFileSync(path, 'utf8')) as SelfTestVerdict;
  const verdict = await own(logger);
  if (verdict.ok) {
    mkdirSync(join(buildDir, 'self-tests'), { recursive: true });
    writeFileSync(`${path}.${process.pid}`, JSON.stringify(verdict));
    renameSync(`${path}.${process.pid}`, path);
  }
  return verdict;
};
