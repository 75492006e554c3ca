// What goes into the image, made out of this machine's Debian.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parseAllDocuments } from 'yaml';
import { buildDir, projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { COMMANDS_LEFT_OUT, ENTRY_MODULE, PAGE_MODULES, PRODUCT_FILES, PROGRAMS } from '../../image/contents.js';
import { makeRoot } from '../../image/main.js';
import { reach, type Reached } from '../../image/modules.js';
import { writeArchive } from './archive.js';
import { checkBom, checkContents, checkFiles, checkPrograms, checkStarts } from './checks.js';
import { enterRoot } from './chroot.js';

let folder: string;
let root: string;
let reached: Reached;
before(async () => {
  mkdirSync(buildDir, { recursive: true });
  folder = mkdtempSync(join(tmpdir(), 'underpass-image-'));
  root = join(folder, 'root');
  await makeRoot(root);
  reached = reach(projectRoot, [ENTRY_MODULE, ...PAGE_MODULES], COMMANDS_LEFT_OUT.map((name) => `dist/cli/${name}.js`));
});
after(() => rmSync(folder, { recursive: true, force: true }));

const codeOf = (modules: readonly string[]): { module: string; text: string }[] =>
  modules.filter((module) => module.endsWith('.js')).map((module) => ({ module, text: readFileSync(join(projectRoot, module), 'utf8') }));

test('contents: every program that the code starts is named', () => {
  // Of the machine, asked for by doctor alone, which says what is missing.
  const asked = new Set(['ip', 'nginx', 'wrk']);
  const started = codeOf(reached.modules).flatMap(({ module, text }) =>
    [...text.matchAll(/(?:\b(?:run|spawn|firstLine)|#run)\(\s*'([^']+)'|'--', '([\w-]+)'|'--net', '([\w-]+)'/g)].map(([, direct, exec, unshared]) => ({ module, program: direct ?? exec ?? unshared ?? '' })),
  );
  assert.ok(started.length >= 5, `only ${started.length} found: is the pattern still right?`);
  assert.deepEqual(started.filter(({ program }) => PROGRAMS[program] === undefined && !asked.has(program)), []);
});

test('contents: every file of the project that the code names is there', () => {
  // Folders, a part of the lab that doctor looks for, and the benchmark's report, which the dashboard shows where it is.
  const elsewhere = new Set(['build', 'build/tcp-bench', 'dashboard', 'dist/dashboard', 'docs/results/bench.html']);
  const named = codeOf(reached.modules).flatMap(({ module, text }) =>
    [...text.matchAll(/join\((buildDir|projectRoot), ('[^)]*')\)/g)].map(([, base, parts = '']) => ({ module, file: join(base === 'buildDir' ? 'build' : '', ...parts.split(', ').map((part) => part.slice(1, -1))) })),
  );
  assert.ok(named.length >= 5, `only ${named.length} found: is the pattern still right?`);
  assert.deepEqual(named.filter(({ file }) => !(PRODUCT_FILES as readonly string[]).includes(file) && !elsewhere.has(file)), []);
});

test('contents: what the manifests start, and probe with, is there', () => {
  type Container = { image: string; command?: string[]; readinessProbe?: Probe; livenessProbe?: Probe; startupProbe?: Probe; lifecycle?: { preStop?: Probe; postStart?: Probe } };
  type Probe = { exec?: { command: string[] } };
  const containers = ['underpass.yaml', 'underpass-istiod.yaml'].flatMap((name) =>
    parseAllDocuments(readFileSync(join(projectRoot, 'deploy', name), 'utf8')).flatMap((document) => {
      const { kind, spec } = document.toJS() as { kind: string; spec?: { template?: { spec: { containers: Container[]; initContainers?: Container[] } } } };
      const pod = ['DaemonSet', 'Deployment', 'Job'].includes(kind) ? spec?.template?.spec : undefined;
      return [...(pod?.containers ?? []), ...(pod?.initContainers ?? [])];
    }),
  ).filter(({ image }) => /(?:^|\/)underpass[:@]/.test(image));
  const commands = containers.flatMap(({ command, readinessProbe, livenessProbe, startupProbe, lifecycle }) =>
    [command, ...[readinessProbe, livenessProbe, startupProbe, lifecycle?.preStop, lifecycle?.postStart].map((probe) => probe?.exec?.command)].flatMap((words) => words?.slice(0, 1) ?? []),
  );
  assert.ok(containers.length >= 4 && commands.length >= 2, JSON.stringify({ containers: containers.length, commands }));
  for (const command of new Set(commands)) assert.ok(command.startsWith('/') ? existsSync(join(root, command)) : PROGRAMS[command] !== undefined, command);
});

test('contents: nothing of a developer\'s, no secret, and the list of contents names all that is there and no more', async () => {
  await checkContents(root);
});

test('contents: what should not be there, or is missing, is found', async () => {
  const put = (path: string, text = '', mode = 0o644): string => {
    writeFileSync(join(root, path), text);
    chmodSync(join(root, path), mode);
    return path;
  };
  const planted = [
    put('opt/underpass/dist/cli/main.test.js'),
    put('etc/some.conf', `x\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIPxUoHzB4QmrjDdn\n`),
    put('opt/underpass/tls.key'),
    put('opt/underpass/own', '', 0o640),
    put('opt/underpass/set', '', 0o4755),
    put('opt/underpass/open', '', 0o666),
  ];
  assert.throws(() => checkFiles(root), ({ message }: Error) => planted.every((path) => message.includes(`/${path}: `)));
  for (const path of planted) rmSync(join(root, path));
  checkFiles(root);

  put('usr/bin/curl', '', 0o755);
  assert.throws(() => checkPrograms(root), /programs that the product does not start/);
  await assert.rejects(checkBom(root), /files of no package|deep-equal/);
  rmSync(join(root, 'usr/bin/curl'));
  renameSync(join(root, 'usr/bin/grep'), join(folder, 'grep'));
  assert.throws(() => checkPrograms(root), /programs that are missing/);
  await assert.rejects(checkBom(root), /grep@/);
  renameSync(join(folder, 'grep'), join(root, 'usr/bin/grep'));

  const modules = join(root, 'opt/underpass/node_modules');
  mkdirSync(join(modules, 'left-over'));
  put('opt/underpass/node_modules/left-over/package.json', '{"name": "left-over", "version": "1.2.3"}');
  await assert.rejects(checkBom(root), /left-over@1\.2\.3/);
  rmSync(join(modules, 'left-over'), { recursive: true });
  cpSync(join(modules, 'commander'), join(folder, 'commander'), { recursive: true });
  rmSync(join(modules, 'commander'), { recursive: true });
  await assert.rejects(checkBom(root), /commander@/);
  cpSync(join(folder, 'commander'), join(modules, 'commander'), { recursive: true });
  const licence = 'opt/underpass/licenses/envoy';
  renameSync(join(root, licence), join(folder, 'envoy'));
  await assert.rejects(checkBom(root), /envoy/);
  renameSync(join(folder, 'envoy'), join(root, licence));
  await checkBom(root);
});

test('contents: doctor, agent, pilot, Envoy and the helpers start, as a user who is not root where that is enough', async () => {
  await checkStarts(root);
});

test('contents: a command that is left out says so', async () => {
  for (const command of COMMANDS_LEFT_OUT) {
    const { code, stderr } = await enterRoot(root, ['/opt/underpass/bin/underpass', command, '--help'], { user: 65532 });
    assert.deepEqual([code, stderr.split('\n')[0]], [1, `underpass: underpass ${command}: the image is without this command (UNDERPASS_COMMAND_LEFT_OUT)`]);
  }
});

test('reach: an import that leads nowhere is an error that names both', () => {
  const own = join(folder, 'modules');
  mkdirSync(own);
  writeFileSync(join(own, 'a.js'), "import './b.js';\n");
  assert.throws(() => reach(own, ['a.js'], []), { code: 'UNDERPASS_IMAGE_MODULE', message: "a.js: './b.js' leads to b.js, which does not exist" });
  writeFileSync(join(own, 'b.js'), "const c = await import('not-a-package');\n");
  assert.throws(() => reach(own, ['a.js'], []), { code: 'UNDERPASS_IMAGE_MODULE', message: 'b.js: the package not-a-package is not installed' });
});

test('makeRoot: a folder that is not empty is left alone', async () => {
  await assert.rejects(makeRoot(root), { code: 'UNDERPASS_IMAGE_FOLDER' });
});

test('writeArchive: the layer holds the root, all owned by root, under the hash that the config names; twice the same bytes', async () => {
  const small = join(folder, 'small');
  mkdirSync(join(small, 'etc'), { recursive: true });
  writeFileSync(join(small, 'etc/hello'), 'hello', { mode: 0o640 });
  await run('chown', ['12:34', join(small, 'etc/hello')]);
  const config = { Env: ['A=b'], Labels: { c: 'd' }, User: '1:2', WorkingDir: '/', Entrypoint: ['/e'], Cmd: ['f'] };
  const files = ['first.tar', 'second.tar'].map((name) => join(folder, name));
  for (const file of files) await writeArchive(file, { root: small, config, tag: 'docker.io/library/x:y' });
  assert.ok(readFileSync(files[0]!).equals(readFileSync(files[1]!)));
  const opened = join(folder, 'opened');
  mkdirSync(opened);
  await run('tar', ['--extract', '--file', files[0]!, '--directory', opened]);
  const [manifest] = JSON.parse(readFileSync(join(opened, 'manifest.json'), 'utf8')) as [{ Config: string; RepoTags: string[]; Layers: [string] }];
  const text = readFileSync(join(opened, manifest.Config));
  const image = JSON.parse(text.toString()) as { config: unknown; rootfs: { diff_ids: string[] } };
  const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
  assert.deepEqual(manifest.RepoTags, ['docker.io/library/x:y']);
  assert.equal(manifest.Config, `${sha256(text)}.json`);
  assert.deepEqual(image.rootfs.diff_ids, [`sha256:${sha256(readFileSync(join(opened, manifest.Layers[0])))}`]);
  assert.deepEqual(image.config, config);
  const { stdout } = await run('tar', ['--list', '--verbose', '--numeric-owner', '--file', join(opened, manifest.Layers[0])]);
  assert.match(stdout, /^-rw-r----- 0\/0 +5 .* \.\/etc\/hello$/m);
});
