/** What has to hold for the image's root file system, however it was made. Looks at what is there, not at what the maker says. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, lstatSync, mkdtempSync, openSync, readFileSync, readSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join, relative } from 'node:path';
import { waitFor } from '../../common/retry.js';
import { run } from '../../common/process.js';
import { PREFIX, PROGRAMS, USER_ID } from '../../image/contents.js';
import type { Bom } from '../../image/sbom.js';
import { enterCommand, enterRoot } from './chroot.js';

/** Links of several programs lead to these. */
const TARGETS = ['dash', 'xtables-legacy-multi', 'xtables-nft-multi'];
/** Of no package: made with the image, or at its packages' installation. */
const GENERATED = ['/etc/passwd', '/etc/group', '/etc/nsswitch.conf', '/etc/ld.so.cache'];
const DEVELOPERS = /(?:\.test\.js|\.d\.[cm]?ts|\.tsbuildinfo|\.[ch]|\.cc|\.o|\/\.npmrc|\/\.git\w*|\/\.package-lock\.\w+|\/tsconfig[^/]*\.json|\/testing\/[^/]*|\/Makefile)$/;
const SECRET_NAMES = /(?:\.key|\.pem|\.p12|\/id_\w+|\/\.netrc|\/\.docker\/.*|\/shadow|\/token)$/;
const PRIVATE_KEY = /-----BEGIN [A-Z ]*PRIVATE KEY-----\\?[\r\n]+[A-Za-z0-9+/=]{16}/;

/** @param debian the root whose packages were copied from; the machine's own by default */
export async function checkContents(root: string, debian = '/'): Promise<void> {
  checkFiles(root);
  checkPrograms(root);
  await checkBom(root, debian);
}

export function checkFiles(root: string): void {
  const paths = everythingBelow(root, '/');
  const wrong: string[] = [];
  for (const path of paths) {
    const { mode, uid, gid } = lstatSync(join(root, path));
    const isLink = lstatSync(join(root, path)).isSymbolicLink();
    if (DEVELOPERS.test(path)) wrong.push(`${path}: a developer's`);
    if (SECRET_NAMES.test(path)) wrong.push(`${path}: has the name of a secret`);
    if (lstatSync(join(root, path)).isFile() && holdsPrivateKey(join(root, path))) wrong.push(`${path}: holds a private key`);
    if (uid !== 0 || gid !== 0) wrong.push(`${path}: owned by ${uid}:${gid}`);
    if (!isLink && (mode & 0o6000) !== 0) wrong.push(`${path}: setuid or setgid`);
    if (!isLink && (mode & 0o002) !== 0 && !['/tmp', '/var/tmp'].includes(path)) wrong.push(`${path}: all may write to it`);
    if (!isLink && (mode & 0o004) === 0 && path !== '/root') wrong.push(`${path}: not readable by a user who is not root`);
  }
  assert.deepEqual(wrong, []);
}

export function checkPrograms(root: string): void {
  const programs = everythingBelow(root, '/').filter((path) => /^\/usr\/(?:local\/)?s?bin\/./.test(path)).map((path) => basename(path));
  assert.deepEqual(programs.filter((name) => PROGRAMS[name] === undefined && !TARGETS.includes(name)), [], 'programs that the product does not start');
  assert.deepEqual(Object.keys(PROGRAMS).filter((name) => !programs.includes(name)), [], 'programs that are missing');
}

