import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../../common/paths.js';
import { parseDockerfile } from './dockerfile.js';

test('parseDockerfile: stages, steps with their lines, and what a container starts with', () => {
  const text = [
    'ARG BASE=debian:12',
    'FROM ${BASE} AS build',
    'WORKDIR /src',
    '# a comment',
    'COPY a b ./',
    'RUN one && \\',
    '    # within a step',
    '    two "$HOME"',
    'FROM scratch',
    'ARG BASE',
    'ARG VERSION=1',
    'COPY --from=build /out/ /',
    'LABEL a.b="c d ${VERSION}" base=$BASE',
    'ENV PATH=/bin',
    'ENV PATH=$PATH:/sbin',
    'USER 1:1',
    'ENTRYPOINT ["/x"]',
    'CMD ["y", "z"]',
  ].join('\n');
  const [build, last] = parseDockerfile(text, { VERSION: '2' });
  assert.deepEqual([build?.base, build?.name, last?.base, last?.name], ['debian:12', 'build', 'scratch', undefined]);
  assert.deepEqual(build?.steps, [
    { line: 3, kind: 'workdir', path: '/src' },
    { line: 5, kind: 'copy', from: undefined, sources: ['a', 'b'], target: './' },
    { line: 6, kind: 'run', script: 'one &&  two "$HOME"' },
  ]);
  assert.deepEqual(last?.steps, [{ line: 12, kind: 'copy', from: 'build', sources: ['/out/'], target: '/' }]);
  assert.deepEqual(last?.config, { Env: ['PATH=/bin:/sbin'], Labels: { 'a.b': 'c d 2', base: 'debian:12' }, User: '1:1', WorkingDir: '/', Entrypoint: ['/x'], Cmd: ['y', 'z'] });
});

for (const [why, text, message] of [
  ['an instruction that is not known', 'FROM a\nONBUILD RUN x', /^Dockerfile:2: the instruction ONBUILD is not known/],
  ['a variable that is not set', 'FROM a\nLABEL x=$y', /^Dockerfile:2: y is not set/],
  ['an argument of the whole file that the stage does not take', 'ARG y=1\nFROM a\nLABEL x=$y', /^Dockerfile:3: y is not set/],
  ['an argument without a value', 'ARG y\nFROM a', /^Dockerfile:1: the argument y has no value/],
  ['an option that is not known', 'FROM a\nCOPY --chown=1:1 x y', /^Dockerfile:2: COPY takes --from=STAGE/],
  ['a pattern', 'FROM a\nCOPY x* y', /^Dockerfile:2: COPY takes no patterns/],
  ['a stage that is not there', 'FROM a\nCOPY --from=b x y', /^Dockerfile:2: no stage before this one is named b/],
  ['a list where there is none', 'FROM a\nENTRYPOINT x y', /^Dockerfile:2: ENTRYPOINT takes a JSON list/],
  ['a step before the first FROM', 'RUN x', /^Dockerfile:1: RUN before the first FROM/],
  ['a last line that goes on', 'FROM a\n\nRUN x \\', /^Dockerfile:3: the last line ends with a backslash/],
  ['a file without FROM', '# nothing', /^Dockerfile:1: there is no FROM/],
] as const) {
  test(`parseDockerfile: ${why} is an error that names the line`, () => {
    assert.throws(() => parseDockerfile(text), { code: 'UNDERPASS_DOCKERFILE', message });
  });
}

test('Dockerfile: the base is a Debian slim that a build argument replaces, the result starts as a user who is not root', () => {
  const text = readFileSync(join(projectRoot, 'Dockerfile'), 'utf8');
  const stages = parseDockerfile(text, { BASE: 'registry.example/node@sha256:0123' });
  const { config, base } = stages.at(-1)!;
  assert.deepEqual([stages[0]?.base, base, config.User, config.Entrypoint], ['registry.example/node@sha256:0123', 'scratch', '65532:65532', ['/opt/underpass/bin/underpass']]);
  assert.equal(config.Labels['org.opencontainers.image.base.name'], 'registry.example/node@sha256:0123');
  const { version, license } = JSON.parse(readFileSync(join(projectRoot, 'package.json'), 'utf8')) as { version: string; license: string };
  assert.deepEqual([config.Labels['org.opencontainers.image.version'], config.Labels['org.opencontainers.image.licenses']], [version, license]);
  assert.match(parseDockerfile(text)[0]!.base, /^node:20-bookworm-slim$/);
});
