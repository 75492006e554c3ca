import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { projectRoot } from '../../common/paths.js';
import { buildStages } from './build.js';
import { parseDockerfile } from './dockerfile.js';
import { isIgnored, parseIgnored } from './ignored.js';

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

test('parseIgnored, isIgnored: the last pattern that fits decides; a pattern that is not known is an error that names the line', () => {
  const patterns = parseIgnored('# all but\n*\n!src\nsrc/generated\n');
  assert.deepEqual(['a', 'src', 'src/a/b', 'src/generated', 'src/generated/c', 'src2'].map((path) => isIgnored(patterns, path)), [true, false, false, true, true, true]);
  assert.throws(() => parseIgnored('a\n**/b'), { code: 'UNDERPASS_DOCKERFILE', message: '.dockerignore:2: a pattern that is not known here: **/b' });
});

test('.dockerignore: what a checkout has beside its sources stays out of a build', () => {
  const patterns = parseIgnored(readFileSync(join(projectRoot, '.dockerignore'), 'utf8'));
  for (const path of ['.git', '.git/config', 'node_modules', 'dist', 'build', 'proto/generated', '.env', 'id_rsa', 'some.key']) assert.ok(isIgnored(patterns, path), path);
  for (const path of ['package.json', '.npmrc', 'agent/agent.ts', 'proto/roots.txt', 'image/main.ts']) assert.ok(!isIgnored(patterns, path), path);
});

test('buildStages: COPY takes files and folders to where the reference says, and names the line when there is nothing to take', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'underpass-dockerfile-'));
  try {
    const context = join(folder, 'context');
    mkdirSync(join(context, 'a/deep'), { recursive: true });
    for (const name of ['a/one', 'a/deep/two', 'three', 'left-out']) writeFileSync(join(context, name), name);
    writeFileSync(join(context, '.dockerignore'), '*\n!a\n!three\n');
    const build = (text: string): ReturnType<typeof buildStages> => {
      writeFileSync(join(context, 'Dockerfile'), text);
      return buildStages({ context, work: join(folder, 'work') });
    };
    const [first, last] = await build('FROM scratch AS first\nWORKDIR /w\nCOPY a ./\nCOPY three a/one /x/\nCOPY three /y\nCOPY . /z\nFROM scratch\nCOPY --from=first /x/ /\n');
    for (const path of ['w/one', 'w/deep/two', 'x/three', 'x/one', 'y', 'z/three', 'z/a/one']) assert.ok(existsSync(join(first!.root, path)), path);
    assert.ok(!existsSync(join(first!.root, 'z/left-out')));
    assert.equal(readFileSync(join(last!.root, 'three'), 'utf8'), 'three');
    await assert.rejects(build('FROM scratch\nCOPY none /\n'), { code: 'UNDERPASS_DOCKERFILE', message: /^Dockerfile:2: COPY none: there is no such file/ });
    await assert.rejects(build('FROM scratch\nCOPY left-out /\n'), { message: /^Dockerfile:2: COPY left-out: .*\.dockerignore leaves it out/ });
    await assert.rejects(build('FROM scratch AS a\nFROM scratch\nCOPY --from=a /b /\n'), { message: /^Dockerfile:3: COPY \/b: there is no such file in the stage a/ });
    await assert.rejects(build('FROM alpine\n'), { code: 'UNDERPASS_IMAGE_BASE', message: 'only node:MAJOR-bookworm-slim can be made here, not alpine' });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