export async function checkBom(root: string, debian = '/'): Promise<void> {
  const paths = everythingBelow(root, '/').sort();
  const bom = JSON.parse(readFileSync(join(root, PREFIX, 'sbom.cdx.json'), 'utf8')) as Bom;
  const refs = bom.components.map((component) => component['bom-ref']);
  assert.equal(new Set(refs).size, refs.length, 'every component once');
  const named = (type: string): string[] => bom.components.filter(({ purl }) => purl.startsWith(`pkg:${type}/`)).map(({ name, version }) => `${name}@${version}`).sort();

  // Packages of npm: the folders right below a node_modules.
  const isPackage = (path: string): boolean => /(?:^|\/)node_modules\/(?:@[^/]+\/)?[^/@]+\/package\.json$/.test(path);
  const npm = new Set(paths.filter(isPackage).map((path) => {
    const { name, version } = JSON.parse(readFileSync(join(root, path), 'utf8')) as { name: string; version: string };
    return `${name}@${version}`;
  }));
  assert.ok(npm.size > 20);
  assert.deepEqual(named('npm'), [...npm].sort());

  // Packages of Debian: whose files are outside of ours.
  const debianFiles = paths.filter((path) => lstatSync(join(root, path)).isDirectory() === false && !path.startsWith(`${PREFIX}/`) && !path.startsWith('/var/') && !/^\/\w+$/.test(path));
  const owners = await ownersOf(debianFiles, debian);
  const orphans = debianFiles.filter((path) => !owners.has(path) && !GENERATED.includes(path) && !path.startsWith('/etc/alternatives/'));
  // A link that update-alternatives made is as good as what it leads to; Node of an official image is of no package.
  const unexplained = orphans.filter((path) => !isAlternative(root, path) && path !== '/usr/local/bin/node' && path !== '/etc/ssl/certs/ca-certificates.crt');
  assert.deepEqual(unexplained, [], 'files of no package');
  const packages = new Set([...owners.values(), (await installed(debian)).get('ca-certificates')!]);
  assert.deepEqual(named('deb'), [...packages].sort());
  assert.deepEqual(paths.filter((path) => path.startsWith('/var/lib/dpkg/status.d/')).map((path) => basename(path)), [...packages].map((each) => each.slice(0, each.lastIndexOf('@'))).sort());

  const envoy = await enterRoot(root, [`${PREFIX}/build/envoy/envoy`, '--version'], { user: USER_ID });
  const node = await enterRoot(root, ['node', '--version'], { user: USER_ID });
  const programs = named('github');
  assert.equal(programs.filter((each) => each.startsWith('envoy@') && envoy.stdout.includes(`/${each.slice('envoy@'.length)}/`)).length, 1, `${programs.join()} ${envoy.stdout}`);
  if (orphans.includes('/usr/local/bin/node')) assert.ok(programs.includes(`node@${node.stdout.trim().slice(1)}`));
  assert.equal(named('npm').length + named('deb').length + programs.length, bom.components.length, 'components of no known kind');

  // A licence text for each, and none for what is not there.
  const folders = [...named('npm').map((each) => `npm/${each}`), ...named('deb').map((each) => `debian/${each.slice(0, each.lastIndexOf('@'))}`), ...programs.map((each) => each.slice(0, each.indexOf('@'))), 'underpass', 'common-licenses'];
  const licences = paths.filter((path) => path.startsWith(`${PREFIX}/licenses/`) && lstatSync(join(root, path)).isFile());
  assert.deepEqual([...new Set(licences.map((path) => relative(`${PREFIX}/licenses`, dirname(path))))].sort(), folders.sort());
  assert.deepEqual(licences.filter((path) => lstatSync(join(root, path)).size < 40), []);
}

/** All paths below a folder; links are not followed, which readdir's own recursion does. */
function everythingBelow(root: string, folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? [path, ...everythingBelow(root, path)] : [path];
  });
}

/** Searches in pieces that overlap, so that a file of any size will do. */
function holdsPrivateKey(path: string): boolean {
  const file = openSync(path, 'r');
  try {
    const piece = Buffer.alloc(1 << 20);
    let tail = '';
    for (let read; (read = readSync(file, piece, 0, piece.length, null)) > 0; ) {
      const text = tail + piece.toString('latin1', 0, read);
      if (PRIVATE_KEY.test(text)) return true;
      tail = text.slice(-128);
    }
    return false;
  } finally {
    closeSync(file);
  }
}

