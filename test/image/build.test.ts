// The Dockerfile itself, step by step, where no container engine is: `make test-image`.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildDir, projectRoot } from '../../common/paths.js';
import { baseProblem } from './base.js';
import { buildStages, type BuiltStage } from './build.js';
import { checkContents, checkStarts } from './checks.js';
import { parseDockerfile } from './dockerfile.js';

const { base } = parseDockerfile(readFileSync(join(projectRoot, 'Dockerfile'), 'utf8'))[0]!;
const problem = baseProblem(base);
const work = join(buildDir, 'image', 'stages');

let build: BuiltStage;
let last: BuiltStage;
if (problem === undefined) {
  before(async () => {
    const stages = await buildStages({ context: projectRoot, work });
    [build, last] = [stages[0]!, stages.at(-1)!];
  }, { timeout: 900_000 });
  // The log stays, for who reads of a step that failed.
  after(() => {
    for (const entry of readdirSync(work, { withFileTypes: true })) if (entry.isDirectory()) rmSync(join(work, entry.name), { recursive: true });
  });
}

test('Dockerfile: its steps make a root file system with nothing of a developer\'s, no secret, and a list of contents that names all that is there and no more', { skip: problem ?? false }, async () => {
  await checkContents(last.root, build.root);
});

test('Dockerfile: in the root file system doctor, agent, pilot, Envoy and the helpers start, as a user who is not root where that is enough', { skip: problem ?? false }, async () => {
  await checkStarts(last.root);
});

test('Dockerfile: nothing of how this machine reaches packages is in the result', { skip: problem ?? false }, () => {
  assert.equal(existsSync(join(last.root, 'run/machine')), false);
  const certificates = readFileSync(join(last.root, 'etc/ssl/certs/ca-certificates.crt'), 'utf8').match(/BEGIN CERTIFICATE/g)?.length;
  const listed = readFileSync(join(build.root, 'etc/ca-certificates.conf'), 'utf8').split('\n').filter((line) => line.startsWith('mozilla/')).length;
  assert.equal(certificates, listed, 'root certificates beside those of Debian\'s package');
});

test('buildStages: a step that fails is an error that names its line, with what it printed', { skip: problem ?? false }, async () => {
  const context = mkdtempSync(join(tmpdir(), 'underpass-failing-'));
  try {
    writeFileSync(join(context, 'Dockerfile'), `FROM ${base}\nENV WHAT=seen\nWORKDIR /somewhere\nRUN pwd && echo "$WHAT" && \\\n    exit 3\n`);
    await assert.rejects(buildStages({ context, work: join(context, 'work') }), { code: 'UNDERPASS_DOCKERFILE', message: /^Dockerfile:4: RUN ended with 3; .*\n\/somewhere\nseen$/ });
  } finally {
    rmSync(context, { recursive: true, force: true });
  }
});