/** `NAME@VERSION` of the package that has a file, as that Debian's dpkg says. */
async function ownersOf(files: readonly string[], debian: string): Promise<Map<string, string>> {
  const asked = files.flatMap((file) => [file, file.replace(/^\/usr\//, '/')]);
  const { stdout } = await run('dpkg-query', [`--root=${debian}`, '--search', ...asked], { okCodes: [0, 1], timeoutMs: 60_000 });
  const versions = await installed(debian);
  const owners = new Map<string, string>();
  for (const line of stdout.split('\n')) {
    const [, owner, path = ''] = /^(?!diversion )([^,]+?)(?::\w+)?(?:, .*)?: (\/.*)$/.exec(line) ?? [];
    if (owner === undefined) continue;
    for (const file of [path, `/usr${path}`]) if (files.includes(file)) owners.set(file, versions.get(owner)!);
  }
  return owners;
}

/** `NAME@VERSION` of each package by its name. */
async function installed(debian: string): Promise<Map<string, string>> {
  const { stdout } = await run('dpkg-query', [`--root=${debian}`, '--show', '--showformat', '${Package} ${Version}\n'], { timeoutMs: 60_000 });
  return new Map(stdout.trim().split('\n').map((line) => [line.split(' ')[0]!, line.replace(' ', '@')]));
}

function isAlternative(root: string, path: string): boolean {
  return lstatSync(join(root, path)).isSymbolicLink() && /^\/etc\/alternatives\//.test(readlinkSync(join(root, path)));
}

/** What the DaemonSet and the Deployments start. */
export async function checkStarts(root: string): Promise<void> {
  const { version } = JSON.parse(readFileSync(join(root, PREFIX, 'package.json'), 'utf8')) as { version: string };
  const as = async (user: number, command: readonly string[], env: Record<string, string> = {}): Promise<string> => {
    const { code, stdout, stderr } = await enterRoot(root, command, { user, env });
    assert.equal(code, 0, `${command.join(' ')} as ${user}: exit ${code}\n${stdout}${stderr}`);
    return stdout + stderr;
  };
  const underpass = `${PREFIX}/bin/underpass`;
  assert.equal((await as(USER_ID, [underpass, '--version'])).trim(), version);
  assert.match(await as(USER_ID, [underpass, 'agent', '--help']), /^Usage: underpass agent/);
  assert.match(await as(USER_ID, [underpass, 'pilot', '--help']), /^Usage: underpass pilot/);
  assert.match(await as(USER_ID, [`${PREFIX}/build/underpass-cni`], { CNI_COMMAND: 'VERSION' }), /"supportedVersions"/);
  assert.match(await as(0, [`${PREFIX}/build/underpass-launcher`, '--help']), /^usage: underpass-launcher/);
  await checkDoctor(root, underpass);
  await checkPilot(root, underpass);
}

async function checkDoctor(root: string, underpass: string): Promise<void> {
  const { code, stdout, stderr } = await enterRoot(root, [underpass, 'doctor', '--output', 'json'], { timeoutMs: 120_000 });
  assert.ok(code === 0 || code === 3, `doctor: exit ${code}\n${stdout}${stderr}`);
  const { rows } = JSON.parse(stdout) as { rows: { id: string; state: string; detail: string }[] };
  assert.ok(!rows.some(({ id }) => id === 'programs.lab'), 'doctor asks for what the lab needs');
  // What hangs on the image alone; the rest is the machine's.
  for (const id of ['programs.envoy', 'programs.addon', 'programs.exec', 'programs.node', 'network.iptables', 'network.ip6tables', 'network.nft', 'libbpf']) {
    const row = rows.find((each) => each.id === id);
    assert.equal(row?.state, 'yes', `${id}: ${row?.detail ?? 'no such row'}`);
  }
}

/** Pilot as a user who may write nowhere but in /tmp gets ready with a folder of configuration, and ends when told to. */
async function checkPilot(root: string, underpass: string): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'underpass-image-source-'));
  writeFileSync(join(folder, 'namespace.yaml'), 'apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n');
  await run('chmod', ['755', folder]);
  const [program, ...args] = enterCommand(root, [underpass, 'pilot', '--source', '/run/source', '--listen', 'unix:/tmp/pilot.sock', '--monitoring-listen', 'none'], { user: USER_ID, binds: { '/run/source': folder } });
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const exited = once(child, 'exit');
  let log = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (log += chunk.toString()));
  try {
    await waitFor('pilot to be ready', () => Promise.resolve(child.exitCode !== null ? assert.fail(log) : log.includes('"pilot is ready"') || undefined), { timeoutMs: 60_000, everyMs: 50 });
    child.kill('SIGTERM');
    assert.deepEqual(await exited, [0, null], log);
  } finally {
    child.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  }
}
